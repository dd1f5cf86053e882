"""What every check of `doctor` reads and returns: findings, and the cells, models and texts of a request."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Event
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import Annotation, Example, Split
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.validate import encoder_of
from tinyllm_bench.models.load import Loaded
from tinyllm_bench.models.shape import load_shape
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.models.tokens import Encoded, Encoder
from tinyllm_bench.preflight.forecast import Forecast, forecast
from tinyllm_bench.preflight.machine import Machine
from tinyllm_bench.teachers.quality import TeacherReport, teacher_reports
from tinyllm_bench.teachers.teacher import LiveTeacher, Teacher
from tinyllm_bench.training.batching import Group

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a check measured.

    check: the name of the check, a heading of docs/doctor.md; where: the task, cell, teacher or model; measured: what
    was found, in words and numbers; threshold: from where on it is a finding; fix: how to mend it, empty for `ok`.
    """

    severity: Severity
    check: str
    where: str
    measured: str
    threshold: str = ""
    fix: str = ""

    @property
    def text(self) -> str:
        """The finding in one line."""
        limit = f" ({self.threshold})" if self.threshold else ""
        return f"{self.severity}: {self.check}: {self.where}: {self.measured}{limit}" + (
            f"; {self.fix}" if self.fix else ""
        )


def graded(
    value: float, *, check: str, where: str, measured: str, fix: str, note: float | None, warning: float, unit: str
) -> Finding:
    """The finding of a share: a warning above `warning`, a note above `note` (None: never), `ok` otherwise."""
    if value > warning:
        threshold = f"warning above {_percent(warning)} {unit}"
        return Finding(severity="warning", check=check, where=where, measured=measured, threshold=threshold, fix=fix)
    if note is not None and value > note:
        threshold = f"note above {_percent(note)} {unit}"
        return Finding(severity="note", check=check, where=where, measured=measured, threshold=threshold, fix=fix)
    return Finding(severity="ok", check=check, where=where, measured=measured)


