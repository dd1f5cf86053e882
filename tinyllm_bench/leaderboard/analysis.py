"""Statistics of one section of a board: intervals of accuracy, gains with Holm's correction, gaps to teachers, ranks.

Rows of a section share a protocol, and so the same questions. Runs are aligned by question ids, whatever order each
record holds them in.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard.record import QuestionIds, RunRecord
from tinyllm_bench.leaderboard.rows import BoardRow, Gain, baseline_of
from tinyllm_bench.leaderboard.stats import intervals
from tinyllm_bench.leaderboard.stats.averages import UNPARSED, ConstantAnswer, MacroF1, constant_answer
from tinyllm_bench.leaderboard.stats.intervals import Estimate, GapRecovered, RankInterval, RowSummary
from tinyllm_bench.leaderboard.stats.power import detectable
from tinyllm_bench.leaderboard.stats.significance import holm

# With more trained rows, all pairs would be too many tests for any difference to remain significant.
MAX_RANKED = 30
Integers = NDArray[np.integer[Any]]


class SectionAnalysis:
    """The statistics of one section's rows, each row summarised once.

    `accuracies` and `macro_f1` are by row key; rows without such a figure are left out. `constant` holds the figures of
    always giving the most frequent right answer, None where the questions do not share their options.

    Raises:
        UserError: records that contradict each other about a question.
    """

    def __init__(self, rows: Sequence[BoardRow]) -> None:
        self._rows = rows
        self._summaries: dict[str, RowSummary] = {}
        self._baselines: dict[str, dict[str, BoardRow | str]] = {}
        records = [record for row in rows for record in row.records]
        self._clusters, gold = shared_clusters(records), shared_gold(records)
        self.accuracies: dict[str, Estimate] = {}
        for row in rows:
            if row.first.expected_accuracy is not None:
                self.accuracies[row.key] = intervals.exact_accuracy(row.first.expected_accuracy)
            elif row.accuracy is not None and row.first.score is not None:
                self.accuracies[row.key] = intervals.accuracy(self.summary(row))
        self.macro_f1: dict[str, Estimate] = {}
        self.constant: ConstantAnswer | None = None
        if gold is not None:
            f1, self.constant = MacroF1(gold, clusters=self._clusters), constant_answer(gold)
            # A single sample of a guess says little about guessing.
            answered = [row for row in rows if row.first.items and row.first.expected_accuracy is None]
            estimates = f1.intervals((answer_matrix(row.records), row.is_reference) for row in answered)
            self.macro_f1 = dict(zip((row.key for row in answered), estimates, strict=True))

    def summary(self, row: BoardRow) -> RowSummary:
        """The row's runs as the statistics need them, over questions (by id) x seeds."""
        if row.key not in self._summaries:
            right = correctness_matrix(row.records)
            self._summaries[row.key] = intervals.summarise(right, fixed=row.is_reference, clusters=self._clusters)
        return self._summaries[row.key]

    def gains(self, baseline: str) -> list[Gain]:
        """Every row minus its baseline row, one family of tests for the table."""
        gains = []
        for row in self._rows:
            other = self._baseline(row, baseline)
            if isinstance(other, str):
                gains.append(Gain(why_not=other))
                continue
            estimate = intervals.difference(self.summary(row), self.summary(other))
            gains.append(
                Gain(
                    value=estimate.value,
                    low=estimate.low,
                    high=estimate.high,
                    seeds=min(len(row.records), len(other.records)),
                    p=estimate.p,
                    scope=estimate.scope,
                    estimate=estimate,
                )
            )
        tested = [number for number, gain in enumerate(gains) if gain.p is not None]
        corrected = holm([gains[number].p or 0.0 for number in tested])
        for number, p in zip(tested, corrected, strict=True):
            gains[number] = gains[number]._replace(p_holm=p)
        return gains

    def gaps(self, baseline: str) -> dict[str, GapRecovered]:
        """By row key, the share of the gap from its baseline to its teacher; empty without measured teachers.

        Of a row's several teachers, and of the ways they were evaluated, the one with the highest accuracy counts.
        """
        measured = [row for row in self._rows if row.is_reference and row.student and row.first.items]
        gaps = {}
        for row in self._rows:
            base = self._baseline(row, baseline)
            specs = {teacher.spec for teacher in row.first.teachers}
            teachers = [self.summary(reference) for reference in measured if reference.student in specs]
            if teachers and not isinstance(base, str):
                best = max(teachers, key=lambda teacher: float(teacher.mean))
                gaps[row.key] = intervals.gap_recovered(self.summary(row), self.summary(base), best)
        return gaps

    def _baseline(self, row: BoardRow, baseline: str) -> BoardRow | str:
        """`baseline_of`, computed once, from the baseline method's rows of the same student alone, which are few."""
        if baseline not in self._baselines:
            candidates = defaultdict(list)
            for other in self._rows:
                if not other.is_reference and other.first.name == baseline:
                    candidates[other.student].append(other)
            self._baselines[baseline] = {
                other.key: baseline_of(other, candidates[other.student], baseline) for other in self._rows
            }
        return self._baselines[baseline][row.key]

    def ranks(self) -> dict[str, RankInterval]:
        """By key of each trained row, its rank among them; empty where there are too few or too many."""
        trained = [row for row in self._rows if not row.is_reference and row.accuracy is not None]
        if not 1 < len(trained) <= MAX_RANKED:
            return {}
        ranks = intervals.rank_intervals([self.summary(row) for row in trained])
        return {row.key: rank for row, rank in zip(trained, ranks, strict=True)}


