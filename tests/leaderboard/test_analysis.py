"""Questions in one order whatever order records hold them in; what records tell about questions is shared."""

import pytest

from tests.leaderboard.fakes import flags, make_fields, make_record
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard.analysis import answer_matrix, correctness_matrix, shared_clusters, shared_gold
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.stats.averages import UNPARSED


def turned(**changes: object) -> RunRecord:
    """A run of four questions whose record holds them in the opposite order."""
    fields = make_fields("m", [1, 1, 0, 0], n=4, unparsed=1, seed=1)
    fields["items"] = fields["items"][::-1]
    return RunRecord.model_validate(fields | changes)


def test_runs_are_aligned_by_ids() -> None:
    records = [make_record("m", [0, 1, 0, 1], n=4), turned()]
    assert correctness_matrix(records).tolist() == [[0, 1], [1, 1], [0, 0], [1, 0]]
    assert answer_matrix(records).tolist() == [[0, 0], [0, 0], [0, 0], [0, UNPARSED]]


def test_one_record_tells_about_the_questions_of_all() -> None:
    old, new = make_record("m", [1, 1, 0, 0], n=4), turned(clusters=[0, 0, 1, 2], gold=[1, 1, 0, 0])
    assert shared_clusters([old, new]) == [2, 1, 0, 0]
    assert shared_clusters([old]) is None and shared_gold([old]) is None
    gold = shared_gold([old, new])
    assert gold is not None and gold.tolist() == [0, 0, 1, 1]


def test_records_that_contradict_each_other_are_refused() -> None:
    first = make_record("m", flags(4, 2), n=4, gold=[0, 0, 1, 1])
    other = make_record("m", flags(4, 2), n=4, gold=[0, 0, 1, 2], seed=1)
    with pytest.raises(UserError, match=rf"{first.run_id} and {other.run_id} .* different `gold`"):
        shared_gold([first, other])
