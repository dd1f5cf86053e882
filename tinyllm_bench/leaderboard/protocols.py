"""Protocols side by side: which field keeps two rows out of one table."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard.record import PROTOCOL_FIELDS, RunRecord, protocol_difference

_MEANING = {
    "task": "another task",
    "version": "another version of the task",
    "scored_ids_digest": "other questions are scored",
    "n": "another number of questions",
    "mode": "answers are taken in another way",
    "prompt_digest": "the questions are put in other words, or options are shown otherwise",
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
    return [
        FieldDifference(
            name, first.protocol[name], second.protocol[name], _MEANING[name] + _shared(name, first, second)
        )
        for name in PROTOCOL_FIELDS
        if name in names
    ]


def _shared(name: str, first: RunRecord, second: RunRecord) -> str:
    if name == "prompt_digest" and first.protocol["scored_ids_digest"] != second.protocol["scored_ids_digest"]:
        return " (as it must be for other questions)"
    if name != "scored_ids_digest" or not first.items or not second.items:
        return ""
    own, other = ({record_id for record_id, _, _ in record.items} for record in (first, second))
    return f" ({len(own & other)} of {len(own)} and {len(other)} are the same)"


def check_same_protocol(first: RunRecord, second: RunRecord) -> None:
    """Refuse to compare records of two protocols.

    Raises:
        UserError: names the fields that differ.
    """
    if first.protocol_hash != second.protocol_hash:
        raise UserError(
            f"{first.run_id} and {second.run_id} cannot be compared: {told(first, second)}; "
            "run both under one protocol (`tinyllm-bench protocol diff` shows the fields)"
        )


def told(first: RunRecord, second: RunRecord) -> str:
    """In which fields two protocols differ, in one phrase."""
    fields = ", ".join(one.field for one in differences(first, second))
    return f"their protocols {first.protocol_hash[:12]} and {second.protocol_hash[:12]} differ in {fields}"


def foreign(record: RunRecord, known: Iterable[RunRecord]) -> str | None:
    """Why a record is foreign to those of its task and mode, in one phrase; None where its protocol is known.

    A record of a task and mode that stand there under no protocol yet is not foreign.
    """
    rivals = [one for one in known if (one.task, one.mode) == (record.task, record.mode)]
    if not rivals or any(one.protocol_hash == record.protocol_hash for one in rivals):
        return None
    nearest = min(rivals, key=lambda one: (len(differences(record, one)), one.run_id))
    fields = ", ".join(f"{one.field} ({one.first} here, {one.second} there)" for one in differences(record, nearest))
    return f"run {record.run_id} is of protocol {record.protocol_hash[:12]}, {nearest.run_id} on the board of " + (
        f"{nearest.protocol_hash[:12]}: they differ in {fields}"
    )


def diff_text(first: RunRecord, second: RunRecord, names: Sequence[str]) -> str:
    """The comparison of two protocols for a terminal."""
    found = differences(first, second)
    if not found:
        return f"same protocol {first.protocol_hash[:12]}: {names[0]} and {names[1]} may stand in one table"
    from tabulate import tabulate

    lines = [[one.field, _short(one.first), _short(one.second), one.meaning] for one in found]
    heads = ["field", f"A {first.protocol_hash[:12]}", f"B {second.protocol_hash[:12]}", "what it changes"]
    table = tabulate(lines, headers=heads, disable_numparse=True)
    return f"A {names[0]}\nB {names[1]}\n\n{table}\n\nother protocols: they may not stand in one table"


def _short(value: Any) -> str:
    text = str(value)
    is_digest = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:12] if is_digest else text
