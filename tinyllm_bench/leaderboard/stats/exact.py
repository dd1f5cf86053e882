"""Exact tests over questions alone: they speak of the trained students at hand, not of their methods.

A board shows them labelled so. When runs of a method vary by 2 points, an item-only test calls a true null
significant in 13 to 18 % of the cases; `intervals.difference` is the test of methods.
"""

from collections.abc import Sequence
from math import lcm
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyllm_bench.leaderboard.stats.arithmetic import THESE_STUDENTS


class ExactTest(NamedTuple):
    """A two-sided p; `statistic` in the test's own unit."""

    p: float
    statistic: float
    method: str
    scope: str = THESE_STUDENTS


def mcnemar(only_first: int, only_second: int) -> ExactTest:
    """Exact McNemar test from the counts of questions that only one of two students gets right.

    p = P(|B - m/2| >= |only_first - m/2|), B ~ Binomial(m, 1/2), m both counts together; 1 when m is 0. The statistic
    is the difference of the counts.
    """
    from scipy.stats import binomtest

    total = only_first + only_second
    p = float(binomtest(only_first, total, 0.5).pvalue) if total else 1.0
    return ExactTest(p, float(only_first - only_second), "exact McNemar")


def permutation(first: ArrayLike, second: ArrayLike, clusters: Sequence[Any] | None = None) -> ExactTest:
    """Exact sign-flip test of the per-question difference of means over seeds (questions x seeds each, 0/1).

    Under the null the two rows may change places in every question (in every cluster together), whatever else: the
    difference D = mean_i d_i is set against all 2^C sign patterns, p = P(|sum_c +-d_c| >= |sum_c d_c|). The d_c are
    multiples of 1/lcm(S_A, S_B), so that the distribution is counted, not sampled. One run each: McNemar.
    """
    a, b = np.asarray(first), np.asarray(second)
    common = lcm(a.shape[1], b.shape[1])
    steps = a.sum(axis=1) * (common // a.shape[1]) - b.sum(axis=1) * (common // b.shape[1])
    steps = steps.astype(np.int64)
    if clusters is not None:
        _, codes = np.unique(np.asarray(clusters), return_inverse=True)
        steps = np.bincount(codes, weights=steps).astype(np.int64)
    total = int(steps.sum())
    chances = _sign_flips(np.abs(steps))
    sums = np.arange(len(chances)) - len(chances) // 2
    p = float(min(1.0, chances[np.abs(sums) >= abs(total)].sum()))
    return ExactTest(p, total / common / len(a), "exact permutation")


def _sign_flips(sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The distribution of sum +-size over fair signs, at -sum(sizes), ..., sum(sizes)."""
    from scipy.signal import convolve
    from scipy.stats import binom

    found = np.ones(1)
    for size, count in zip(*np.unique(sizes[sizes > 0], return_counts=True), strict=True):
        one = np.zeros(2 * size * count + 1)
        one[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        found = np.maximum(convolve(found, one, method="auto"), 0.0)
    return np.asarray(found, dtype=np.float64)
