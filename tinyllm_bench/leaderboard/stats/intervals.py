"""The two-way interval: means and differences over questions and seeds, with the test that belongs to them.

Letters: n questions, C clusters of questions that share a passage (C = n without clusters), S seeds of a row.
Accuracies are shares between 0 and 1, differences between -1 and 1; intervals are 95 %, tests two-sided.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyllm_bench.leaderboard.stats.arithmetic import ANY_RUN, THESE_STUDENTS, newcombe, wilson
from tinyllm_bench.leaderboard.stats.exact import mcnemar

Array = NDArray[np.float64]

ALPHA = 0.05
# Degrees of freedom that a comparison may claim for each one its seeds have; see `spread`.
SEED_DF_FACTOR = 3


class Row(NamedTuple):
    """What the statistics need of one row: its runs on the same questions, summarised by `row_of`.

    `item_means` (..., n): a question's share of right answers over the seeds. `seeds` (...): variance of the row's
    mean over seeds as the S run accuracies show it, s^2 / S. `residual` (...): what the question x run scatter alone
    puts into that variance. `seed_df`: S - 1; 0 where no seed variance can be known. `fixed`: nothing was drawn, so
    that another run gives the same answers. `clusters` (n,): numbers 0 to C - 1, or None.
    """

    item_means: Array
    seeds: Array
    residual: Array
    seed_df: int
    fixed: bool
    clusters: NDArray[np.intp] | None

    @property
    def mean(self) -> Array:
        """Accuracy over questions and seeds."""
        return self.item_means.mean(axis=-1)

    @property
    def of_one_run(self) -> bool:
        """Whether a trained row has a single run, so that how runs differ is unknown."""
        return not self.fixed and self.seed_df == 0


class Spread(NamedTuple):
    """A contrast of rows: value, its variance, degrees of freedom, the questions' part, and what it speaks about."""

    value: Array | np.float64
    variance: Array | np.float64
    df: Array | np.float64
    items: Array | np.float64
    scope: str


class Estimate(NamedTuple):
    """A value with its 95 % interval; all are finite, but for the `df` of a value that is known exactly.

    `p` tests the value 0 and is None where that is no question (an accuracy). `df` belongs to `se`. `scope` is
    `ANY_RUN` or `THESE_STUDENTS`: what the interval generalises to.
    """

    value: float
    low: float
    high: float
    p: float | None
    se: float
    df: float
    method: str
    scope: str


def row_of(right: ArrayLike, *, fixed: bool = False, clusters: Sequence[Any] | None = None) -> Row:
    """Summarise the runs of one row; leading axes are kept, so that a simulation can pass many tables at once.

    Args:
        right: 0/1, questions x seeds (..., n, S), the questions in the same order for every row of a table.
        fixed: nothing was drawn to make the row (an untrained student, a constant answer): its seed variance is 0.
        clusters: one id per question; questions with one id share a passage or a stem and are resampled together.

    With e_is = x_is - mean_i - mean_s + mean, and E_cs its sum over the questions of cluster c,
    residual = C / (C - 1) * S / (S - 1) * sum_cs E_cs^2 / (n S)^2; without clusters that is the mean square of the
    two-way table without replication, over n S.
    """
    x = np.asarray(right, dtype=np.float64)
    if x.ndim < 2 or 0 in x.shape[-2:]:
        raise ValueError(f"a row is questions x seeds with one of each at least, not {x.shape}")
    codes = _codes(clusters, x.shape[-2])
    item_means = x.mean(axis=-1)
    none = np.zeros(x.shape[:-2])
    n, seeds = x.shape[-2:]
    if fixed or seeds == 1:
        return Row(item_means, none, none, 0, fixed, codes)
    run_means = x.mean(axis=-2)
    left = x - item_means[..., None] - run_means[..., None, :] + run_means.mean(axis=-1)[..., None, None]
    sums = _cluster_sums(np.swapaxes(left, -1, -2), codes)
    correction = _unbiased(sums.shape[-1]) * seeds / (seeds - 1)
    residual = correction * np.square(sums).sum(axis=(-1, -2)) / (n * seeds) ** 2
    return Row(item_means, run_means.var(axis=-1, ddof=1) / seeds, residual, seeds - 1, fixed, codes)


