"""Exact tests by hand, by statsmodels and by brute force over sign patterns; Holm's correction."""

from itertools import product

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as oracle
from statsmodels.stats.multitest import multipletests

from tinyllm_bench.leaderboard.stats.significance import THESE_STUDENTS, holm, mcnemar, permutation


def test_mcnemar_by_hand() -> None:
    # 1 and 7: P(|B - 4| >= 3), B ~ Bin(8, 1/2): 2 * (1 + 8) / 256
    assert mcnemar(1, 7).p == pytest.approx(18 / 256)
    assert mcnemar(1, 7).statistic == -6 and mcnemar(1, 7).scope == THESE_STUDENTS


@pytest.mark.parametrize(("first", "second"), [(3, 12), (25, 25), (0, 1), (40, 61), (0, 30)])
def test_mcnemar_equals_statsmodels(first: int, second: int) -> None:
    assert mcnemar(first, second).p == pytest.approx(oracle([[10, first], [second, 10]], exact=True).pvalue)


def test_nothing_differs() -> None:
    assert mcnemar(0, 0).p == 1.0
    same = np.array([[1, 0], [0, 0], [1, 1]])
    assert permutation(same, same).p == 1.0


def test_one_run_each_is_mcnemar() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 2, (2, 200, 1))
    counts = [int(((a == x) & (b == 1 - x)).sum()) for x in (1, 0)]
    assert permutation(a, b).p == pytest.approx(mcnemar(*counts).p)


@pytest.mark.parametrize("clusters", [None, [0, 0, 1, 2, 3, 3, 4, 5, 6, 6]])
def test_every_sign_pattern(clusters: list[int] | None) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.random((10, 2)) < 0.8, rng.random((10, 3)) < 0.5
    d = a.mean(axis=1) - b.mean(axis=1)
    sums = np.bincount(clusters or range(10), weights=d)
    flipped = [abs(np.dot(signs, sums)) >= abs(d.sum()) - 1e-9 for signs in product((1, -1), repeat=len(sums))]
    found = permutation(a, b, clusters)
    assert found.p == pytest.approx(np.mean(flipped)) and found.statistic == pytest.approx(d.mean())


def test_a_large_table_is_quick_and_finite() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random((1165, 5)) < 0.7, rng.random((1165, 3)) < 0.6
    found = permutation(a, b)
    assert 0 <= found.p < 1e-6


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.04: 3 * 0.01, 2 * 0.02, 1 * 0.04
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_holm_equals_statsmodels() -> None:
    p = np.random.default_rng(1).beta(0.3, 1, 25)
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])
