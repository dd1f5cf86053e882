"""Averages over tasks: plain, and corrected for chance, with intervals; macro-F1 and the line of a constant answer.

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

from tinyllm_bench.leaderboard.stats.arithmetic import ANY_RUN, THESE_STUDENTS
from tinyllm_bench.leaderboard.stats.intervals import Estimate, Spread, estimate

UNPARSED = -1
DRAWS = 2000
_TOGETHER = 16  # rows


class ConstantAnswer(NamedTuple):
    """What always giving the most frequent gold label of the scored questions is worth."""

    label: int
    accuracy: float
    macro_f1: float


def macro_average(tasks: Sequence[Estimate], chances: Sequence[float] | None = None) -> Estimate:
    """The unweighted mean of one estimate per task: all accuracies, or all differences.

    mean = sum_t w_t value_t with w_t = 1 / T; V = sum_t w_t^2 se_t^2, df = V^2 / sum_t (w_t^2 se_t^2)^2 / df_t (Welch
    and Satterthwaite), a t interval within the possible values. With the tasks' chance levels the mean is
    chance-corrected, 0 at chance and 1 when all is right: w_t = 1 / (T (1 - chance_t)), and of accuracies
    sum_t w_t chance_t is taken away. A task about which nothing is known (df 0) makes the interval as wide as can be.
    Differences have a p.
    """
    levels = list(chances or [0.0] * len(tasks))
    weights = [1 / (len(tasks) * (1 - chance)) for chance in levels]
    differences = all(one.p is not None for one in tasks)
    base = 0.0 if differences else sum(w * chance for w, chance in zip(weights, levels, strict=True))
    bounds = (-sum(weights) if differences else -base, sum(weights) - base)
    method = "mean over tasks, two-way t" if chances is None else "chance-corrected mean over tasks, two-way t"
    made = estimate(_weighted(tasks, weights, base), bounds, method)
    return made if differences else made._replace(p=None)


def _weighted(tasks: Sequence[Estimate], weights: Sequence[float], base: float) -> Spread:
    value = sum(w * one.value for w, one in zip(weights, tasks, strict=True)) - base
    parts = [(w * one.se) ** 2 for w, one in zip(weights, tasks, strict=True)]
    total, df = sum(parts), 0.0
    if all(one.df > 0 for one in tasks):
        doubt = sum(part**2 / one.df for part, one in zip(parts, tasks, strict=True))
        df = total**2 / doubt if doubt else math.inf
    one_run = any(one.scope == THESE_STUDENTS for one in tasks)
    scope = THESE_STUDENTS if one_run else ANY_RUN
    return Spread(np.float64(value), np.float64(total), np.float64(df), np.float64(total), scope)


def macro_f1(gold: ArrayLike, answers: ArrayLike) -> float:
    """The unweighted mean of F1 over the labels that occur in `gold`, then over seeds.

    F1_l = 2 TP_l / (number of answers l + number of golds l). `gold` (n,): label numbers from 0; `answers` (n, S):
    label numbers, `UNPARSED` where nothing could be read, which is a miss of the gold label and a claim of none.
    """
    wanted, given = np.asarray(gold), np.asarray(answers)
    return float(_Drawn(wanted, None).f1(given).mean())


class MacroF1:
    """`macro_f1` of the rows of one table, each with the percentile interval of the question x seed bootstrap.

    The questions are drawn once and serve every row. With S seeds the drawn variance of a seed mean is (S - 1) / S of
    what it should be, while the question x seed scatter is counted up to three times (Owen, "The pigeonhole bootstrap",
    Ann. Appl. Stat. 1, 2007): safe where questions dominate, too narrow where few runs that differ much do. A label
    that a draw neither holds nor is given counts in no mean of that draw.
    """

    def __init__(
        self, gold: ArrayLike, *, clusters: Sequence[Any] | None = None, draws: int = DRAWS, seed: int = 0
    ) -> None:
        self._seed = seed
        self._whole = _Drawn(np.asarray(gold), None)
        # How often each draw holds each question (draws, n); the questions of a cluster come together.
        n = len(self._whole.gold)
        codes = np.arange(n) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
        units = int(codes.max()) + 1
        drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=draws)
        counts = drawn[:, codes].astype(np.float32)
        self._drawn = _Drawn(self._whole.gold, counts)
        self._runs = lru_cache(self._shares)

    def _shares(self, seeds: int, fixed: bool) -> NDArray[np.float64]:
        """How much each run counts in each draw (draws, S); a fixed row's runs count alike in all."""
        draws, even = len(self._drawn.counts), np.full(seeds, 1 / seeds)
        if fixed or seeds == 1:
            return np.tile(even, (draws, 1))
        rng = np.random.default_rng([self._seed, 1])
        return np.asarray(rng.multinomial(seeds, even, size=draws) / seeds, dtype=np.float64)

    def interval(self, answers: ArrayLike, *, fixed: bool = False) -> Estimate:
        """`answers` (n, S) as in `macro_f1`; `fixed`: nothing was drawn to make the row."""
        return next(self.intervals([(np.asarray(answers), fixed)]))

    def intervals(self, rows: Iterable[tuple[NDArray[Any], bool]]) -> Iterator[Estimate]:
        """`interval` of many rows, several at a time: one product of large matrices takes less than many of small."""
        left = iter(rows)
        while block := list(islice(left, _TOGETHER)):
            given = np.concatenate([answers for answers, _ in block], axis=1)
            ends = np.cumsum([answers.shape[1] for answers, _ in block])[:-1]
            whole = np.split(self._whole.f1(given), ends, axis=1)
            drawn = np.split(self._drawn.f1(given), ends, axis=1)
            for value, draws, (_, fixed) in zip(whole, drawn, block, strict=True):
                yield self._estimate(float(value.mean()), draws, fixed)

    def _estimate(self, value: float, draws: NDArray[np.float64], fixed: bool) -> Estimate:
        seeds = draws.shape[1]
        found = (draws * self._runs(seeds, fixed)).sum(axis=1)
        low, high = np.percentile(found, [2.5, 97.5])
        return Estimate(
            value=value,
            low=float(low),
            high=float(high),
            p=None,
            se=float(found.std(ddof=1)),
            df=len(draws) - 1.0,
            method=f"question x seed bootstrap, {len(draws)} draws",
            scope=THESE_STUDENTS if seeds == 1 and not fixed else ANY_RUN,
        )


