"""Two rows under one protocol, question by question: difference, interval, tests, effect size, agreement.

The main figure is `intervals.difference`: of methods where each side has several seeds, else of the trained students at
hand. Item-only tests stand beside it and always speak of these students.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyllm_bench.leaderboard.compare_sides import Found, Pair
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.rows import BUDGET_TOLERANCE, Row
from tinyllm_bench.leaderboard.stats.averages import macro_average
from tinyllm_bench.leaderboard.stats.exact import ExactTest, mcnemar, permutation
from tinyllm_bench.leaderboard.stats.intervals import Estimate, difference, row_of
from tinyllm_bench.leaderboard.stats.multiple import holm
from tinyllm_bench.leaderboard.stats.power import detectable

Answer = int | str | None


class Counts(NamedTuple):
    """Questions by who is right. With several seeds a question counts for the side with the larger share of right runs;
    `equal` are those without a larger one, of which `both_right` and `both_wrong` in every run of both sides.
    """

    first_better: int
    second_better: int
    equal: int
    both_right: int
    both_wrong: int


class Agreement(NamedTuple):
    """Shares of questions with the same answer: between a run of either side, and between two runs of one side."""

    between: float
    within_first: float | None
    within_second: float | None


class ItemDifference(NamedTuple):
    """A question that the sides answer differently: the answers by seed, and the share of right ones."""

    record_id: str
    first: tuple[Answer, ...]
    second: tuple[Answer, ...]
    first_right: float
    second_right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All that is told of one pair of rows; differences are first minus second, shares between -1 and 1.

    `p_holm` is corrected over the tasks of one call. `cohens_h` is 2 asin sqrt(p_A) - 2 asin sqrt(p_B). `mcnemar` has
    one test for each seed that both sides have. `detectable` is the difference that such a comparison finds with 80 %
    power.
    """

    first: Row
    second: Row
    estimate: Estimate
    p_holm: float
    cohens_h: float
    counts: Counts
    agreement: Agreement
    permutation: ExactTest
    mcnemar: tuple[tuple[int, ExactTest], ...]
    detectable: float
    notes: tuple[str, ...]

    @property
    def means(self) -> tuple[float, float]:
        """The accuracies of both sides, over their seeds."""
        first, second = self.first.accuracy, self.second.accuracy
        assert first and second, "rows without a score are refused before"
        return first.mean, second.mean


class Report(NamedTuple):
    """Every comparison of a call, their mean over tasks where there are several, and what was left out."""

    comparisons: tuple[Comparison, ...]
    mean: Estimate | None
    left_out: tuple[str, ...]


def compare(found: Found) -> Report:
    """Compare the pairs that `compare_sides.find_pairs` found; Holm's correction is over all of them."""
    estimates = [_estimate(pair) for pair in found.pairs]
    corrected = holm([1.0 if one.p is None else one.p for one in estimates])
    made = tuple(
        _comparison(pair, one, p, len(estimates))
        for pair, one, p in zip(found.pairs, estimates, corrected, strict=True)
    )
    tasks = [pair.first.first.task for pair in found.pairs]
    several = len(tasks) > 1 and len(set(tasks)) == len(tasks)
    return Report(made, macro_average(estimates) if several else None, found.left_out)


def _estimate(pair: Pair) -> Estimate:
    ids = ids_of(pair)
    clusters = clusters_of(pair)
    return difference(*(row_of(right_of(row, ids), fixed=row.is_reference, clusters=clusters) for row in pair))


def ids_of(pair: Pair) -> list[str]:
    """The questions of a pair, in the first row's order; a protocol fixes which they are."""
    return [record_id for record_id, _, _ in pair.first.first.items]


def clusters_of(pair: Pair) -> tuple[int, ...] | None:
    """Per question a number that questions with one passage or stem share; older records may not tell."""
    ids = ids_of(pair)
    for record in (pair.first.first, pair.second.first):
        if record.clusters:
            known = dict(zip((record_id for record_id, _, _ in record.items), record.clusters, strict=True))
            return tuple(known[record_id] for record_id in ids)
    return None


def right_of(row: Row, ids: Sequence[str]) -> NDArray[np.int64]:
    """0/1, questions x seeds."""
    return np.array([[flag for _, flag in _in_order(record, ids)] for record in row.records], dtype=np.int64).T


def _in_order(record: RunRecord, ids: Sequence[str]) -> Iterator[tuple[Answer, int]]:
    by_id = {record_id: (answer, int(flag)) for record_id, answer, flag in record.items}
    return (by_id[record_id] for record_id in ids)


def _comparison(pair: Pair, estimate: Estimate, p_holm: float, comparisons: int) -> Comparison:
    ids = ids_of(pair)
    first, second = (right_of(row, ids) for row in pair)
    return Comparison(
        first=pair.first,
        second=pair.second,
        estimate=estimate,
        p_holm=p_holm,
        cohens_h=cohens_h(float(first.mean()), float(second.mean())),
        counts=_counts(first, second),
        agreement=_agreement(pair, ids),
        permutation=permutation(first, second, clusters_of(pair)),
        mcnemar=tuple(_mcnemar(pair, ids)),
        detectable=detectable(estimate, comparisons=comparisons),
        notes=tuple(_notes(pair)),
    )