def spread(rows: Sequence[Row], weights: Sequence[float]) -> Spread:
    """Value and two-way variance of sum_r w_r * accuracy_r; (1, -1) is a difference.

    V = v_items + sum_r w_r^2 * max(0, v_seeds(r) - residual(r)),  df by Satterthwaite:
    df = V^2 / (v_items^2 / (C - 1) + sum_r w_r^4 * (v_seeds(r)^2 + residual(r)^2 / (C - 1)) / f_r), f_r = S_r - 1,
    the second sum over the rows that add to V, and df at most 3 times the sum of all f_r. v_items is the variance of
    the per-question contrast over n, with the cluster sums as units when there are clusters, C / (C - 1) *
    sum_c (sum_(i in c) (d_i - d))^2 / n^2 (the CR1 estimator of a mean). Without clusters and floors V is that of a
    two-way random-effects table; with clusters see Cameron, Gelbach, Miller, "Robust inference with multiway
    clustering", J. Bus. Econ. Stat. 29 (2011).

    Two guards go beyond v_items + v_seeds(A) + v_seeds(B) - residual, floored at v_items. Few runs that agree by chance
    make that variance too small and its degrees of freedom too many at the same time. `benchmarks/coverage.py`
    prints both forms; the figures are family-wise errors in % after Holm without -> with the guards, 1,165 questions,
    run-to-run s.d. 2 points, 6,000 or more simulated tables each, aim at most 6.
    - The seed part is floored row by row, not in sum: a row that varies less than its residual tells nothing about
      another row. Two seeds a row: 9.0 -> 5.1.
    - Degrees of freedom are at most 3 for each one that the seeds have. Three seeds against a fixed row: 8.4 -> 1.3;
      three seeds where only the methods vary between runs: 8.0 -> 5.7; all pairs of six rows: 7.7 -> 5.8; five
      methods against a baseline, all with three seeds: 6.0 -> 5.4. With a bound of 4 two of these stay above 6.
    The price is power where runs do not vary: 500 questions, three seeds, 5 points: 87 -> 85 %, after Holm 64 -> 55 %.

    A trained row of one run has no known seed variance: then no row's is counted, and the result speaks of these
    trained students only. v_items is at least sum_r w_r^2 / n^2, what one question per row that only it gets right
    would give: equal rows get a short interval instead of none. With C = 1 nothing is known: the widest interval.
    Runs of two rows with the same seed are taken as independent; where they share luck, the interval is too wide.
    """
    n, codes = _common(rows)
    combined = np.asarray(sum(w * row.item_means for w, row in zip(weights, rows, strict=True)), dtype=np.float64)
    value = combined.mean(axis=-1)
    sums = _cluster_sums(combined - value[..., None], codes)
    units = sums.shape[-1]
    items = _unbiased(units) * np.square(sums).sum(axis=-1) / n**2
    items = np.maximum(items, sum(w * w for w in weights) / n**2)
    one_run = any(row.of_one_run for row in rows)
    varying = [] if one_run else [(w, row) for w, row in zip(weights, rows, strict=True) if w and row.seed_df]
    variance, doubt = items, items**2 / max(units - 1, 1)
    for weight, row in varying:
        excess = np.maximum(row.seeds - row.residual, 0.0)
        known = (row.seeds**2 + row.residual**2 / max(units - 1, 1)) / row.seed_df
        variance = variance + weight**2 * excess
        doubt = doubt + weight**4 * np.where(excess > 0, known, 0.0)
    most = SEED_DF_FACTOR * sum(row.seed_df for _, row in varying) if varying else units - 1
    df = np.minimum(variance**2 / doubt, most) if units > 1 else np.zeros_like(value)
    return Spread(value, variance, df, items, THESE_STUDENTS if one_run else ANY_RUN)


def contrast(rows: Sequence[Row], weights: Sequence[float]) -> Estimate:
    """A weighted sum of accuracies with its two-way t interval and test; see `spread`.

    The interval stays inside what the weights allow. With one cluster it is all of that, p is 1 and df 0.
    """
    found = spread(rows, weights)
    bounds = (sum(min(w, 0.0) for w in weights), sum(max(w, 0.0) for w in weights))
    return estimate(found, bounds, "two-way t")


def estimate(found: Spread, bounds: tuple[float, float], method: str) -> Estimate:
    """The t interval of a spread, cut at `bounds`, and its test against 0."""
    value, df, se = float(found.value), float(found.df), float(np.sqrt(found.variance))
    if df <= 0:
        return Estimate(value, *bounds, 1.0, bounds[1] - bounds[0], 0.0, method, found.scope)
    if se == 0:
        return Estimate(value, value, value, float(value == 0), se, df, method, found.scope)
    half = float(t_quantile(df)) * se
    low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    return Estimate(value, low, high, float(p_value(found)), se, df, method, found.scope)


def difference(first: Row, second: Row) -> Estimate:
    """Accuracy of `first` minus accuracy of `second`, the main comparison of a board; antisymmetric.

    Two-way t (`contrast`) in general. Where both rows are one run of 0/1 and the questions are not clustered:
    Newcombe's paired interval and the exact McNemar test, which keep their level at small n; the two are separate
    constructions and may disagree when p is close to 0.05.
    """
    found = contrast([first, second], (1.0, -1.0))
    if first.seed_df or second.seed_df or found.df < 1 or _is_clustered(first) or not _is_binary(first, second):
        return found
    a, b = first.item_means == 1, second.item_means == 1
    counts = [int(np.count_nonzero(cells)) for cells in (a & b, a & ~b, ~a & b, ~a & ~b)]
    limits = newcombe(*counts)
    p = mcnemar(counts[1], counts[2]).p
    return found._replace(low=limits.low, high=limits.high, p=p, method="Newcombe interval, exact McNemar p")