def constant_answer(gold: ArrayLike) -> ConstantAnswer:
    """The line that a constant answer reaches on these questions; the lowest label number wins a tie."""
    wanted = np.asarray(gold)
    labels, counts = np.unique(wanted, return_counts=True)
    label = int(labels[counts.argmax()])
    always = np.full((len(wanted), 1), label)
    return ConstantAnswer(label, float(counts.max() / len(wanted)), macro_f1(wanted, always))


class _Drawn:
    """Questions as they were drawn: `counts` (draws, n) say how often a draw holds each; None: each once, no draw.

    Sums of whole numbers below 2^24 are exact in single precision, in whatever order a processor adds them.
    """

    def __init__(self, gold: NDArray[Any], counts: NDArray[np.float32] | None) -> None:
        self.gold = gold
        self.counts = np.ones((1, len(gold)), dtype=np.float32) if counts is None else counts
        self.labels = []
        for label in np.unique(gold):
            own = np.flatnonzero(gold == label)
            mine = self.counts[:, own]
            self.labels.append((label, own, mine, mine.sum(axis=1, keepdims=True)))

    def f1(self, answers: NDArray[Any]) -> NDArray[np.float64]:
        """Macro-F1 per draw and seed (draws, S)."""
        total = np.zeros((len(self.counts), answers.shape[1]))
        seen = np.zeros_like(total)
        for label, own, mine, held in self.labels:
            claims = (answers == label).astype(np.float32)
            size = (self.counts @ claims + held).astype(np.float64)
            total += np.divide(2 * (mine @ claims[own]), size, out=np.zeros_like(size), where=size > 0)
            seen += size > 0
        return np.asarray(total / seen, dtype=np.float64)
