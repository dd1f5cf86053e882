"""Intervals of a board: of one run, of rows over questions and seeds, of differences, gaps and ranks, with their tests.

Letters: n questions, C clusters of questions that share a passage (C = n without clusters), S seeds of a row.
Accuracies are shares between 0 and 1, differences between -1 and 1; intervals are 95 %, tests two-sided. Tables print
them as per cent and points.
"""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyllm_bench.leaderboard.stats.significance import ALPHA, ANY_RUN, THESE_STUDENTS, holm, mcnemar

Array = NDArray[np.float64]

# Degrees of freedom that a comparison may claim for each one its seeds have; see `spread`.
SEED_DF_FACTOR = 3


# --- one run and one pair of runs: closed forms -----------------------------------------------------------------------


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two accuracies and its 95 % interval."""

    value: float
    low: float
    high: float


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


def newcombe(both: int, only_first: int, only_second: int, neither: int) -> Difference:
    """Accuracy difference of two runs on the same items from their paired counts, with Newcombe's paired 95 % interval.

    `both` counts the items that both runs get right, `only_first` and `only_second` those that one does. The interval
    is method 10 of R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based
    on paired data", Statistics in Medicine 17 (1998): Wilson limits of both rows, joined through their correlation over
    the items. It generalises to these two trained students only: variance between seeds is not in it.
    """
    n = both + only_first + only_second + neither
    right = (both + only_first, both + only_second)
    (low_1, high_1), (low_2, high_2) = (wilson(count, n) for count in right)
    p_1, p_2 = (count / n for count in right)
    phi = _newcombe_phi(both, only_first, only_second, neither)
    value = (only_first - only_second) / n

    def joined(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    down, up = joined(p_1 - low_1, high_2 - p_2), joined(high_1 - p_1, p_2 - low_2)
    return Difference(value, value - down, value + up)


def _newcombe_phi(both: int, only_first: int, only_second: int, neither: int) -> float:
    """Newcombe's phi, continuity-corrected towards zero when it is positive; 0 when a row is constant."""
    n = both + only_first + only_second + neither
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    product: float = both * neither - only_first * only_second
    if product > 0:
        product = max(0.0, product - n / 2)
    return product / math.sqrt(margins)


# --- rows over questions and seeds ------------------------------------------------------------------------------------


class RowSummary(NamedTuple):
    """The runs of one row on the same questions, summarised by `summarise`.

    `item_means` (..., n): a question's share of right answers over the seeds. `seeds` (...): variance of the row's
    mean over seeds as the S run accuracies show it, s^2 / S. `residual` (...): what the question x run scatter alone
    puts into that variance. `seed_df`: S - 1; 0 where no seed variance can be known. `fixed`: nothing is random, so
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
    def units(self) -> int:
        """The number of clusters, C."""
        return self.item_means.shape[-1] if self.clusters is None else int(self.clusters.max()) + 1

    @property
    def of_one_run(self) -> bool:
        """Whether a trained row has a single run, so that how runs differ is unknown."""
        return not self.fixed and self.seed_df == 0


class Spread(NamedTuple):
    """A contrast of rows: value, its variance, degrees of freedom, the questions' part of the variance, and scope."""

    value: Array | np.float64
    variance: Array | np.float64
    df: Array | np.float64
    items: Array | np.float64
    scope: str


class Estimate(NamedTuple):
    """A value with its 95 % interval; all are finite, but for the `df` of a value that is known exactly.

    `p` tests the value 0 and is None where that is not tested (an accuracy). `df` belongs to `se`. `scope` is
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


def summarise(right: ArrayLike, *, fixed: bool = False, clusters: Sequence[Any] | None = None) -> RowSummary:
    """Summarise the runs of one row; leading axes are preserved, so that a simulation can pass many tables at once.

    Args:
        right: 0/1, questions x seeds (..., n, S), the questions in the same order for every row of a table.
        fixed: nothing random made the row (an untrained student, a constant answer): its seed variance is 0.
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
        return RowSummary(item_means, none, none, 0, fixed, codes)
    run_means = x.mean(axis=-2)
    left = x - item_means[..., None] - run_means[..., None, :] + run_means.mean(axis=-1)[..., None, None]
    sums = _cluster_sums(np.swapaxes(left, -1, -2), codes)
    correction = _cluster_correction(sums.shape[-1]) * seeds / (seeds - 1)
    residual = correction * np.square(sums).sum(axis=(-1, -2)) / (n * seeds) ** 2
    return RowSummary(item_means, run_means.var(axis=-1, ddof=1) / seeds, residual, seeds - 1, fixed, codes)


