"""From records to rows: seeds of one configuration make one row; every row is set against the board's floor."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tinyllm_bench.report.labels import row_key, row_labels, student_digest
from tinyllm_bench.report.record import RunRecord
from tinyllm_bench.report.stats import Difference, OverSeeds, over_seeds, paired_difference

BUDGET_TOLERANCE = 0.02
OTHER_SETTINGS = "other training settings"
# A method is set against the floor only where both were trained alike, in these groups of settings; a student that was
# taught by another method first is charged with it (`Row.tokens`).
_EQUAL_SETTINGS = ("train", "student")


@dataclass(frozen=True, slots=True)
class Row:
    """Runs that differ only in their seed, ordered by it; `label` is unique among the rows of one student spec."""

    label: str
    records: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        """The run with the lowest seed; speaks for what all runs share."""
        return self.records[0]

    @property
    def student(self) -> str:
        """The asked model's spec; empty where no model was asked."""
        return self.first.student.spec if self.first.student else ""

    @property
    def is_anchor(self) -> bool:
        """Whether the row needed no training."""
        return self.first.kind == "anchor"

    @property
    def accuracy(self) -> OverSeeds | None:
        """Accuracy over the seeds; None when it cannot be measured."""
        found = [record.accuracy for record in self.records]
        return over_seeds([value for value in found if value is not None]) if None not in found else None

    @property
    def tokens(self) -> float:
        """Mean student tokens of a run, those that made its initial student included."""
        return self._mean("student_tokens") + self._mean("student_init_tokens")

    @property
    def seconds(self) -> float:
        """Mean wall seconds of a run."""
        return self._mean("seconds")

    def _mean(self, field: str) -> float:
        return over_seeds([getattr(record.budget, field, 0) or 0 for record in self.records]).mean


class Lift(NamedTuple):
    """A row against the floor; `why_not` says why there is no lift.

    With one run each, `low` and `high` are the paired interval; with several seeds the range of the same-seed
    differences; None where the seeds of the two rows differ.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 1
    why_not: str | None = None

    @property
    def beats(self) -> bool:
        """Whether even the lower end is above zero."""
        return self.low is not None and self.low > 0


def make_rows(records: Iterable[RunRecord], order: Sequence[str]) -> list[Row]:
    """Rows of one section: anchors first, then by the board's order of names, label and student."""
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    seen: dict[tuple[str, int], int] = defaultdict(int)
    for record in sorted(records, key=lambda record: (record.seed, record.created, record.run_id)):
        key = row_key(record)
        # A second run of the same seed is no second seed: it opens a row of its own.
        groups[f"{key}/{seen[key, record.seed]}"].append(record)
        seen[key, record.seed] += 1
    place = {name: index for index, name in enumerate(order)}

    def rank(runs: list[RunRecord]) -> tuple[Any, ...]:
        run = runs[0]
        known = place.get(run.name, len(place))
        return (run.kind == "method", known, run.name, run.label, _spec(run), run.run_id)

    ordered = sorted(groups.values(), key=rank)
    labels = row_labels([runs[0] for runs in ordered])
    return [Row(label, tuple(runs)) for label, runs in zip(labels, ordered, strict=True)]


def _spec(record: RunRecord) -> str:
    return record.student.spec if record.student else ""


def lift_over_floor(row: Row, rows: Sequence[Row], floor: str) -> Lift:
    """The row's gain over the floor row of the same student, training rows, settings and budget (within 2 %).

    A row of the floor method itself is the floor, unless it had another budget than the main floor row, the one
    whose label is the method's name.
    """
    if row.is_anchor:
        return Lift(why_not="-")
    floors = [other for other in rows if not other.is_anchor and other.first.name == floor]
    floors = [other for other in floors if _student(other) == _student(row)]
    main = [other for other in floors if other.first.label == floor]
    if row.first.name == floor:
        is_other = main and row not in main and not _same_budget(row, main[0])
        return Lift(why_not="other budget" if is_other else "floor")
    if not floors:
        return Lift(why_not="no floor row")
    equal = [other for other in floors if _same_budget(row, other)]
    if not equal:
        return Lift(why_not="other budget")
    equal = [other for other in equal if other.first.data.train_ids_digest == row.first.data.train_ids_digest]
    if not equal:
        return Lift(why_not="other training rows")
    equal = [other for other in equal if _settings(other) == _settings(row)]
    if not equal:
        return Lift(why_not=OTHER_SETTINGS)
    return _lift(row, next((other for other in equal if other in main), equal[0]))


def _student(row: Row) -> tuple[str, str | None]:
    return row.student, student_digest(row.first)


def _settings(row: Row) -> list[Any]:
    groups = [dict(row.first.config.get(group) or {}) for group in _EQUAL_SETTINGS]
    return [{key: value for key, value in group.items() if key != "init"} for group in groups]


def _same_budget(row: Row, other: Row) -> bool:
    """Within 2 % of student tokens; where budgets were set in FLOPs or seconds, the same amount of them."""
    asked = [(budget.track, budget.asked) if budget else None for budget in (row.first.budget, other.first.budget)]
    if any(one is not None and one[0] in ("flops", "seconds") for one in asked):
        return asked[0] == asked[1]
    return abs(row.tokens - other.tokens) <= BUDGET_TOLERANCE * max(row.tokens, other.tokens)


def _lift(row: Row, floor: Row) -> Lift:
    if len(row.records) == 1 == len(floor.records):
        return Lift(*_paired(row.first, floor.first))
    assert row.accuracy and floor.accuracy, "a method's record always has a score"
    value = row.accuracy.mean - floor.accuracy.mean
    by_seed = {record.seed: record for record in floor.records}
    if by_seed.keys() != {record.seed for record in row.records}:
        return Lift(value, seeds=len(row.records))
    found = over_seeds([_paired(record, by_seed[record.seed]).value for record in row.records])
    return Lift(value, found.low, found.high, seeds=found.seeds)


def _paired(first: RunRecord, second: RunRecord) -> Difference:
    """The two records share a protocol, so that their items are the same ids."""
    flags = {record_id: flag for record_id, _, flag in second.items}
    return paired_difference(
        [flag for _, _, flag in first.items], [flags[record_id] for record_id, _, _ in first.items]
    )
