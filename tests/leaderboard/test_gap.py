"""Gap recovered: Fieller's limits by their own definition, and n/a where there is no gap."""

import math

import numpy as np
import pytest

from tinyllm_bench.leaderboard.stats.arithmetic import THESE_STUDENTS
from tinyllm_bench.leaderboard.stats.gap import NOT_ABOVE, fieller, gap_recovered
from tinyllm_bench.leaderboard.stats.intervals import Row, contrast, row_of, t_quantile


def right(share: float, seed: int, *, n: int = 800, seeds: int = 5, fixed: bool = False) -> Row:
    easy = np.random.default_rng(0).beta(2, 2, (n, 1)) - 0.5
    return row_of(np.random.default_rng(seed).random((n, seeds)) < easy + share, fixed=fixed)


def test_fieller_by_hand() -> None:
    # n = 1, d = 2, variances 0.1 and 0.1, no covariance, t^2 = 4: (4 - 0.4) g^2 - 4 g + (1 - 0.4) = 0
    low, high = fieller(1, 2, (0.1, 0.0, 0.1), 4) or (0, 0)
    assert (low, high) == pytest.approx(((4 - math.sqrt(16 - 8.64)) / 7.2, (4 + math.sqrt(16 - 8.64)) / 7.2))
    assert fieller(1, 0.6, (0.1, 0.0, 0.1), 4) is None


def test_at_the_limits_the_contrast_is_just_significant() -> None:
    method, base, teacher = right(0.6, 1), right(0.5, 2), right(0.7, 3, seeds=1, fixed=True)
    found = gap_recovered(method, base, teacher)
    assert found.value == pytest.approx((method.mean - base.mean) / (teacher.mean - base.mean))
    assert found.low is not None and found.high is not None and found.low < found.value < found.high
    for g in (found.low, found.high):
        # method - base - g (teacher - base)
        edge = contrast([method, base, teacher], (1.0, g - 1.0, -g))
        assert abs(edge.value) / edge.se == pytest.approx(t_quantile(found.df))


def test_no_gap_no_ratio() -> None:
    base = right(0.5, 2)
    for teacher in (right(0.5, 4, seeds=1, fixed=True), right(0.3, 5, seeds=1, fixed=True), base):
        found = gap_recovered(right(0.6, 1), base, teacher)
        assert found.value is found.low is found.high is None and found.why_not == NOT_ABOVE


def test_more_than_all_of_a_gap_is_not_cut_and_one_run_says_so() -> None:
    found = gap_recovered(right(0.8, 1, seeds=1), right(0.5, 2), right(0.65, 3, seeds=1, fixed=True))
    assert found.value is not None and found.value > 1.5 and found.scope == THESE_STUDENTS


def test_one_question_has_no_gap() -> None:
    rows = [row_of(np.full((1, 3), value)) for value in (1, 0, 1)]
    assert gap_recovered(*rows).why_not == NOT_ABOVE
