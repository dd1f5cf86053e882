"""How much of the way from a base row to its teacher a method covers, with Fieller's interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tinyllm_bench.leaderboard.stats.intervals import Row, spread, t_quantile

NOT_ABOVE = "n/a: the teacher is not clearly above the base"


class Gap(NamedTuple):
    """Share of a gap that was recovered, never cut at 0 or 1; `why_not` says why there is none.

    `df` belongs to the t value of the interval; `scope` as in `Estimate`.
    """

    value: float | None
    low: float | None
    high: float | None
    df: float
    scope: str
    why_not: str | None = None


def gap_recovered(method: Row, base: Row, teacher: Row) -> Gap:
    """(method - base) / (teacher - base), n/a unless the 95 % interval of teacher - base lies above 0.

    Fieller's interval: all g with (N - g D)^2 <= t^2 (s_NN - 2 g s_ND + g^2 s_DD), where N = method - base and
    D = teacher - base on the same questions, the s their two-way variances and covariance (`intervals.spread`), and
    t at the smaller degrees of freedom of the two. It is an interval exactly when D^2 > t^2 s_DD. E. C. Fieller,
    "Some problems in interval estimation", J. R. Statist. Soc. B 16 (1954).

    A teacher is no ceiling for students that see gold labels, so values above 1 are possible and mean just that.
    """
    rows, up, wide = (method, base, teacher), (1.0, -1.0, 0.0), (0.0, -1.0, 1.0)
    n, d, both = (spread(rows, weights) for weights in (up, wide, (1.0, 0.0, -1.0)))
    df = float(min(n.df, d.df))
    if df <= 0 or d.value <= 0:
        return Gap(None, None, None, df, d.scope, NOT_ABOVE)
    t2 = float(t_quantile(df)) ** 2
    s_nn, s_dd = float(n.variance), float(d.variance)
    # N - D = method - teacher, whose variance is s_NN + s_DD - 2 s_ND
    s_nd = (s_nn + s_dd - float(both.variance)) / 2
    limits = fieller(float(n.value), float(d.value), (s_nn, s_nd, s_dd), t2)
    if limits is None:
        return Gap(None, None, None, df, d.scope, NOT_ABOVE)
    return Gap(float(n.value / d.value), *limits, df, d.scope)


def fieller(n: float, d: float, s: Sequence[float], t2: float) -> tuple[float, float] | None:
    """Fieller's limits of n / d from the variances s = (s_nn, s_nd, s_dd) and t squared; None when unbounded."""
    s_nn, s_nd, s_dd = s
    a, b, c = d * d - t2 * s_dd, n * d - t2 * s_nd, n * n - t2 * s_nn
    if a <= 0:
        return None
    root = float(np.sqrt(max(0.0, b * b - a * c)))
    return (b - root) / a, (b + root) / a