def accuracy(row: Row) -> Estimate:
    """A row's accuracy with its 95 % interval.

    One run (or a fixed row) without clusters: Wilson. Otherwise Wilson's score limits at the effective number of
    questions m = p (1 - p) / V and t instead of z, with V and df of `spread`; all right or all wrong: m = C. (The
    limits of Korn and Graubard's kind of design-based proportion; see Franco, Little, Louis, Slud, "Comparative
    study of confidence intervals for proportions in complex sample surveys", J. Surv. Stat. Methodol. 7, 2019.)
    """
    found = spread([row], (1.0,))
    value, df, se = float(found.value), float(found.df), float(np.sqrt(found.variance))
    if not _is_clustered(row) and not row.seed_df and _is_binary(row):
        n = row.item_means.shape[-1]
        low, high = wilson(int(row.item_means.sum()), n)
        return Estimate(value, low, high, None, se, max(n - 1.0, 0.0), "Wilson", found.scope)
    if df <= 0:
        return Estimate(value, 0.0, 1.0, None, 1.0, 0.0, "Wilson, two-way effective n", found.scope)
    limits = score_limits(found, _units(row))
    low, high = float(limits[0]), float(limits[1])
    return Estimate(value, low, high, None, se, df, "Wilson, two-way effective n", found.scope)


def exact_accuracy(value: float) -> Estimate:
    """An accuracy that is known without asking (a random guess): an interval of no width."""
    return Estimate(value, value, value, None, 0.0, math.inf, "exact", ANY_RUN)


def score_limits(found: Spread, units: int) -> tuple[Array, Array]:
    """Wilson's limits at the effective number of questions of a one-row spread; see `accuracy`."""
    p = found.value
    inside = p * (1 - p)
    m = np.where(inside > 0, inside / found.variance, units)
    q = t_quantile(found.df)
    centre = (p + q**2 / (2 * m)) / (1 + q**2 / m)
    half = q / (1 + q**2 / m) * np.sqrt(inside / m + q**2 / (4 * m**2))
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def t_quantile(df: ArrayLike, alpha: float = ALPHA) -> Array:
    """The two-sided critical value of Student's t: 1.96 for many degrees of freedom at alpha 0.05."""
    from scipy.special import stdtrit

    # What scipy.stats.t computes, without its checks of every argument: a large table asks for it thousands of times.
    return np.asarray(-stdtrit(df, alpha / 2), dtype=np.float64)


def p_value(found: Spread) -> Array:
    """Two-sided p of value 0 by Student's t."""
    from scipy.special import stdtr

    return np.asarray(2 * stdtr(found.df, -np.abs(found.value) / np.sqrt(found.variance)), dtype=np.float64)


def _common(rows: Sequence[Row]) -> tuple[int, NDArray[np.intp] | None]:
    """Number of questions and clusters, which all rows of a contrast must share."""
    first = rows[0]
    sizes = {row.item_means.shape[-1] for row in rows}
    if len(sizes) > 1:
        raise ValueError(f"rows of one comparison answer the same questions, not {sorted(sizes)} of them")
    for row in rows:
        if (row.clusters is None) != (first.clusters is None) or not np.array_equal(
            _or_empty(row.clusters), _or_empty(first.clusters)
        ):
            raise ValueError("rows of one comparison need the same clusters")
    return sizes.pop(), first.clusters


def _or_empty(codes: NDArray[np.intp] | None) -> NDArray[np.intp]:
    return np.zeros(0, dtype=np.intp) if codes is None else codes


def _codes(clusters: Sequence[Any] | None, n: int) -> NDArray[np.intp] | None:
    """Ids as numbers; None also where every question is a cluster of its own."""
    if clusters is None:
        return None
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} cluster ids for {n} questions")
    number: dict[Any, int] = {}
    codes = np.array([number.setdefault(one, len(number)) for one in clusters], dtype=np.intp)
    return codes if len(number) < n else None


def _cluster_sums(values: Array, codes: NDArray[np.intp] | None) -> Array:
    """(..., n) to (..., C)."""
    if codes is None:
        return values
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 1))
    return np.asarray(np.add.reduceat(values[..., order], starts, axis=-1), dtype=np.float64)


def _unbiased(units: int) -> float:
    return units / max(units - 1, 1)


def _units(row: Row) -> int:
    return row.item_means.shape[-1] if row.clusters is None else int(row.clusters.max()) + 1


def _is_clustered(row: Row) -> bool:
    return row.clusters is not None


def _is_binary(*rows: Row) -> bool:
    return all(bool(np.isin(row.item_means, (0.0, 1.0)).all()) for row in rows)
