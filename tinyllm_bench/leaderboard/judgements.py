"""What the statistics say about a section's rows: intervals of accuracy, gains with Holm's correction, ranks.

Rows of a section share a protocol, and so the same questions; runs are aligned by their ids.
"""

from collections import defaultdict
from collections.abc import Sequence

from tinyllm_bench.leaderboard import aligned
from tinyllm_bench.leaderboard.rows import Gain, Row, baseline_of
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
        self._baselines: dict[str, dict[str, Row | str]] = {}
        records = [record for row in rows for record in row.records]
        self._clusters, gold = aligned.clusters(records), aligned.gold(records)
        self.accuracies = {row.key: found for row in rows if (found := self._accuracy(row)) is not None}
        self.macro_f1: dict[str, Estimate] = {}
        self.constant: ConstantAnswer | None = None
        if gold is not None:
            f1, self.constant = MacroF1(gold, clusters=self._clusters), constant_answer(gold)
            # One draw of a guess says little about guessing.
            asked = [row for row in rows if row.first.items and row.first.expected_accuracy is None]
            estimates = f1.intervals((aligned.answers(row.records), row.is_reference) for row in asked)
            self.macro_f1 = dict(zip((row.key for row in asked), estimates, strict=True))

    def of(self, row: Row) -> intervals.Row:
        """The row's runs as the statistics need them: right or wrong, questions (by id) x seeds."""
        if row.key not in self._known:
            right = aligned.right(row.records)
            self._known[row.key] = intervals.row_of(right, fixed=row.is_reference, clusters=self._clusters)
        return self._known[row.key]

    def _accuracy(self, row: Row) -> Estimate | None:
        if row.first.expected_accuracy is not None:
            return intervals.exact_accuracy(row.first.expected_accuracy)
        if row.accuracy is None or row.first.score is None:
            return None
        return intervals.accuracy(self.of(row))

    def gains(self, baseline: str) -> list[Gain]:
        """Every row against its baseline row, one family of tests for the table."""
        found = [self._gain(row, baseline) for row in self._rows]
        tested = [number for number, gain in enumerate(found) if gain.p is not None]
        corrected = holm([found[number].p or 0.0 for number in tested])
        for number, p in zip(tested, corrected, strict=True):
            found[number] = found[number]._replace(p_holm=p)
        return found

    def _gain(self, row: Row, baseline: str) -> Gain:
        other = self._baseline(row, baseline)
        if isinstance(other, str):
            return Gain(why_not=other)
        found = intervals.difference(self.of(row), self.of(other))
        seeds = min(len(row.records), len(other.records))
        return Gain(found.value, found.low, found.high, seeds, p=found.p, scope=found.scope, estimate=found)

    def gaps(self, baseline: str) -> dict[str, Gap]:
        """By key, how much of the way from its baseline to its teacher a row covers; empty without measured teachers.

        Of a row's several teachers, and of the ways they were asked, the one with the highest accuracy counts.
        """
        asked = [row for row in self._rows if row.is_reference and row.student and row.first.items]
        found = {}
        for row in self._rows:
            base = self._baseline(row, baseline)
            own = {teacher.spec for teacher in row.first.teachers}
            teachers = [self.of(one) for one in asked if one.student in own]
            if teachers and not isinstance(base, str):
                best = max(teachers, key=lambda one: float(one.mean))
                found[row.key] = gap_recovered(self.of(row), self.of(base), best)
        return found

    def _baseline(self, row: Row, baseline: str) -> Row | str:
        """`baseline_of`, looked for once and among the baseline method's rows of the same student, which are few."""
        if baseline not in self._baselines:
            few = defaultdict(list)
            for one in self._rows:
                if not one.is_reference and one.first.name == baseline:
                    few[one.student].append(one)
            self._baselines[baseline] = {one.key: baseline_of(one, few[one.student], baseline) for one in self._rows}
        return self._baselines[baseline][row.key]

    def ranks(self) -> dict[str, Standing]:
        """By key of each trained row, where it may stand among them; empty where there are too few or too many."""
        trained = [row for row in self._rows if not row.is_reference and row.accuracy is not None]
        if not 1 < len(trained) <= MOST_RANKED:
            return {}
        found = standings([self.of(row) for row in trained])
        return {row.key: standing for row, standing in zip(trained, found, strict=True)}


def smallest_difference(gains: Sequence[Gain]) -> float | None:
    """The difference that the table's typical comparison finds with 80 % power after correction: the median."""
    found = [gain.estimate for gain in gains if gain.estimate is not None]
    sizes = sorted(detectable(one, comparisons=len(found)) for one in found)
    return sizes[len(sizes) // 2] if sizes else None
