"""From records to rows: seeds of one configuration make one row; every row is compared with the board's baseline."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from tinyllm_bench.base.files import canonical_json, digest
from tinyllm_bench.leaderboard.record import RunRecord

if TYPE_CHECKING:
    from tinyllm_bench.leaderboard.stats.intervals import Estimate

BUDGET_TOLERANCE = 0.02
LEVEL = 0.05  # family-wise
OTHER_SETTINGS = "other training settings"
# A method is compared with the baseline only where these groups of settings are equal; a student that another method
# trained first is charged with those tokens (`BoardRow.tokens`).
_EQUAL_SETTINGS = ("train", "student")
_MAX_VALUE_CHARS = 40
# Settings that change the speed of a run and its crash safety, not what it learns.
_SPEED_SETTINGS = (
    "train.checkpoint_seconds",
    "train.gradient_checkpointing",
    "train.micro_batch_tokens",
    "eval.batch_size",
)
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BoardRow:
    """Runs that differ only in their seed, ordered by it; `label` is unique among the rows of one student spec."""

    label: str
    records: tuple[RunRecord, ...]

    @property
    def first(self) -> RunRecord:
        """The run with the lowest seed, for what all runs share."""
        return self.records[0]

    @property
    def student(self) -> str:
        """The evaluated model's spec; empty for a guess."""
        return self.first.student.spec if self.first.student else ""

    @property
    def key(self) -> str:
        """Identifies the row in its table."""
        return f"{self.label}/{self.student}"

    @property
    def is_reference(self) -> bool:
        """Whether the row needed no training."""
        return self.first.kind == "reference_baseline"

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy over the seeds; None when it cannot be measured."""
        values = [record.accuracy for record in self.records]
        return None if None in values else fmean(value for value in values if value is not None)

    @property
    def tokens(self) -> float:
        """Mean student tokens of a run, including those that trained its initial student."""
        return self._mean("student_tokens") + self._mean("student_init_tokens")

    @property
    def seconds(self) -> float:
        """Mean wall seconds of a run."""
        return self._mean("seconds")

    def _mean(self, field: str) -> float:
        return fmean(getattr(record.budget, field, 0) or 0 for record in self.records)


class Gain(NamedTuple):
    """A row's accuracy minus the baseline's; `why_not` is the reason where there is no gain.

    `low` and `high` are its 95 % interval and `p` the test against 0 (`leaderboard.stats.intervals.difference`),
    `p_holm` after Holm's correction within the table; `seeds` is the smaller number of runs of the two rows; `scope` is
    what the gain generalises to. The rows may have different numbers of seeds: runs are not paired.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 1
    why_not: str | None = None
    p: float | None = None
    p_holm: float | None = None
    scope: str = ""
    estimate: "Estimate | None" = None

    @property
    def beats(self) -> bool:
        """Whether the row is above the baseline, after correction for the table's other comparisons."""
        return self.value is not None and self.value > 0 and self.p_holm is not None and self.p_holm <= LEVEL


def make_rows(records: Iterable[RunRecord], order: Sequence[str]) -> list[BoardRow]:
    """Rows of one section: reference baselines first, then by the board's order of names, label and student."""
    groups: dict[str, list[RunRecord]] = defaultdict(list)
    seen: dict[tuple[str, int], int] = defaultdict(int)
    for record in sorted(records, key=lambda record: (record.seed, record.created, record.run_id)):
        key = row_key(record)
        # A second run of the same seed is not another seed: it starts a row of its own.
        groups[f"{key}/{seen[key, record.seed]}"].append(record)
        seen[key, record.seed] += 1
    place = {name: index for index, name in enumerate(order)}

    def rank(runs: list[RunRecord]) -> tuple[Any, ...]:
        run = runs[0]
        known = place.get(run.name, len(place))
        spec = run.student.spec if run.student else ""
        return (run.kind == "method", known, run.name, run.label, spec, run.run_id)

    ordered = sorted(groups.values(), key=rank)
    labels = row_labels([runs[0] for runs in ordered])
    return [BoardRow(label, tuple(runs)) for label, runs in zip(labels, ordered, strict=True)]


def baseline_of(row: BoardRow, rows: Sequence[BoardRow], baseline: str) -> BoardRow | str:
    """The baseline row of the same student, training rows, settings and budget (within 2 %), or the reason for none.

    A row of the baseline method itself is the baseline, unless it had another budget than the main baseline row, the
    one whose label is the method's name.
    """
    if row.is_reference:
        return "-"
    baselines = [other for other in rows if not other.is_reference and other.first.name == baseline]
    baselines = [other for other in baselines if _student(other) == _student(row)]
    main = [other for other in baselines if other.first.label == baseline]
    if row.first.name == baseline:
        is_other = main and row not in main and not _same_budget(row, main[0])
        return "other budget" if is_other else "baseline"
    if not baselines:
        return "no baseline row"
    equal = [other for other in baselines if _same_budget(row, other)]
    if not equal:
        return "other budget"
    equal = [other for other in equal if other.first.data.train_ids_digest == row.first.data.train_ids_digest]
    if not equal:
        return "other training rows"
    equal = [other for other in equal if _same_settings(row, other)]
    if not equal:
        return OTHER_SETTINGS
    return next((other for other in equal if other in main), equal[0])