def spread(rows: Sequence[RowSummary], weights: Sequence[float]) -> Spread:
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
    - The seed part is floored row by row, not in sum: a row that varies less than its residual says nothing about
      another row. Two seeds a row: 9.0 -> 5.1.
    - Degrees of freedom are at most 3 for each one that the seeds have. Three seeds against a fixed row: 8.4 -> 1.3;
      three seeds where only the methods vary between runs: 8.0 -> 5.7; all pairs of six rows: 7.7 -> 5.8; five
      methods against a baseline, all with three seeds: 6.0 -> 5.4. With a bound of 4 two of these stay above 6.
    The price is power where runs do not vary: 500 questions, three seeds, 5 points: 87 -> 85 %, after Holm 64 -> 55 %.

    A trained row of one run has no known seed variance: then no row's is counted, and the result holds for these
    trained students only. v_items is at least sum_r w_r^2 / n^2, what one question per row that only it gets right
    would give: equal rows get a short interval instead of none. With C = 1 nothing is known: the widest interval.
    Runs of two rows with the same seed are taken as independent; where they share luck, the interval is too wide.
    """
    n, codes = _common(rows)
    combined = np.asarray(sum(w * row.item_means for w, row in zip(weights, rows, strict=True)), dtype=np.float64)
    value = combined.mean(axis=-1)
    sums = _cluster_sums(combined - value[..., None], codes)
    units = sums.shape[-1]
    items = _cluster_correction(units) * np.square(sums).sum(axis=-1) / n**2
    items = np.maximum(items, sum(w * w for w in weights) / n**2)
    one_run = any(row.of_one_run for row in rows)
    varying = [] if one_run else [(w, row) for w, row in zip(weights, rows, strict=True) if w and row.seed_df]
    variance, denominator = items, items**2 / max(units - 1, 1)  # of Satterthwaite's df
    for weight, row in varying:
        excess = np.maximum(row.seeds - row.residual, 0.0)
        known = (row.seeds**2 + row.residual**2 / max(units - 1, 1)) / row.seed_df
        variance = variance + weight**2 * excess
        denominator = denominator + weight**4 * np.where(excess > 0, known, 0.0)
    max_df = SEED_DF_FACTOR * sum(row.seed_df for _, row in varying) if varying else units - 1
    df = np.minimum(variance**2 / denominator, max_df) if units > 1 else np.zeros_like(value)
    return Spread(value, variance, df, items, THESE_STUDENTS if one_run else ANY_RUN)


def contrast(rows: Sequence[RowSummary], weights: Sequence[float]) -> Estimate:
    """A weighted sum of accuracies with its two-way t interval and test; see `spread`.

    The interval stays inside what the weights allow. With one cluster it is all of that, p is 1 and df 0.
    """
    combined = spread(rows, weights)
    bounds = (sum(min(w, 0.0) for w in weights), sum(max(w, 0.0) for w in weights))
    return t_interval(combined, bounds, "two-way t")


def t_interval(combined: Spread, bounds: tuple[float, float], method: str) -> Estimate:
    """The t interval of a spread, cut at `bounds`, and its test against 0."""
    value, df, se = float(combined.value), float(combined.df), float(np.sqrt(combined.variance))
    if df <= 0:
        return Estimate(value, *bounds, 1.0, bounds[1] - bounds[0], 0.0, method, combined.scope)
    if se == 0:
        return Estimate(value, value, value, float(value == 0), se, df, method, combined.scope)
    half = float(t_quantile(df)) * se
    low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    return Estimate(value, low, high, float(p_value(combined)), se, df, method, combined.scope)


def difference(first: RowSummary, second: RowSummary) -> Estimate:
    """Accuracy of `first` minus accuracy of `second`, the main comparison of a board; antisymmetric.

    Two-way t (`contrast`) in general. Where both rows are one run of 0/1 and the questions are not clustered:
    Newcombe's paired interval and the exact McNemar test, which keep their level at small n; the two are separate
    constructions and may disagree when p is close to 0.05.
    """
    two_way = contrast([first, second], (1.0, -1.0))
    one_run_each = not (first.seed_df or second.seed_df)
    if not one_run_each or two_way.df < 1 or first.clusters is not None or not _is_binary(first, second):
        return two_way
    a, b = first.item_means == 1, second.item_means == 1
    counts = [int(np.count_nonzero(cells)) for cells in (a & b, a & ~b, ~a & b, ~a & ~b)]
    limits = newcombe(*counts)
    p = mcnemar(counts[1], counts[2]).p
    return two_way._replace(low=limits.low, high=limits.high, p=p, method="Newcombe interval, exact McNemar p")


def accuracy(row: RowSummary) -> Estimate:
    """A row's accuracy with its 95 % interval.

    One run (or a fixed row) without clusters: Wilson. Otherwise Wilson's score limits at the effective number of
    questions m = p (1 - p) / V and t instead of z, with V and df of `spread`; all right or all wrong: m = C. (The
    limits of Korn and Graubard's kind of design-based proportion; see Franco, Little, Louis, Slud, "Comparative
    study of confidence intervals for proportions in complex sample surveys", J. Surv. Stat. Methodol. 7, 2019.)
    """
    own = spread([row], (1.0,))
    value, df, se = float(own.value), float(own.df), float(np.sqrt(own.variance))
    if row.clusters is None and not row.seed_df and _is_binary(row):
        n = row.item_means.shape[-1]
        low, high = wilson(int(row.item_means.sum()), n)
        return Estimate(value, low, high, None, se, max(n - 1.0, 0.0), "Wilson", own.scope)
    if df <= 0:
        return Estimate(value, 0.0, 1.0, None, 1.0, 0.0, "Wilson, two-way effective n", own.scope)
    limits = score_limits(own, row.units)
    low, high = float(limits[0]), float(limits[1])
    return Estimate(value, low, high, None, se, df, "Wilson, two-way effective n", own.scope)


def exact_accuracy(value: float) -> Estimate:
    """An accuracy that is known exactly (a random guess): an interval of no width."""
    return Estimate(value, value, value, None, 0.0, math.inf, "exact", ANY_RUN)


def score_limits(own: Spread, units: int) -> tuple[Array, Array]:
    """Wilson's limits at the effective number of questions of a one-row spread; see `accuracy`."""
    p = own.value
    inside = p * (1 - p)
    m = np.where(inside > 0, inside / own.variance, units)
    q = t_quantile(own.df)
    centre = (p + q**2 / (2 * m)) / (1 + q**2 / m)
    half = q / (1 + q**2 / m) * np.sqrt(inside / m + q**2 / (4 * m**2))
    return np.maximum(0.0, centre - half), np.minimum(1.0, centre + half)


def t_quantile(df: ArrayLike, alpha: float = ALPHA) -> Array:
    """The two-sided critical value of Student's t: 1.96 for many degrees of freedom at alpha 0.05."""
    from scipy.special import stdtrit

    # What scipy.stats.t computes, without its checks of every argument: a large table asks for it thousands of times.
    return np.asarray(-stdtrit(df, alpha / 2), dtype=np.float64)


def p_value(contrast: Spread) -> Array:
    """Two-sided p of value 0 by Student's t."""
    from scipy.special import stdtr

    return np.asarray(2 * stdtr(contrast.df, -np.abs(contrast.value) / np.sqrt(contrast.variance)), dtype=np.float64)


def _common(rows: Sequence[RowSummary]) -> tuple[int, NDArray[np.intp] | None]:
    """Number of questions and clusters, which all rows of a contrast must share."""
    first = rows[0]
    sizes = {row.item_means.shape[-1] for row in rows}
    if len(sizes) > 1:
        raise ValueError(f"rows of one comparison answer the same questions, not {sorted(sizes)} of them")
    for row in rows:
        if row.clusters is first.clusters:  # None in both, too
            continue
        if row.clusters is None or first.clusters is None or not np.array_equal(row.clusters, first.clusters):
            raise ValueError("rows of one comparison need the same clusters")
    return sizes.pop(), first.clusters


def _codes(clusters: Sequence[Any] | None, n: int) -> NDArray[np.intp] | None:
    """Ids as numbers; None also where every question is a cluster of its own."""
    if clusters is None:
        return None
    if len(clusters) != n:
        raise ValueError(f"{len(clusters)} cluster ids for {n} questions")
    number: dict[Any, int] = {}
    codes = np.array([number.setdefault(cluster, len(number)) for cluster in clusters], dtype=np.intp)
    return codes if len(number) < n else None


def _cluster_sums(values: Array, codes: NDArray[np.intp] | None) -> Array:
    """(..., n) to (..., C)."""
    if codes is None:
        return values
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(codes.max() + 1))
    return np.asarray(np.add.reduceat(values[..., order], starts, axis=-1), dtype=np.float64)


def _cluster_correction(units: int) -> float:
    return units / max(units - 1, 1)


def _is_binary(*rows: RowSummary) -> bool:
    return all(bool(np.isin(row.item_means, (0.0, 1.0)).all()) for row in rows)


# --- the gap to the teacher -------------------------------------------------------------------------------------------

NOT_ABOVE = "n/a: the teacher is not clearly above the base"


class GapRecovered(NamedTuple):
    """The share of a gap that was recovered, never cut at 0 or 1; `why_not` says why there is none.

    `df` belongs to the t value of the interval; `scope` as in `Estimate`.
    """

    value: float | None
    low: float | None
    high: float | None
    df: float
    scope: str
    why_not: str | None = None


def gap_recovered(method: RowSummary, base: RowSummary, teacher: RowSummary) -> GapRecovered:
    """(method - base) / (teacher - base), n/a unless the 95 % interval of teacher - base lies above 0.

    Fieller's interval: all g with (N - g D)^2 <= t^2 (s_NN - 2 g s_ND + g^2 s_DD), where N = method - base and
    D = teacher - base on the same questions, the s their two-way variances and covariance (`spread`), and
    t at the smaller degrees of freedom of the two. It is an interval exactly when D^2 > t^2 s_DD. E. C. Fieller,
    "Some problems in interval estimation", J. R. Statist. Soc. B 16 (1954).

    A teacher is no ceiling for students that see gold labels, so values above 1 are possible.
    """
    rows, up, wide = (method, base, teacher), (1.0, -1.0, 0.0), (0.0, -1.0, 1.0)
    n, d, both = (spread(rows, weights) for weights in (up, wide, (1.0, 0.0, -1.0)))
    df = float(min(n.df, d.df))
    if df <= 0 or d.value <= 0:
        return GapRecovered(None, None, None, df, d.scope, NOT_ABOVE)
    t2 = float(t_quantile(df)) ** 2
    s_nn, s_dd = float(n.variance), float(d.variance)
    # N - D = method - teacher, whose variance is s_NN + s_DD - 2 s_ND
    s_nd = (s_nn + s_dd - float(both.variance)) / 2
    limits = fieller(float(n.value), float(d.value), (s_nn, s_nd, s_dd), t2)
    if limits is None:
        return GapRecovered(None, None, None, df, d.scope, NOT_ABOVE)
    return GapRecovered(float(n.value / d.value), *limits, df, d.scope)


