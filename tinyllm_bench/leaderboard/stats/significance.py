"""Significance tests: exact tests over questions alone, and Holm's correction for many comparisons.

The exact tests generalise to these trained students only, not to their methods, and a board labels them so. When runs
of a method vary by 2 points, an item-only test calls a true null significant in 13 to 18 % of the cases;
`intervals.difference` is the test of methods.
"""

from collections.abc import Sequence
from math import lcm
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05
# What an interval or a test generalises to.
ANY_RUN = "new runs and new questions of this kind"
THESE_STUDENTS = "for these trained students only"


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
    probabilities = _sign_flip_distribution(np.abs(steps))
    sums = np.arange(len(probabilities)) - len(probabilities) // 2
    p = float(min(1.0, probabilities[np.abs(sums) >= abs(total)].sum()))
    return ExactTest(p, total / common / len(a), "exact permutation")


def _sign_flip_distribution(sizes: NDArray[np.int64]) -> NDArray[np.float64]:
    """The distribution of sum +-size over fair signs, at -sum(sizes), ..., sum(sizes)."""
    from scipy.signal import convolve
    from scipy.stats import binom

    distribution = np.ones(1)
    for size, count in zip(*np.unique(sizes[sizes > 0], return_counts=True), strict=True):
        of_size = np.zeros(2 * size * count + 1)  # the sum of `count` signs, in steps of twice the size
        of_size[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        distribution = np.maximum(convolve(distribution, of_size, method="auto"), 0.0)  # an FFT may leave -1e-20
    return np.asarray(distribution, dtype=np.float64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: with p_(1) <= ... <= p_(m), adjusted p_(k) = max_(j <= k) min(1, (m - j + 1) p_(j)).

    S. Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(order), 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted
