"""The smallest detectable difference of a comparison: for finished results and for runs not yet made."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from tinyllm_bench.leaderboard.stats.intervals import SEED_DF_FACTOR, Estimate, summarise, t_quantile
from tinyllm_bench.leaderboard.stats.significance import ALPHA

POWER = 0.8


def detectable(estimate: Estimate, *, comparisons: int = 1) -> float:
    """The true difference that a comparison of this precision detects with 80 % power.

    MDD = (t_(1 - alpha / 2m, df) + t_(power, df)) * se for m comparisons (Bonferroni, Holm's first step); a share,
    1 at most, and 1 where nothing is known (df 0).
    """
    return _detectable(estimate.se, estimate.df, comparisons)


def planned_detectable(
    n: int, *, discordance: float, within: float = 0.0, seeds: int = 1, run_sd: float = 0.0, comparisons: int = 1
) -> float:
    """The same before the runs are made, for two rows of `seeds` runs each on `n` questions.

    V = (q_b - (1 - 1/S) q_w) / n + 2 run_sd^2 / S, with q_b the share of questions on which one run of each row
    differ in being right (`discordance`), q_w that of two runs of one row (`within`); the difference itself is left out
    of V, which is safe. df as in `intervals.spread` at these values. `run_sd` is a share: 0.02 is 2 points. One seed
    generalises to the two students only, and `run_sd` is not in it.
    """
    if n < 2:
        return 1.0
    if not 0 <= within <= discordance <= 1:
        raise ValueError(f"shares with within <= discordance are needed, not {within} and {discordance}")
    items = max((discordance - (1 - 1 / seeds) * within) / n, 2 / n**2)
    if seeds == 1:
        return _detectable(math.sqrt(items), n - 1, comparisons)
    runs, residual = run_sd**2 / seeds, within / 2 / (n * seeds)
    variance = items + 2 * runs
    denominator = items**2 / (n - 1)
    if runs:
        denominator += 2 * ((runs + residual) ** 2 + residual**2 / (n - 1)) / (seeds - 1)
    max_df = SEED_DF_FACTOR * 2 * (seeds - 1)
    return _detectable(math.sqrt(variance), min(variance**2 / denominator, max_df), comparisons)


def _detectable(se: float, df: float, comparisons: int) -> float:
    if df <= 0:
        return 1.0
    quantiles = float(t_quantile(df, ALPHA / comparisons)) + float(t_quantile(df, 2 * (1 - POWER)))
    return min(1.0, quantiles * se)


class Assumed(NamedTuple):
    """What a plan assumes about runs that are not made yet, as shares: `discordance`, `within` and `run_sd` as in
    `planned_detectable`. `runs` is the number of finished runs that they were estimated from, 0 for common values."""

    discordance: float = 0.25
    within: float = 0.15
    run_sd: float = 0.02
    runs: int = 0


def assumed_from(rows: Sequence[Sequence[Sequence[int]]]) -> Assumed:
    """The same estimated from finished rows on the same questions: per row its runs, each 0/1 per question in order.

    What the rows cannot show (without two runs of one row, or without two rows) keeps its common value.
    """
    usual, runs = Assumed(), sum(map(len, rows))
    pairs = [(a, b) for n, row in enumerate(rows) for other in rows[n + 1 :] for a in row for b in other]
    same = [(a, b) for row in rows for n, a in enumerate(row) for b in row[n + 1 :]]
    several = [summarise(list(zip(*row, strict=True))) for row in rows if len(row) > 1]
    variances = [max(float(row.seeds - row.residual), 0.0) * (row.seed_df + 1) for row in several]
    within = _differ(same) if same else usual.within
    discordance = _differ(pairs) if pairs else max(usual.discordance, within)
    run_sd = math.sqrt(math.fsum(variances) / len(variances)) if variances else usual.run_sd
    return Assumed(discordance, min(within, discordance), run_sd, runs)


def _differ(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> float:
    """Share of questions on which two runs differ in being right."""
    return math.fsum(sum(x != y for x, y in zip(a, b, strict=True)) / len(a) for a, b in pairs) / len(pairs)


def seeds_needed(
    n: int, difference: float, assumed: Assumed, *, comparisons: int = 1, max_seeds: int = 100
) -> int | None:
    """The fewest seeds of each row that detect a difference (a share); at least 2, because one seed generalises to
    these two students only. None where `max_seeds` are not enough: then more questions are needed.
    """
    for seeds in range(2, max_seeds + 1):
        if _with_seeds(n, seeds, assumed, comparisons) <= difference:
            return seeds
    return None


def questions_needed(seeds: int, difference: float, assumed: Assumed, *, comparisons: int = 1) -> int | None:
    """The fewest questions with which so many seeds detect a difference; None where a million are not enough."""
    low, high = 2, 2**20
    if _with_seeds(high, seeds, assumed, comparisons) > difference:
        return None
    while low < high:
        middle = (low + high) // 2
        if _with_seeds(middle, seeds, assumed, comparisons) <= difference:
            high = middle
        else:
            low = middle + 1
    return low


def _with_seeds(n: int, seeds: int, assumed: Assumed, comparisons: int) -> float:
    return planned_detectable(
        n,
        discordance=assumed.discordance,
        within=assumed.within,
        run_sd=assumed.run_sd,
        seeds=seeds,
        comparisons=comparisons,
    )