def cohens_h(first: float, second: float) -> float:
    """2 asin sqrt(p_A) - 2 asin sqrt(p_B), an effect size of two shares: 0.2 is called small, 0.5 medium, 0.8 large.

    J. Cohen, "Statistical power analysis for the behavioral sciences", 2nd ed. (1988), chapter 6.
    """
    return 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))


def _counts(first: NDArray[np.int64], second: NDArray[np.int64]) -> Counts:
    gap = first.mean(axis=1) - second.mean(axis=1)
    right = first.all(axis=1) & second.all(axis=1)
    wrong = ~(first.any(axis=1) | second.any(axis=1))
    found = ((gap > 0), (gap < 0), (gap == 0), right, wrong)
    return Counts(*(int(one.sum()) for one in found))


def _answers(record: RunRecord, ids: Sequence[str]) -> list[Answer]:
    return [answer for answer, _ in _in_order(record, ids)]


def _agreement(pair: Pair, ids: Sequence[str]) -> Agreement:
    first, second = ([_answers(record, ids) for record in row.records] for row in pair)
    between = [_same(a, b) for a in first for b in second]
    return Agreement(sum(between) / len(between), _within(first), _within(second))


def _within(runs: Sequence[Sequence[Answer]]) -> float | None:
    found = [_same(a, b) for number, a in enumerate(runs) for b in runs[:number]]
    return sum(found) / len(found) if found else None


def _same(first: Sequence[Answer], second: Sequence[Answer]) -> float:
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


def _mcnemar(pair: Pair, ids: Sequence[str]) -> Iterator[tuple[int, ExactTest]]:
    by_seed = {record.seed: record for record in pair.second.records}
    both = [(record, by_seed[record.seed]) for record in pair.first.records if record.seed in by_seed]
    if not both and len(pair.first.records) == len(pair.second.records) == 1:
        both = [(pair.first.first, pair.second.first)]
    for one, other in both:
        flags = list(zip((f for _, f in _in_order(one, ids)), (f for _, f in _in_order(other, ids)), strict=True))
        yield one.seed, mcnemar(sum(a > b for a, b in flags), sum(a < b for a, b in flags))


def _notes(pair: Pair) -> Iterator[str]:
    first, second = pair
    if {one.run_id for one in first.records} & {one.run_id for one in second.records}:
        yield "the same run stands on both sides"
    if first.first.sample:
        yield "made from this project's own sample questions: it shows that the machine runs, not which is better"
    trained = [row for row in pair if not row.is_reference]
    if any(len(row.records) == 1 for row in trained):
        yield "a trained side has one seed: how its runs vary is unknown, so nothing is said of its method"
    if len(trained) == 2:
        yield from _unequal(first, second)
    if first.student != second.student:
        yield f"the students differ: {first.student or 'none'} and {second.student or 'none'}"
    backends = [one.backend and (one.backend.name, one.backend.dtype) for one in (first.first, second.first)]
    if None not in backends and backends[0] != backends[1]:
        yield f"asked by other backends: {' '.join(backends[0] or ())} and {' '.join(backends[1] or ())}"
    for row in pair:
        if any(record.test_evaluations > 1 for record in row.records):
            yield f"{row.label}: more than one evaluation on the test split, which makes a number optimistic"
        if any(record.selected_on == "test" for record in row.records):
            yield f"{row.label}: weights were selected on the test split"


def _unequal(first: Row, second: Row) -> Iterator[str]:
    budgets = (first.first.budget, second.first.budget)
    asked = [(one.track, one.amount) if one and one.track in ("flops", "seconds") else None for one in budgets]
    if any(asked) and asked[0] != asked[1]:
        told = [
            f"{amount:g} {track}" if track else "student tokens" for track, amount in (one or ("", 0) for one in asked)
        ]
        yield f"other budgets: {' and '.join(told)}"
    elif not any(asked) and abs(first.tokens - second.tokens) > BUDGET_TOLERANCE * max(first.tokens, second.tokens):
        yield f"other budgets: {round(first.tokens):,} and {round(second.tokens):,} student tokens"
    if first.first.data.train_ids_digest != second.first.data.train_ids_digest:
        yield "trained on other questions"


def differing_items(one: Comparison) -> list[ItemDifference]:
    """The questions that the two sides answer differently, the largest gap in right answers first."""
    ids = ids_of(Pair(one.first, one.second))
    sides: list[Any] = []
    for row in (one.first, one.second):
        answers = zip(*(_answers(record, ids) for record in row.records), strict=True)
        sides.append(list(zip(answers, right_of(row, ids).mean(axis=1).tolist(), strict=True)))
    found = [
        ItemDifference(record_id, a, b, right_a, right_b)
        for record_id, (a, right_a), (b, right_b) in zip(ids, *sides, strict=True)
        if set(a) != set(b) or right_a != right_b
    ]
    return sorted(found, key=lambda item: -abs(item.first_right - item.second_right))