def fieller(n: float, d: float, s: Sequence[float], t2: float) -> tuple[float, float] | None:
    """Fieller's limits of n / d from the variances s = (s_nn, s_nd, s_dd) and t squared; None when unbounded."""
    s_nn, s_nd, s_dd = s
    a, b, c = d * d - t2 * s_dd, n * d - t2 * s_nd, n * n - t2 * s_nn
    if a <= 0:
        return None
    root = float(np.sqrt(max(0.0, b * b - a * c)))
    return (b - root) / a, (b + root) / a


# --- ranks ------------------------------------------------------------------------------------------------------------


class RankInterval(NamedTuple):
    """The ranks that a row may have in its table, at a joint level of 95 %; rank 1 is best."""

    best_rank: int
    worst_rank: int
    tied_with_best: bool
    scope: str


def rank_intervals(rows: Sequence[RowSummary]) -> list[RankInterval]:
    """Rank intervals and the group tied with the best, from all pairs with Holm's correction.

    A row's rank lies between 1 + (rows clearly better) and k - (rows clearly worse), jointly for all rows (the pairwise
    construction of Al Mohamad, Goeman, van Zwet, "Simultaneous confidence intervals for ranks with application to
    ranking institutions", Biometrics 78, 2022, there with Tukey's test). Tied with the best: not clearly worse than
    the row with the highest mean. Testing all pairs pays for having picked that row after seeing the results. Being
    tied is not an equivalence: two rows of the group need not be tied with each other.
    """
    pairs = list(combinations(range(len(rows)), 2))  # one family of k (k - 1) / 2 tests
    differences = [difference(rows[i], rows[j]) for i, j in pairs]
    corrected = holm([1.0 if pair.p is None else pair.p for pair in differences])
    means = [float(row.mean) for row in rows]
    top = [index for index, mean in enumerate(means) if mean == max(means)]
    clearly_better: dict[int, set[int]] = {index: set() for index in range(len(rows))}
    for (i, j), pair, p_holm in zip(pairs, differences, corrected, strict=True):
        if p_holm <= ALPHA:
            low, high = (i, j) if pair.value < 0 else (j, i)
            clearly_better[low].add(high)
    one_run = any(pair.scope == THESE_STUDENTS for pair in differences) or any(row.of_one_run for row in rows)
    return [
        RankInterval(
            1 + len(clearly_better[index]),
            len(rows) - sum(index in above for above in clearly_better.values()),
            not clearly_better[index].intersection(top),
            THESE_STUDENTS if one_run else ANY_RUN,
        )
        for index in range(len(rows))
    ]
