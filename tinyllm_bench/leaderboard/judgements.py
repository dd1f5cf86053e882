"""What the statistics say about a section's rows: intervals of accuracy, lifts with Holm's correction, ranks.

Rows of a section share a protocol, and so the same questions; runs are aligned by their ids.
"""

from collections import defaultdict
from collections.abc import Sequence

from tinyllm_bench.leaderboard import aligned
from tinyllm_bench.leaderboard.rows import Lift, Row, floor_of
from tinyllm_bench.leaderboard.stats import intervals
from tinyllm_bench.leaderboard.stats.averages import ConstantAnswer, MacroF1, constant_answer
from tinyllm_bench.leaderboard.stats.gap import Gap, gap_recovered
from tinyllm_bench.leaderboard.stats.intervals import Estimate
from tinyllm_bench.leaderboard.stats.multiple import Standing, holm, standings
from tinyllm_bench.leaderboard.stats.power import detectable

# Rows of a table that are ranked: all pairs of more would be too many tests to leave anything standing.
MOST_RANKED = 30


class Judge:
    """The statistics of one section's rows, each row summarised once.

    `accuracies` and `macro_f1` are by row key; rows without such a figure are left out. `constant` is what always
    giving the most frequent right answer is worth, None where the questions do not share their answers.

    Raises:
        UserError: records that tell different things about one question.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._known: dict[str, intervals.Row] = {}
        self._floors: dict[str, dict[str, Row | str]] = {}
        records = [record for row in rows for record in row.records]
        self._clusters, gold = aligned.clusters(records), aligned.gold(records)
        self.accuracies = {row.key: found for row in rows if (found := self._accuracy(row)) is not None}
        self.macro_f1: dict[str, Estimate] = {}
        self.constant: ConstantAnswer | None = None
        if gold is not None:
            f1, self.constant = MacroF1(gold, clusters=self._clusters), constant_answer(gold)
            # One draw of a guess says little about guessing.
            asked = [row for row in rows if row.first.items and row.first.expected_accuracy is None]
            estimates = f1.intervals((aligned.answers(row.records), row.is_anchor) for row in asked)
            self.macro_f1 = dict(zip((row.key for row in asked), estimates, strict=True))

    def of(self, row: Row) -> intervals.Row:
        """The row's runs as the statistics need them: right or wrong, questions (by id) x seeds."""
        if row.key not in self._known:
            right = aligned.right(row.records)
            self._known[row.key] = intervals.row_of(right, fixed=row.is_anchor, clusters=self._clusters)
        return self._known[row.key]

    def _accuracy(self, row: Row) -> Estimate | None:
        if row.first.expected_accuracy is not None:
            return intervals.exact_accuracy(row.first.expected_accuracy)
        if row.accuracy is None or row.first.score is None:
            return None
        return intervals.accuracy(self.of(row))

    def lifts(self, floor: str) -> list[Lift]:
        """Every row against its floor row, one family of tests for the table."""
        found = [self._lift(row, floor) for row in self._rows]
        tested = [number for number, lift in enumerate(found) if lift.p is not None]
        corrected = holm([found[number].p or 0.0 for number in tested])
        for number, p in zip(tested, corrected, strict=True):
            found[number] = found[number]._replace(p_holm=p)
        return found

    def _lift(self, row: Row, floor: str) -> Lift:
        other = self._floor(row, floor)
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
            base = self._floor(row, floor)
            own = {teacher.spec for teacher in row.first.teachers}
            teachers = [self.of(one) for one in asked if one.student in own]
            if teachers and not isinstance(base, str):
                best = max(teachers, key=lambda one: float(one.mean))
                found[row.key] = gap_recovered(self.of(row), self.of(base), best)
        return found

    def _floor(self, row: Row, floor: str) -> Row | str:
        """`floor_of`, looked for once and among the floor method's rows of the same student, which are few."""
        if floor not in self._floors:
            few = defaultdict(list)
            for one in self._rows:
                if not one.is_anchor and one.first.name == floor:
                    few[one.student].append(one)
            self._floors[floor] = {one.key: floor_of(one, few[one.student], floor) for one in self._rows}
        return self._floors[floor][row.key]

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
