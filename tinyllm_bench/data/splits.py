"""Facts and fixed subsets of a split: the same records on every machine, in every process, for every method.

Facts of the public data ship with the project: counts, content digests and lists of ids, never the text of a row.
`tasks/digests.json` holds `{task: {split: {"rows", "digest"}}}`, `tasks/ids/<task>.json` holds `{split: [id, ...]}`
where `[first, last]` stands for a range of whole numbers. `scripts/write_facts.py` writes both from a release folder.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from tinyllm_bench.base import plugins
from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import Split, TaskRecord


class SplitFacts(TypedDict):
    """The number of records of a split and their content digest."""

    rows: int
    digest: str


def split_facts(records: Sequence[TaskRecord]) -> SplitFacts:
    """The facts of records in memory."""
    return {"rows": len(records), "digest": records_digest(records)}


def records_digest(records: Iterable[TaskRecord]) -> str:
    """SHA-256 (hex) of the records' canonical JSON: id, context, question, and choices and answer or number."""
    contents: list[dict[str, Any]] = []
    for record in records:
        content = {"id": record.id, "context": record.context, "question": record.question}
        if record.number is not None:
            contents.append(content | {"number": record.gold_text})
        else:
            contents.append(content | {"choices": list(record.choices), "answer": record.answer})
    return digest(contents)


@functools.cache
def shipped_facts() -> dict[str, dict[Split, SplitFacts]]:
    """Counts and digests of every task with public data; a task from another package has none."""
    facts: dict[str, dict[Split, SplitFacts]] = _read("digests.json")
    return facts


@functools.cache
def shipped_ids(task: str) -> dict[Split, tuple[str, ...]]:
    """The data set's ids of every split, in the release's order; empty for a task without a list."""
    return {
        split: tuple(
            name
            for item in ids
            for name in ([item] if isinstance(item, str) else map(str, range(item[0], item[1] + 1)))
        )
        for split, ids in _read(f"ids/{task}.json").items()
    }


def _read(name: str) -> Any:
    file = plugins.folder("task").joinpath(name)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def stratified_subset(records: Sequence[TaskRecord], n: int, *, salt: str) -> tuple[TaskRecord, ...]:
    """`n` records in their original order, with the answer positions in the same proportion as in all records.

    Questions that ask for a number have no positions: they are one stratum. Within a stratum a hash of the salt and the
    record's id decides, so that no random state and no order of rows is involved. The strata's sizes are rounded by the
    largest remainder.

    Args:
        records: A whole split.
        n: The size; all records if there are not more.
        salt: Distinguishes subsets for different purposes, such as "test" and "validation".
    """
    if n < 0:
        raise ValueError(f"a subset cannot have {n} records")
    if n >= len(records):
        return tuple(records)
    strata: dict[int, list[TaskRecord]] = {}
    for record in records:
        strata.setdefault(record.answer, []).append(record)
    # Largest remainder in whole numbers; equal remainders go to the lower answer position.
    sizes = {answer: n * len(stratum) // len(records) for answer, stratum in strata.items()}
    by_remainder = sorted(strata, key=lambda answer: (-(n * len(strata[answer]) % len(records)), answer))
    for answer in by_remainder[: n - sum(sizes.values())]:
        sizes[answer] += 1
    chosen: set[str] = set()
    for answer, stratum in strata.items():
        ids = [record.id for record in stratum]
        ids.sort(key=lambda name: hashlib.sha256(f"{salt}\n{name}".encode()).hexdigest())
        chosen.update(ids[: sizes[answer]])
    return tuple(record for record in records if record.id in chosen)