def smallest_difference(gains: Sequence[Gain]) -> float | None:
    """The difference that the table's typical comparison detects with 80 % power after correction: the median."""
    estimates = [gain.estimate for gain in gains if gain.estimate is not None]
    sizes = sorted(detectable(estimate, comparisons=len(estimates)) for estimate in estimates)
    return sizes[len(sizes) // 2] if sizes else None


# --- answers of several runs in one order of questions ----------------------------------------------------------------


def correctness_matrix(records: Sequence[RunRecord]) -> Integers:
    """1 where a run was right (questions in the order of their ids, runs)."""
    marks = [np.frombuffer(record.items.marks, np.uint8)[_order(record.items.questions)] for record in records]
    return np.stack(marks, axis=1)


def answer_matrix(records: Sequence[RunRecord]) -> Integers:
    """The number of each run's answer, `UNPARSED` where none could be parsed (questions by id, runs)."""
    columns = []
    for record in records:
        answers: Sequence[Any] = record.items.answers
        if {*map(type, answers)} != {int}:
            answers = [answer if isinstance(answer, int) else UNPARSED for answer in answers]
        columns.append(_ordered(record, answers))
    return np.stack(columns, axis=1)


def shared_clusters(records: Sequence[RunRecord]) -> list[int] | None:
    """A number for each question, by id, the same for questions that share something; None if no record has them.

    Records without the field may be in the same section: their questions are the same.
    """
    return _shared_field(records, "clusters")


def shared_gold(records: Sequence[RunRecord]) -> Integers | None:
    """The number of each question's right answer, by id; None if no record has them.

    Raises:
        UserError: two records differ.
    """
    gold = _shared_field(records, "gold")
    return None if gold is None else np.array(gold, dtype=np.intp)


def _shared_field(records: Sequence[RunRecord], field: str) -> list[int] | None:
    first, values = None, None
    for record in records:
        if not getattr(record, field):
            continue
        own = _ordered(record, getattr(record, field)).tolist()
        if first is None or values is None:
            first, values = record, own
        elif own != values:
            raise UserError(
                f"{first.run_id} and {record.run_id} hold the same questions with different `{field}`; "
                "`tinyllm-bench verify` shows which one is wrong"
            )
    return values


def _ordered(record: RunRecord, values: Sequence[int]) -> Integers:
    """One value an item, sorted by question id."""
    return np.array(values, dtype=np.intp)[_order(record.items.questions)]


@lru_cache(maxsize=64)
def _order(questions: QuestionIds) -> Integers:
    """Positions by question id; runs of one protocol mostly share their `QuestionIds`."""
    return np.array(sorted(range(len(questions.ids)), key=questions.ids.__getitem__), dtype=np.intp)
