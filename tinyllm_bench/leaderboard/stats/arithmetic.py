"""The arithmetic of a table: intervals of one run and of a paired difference, a plain summary of several seeds.

Everything is a share between 0 and 1 (differences: -1 to 1); tables print them as per cent and points.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

# What an interval or a test generalises to.
ANY_RUN = "new runs and new questions of this kind"
THESE_STUDENTS = "for these trained students only"


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two accuracies and its 95 % interval."""

    value: float
    low: float
    high: float


class OverSeeds(NamedTuple):
    """Several seeds, nothing pooled: mean, smallest, largest, how many."""

    mean: float
    low: float
    high: float
    seeds: int


def wilson(correct: int, n: int) -> Interval:
    """The 95 % Wilson score interval of `correct` out of `n`: for a single run, never for a mean over seeds.

    The limits p of (correct / n - p)^2 = z^2 p (1 - p) / n. `scipy.stats.binomtest` gives the same ones, but works out
    an exact test first, which a board of thousands of runs pays for with seconds.
    """
    from scipy.special import ndtri

    if not 0 <= correct <= n or n < 1:
        raise ValueError(f"{correct} of {n} is no share")
    z, p = float(ndtri(0.975)), correct / n
    whole = 2 * (n + z**2)
    centre = (2 * n * p + z**2) / whole
    half = z / whole * math.sqrt(4 * n * p * (1 - p) + z**2)
    return Interval(0.0 if correct == 0 else centre - half, 1.0 if correct == n else centre + half)


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean and range of one value per seed."""
    return OverSeeds(math.fsum(values) / len(values), min(values), max(values), len(values))


def paired_difference(first: Sequence[int], second: Sequence[int]) -> Difference:
    """Accuracy of `first` minus accuracy of `second` on the same items, with Newcombe's paired 95 % interval.

    `first` and `second` hold 0/1 per item in the same order. The interval is method 10 of R. G. Newcombe,
    "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17 (1998): Wilson limits of both rows, joined through their correlation over the items.
    It speaks of these two trained students only: how results move between seeds is not in it.
    """
    pairs = list(zip(first, second, strict=True))
    both = sum(1 for a, b in pairs if a and b)
    only_first = sum(1 for a, b in pairs if a and not b)
    only_second = sum(1 for a, b in pairs if b and not a)
    return newcombe(both, only_first, only_second, len(pairs) - both - only_first - only_second)


def newcombe(both: int, only_first: int, only_second: int, neither: int) -> Difference:
    """`paired_difference` from the four counts of a paired table."""
    n = both + only_first + only_second + neither
    right = (both + only_first, both + only_second)
    (low_1, high_1), (low_2, high_2) = (wilson(count, n) for count in right)
    p_1, p_2 = (count / n for count in right)
    phi = _correlation(both, only_first, only_second, neither)
    value = (only_first - only_second) / n
    down = _joined(p_1 - low_1, high_2 - p_2, phi)
    up = _joined(high_1 - p_1, p_2 - low_2, phi)
    return Difference(value, value - down, value + up)


def _joined(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))


def _correlation(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Newcombe's phi, continuity-corrected towards zero when it is positive; 0 when a row is constant."""
    n = both + only_first + only_second + neither
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    product: float = both * neither - only_first * only_second
    if product > 0:
        product = max(0.0, product - n / 2)
    return product / math.sqrt(margins)
