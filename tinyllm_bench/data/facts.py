"""Facts of the public data that ship with the project: counts, content digests and id lists; never a row's text.

`tasks/digests.json` holds `{task: {split: {"rows", "digest"}}}`, `tasks/ids/<task>.json` holds `{split: [id, ...]}`
where `[first, last]` stands for a run of whole numbers. `scripts/write_facts.py` writes both from a release folder.
"""

import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

from tinyllm_bench.base import plugins
from tinyllm_bench.data.records import Split, TaskRecord
from tinyllm_bench.data.rows import records_digest


class SplitFacts(TypedDict):
    """The number of records of a split and their content digest."""

    rows: int
    digest: str


def facts_of(records: Sequence[TaskRecord]) -> SplitFacts:
    """The facts of records in memory."""
    return {"rows": len(records), "digest": records_digest(records)}


@functools.cache
def shipped_facts() -> dict[str, dict[Split, SplitFacts]]:
    """Counts and digests of every task with public data; a task from another package has none."""
    found: dict[str, dict[Split, SplitFacts]] = _read("digests.json")
    return found


@functools.cache
def shipped_ids(task: str) -> dict[Split, tuple[str, ...]]:
    """The data set's ids of every split, in the release's order; empty for a task without a list."""
    return {split: tuple(_expand(ids)) for split, ids in _read(f"ids/{task}.json").items()}


def _read(name: str) -> Any:
    file = plugins.folder("task").joinpath(name)
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _expand(ids: Iterable[str | list[int]]) -> Iterable[str]:
    for item in ids:
        if isinstance(item, str):
            yield item
        else:
            yield from map(str, range(item[0], item[1] + 1))
