"""The smallest difference that a comparison can see: for results at hand and for runs not yet made."""

import math

from tinyllm_bench.report.intervals import ALPHA, SEED_DF_FACTOR, Estimate, t_quantile

POWER = 0.8


def detectable(found: Estimate, *, comparisons: int = 1) -> float:
    """The true difference that a comparison of this precision finds with 80 % power.

    MDD = (t_(1 - alpha / 2m, df) + t_(power, df)) * se for m comparisons (Bonferroni, Holm's first step); a share,
    1 at most, and 1 where nothing is known (df 0).
    """
    return _detectable(found.se, found.df, comparisons)


def planned_detectable(
    n: int, *, discordance: float, within: float = 0.0, seeds: int = 1, run_sd: float = 0.0, comparisons: int = 1
) -> float:
    """The same before the runs are made, for two rows of `seeds` runs each on `n` questions.

    V = (q_b - (1 - 1/S) q_w) / n + 2 run_sd^2 / S, with q_b the share of questions on which one run of each row
    differ in being right (`discordance`), q_w that of two runs of one row (`within`); the difference itself is left out
    of V, which is safe. df as in `intervals.spread` at these values. `run_sd` is a share: 0.02 is 2 points. One seed
    speaks of the two students only, and `run_sd` is not in it.
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
    doubt = items**2 / (n - 1)
    if runs:
        doubt += 2 * ((runs + residual) ** 2 + residual**2 / (n - 1)) / (seeds - 1)
    most = SEED_DF_FACTOR * 2 * (seeds - 1)
    return _detectable(math.sqrt(variance), min(variance**2 / doubt, most), comparisons)


def _detectable(se: float, df: float, comparisons: int) -> float:
    if df <= 0:
        return 1.0
    finds = float(t_quantile(df, ALPHA / comparisons)) + float(t_quantile(df, 2 * (1 - POWER)))
    return min(1.0, finds * se)
