"""Averages with intervals: over tasks, plain and corrected for chance; over labels (macro-F1); the constant answer.

Tasks are strata: every cell is trained on one task, so that runs of different tasks are independent. A student trained
on several tasks at once would need its runs resampled together, which nothing here does.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyllm_bench.leaderboard.stats.intervals import Estimate, Spread, t_interval
from tinyllm_bench.leaderboard.stats.significance import ANY_RUN, THESE_STUDENTS

UNPARSED = -1
DRAWS = 2000
_BLOCK = 16  # rows


class ConstantAnswer(NamedTuple):
    """The accuracy and macro-F1 of always giving the most frequent gold label of the scored questions."""

    label: int
    accuracy: float
    macro_f1: float


def macro_average(tasks: Sequence[Estimate], chances: Sequence[float] | None = None) -> Estimate:
    """The unweighted mean of one estimate per task: all accuracies, or all differences.

    mean = sum_t w_t value_t with w_t = 1 / T; V = sum_t w_t^2 se_t^2, df = V^2 / sum_t (w_t^2 se_t^2)^2 / df_t (Welch
    and Satterthwaite), a t interval within the possible values. With the tasks' chance levels the mean is
    chance-corrected, 0 at chance and 1 when all is right: w_t = 1 / (T (1 - chance_t)), and sum_t w_t chance_t is
    subtracted from accuracies. A task about which nothing is known (df 0) makes the interval as wide as possible.
    Differences have a p.
    """
    levels = list(chances or [0.0] * len(tasks))
    weights = [1 / (len(tasks) * (1 - chance)) for chance in levels]
    differences = all(task.p is not None for task in tasks)
    base = 0.0 if differences else sum(w * chance for w, chance in zip(weights, levels, strict=True))
    bounds = (-sum(weights) if differences else -base, sum(weights) - base)
    value = sum(w * task.value for w, task in zip(weights, tasks, strict=True)) - base
    variances = [(w * task.se) ** 2 for w, task in zip(weights, tasks, strict=True)]
    variance, df = sum(variances), 0.0
    if all(task.df > 0 for task in tasks):
        denominator = sum(part**2 / task.df for part, task in zip(variances, tasks, strict=True))
        df = variance**2 / denominator if denominator else math.inf
    scope = THESE_STUDENTS if any(task.scope == THESE_STUDENTS for task in tasks) else ANY_RUN
    mean = Spread(np.float64(value), np.float64(variance), np.float64(df), np.float64(variance), scope)
    method = "mean over tasks, two-way t" if chances is None else "chance-corrected mean over tasks, two-way t"
    estimate = t_interval(mean, bounds, method)
    return estimate if differences else estimate._replace(p=None)


def macro_f1(gold: ArrayLike, answers: ArrayLike) -> float:
    """The unweighted mean of F1 over the labels that occur in `gold`, averaged over seeds.

    F1_l = 2 TP_l / (number of answers l + number of golds l). `gold` (n,): label numbers from 0; `answers` (n, S):
    label numbers, `UNPARSED` where no answer could be parsed: a false negative of the gold label and no false positive.
    """
    return float(_Resampled(np.asarray(gold), None).f1(np.asarray(answers)).mean())


class MacroF1:
    """`macro_f1` of the rows of one table, each with the percentile interval of the question x seed bootstrap.

    The questions are resampled once, for all rows. With S seeds the bootstrap variance of a seed mean is (S - 1) / S of
    what it should be, while the question x seed scatter is counted up to three times (Owen, "The pigeonhole bootstrap",
    Ann. Appl. Stat. 1, 2007): safe where questions dominate, too narrow where few runs that differ much do. A label
    that a resample neither holds nor is answered with counts in no mean of that resample.
    """

    def __init__(
        self, gold: ArrayLike, *, clusters: Sequence[Any] | None = None, draws: int = DRAWS, seed: int = 0
    ) -> None:
        self._seed = seed
        self._whole = _Resampled(np.asarray(gold), None)
        # How often each resample holds each question (draws, n); the questions of a cluster are sampled together.
        n = len(self._whole.gold)
        codes = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
        units = int(codes.max()) + 1
        unit_counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)
        self._resampled = _Resampled(self._whole.gold, unit_counts[:, codes].astype(np.float32))
        self._seed_weights = lru_cache(self._sample_seed_weights)

    def _sample_seed_weights(self, seeds: int, fixed: bool) -> NDArray[np.float64]:
        """The weight of each run in each resample (draws, S); the same for all runs of a fixed row."""
        draws, even = len(self._resampled.counts), np.full(seeds, 1 / seeds)
        if fixed or seeds == 1:
            return np.tile(even, (draws, 1))
        rng = np.random.default_rng([self._seed, 1])
        return np.asarray(rng.multinomial(seeds, even, size=draws) / seeds, dtype=np.float64)

    def interval(self, answers: ArrayLike, *, fixed: bool = False) -> Estimate:
        """`answers` (n, S) as in `macro_f1`; `fixed`: nothing random made the row."""
        return next(self.intervals([(np.asarray(answers), fixed)]))

    def intervals(self, rows: Iterable[tuple[NDArray[Any], bool]]) -> Iterator[Estimate]:
        """`interval` of many rows, a block at a time: one product of large matrices is faster than many small ones."""
        remaining = iter(rows)
        while block := list(islice(remaining, _BLOCK)):
            given = np.concatenate([answers for answers, _ in block], axis=1)
            ends = np.cumsum([answers.shape[1] for answers, _ in block])[:-1]
            whole = np.split(self._whole.f1(given), ends, axis=1)
            resampled = np.split(self._resampled.f1(given), ends, axis=1)
            for value, per_seed, (_, fixed) in zip(whole, resampled, block, strict=True):
                seeds = per_seed.shape[1]
                means = (per_seed * self._seed_weights(seeds, fixed)).sum(axis=1)
                low, high = np.percentile(means, [2.5, 97.5])
                yield Estimate(
                    value=float(value.mean()),
                    low=float(low),
                    high=float(high),
                    p=None,
                    se=float(means.std(ddof=1)),
                    df=len(means) - 1.0,
                    method=f"question x seed bootstrap, {len(means)} draws",
                    scope=THESE_STUDENTS if seeds == 1 and not fixed else ANY_RUN,
                )


def constant_answer(gold: ArrayLike) -> ConstantAnswer:
    """The figures of the most frequent gold label on these questions; the lowest label number wins a tie."""
    labels, counts = np.unique(np.asarray(gold), return_counts=True)
    label = int(labels[counts.argmax()])
    n = int(counts.sum())
    return ConstantAnswer(label, float(counts.max() / n), macro_f1(gold, np.full((n, 1), label)))


class _Resampled:
    """Resampled questions: `counts` (draws, n) is how often a resample holds each; None: the questions themselves.

    Sums of whole numbers below 2^24 are exact in single precision, in whatever order a processor adds them.
    """

    def __init__(self, gold: NDArray[Any], counts: NDArray[np.float32] | None) -> None:
        self.gold = gold
        self.counts = np.ones((1, len(gold)), dtype=np.float32) if counts is None else counts
        self.labels = []
        for label in np.unique(gold):
            questions = np.flatnonzero(gold == label)
            counts_of_label = self.counts[:, questions]
            self.labels.append((label, questions, counts_of_label, counts_of_label.sum(axis=1, keepdims=True)))

    def f1(self, answers: NDArray[Any]) -> NDArray[np.float64]:
        """Macro-F1 per resample and seed (draws, S)."""
        total = np.zeros((len(self.counts), answers.shape[1]))
        labels_seen = np.zeros_like(total)
        for label, questions, counts_of_label, golds in self.labels:
            given = (answers == label).astype(np.float32)
            answers_and_golds = (self.counts @ given + golds).astype(np.float64)
            true_positives = counts_of_label @ given[questions]
            is_seen = answers_and_golds > 0
            total += np.divide(2 * true_positives, answers_and_golds, out=np.zeros_like(total), where=is_seen)
            labels_seen += is_seen
        return np.asarray(total / labels_seen, dtype=np.float64)