def _student(row: BoardRow) -> tuple[str, str | None]:
    return row.student, student_digest(row.first)


def _same_settings(row: BoardRow, other: BoardRow) -> bool:
    """Whether both were trained with the same settings, apart from the methods' own defaults (`own_settings`)."""
    own = {*row.first.own_settings, *other.first.own_settings}

    def compared(row: BoardRow) -> list[Any]:
        groups = {name: dict(row.first.config.get(name) or {}) for name in _EQUAL_SETTINGS}
        return [
            {key: value for key, value in group.items() if key != "init" and f"{name}.{key}" not in own}
            for name, group in groups.items()
        ]

    return compared(row) == compared(other)


def _same_budget(row: BoardRow, other: BoardRow) -> bool:
    """Within 2 % of student tokens; where budgets were set in FLOPs or seconds, the same amount of them."""
    budgets = [(budget.track, budget.amount) if budget else None for budget in (row.first.budget, other.first.budget)]
    if any(budget is not None and budget[0] in ("flops", "seconds") for budget in budgets):
        return budgets[0] == budgets[1]
    return abs(row.tokens - other.tokens) <= BUDGET_TOLERANCE * max(row.tokens, other.tokens)


# --- which runs are seeds of one row, and labels that distinguish rows ------------------------------------------------


def row_key(record: RunRecord) -> str:
    """Digest that two runs of one row share: of everything that can change a result except the seed."""
    spec = record.student.spec if record.student else None
    config = {key: value for key, value in _flat(record.config) if key not in _SPEED_SETTINGS}
    return digest({"label": record.label, "student": spec, "config": config, "facts": _facts(record)})


def student_digest(record: RunRecord) -> str | None:
    """Digest of the weights before any training, by prerequisites too; for a reference baseline, of the evaluated ones.

    A published spec has no folders, so that two students may have the same one.
    """
    if record.student is None:
        return None
    initial = record.student.base_digest or record.student.initial_digest
    return initial if record.kind == "method" else record.student.digest


def row_labels(records: Sequence[RunRecord]) -> list[str]:
    """A label for each row, given its first run; rows of one label and student are distinguished by what differs.

    The suffix names the settings that differ; where these are not enough, other facts; last the run's id.
    """
    labels = [record.label for record in records]
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[record.label, record.student.spec if record.student else ""].append(index)
    for group in groups.values():
        if len(group) > 1:
            for index, suffix in zip(group, _suffixes([records[i] for i in group]), strict=True):
                labels[index] += f" ({suffix})" if suffix else ""
    return labels


def _suffixes(records: Sequence[RunRecord]) -> list[str]:
    settings = [dict(_flat(record.config)) for record in records]
    suffixes = _differences(settings)
    if len(set(suffixes)) < len(suffixes):
        suffixes = _differences([_facts(record) | own for record, own in zip(records, settings, strict=True)])
    return [
        # A run id starts with the method's name and ends with its digest.
        suffix if suffixes.count(suffix) == 1 else ", ".join(filter(None, (suffix, record.run_id[-8:])))
        for record, suffix in zip(records, suffixes, strict=True)
    ]


def _facts(record: RunRecord) -> Facts:
    """What can change a result and is not, or not always, in the settings."""
    budget, backend, data = record.budget, record.backend, record.data
    facts: Facts = {
        "kind": record.kind,
        "name": record.name,
        "sample": record.sample,
        "student.initial_digest": student_digest(record),
        "teachers": [teacher.spec for teacher in record.teachers],
        "budget.student_tokens_limit": budget.student_tokens_limit if budget else None,
        "backend.name": backend.name if backend else None,
        "backend.dtype": backend.dtype if backend else None,
        "data.source": data.source,
        "data.train_ids_digest": data.train_ids_digest,
        "data.valid_ids_digest": data.valid_ids_digest,
    }
    facts |= {f"data.{split}": info.digest for split, info in data.splits.items()}
    for info in record.annotations:
        place = f"annotations.{info.teacher}.{info.kind}"
        facts |= {f"{place}.control": info.control, f"{place}.text_digest": info.text_digest}
    return facts


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; an empty group is a value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _differences(rows: Sequence[Facts]) -> list[str]:
    """Per row `key=value` of every key that differs.

    Of a group that only some rows have (`student.lora`), the shortest key is named, unless those rows differ in the
    group anyway.
    """
    varied: list[str] = []
    groups: dict[tuple[str, tuple[bool, ...]], list[str]] = defaultdict(list)
    for key in sorted({key for row in rows for key in row}):
        has_key = tuple(key in row for row in rows)
        if len({canonical_json(row[key]) for row in rows if key in row}) > 1:
            varied.append(key)
        elif not all(has_key):
            groups[key.rpartition(".")[0], has_key].append(key)
    named = {(key.rpartition(".")[0], tuple(key in row for row in rows)) for key in varied}
    alone = [min(keys, key=len) for group, keys in groups.items() if group not in named]
    return [", ".join(f"{key}={_short(row[key])}" for key in sorted([*varied, *alone]) if key in row) for row in rows]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    text = " ".join(text.split())
    if re.fullmatch(r"[0-9a-f]{32,}", text):
        return text[:8]
    return text if len(text) <= _MAX_VALUE_CHARS else f"{text[: _MAX_VALUE_CHARS - 3]}..."
