"""Many comparisons in one table: Holm's correction, gains over the baseline, ranks, the group tied with the best."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from tinyllm_bench.leaderboard.stats.arithmetic import ANY_RUN, THESE_STUDENTS
from tinyllm_bench.leaderboard.stats.intervals import ALPHA, Estimate, Row, difference


class Compared(NamedTuple):
    """A difference and its p after Holm's correction within its family."""

    estimate: Estimate
    p_holm: float

    @property
    def is_clear(self) -> bool:
        """Whether the difference stands after the correction, at a family-wise level of 5 %."""
        return self.p_holm <= ALPHA


class Standing(NamedTuple):
    """Where a row may stand among the rows of its table, at a joint level of 95 %; rank 1 is best."""

    best_rank: int
    worst_rank: int
    tied_with_best: bool
    scope: str


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


def gains(rows: Sequence[Row], baseline: Row) -> list[Compared]:
    """Each row minus the baseline row, one family of tests.

    Only rows that share the baseline's student, data and budget belong into the family; a gain at another budget is no
    gain of the method.
    """
    return _corrected([difference(row, baseline) for row in rows])


def all_pairs(rows: Sequence[Row]) -> dict[tuple[int, int], Compared]:
    """Every difference row i minus row j with i < j, one family of k (k - 1) / 2 tests."""
    pairs = list(combinations(range(len(rows)), 2))
    return dict(zip(pairs, _corrected([difference(rows[i], rows[j]) for i, j in pairs]), strict=True))


def standings(rows: Sequence[Row]) -> list[Standing]:
    """Rank intervals and the group tied with the best, from all pairs with Holm's correction.

    A row's rank lies between 1 + (rows clearly better) and k - (rows clearly worse), jointly for all rows (the pairwise
    construction of Al Mohamad, Goeman, van Zwet, "Simultaneous confidence intervals for ranks with application to
    ranking institutions", Biometrics 78, 2022, there with Tukey's test). Tied with the best: not clearly worse than
    the row with the highest mean. Testing all pairs pays for having picked that row after seeing the results. Being
    tied is not an equivalence: two rows of the group need not be tied with each other.
    """
    pairs = all_pairs(rows)
    means = [float(row.mean) for row in rows]
    top = [index for index, mean in enumerate(means) if mean == max(means)]
    better: dict[int, set[int]] = {index: set() for index in range(len(rows))}
    for (i, j), found in pairs.items():
        if found.is_clear:
            low, high = (i, j) if found.estimate.value < 0 else (j, i)
            better[low].add(high)
    narrow = any(found.estimate.scope == THESE_STUDENTS for found in pairs.values())
    scope = THESE_STUDENTS if narrow or any(row.of_one_run for row in rows) else ANY_RUN
    return [
        Standing(
            1 + len(better[index]),
            len(rows) - sum(index in above for above in better.values()),
            not better[index].intersection(top),
            scope,
        )
        for index in range(len(rows))
    ]


def _corrected(found: Sequence[Estimate]) -> list[Compared]:
    adjusted = holm([1.0 if one.p is None else one.p for one in found])
    return [Compared(one, p) for one, p in zip(found, adjusted, strict=True)]
