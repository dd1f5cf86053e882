"""Which runs are seeds of one row, and what a row is called beside others of the same label."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinyllm_bench.base.files import canonical_json, digest
from tinyllm_bench.leaderboard.record import RunRecord

_LONGEST_VALUE = 40
# Settings that say how fast a run goes and how safe it is from crashes, not what it learns.
_PACE = ("train.checkpoint_seconds", "train.gradient_checkpointing", "train.micro_batch_tokens", "eval.batch_size")
Facts = dict[str, Any]


def row_key(record: RunRecord) -> str:
    """Digest of all that makes two runs the same row: everything that decides a result but the seed."""
    spec = record.student.spec if record.student else None
    config = {key: value for key, value in _flat(record.config) if key not in _PACE}
    return digest({"label": record.label, "student": spec, "config": config, "facts": _facts(record)})


def student_digest(record: RunRecord) -> str | None:
    """Which weights stood at the start, before any cell that came first: a spec without its folder does not tell two
    students apart."""
    if record.student is None:
        return None
    start = record.student.base_digest or record.student.initial_digest
    return start if record.kind == "method" else record.student.digest


def row_labels(records: Sequence[RunRecord]) -> list[str]:
    """A label for each row, given its first run; rows of one label and student are told apart by what differs.

    The settings that differ are named first; where they do not suffice, other facts; at last the run's id.
    """
    labels = [record.label for record in records]
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[record.label, record.student.spec if record.student else ""].append(index)
    for group in groups.values():
        if len(group) > 1:
            for index, suffix in zip(group, _suffixes([records[i] for i in group]), strict=True):
                labels[index] += f" ({suffix})" if suffix else ""
    return labels


def _suffixes(records: Sequence[RunRecord]) -> list[str]:
    settings = [dict(_flat(record.config)) for record in records]
    found = _differences(settings)
    if len(set(found)) < len(found):
        found = _differences([_facts(record) | own for record, own in zip(records, settings, strict=True)])
    return [
        # The end of a run id is its digest; its beginning is the method's name.
        suffix if found.count(suffix) == 1 else ", ".join(filter(None, (suffix, record.run_id[-8:])))
        for record, suffix in zip(records, found, strict=True)
    ]


def _facts(record: RunRecord) -> Facts:
    """What decides a result and is not, or not surely, in the settings."""
    budget, backend, data = record.budget, record.backend, record.data
    facts: Facts = {
        "kind": record.kind,
        "name": record.name,
        "sample": record.sample,
        "student.initial_digest": student_digest(record),
        "teachers": [teacher.spec for teacher in record.teachers],
        "budget.asked_student_tokens": budget.asked_student_tokens if budget else None,
        "backend.name": backend.name if backend else None,
        "backend.dtype": backend.dtype if backend else None,
        "data.source": data.source,
        "data.train_ids_digest": data.train_ids_digest,
        "data.valid_ids_digest": data.valid_ids_digest,
    }
    facts |= {f"data.{split}": info.digest for split, info in data.splits.items()}
    for info in record.annotations:
        place = f"annotations.{info.teacher}.{info.kind}"
        facts |= {f"{place}.control": info.control, f"{place}.text_digest": info.text_digest}
    return facts


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an empty group is a value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differences(rows: Sequence[Facts]) -> list[str]:
    """Per row `key=value` of every key that differs.

    Where a whole group is there in some rows only (`student.lora`), its shortest key stands for it, unless those
    rows differ in the group anyway.
    """
    varied: list[str] = []
    groups: dict[tuple[str, tuple[bool, ...]], list[str]] = defaultdict(list)
    for key in sorted({key for row in rows for key in row}):
        there = tuple(key in row for row in rows)
        if len({canonical_json(row[key]) for row in rows if key in row}) > 1:
            varied.append(key)
        elif not all(there):
            groups[key.rpartition(".")[0], there].append(key)
    told = {(key.rpartition(".")[0], tuple(key in row for row in rows)) for key in varied}
    alone = [min(keys, key=len) for group, keys in groups.items() if group not in told]
    return [", ".join(f"{key}={_short(row[key])}" for key in sorted([*varied, *alone]) if key in row) for row in rows]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    text = " ".join(text.split())
    if re.fullmatch(r"[0-9a-f]{32,}", text):
        return text[:8]
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def slugs(heads: Sequence[RunRecord]) -> list[str]:
    """A file name for each section, told by one of its runs: task and reading, and the protocol where there are
    several."""
    short = [f"{head.task}-{head.reading}" for head in heads]
    return [
        name if short.count(name) == 1 else f"{name}-{head.protocol_hash[:12]}"
        for name, head in zip(short, heads, strict=True)
    ]
