"""What the statistics say about a section's rows: intervals of accuracy, lifts with Holm's correction, ranks.

Rows of a section share a protocol, and so the same questions; runs are aligned by their ids.
"""

from collections.abc import Sequence

from tinyllm_bench.report import aligned, intervals
from tinyllm_bench.report.averages import ConstantAnswer, MacroF1, constant_answer
from tinyllm_bench.report.gap import Gap, gap_recovered
from tinyllm_bench.report.intervals import Estimate
from tinyllm_bench.report.multiple import Standing, holm, standings
from tinyllm_bench.report.power import detectable
from tinyllm_bench.report.rows import Lift, Row, floor_of

# Rows of a table that are ranked: all pairs of more would be too many tests to leave anything standing.
MOST_RANKED = 30


class Judge:
    """The statistics of one section's rows, each row summarised once.

    Raises:
        UserError: records that tell different things about one question.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._known: dict[str, intervals.Row] = {}
        records = [record for row in rows for record in row.records]
        self._clusters, self._gold = aligned.clusters(records), aligned.gold(records)
        self._f1 = None if self._gold is None else MacroF1(self._gold, clusters=self._clusters)

    def of(self, row: Row) -> intervals.Row:
        """The row's runs as the statistics need them: right or wrong, questions (by id) x seeds."""
        if row.key not in self._known:
            right = aligned.right(row.records)
            self._known[row.key] = intervals.row_of(right, fixed=row.is_anchor, clusters=self._clusters)
        return self._known[row.key]

    def accuracy(self, row: Row) -> Estimate | None:
        """The row's accuracy with its interval; None where it could not be measured."""
        if row.first.expected_accuracy is not None:
            return intervals.exact_accuracy(row.first.expected_accuracy)
        if row.accuracy is None or row.first.score is None:
            return None
        return intervals.accuracy(self.of(row))

    def macro_f1(self, row: Row) -> Estimate | None:
        """The row's macro-F1 with its interval; None where the section's questions do not share their answers, or
        where nothing was asked: one draw of a guess says little about guessing."""
        if self._f1 is None or not row.first.items or row.first.expected_accuracy is not None:
            return None
        return self._f1.interval(aligned.answers(row.records), fixed=row.is_anchor)

    def constant(self) -> ConstantAnswer | None:
        """What always giving the most frequent right answer is worth; None where questions do not share theirs."""
        return None if self._gold is None else constant_answer(self._gold)

    def lifts(self, floor: str) -> list[Lift]:
        """Every row against its floor row, one family of tests for the table."""
        found = [self._lift(row, floor) for row in self._rows]
        tested = [number for number, lift in enumerate(found) if lift.p is not None]
        corrected = holm([found[number].p or 0.0 for number in tested])
        for number, p in zip(tested, corrected, strict=True):
            found[number] = found[number]._replace(p_holm=p)
        return found

    def _lift(self, row: Row, floor: str) -> Lift:
        other = floor_of(row, self._rows, floor)
        if isinstance(other, str):
            return Lift(why_not=other)
        found = intervals.difference(self.of(row), self.of(other))
        seeds = min(len(row.records), len(other.records))
        return Lift(found.value, found.low, found.high, seeds, p=found.p, speaks_of=found.speaks_of, estimate=found)

    def gaps(self, floor: str) -> dict[str, Gap]:
        """By key, how much of the way from its floor row to its teacher a row covers; empty without measured teachers.

        Of a row's several teachers, and of the ways they were asked, the one with the highest accuracy counts.
        """
        asked = [row for row in self._rows if row.is_anchor and row.student and row.first.items]
        found = {}
        for row in self._rows:
            base = floor_of(row, self._rows, floor)
            own = {teacher.spec for teacher in row.first.teachers}
            teachers = [self.of(one) for one in asked if one.student in own]
            if teachers and not isinstance(base, str):
                best = max(teachers, key=lambda one: float(one.mean))
                found[row.key] = gap_recovered(self.of(row), self.of(base), best)
        return found

    def ranks(self) -> dict[str, Standing]:
        """By key of each trained row, where it may stand among them; empty where there are too few or too many."""
        trained = [row for row in self._rows if not row.is_anchor and row.accuracy is not None]
        if not 1 < len(trained) <= MOST_RANKED:
            return {}
        found = standings([self.of(row) for row in trained])
        return {row.key: standing for row, standing in zip(trained, found, strict=True)}


def smallest_difference(lifts: Sequence[Lift]) -> float | None:
    """The difference that the table's typical comparison finds with 80 % power after correction: the median."""
    found = [lift.estimate for lift in lifts if lift.estimate is not None]
    sizes = sorted(detectable(one, comparisons=len(found)) for one in found)
    return sizes[len(sizes) // 2] if sizes else None
