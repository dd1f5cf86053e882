"""The questions of a section in one order, and what its runs answered to them, as arrays.

Runs of a section share a protocol, and so the same questions; they are aligned by their ids, whatever order each
record holds them in.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard.items import Questions
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.stats.averages import UNPARSED

Numbers = NDArray[np.integer[Any]]


def right(records: Sequence[RunRecord]) -> Numbers:
    """1 where a run was right (questions in the order of their ids, runs)."""
    return np.stack([np.frombuffer(one.items.marks, np.uint8)[_order(one.items.asked)] for one in records], axis=1)


def answers(records: Sequence[RunRecord]) -> Numbers:
    """The number of each run's answer, `UNPARSED` where none could be read (questions by id, runs)."""
    return np.stack([_ordered(record, _numbers(record.items.answers)) for record in records], axis=1)


def _numbers(answers: Sequence[Any]) -> Sequence[int]:
    if {*map(type, answers)} == {int}:
        return answers
    return [one if isinstance(one, int) else UNPARSED for one in answers]


def clusters(records: Sequence[RunRecord]) -> list[int] | None:
    """A number for each question, by id, the same for questions that share something; None where no record tells.

    A record that was made before these were kept stands beside others: the questions are the same.
    """
    return _told(records, "clusters")


def gold(records: Sequence[RunRecord]) -> Numbers | None:
    """The number of each question's right answer, by id; None where no record tells.

    Raises:
        UserError: two records tell different ones.
    """
    found = _told(records, "gold")
    return None if found is None else np.array(found, dtype=np.intp)


def _told(records: Sequence[RunRecord], field: str) -> list[int] | None:
    """What the records that have a field say about each question, by id."""
    first, known = None, None
    for record in records:
        if not getattr(record, field):
            continue
        found = _ordered(record, getattr(record, field)).tolist()
        if first is None or known is None:
            first, known = record, found
        elif found != known:
            raise UserError(
                f"{first.run_id} and {record.run_id} hold the same questions with different `{field}`; "
                "`tinyllm-bench verify` tells which one is wrong"
            )
    return known


def _ordered(record: RunRecord, values: Sequence[int]) -> Numbers:
    """One value an item, brought into the order of the ids."""
    return np.array(values, dtype=np.intp)[_order(record.items.asked)]


@lru_cache(maxsize=64)
def _order(asked: Questions) -> Numbers:
    """Runs of one protocol mostly hold their items in one order."""
    return np.array(sorted(range(len(asked.ids)), key=asked.ids.__getitem__), dtype=np.intp)
