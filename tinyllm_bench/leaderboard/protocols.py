"""Evaluation protocols side by side: the fields that keep two rows out of one table."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard.record import PROTOCOL_FIELDS, RunRecord, protocol_difference

_MEANING = {
    "task": "another task",
    "version": "another version of the task",
    "scored_ids_digest": "other questions are scored",
    "n": "another number of questions",
    "mode": "answers are obtained in another way",
    "prompt_digest": "the questions are worded differently, or the options shown differently",
    "parser_version": "written answers are read by another version of the parser",
    "metric": "another metric",
    "max_context_words": "passages are cut at another length",
}


class FieldDifference(NamedTuple):
    """A field of the protocol in which two rows differ; `meaning` says what that changes."""

    field: str
    first: Any
    second: Any
    meaning: str


def differences(first: RunRecord, second: RunRecord) -> list[FieldDifference]:
    """The fields in which the protocols of two records differ, in the order of the protocol."""
    names = set(protocol_difference(first.protocol, second.protocol))
    fields = []
    for name in (name for name in PROTOCOL_FIELDS if name in names):
        meaning = _MEANING[name]
        if name == "scored_ids_digest" and first.items and second.items:
            own, other = set(first.items.ids), set(second.items.ids)
            meaning += f" ({len(own & other)} of {len(own)} and {len(other)} are the same)"
        if name == "prompt_digest" and "scored_ids_digest" in names:
            meaning += " (as it must be for other questions)"
        fields.append(FieldDifference(name, first.protocol[name], second.protocol[name], meaning))
    return fields


def check_same_protocol(first: RunRecord, second: RunRecord) -> None:
    """Refuse to compare records of two protocols.

    Raises:
        UserError: names the fields that differ.
    """
    if first.protocol_hash != second.protocol_hash:
        raise UserError(
            f"{first.run_id} and {second.run_id} cannot be compared: {protocols_differ(first, second)}; "
            "run both under one protocol (`tinyllm-bench protocol diff` shows the fields)"
        )


def protocols_differ(first: RunRecord, second: RunRecord) -> str:
    """The fields in which two protocols differ, in one phrase."""
    fields = ", ".join(difference.field for difference in differences(first, second))
    return f"their protocols {first.protocol_hash[:12]} and {second.protocol_hash[:12]} differ in {fields}"


def foreign(record: RunRecord, known: Iterable[RunRecord]) -> str | None:
    """Why a record's protocol is new among those of its task and mode, in one phrase; None where it is known.

    The first record of a task and mode is not foreign.
    """
    rivals = [other for other in known if (other.task, other.mode) == (record.task, record.mode)]
    if not rivals or any(other.protocol_hash == record.protocol_hash for other in rivals):
        return None
    nearest = min(rivals, key=lambda other: (len(differences(record, other)), other.run_id))
    fields = ", ".join(f"{field} ({own} here, {other} there)" for field, own, other, _ in differences(record, nearest))
    return f"run {record.run_id} is of protocol {record.protocol_hash[:12]}, {nearest.run_id} on the board of " + (
        f"{nearest.protocol_hash[:12]}: they differ in {fields}"
    )


def diff_text(first: RunRecord, second: RunRecord, names: Sequence[str]) -> str:
    """The comparison of two protocols for a terminal."""
    fields = differences(first, second)
    if not fields:
        return f"same protocol {first.protocol_hash[:12]}: {names[0]} and {names[1]} can share a table"
    from tabulate import tabulate

    def short(value: Any) -> str:
        text = str(value)
        is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
        return text[:12] if is_digest else text

    lines = [[field.field, short(field.first), short(field.second), field.meaning] for field in fields]
    heads = ["field", f"A {first.protocol_hash[:12]}", f"B {second.protocol_hash[:12]}", "what it changes"]
    table = tabulate(lines, headers=heads, disable_numparse=True)
    return f"A {names[0]}\nB {names[1]}\n\n{table}\n\nother protocols: they cannot share a table"
