"""The question x seed bootstrap: a check of the two-way interval, and the interval of averages and ratios.

Questions (clusters of them) and, for each trained row on its own, seeds are drawn with replacement; the same questions
serve every row of a draw, which keeps the pairing. Rows of one run keep it: the result then speaks of these students.
With S seeds the drawn variance of a seed mean is (S - 1) / S of what it should be, while the question x seed scatter
is counted up to three times (Owen, "The pigeonhole bootstrap", Ann. Appl. Stat. 1, 2007): safe where questions
dominate, too narrow where few runs that differ much dominate. So it is a check, not the main interval.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm_bench.leaderboard.stats.arithmetic import ANY_RUN, THESE_STUDENTS
from tinyllm_bench.leaderboard.stats.intervals import Estimate

DRAWS = 2000


class Runs(NamedTuple):
    """A row's answers, 0/1, questions x seeds; `fixed`: nothing was drawn to make it."""

    right: NDArray[Any]
    fixed: bool = False


class Stratum(NamedTuple):
    """The rows of one task with their weights in the sum, and its clusters; rows answer the same questions."""

    rows: Sequence[Runs]
    weights: Sequence[float]
    clusters: Sequence[Any] | None = None


def bootstrap(strata: Sequence[Stratum], *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """The percentile interval of sum_t sum_r w_tr * accuracy_tr, each stratum (task) resampled on its own.

    One stratum with weights (1, -1): the difference of two rows. T strata with weights (1/T, -1/T): the difference of
    macro averages; (1/(T (1 - chance_t)), ...): of chance-corrected ones.

    p = 2 (1 + draws on the rarer side of 0, zeros included) / (1 + draws), at most 1: its smallest value is
    2 / (1 + draws). The same seed gives the same result. `se` is the draws' standard deviation, `df` their number - 1.
    """
    rng = np.random.default_rng(seed)
    value = sum(
        w * float(np.asarray(row.right).mean()) for one in strata for w, row in zip(one.weights, one.rows, strict=True)
    )
    found = np.sum([_stratum_draws(one, draws, rng) for one in strata], axis=0)
    low, high = np.percentile(found, [2.5, 97.5])
    rarer = min(np.count_nonzero(found <= 0), np.count_nonzero(found >= 0))
    one_run = any(is_one_run(row) for one in strata for row in one.rows)
    return Estimate(
        value=value,
        low=float(low),
        high=float(high),
        p=min(1.0, 2 * (1 + int(rarer)) / (1 + draws)),
        se=float(found.std(ddof=1)),
        df=draws - 1.0,
        method=f"question x seed bootstrap, {draws} draws",
        speaks_of=THESE_STUDENTS if one_run else ANY_RUN,
    )


def is_one_run(row: Runs) -> bool:
    """Whether a trained row has a single run."""
    return not row.fixed and np.asarray(row.right).shape[1] == 1


def _stratum_draws(one: Stratum, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """`draws` values of the weighted sum of accuracies of one task."""
    shares = question_shares(len(one.rows[0].right), one.clusters, draws, rng)
    total = np.zeros(draws)
    for weight, row in zip(one.weights, one.rows, strict=True):
        right = np.asarray(row.right, dtype=np.float64)
        total += weight * (shares @ right * seed_shares(right.shape[1], row.fixed, draws, rng)).sum(axis=1)
    return total


def question_counts(
    n: int, clusters: Sequence[Any] | None, draws: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """How often each draw holds each question (draws, n); the questions of a cluster come together."""
    codes = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    units = int(codes.max()) + 1
    return rng.multinomial(units, np.full(units, 1 / units), size=draws)[:, codes].astype(np.float32)


def question_shares(
    n: int, clusters: Sequence[Any] | None, draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """How much each question counts in each draw (draws, n); a draw's shares add up to 1."""
    counts = question_counts(n, clusters, draws, rng).astype(np.float64)
    return np.asarray(counts / counts.sum(axis=1, keepdims=True), dtype=np.float64)


def seed_shares(seeds: int, fixed: bool, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """How much each run counts in each draw (draws, S); a fixed row's runs count alike in all."""
    even = np.full(seeds, 1 / seeds)
    if fixed or seeds == 1:
        return np.tile(even, (draws, 1))
    return np.asarray(rng.multinomial(seeds, even, size=draws) / seeds, dtype=np.float64)