def size(count: float) -> str:
    """Bytes in kB, MB or GB (powers of ten)."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def share(count: int, of: int) -> str:
    """A count out of a count, with its share in percent."""
    return f"{count:,} of {of:,} ({_percent(count / of if of else 0.0)})"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def worst(findings: Sequence[Finding]) -> Severity:
    """The gravest severity, `ok` where there is none."""
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="ok")


_NO_LIMIT = sys.maxsize


@dataclass(kw_only=True)
class Preflight:
    """A request's cells and the machine they are for; whatever several checks read is made once."""

    cells: Sequence[Cell]
    machine: Machine
    _opened: dict[str, Loaded | UserError] = field(default_factory=dict)
    _annotations: dict[Any, list[Annotation]] = field(default_factory=dict)
    _encoded: dict[Any, Encoded] = field(default_factory=dict)
    _reports: dict[Any, TeacherReport] = field(default_factory=dict)
    _groups: dict[int, list[Group]] = field(default_factory=dict)

    @cached_property
    def forecast(self) -> Forecast:
        """What the request takes, the same that `plan` prints; cells that cannot be forecast say why."""
        return forecast(self.cells, self.machine, tolerant=True)

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.cells[0].runs

    @cached_property
    def tasks(self) -> list[Cell]:
        """One cell for each task and selection of its records."""
        found = {_data_of(cell): cell for cell in reversed(self.cells)}
        return list(found.values())[::-1]

    @cached_property
    def trained(self) -> list[Cell]:
        """The cells that train, each once whatever its seed, after those that make their students and teachers."""
        found: dict[str, Cell] = {}
        first = min(cell.seed for cell in self.cells)
        for cell in self.cells:
            if cell.method is not None and cell.seed == first:
                found.update((one.run_id, one) for one in _trains(cell))
        return list(found.values())

    def model(self, spec: ModelSpec) -> Loaded | None:
        """A model without its weights, or None where it is not available (`why_not` says why)."""
        if spec.text not in self._opened:
            try:
                self._opened[spec.text] = load_shape(spec, runs=self.runs)
            except UserError as error:
                self._opened[spec.text] = error
        found = self._opened[spec.text]
        return None if isinstance(found, UserError) else found

    def why_not(self, spec: ModelSpec) -> str | None:
        """Why a model is not available, None where it is."""
        self.model(spec)
        found = self._opened[spec.text]
        return str(found) if isinstance(found, UserError) else None

    def student(self, cell: Cell) -> Loaded | None:
        """The cell's student, as it is before anything trains it."""
        return self.model(own_student(cell))

    def annotations(self, cell: Cell, teacher: Teacher) -> list[Annotation]:
        """A teacher's texts for the cell's training records, recorded or cached; no teacher is asked."""
        records = cell.records("train")
        key = (teacher.spec, teacher.kind, teacher.text_digest(cell.task.name), _data_of(cell))
        if key not in self._annotations:
            live = isinstance(teacher, LiveTeacher)
            found = teacher.cached(records)[0] if live else teacher.annotate(records, report=_no)
            self._annotations[key] = found
        return self._annotations[key]

    def report(self, cell: Cell, teacher: Teacher) -> TeacherReport | None:
        """How good a teacher's rationales are, as `teachers report` counts it; None where there are none."""
        annotations = self.annotations(cell, teacher)
        if not annotations or teacher.kind != "rationale":
            return None
        if id(annotations) not in self._reports:  # `_annotations` holds the list
            records = {record.id: record for record in cell.records("train")}
            (found,) = teacher_reports(annotations, records, cell.config.annotations.filters, samples=0)
            self._reports[id(annotations)] = found
        return self._reports[id(annotations)]

    def encoder(self, cell: Cell) -> Encoder | None:
        """The cell's encoder; None where its student is not available."""
        loaded = self.student(cell)
        return None if loaded is None else encoder_of(cell, loaded)

    def groups(self, cell: Cell) -> list[Group]:
        """The cell's training examples as ids, without plain text; nothing is cut at a limit of tokens.

        Of programs all are there, also those that will not give the right answer: running them is not free.
        """
        if id(cell) not in self._groups:  # the cells outlive this object
            self._groups[id(cell)] = self._made(cell)
        return self._groups[id(cell)]

    def _made(self, cell: Cell) -> list[Group]:
        method = cell.method
        assert method is not None
        annotations: dict[str, list[Annotation]] = {}
        for one in (one for teacher in cell.teachers for one in self.annotations(cell, teacher)):
            if one.rejected is None:
                annotations.setdefault(one.record_id, []).append(one)
        records = cell.asked_records("train")
        examples = {record.id: method.examples(record, annotations.get(record.id, []), cell.ask) for record in records}
        groups = [Group(key, tuple(self._encode(cell, found))) for key, found in examples.items()]
        return [group for group in groups if group.items]

    def asked(self, cell: Cell, split: Split) -> list[Encoded]:
        """The questions of a split as the student reads them, each with the longest option or the number."""
        ask = cell.ask
        records = cell.asked_records(split)
        longest = [max((*ask.options(record), ask.label_target(record)), key=len) for record in records]
        pairs = zip(records, longest, strict=True)
        return list(self._encode(cell, [ask.example(record, LABEL, text) for record, text in pairs]))

    def _encode(self, cell: Cell, examples: Sequence[Example]) -> Iterator[Encoded]:
        encoder = self.encoder(cell)
        if encoder is None:
            return
        encoder.max_prompt_tokens = encoder.max_target_tokens = _NO_LIMIT
        for example in examples:
            key = (own_student(cell).text, cell.config.data.style, cell.config.data.cut_tokens, example)
            if key not in self._encoded:
                self._encoded[key] = encoder.encode(example)
            yield self._encoded[key]


def _no(event: Event) -> None:
    """Nobody watches."""


def own_student(cell: Cell) -> ModelSpec:
    """The model that a cell's student begins as: of a student that another cell makes first, that cell's."""
    return cell.student if cell.student_from is None else own_student(cell.student_from)


def own_signal(cell: Cell) -> ModelSpec | None:
    """The model of a cell's white-box teacher, before the task is taught to it; None without one."""
    return cell.signal if cell.signal is None or cell.teacher_from is None else own_student(cell.teacher_from)


def place(cell: Cell) -> str:
    """A cell by its label and task; of one that makes a model for others, that too."""
    return f"{cell.label} on {cell.task.name}" + (" (trained first)" if cell.trains_only else "")


def _trains(cell: Cell) -> Iterator[Cell]:
    """The trainings behind a cell: of its students, where a policy decides, else its own; the earlier ones first."""
    for first in (cell.student_from, cell.teacher_from):
        if first is not None:
            yield from _trains(first)
    yield from cell.students.values() if cell.students else [cell]


def _data_of(cell: Cell) -> tuple[Any, ...]:
    data, asked = cell.config.data, cell.config.eval
    limits = (data.train_limit, asked.valid_limit, asked.limit, data.max_context_words)
    return (cell.task.name, cell.source, *limits)
