"""Holm, gains over the floor, rank intervals, the group tied with the best."""

from typing import Any

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from tinyllm_bench.leaderboard.stats.arithmetic import ANY_RUN, THESE_STUDENTS
from tinyllm_bench.leaderboard.stats.intervals import Row, difference, row_of
from tinyllm_bench.leaderboard.stats.multiple import all_pairs, gains, holm, standings


def right(share: float, *, seed: int, n: int = 1000, seeds: int = 5) -> Row:
    """Questions share their luck over rows, so that rows differ by their share and little else."""
    luck: Any = np.random.default_rng(0).random((n, 1))
    return row_of(luck + np.random.default_rng(seed).normal(0, 0.05, (n, seeds)) < share)


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.04: 3 * 0.01, 2 * 0.02, 1 * 0.04
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_holm_equals_statsmodels() -> None:
    p = np.random.default_rng(1).beta(0.3, 1, 25)
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])


def test_lifts_are_one_family() -> None:
    floor, good, same = right(0.6, seed=1), right(0.7, seed=2), right(0.6, seed=3)
    found = gains([good, same], floor)
    assert found[0].estimate == difference(good, floor)
    assert [one.is_clear for one in found] == [True, False]
    assert found[0].p_holm == pytest.approx(2 * (found[0].estimate.p or 0))


def test_standings() -> None:
    rows = [right(0.5, seed=1), right(0.7, seed=2), right(0.7, seed=3), right(0.6, seed=4)]
    found = standings(rows)
    assert [(one.best_rank, one.worst_rank, one.tied_with_best) for one in found] == [
        (4, 4, False),
        (1, 2, True),
        (1, 2, True),
        (3, 3, False),
    ]
    assert {one.scope for one in found} == {ANY_RUN}
    assert len(all_pairs(rows)) == 6


def test_one_row_and_equal_rows() -> None:
    assert standings([right(0.5, seed=1)])[0][:3] == (1, 1, True)
    assert [one[:3] for one in standings([right(0.5, seed=1)] * 3)] == [(1, 3, True)] * 3


def test_a_single_run_narrows_what_is_said() -> None:
    rows = [right(0.5, seed=1), right(0.7, seed=2, seeds=1)]
    assert standings(rows)[0].scope == standings(rows[1:])[0].scope == THESE_STUDENTS
