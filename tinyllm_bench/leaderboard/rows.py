"""From records to rows: seeds of one configuration make one row; every row is set against the board's baseline."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tinyllm_bench.base.files import canonical_json, digest
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.stats.arithmetic import OverSeeds, over_seeds

if TYPE_CHECKING:
    from tinyllm_bench.leaderboard.stats.intervals import Estimate

BUDGET_TOLERANCE = 0.02
LEVEL = 0.05  # family-wise
OTHER_SETTINGS = "other training settings"
# A method is set against the baseline only where both were trained alike, in these groups of settings; a student that
# was taught by another method first is charged with it (`Row.tokens`).
_EQUAL_SETTINGS = ("train", "student")
_LONGEST_VALUE = 40
# Settings that say how fast a run goes and how safe it is from crashes, not what it learns.
_PACE = ("train.checkpoint_seconds", "train.gradient_checkpointing", "train.micro_batch_tokens", "eval.batch_size")
Facts = dict[str, Any]


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
    def key(self) -> str:
        """What tells the row from all others of its table."""
        return f"{self.label}/{self.student}"

    @property
    def is_reference(self) -> bool:
        """Whether the row needed no training."""
        return self.first.kind == "reference_baseline"

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


class Gain(NamedTuple):
    """A row against the baseline; `why_not` says why there is no gain.

    `low` and `high` are its 95 % interval and `p` the test against 0 (`leaderboard.stats.intervals.difference`),
    `p_holm` after Holm's correction within the table; `seeds` are the runs of the row that has fewer; `scope` what
    it generalises to. With different numbers of seeds on the two sides it is given all the same: seeds are runs, not
    pairs.
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


def make_rows(records: Iterable[RunRecord], order: Sequence[str]) -> list[Row]:
    """Rows of one section: reference baselines first, then by the board's order of names, label and student."""
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


def baseline_of(row: Row, rows: Sequence[Row], baseline: str) -> Row | str:
    """The baseline row of the same student, training rows, settings and budget (within 2 %), or why there is none.

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
    equal = [other for other in equal if _alike(row, other)]
    if not equal:
        return OTHER_SETTINGS
    return next((other for other in equal if other in main), equal[0])


def _student(row: Row) -> tuple[str, str | None]:
    return row.student, student_digest(row.first)


def _alike(row: Row, other: Row) -> bool:
    """Trained with the same settings, but for those that a method itself brings along (`own_settings`)."""
    own = {*row.first.own_settings, *other.first.own_settings}
    return _settings(row, own) == _settings(other, own)


def _settings(row: Row, but: Collection[str]) -> list[Any]:
    groups = {name: dict(row.first.config.get(name) or {}) for name in _EQUAL_SETTINGS}
    return [
        {key: value for key, value in group.items() if key != "init" and f"{name}.{key}" not in but}
        for name, group in groups.items()
    ]


def _same_budget(row: Row, other: Row) -> bool:
    """Within 2 % of student tokens; where budgets were set in FLOPs or seconds, the same amount of them."""
    asked = [(budget.track, budget.amount) if budget else None for budget in (row.first.budget, other.first.budget)]
    if any(one is not None and one[0] in ("flops", "seconds") for one in asked):
        return asked[0] == asked[1]
    return abs(row.tokens - other.tokens) <= BUDGET_TOLERANCE * max(row.tokens, other.tokens)


# --- which runs are seeds of one row, and what a row is called beside others of the same label ---


def row_key(record: RunRecord) -> str:
    """Digest of all that makes two runs the same row: everything that decides a result but the seed."""
    spec = record.student.spec if record.student else None
    config = {key: value for key, value in _flat(record.config) if key not in _PACE}
    return digest({"label": record.label, "student": spec, "config": config, "facts": _facts(record)})


def student_digest(record: RunRecord) -> str | None:
    """Which weights stood at the start, before any cell that came first: a spec without its folder does not tell two
    students apart."""
    if record.student is None:
        return None
    start = record.student.base_digest or record.student.initial_digest
    return start if record.kind == "method" else record.student.digest


def row_labels(records: Sequence[RunRecord]) -> list[str]:
    """A label for each row, given its first run; rows of one label and student are told apart by what differs.

    The settings that differ are named first; where they do not suffice, other facts; at last the run's id.
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
    found = _differences(settings)
    if len(set(found)) < len(found):
        found = _differences([_facts(record) | own for record, own in zip(records, settings, strict=True)])
    return [
        # The end of a run id is its digest; its beginning is the method's name.
        suffix if found.count(suffix) == 1 else ", ".join(filter(None, (suffix, record.run_id[-8:])))
        for record, suffix in zip(records, found, strict=True)
    ]


def _facts(record: RunRecord) -> Facts:
    """What decides a result and is not, or not surely, in the settings."""
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

    Where a whole group is there in some rows only (`student.lora`), its shortest key stands for it, unless those
    rows differ in the group anyway.
    """
    varied: list[str] = []
    groups: dict[tuple[str, tuple[bool, ...]], list[str]] = defaultdict(list)
    for key in sorted({key for row in rows for key in row}):
        there = tuple(key in row for row in rows)
        if len({canonical_json(row[key]) for row in rows if key in row}) > 1:
            varied.append(key)
        elif not all(there):
            groups[key.rpartition(".")[0], there].append(key)
    told = {(key.rpartition(".")[0], tuple(key in row for row in rows)) for key in varied}
    alone = [min(keys, key=len) for group, keys in groups.items() if group not in told]
    return [", ".join(f"{key}={_short(row[key])}" for key in sorted([*varied, *alone]) if key in row) for row in rows]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    text = " ".join(text.split())
    if re.fullmatch(r"[0-9a-f]{32,}", text):
        return text[:8]
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def slugs(heads: Sequence[RunRecord]) -> list[str]:
    """A file name for each section, told by one of its runs: task and mode, and the protocol where there are
    several."""
    short = [f"{head.task}-{head.mode}" for head in heads]
    return [
        name if short.count(name) == 1 else f"{name}-{head.protocol_hash[:12]}"
        for name, head in zip(short, heads, strict=True)
    ]
