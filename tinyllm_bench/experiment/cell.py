"""Cells: one method or anchor on one task, in one reading, with one seed; its identity decides its run id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from tinyllm_bench.base.config import Resolved
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import digest
from tinyllm_bench.base.plugins import load_task, names
from tinyllm_bench.data.facts import SplitFacts
from tinyllm_bench.data.prompts import LABEL, Ask, rationale_channel
from tinyllm_bench.data.records import READINGS, Annotation, Reading, Split, TaskInfo, TaskRecord, cut_context
from tinyllm_bench.data.sources import Source, find_source, load_split, manifest
from tinyllm_bench.data.subsets import stratified_subset
from tinyllm_bench.evaluation.sampled_answers import possible
from tinyllm_bench.evaluation.vllm import backend_for
from tinyllm_bench.experiment.cell_teachers import kinds_read, place_of, text_teachers
from tinyllm_bench.experiment.identity import GUESSES, identity_of
from tinyllm_bench.experiment.plain_text import check_plain_text
from tinyllm_bench.experiment.request import (
    Preset,
    Request,
    check_method_keys,
    check_trackers,
    default_preset,
    expand,
    load_preset,
    settings_of,
)
from tinyllm_bench.experiment.settings import BenchConfig, InitConfig, TeacherInitConfig
from tinyllm_bench.experiment.white_box_teacher import check_signal, check_teaches, model_teacher, teacher_key
from tinyllm_bench.models.hub import forget
from tinyllm_bench.models.load import check_spec, is_encoder_decoder
from tinyllm_bench.models.shape import check_targets
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teachers.filters import rejected_by
from tinyllm_bench.teachers.open import open_responder
from tinyllm_bench.teachers.teacher import Teacher
from tinyllm_bench.training.budget import BUDGETS
from tinyllm_bench.training.method import Method

ASKED = ("zero_shot", "few_shot")
ANCHORS = (*GUESSES, *ASKED)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything one run needs, resolved and checked. `origin` says for each setting the layer it came from.

    `shared_by`: how many methods of the request learn from the same teachers' texts, for the amortised cost.
    `signal`: the white-box teacher, for methods that learn from distributions. `student_from` and `teacher_from` are
    cells that make the initial student and the teacher; they are trained first. `students`: the cells that train who
    writes each channel, where a policy decides, each with a `share` of the budget. All these `trains_only`.
    `looks_at_test`: weights are selected on the test split, as some released code does; only a reproduction asks for
    it.
    """

    kind: Literal["method", "anchor"]
    name: str
    label: str
    task: TaskInfo
    reading: Reading
    seed: int
    config: BenchConfig
    origin: Mapping[str, str]
    method: Method | None
    student: ModelSpec
    source: Source
    data: Mapping[str, SplitFacts]
    teachers: tuple[Teacher, ...]
    notes: tuple[str, ...]
    asked: Mapping[str, Any]
    runs: Path
    shared_by: int = 1
    signal: ModelSpec | None = None
    student_from: "Cell | None" = None
    teacher_from: "Cell | None" = None
    students: Mapping[str, "Cell"] = field(default_factory=dict)
    trains_only: bool = False
    share: float = 1.0
    looks_at_test: bool = False

    @property
    def ask(self) -> Ask:
        """The wording of this cell's prompts."""
        data = self.config.data
        return Ask(
            reading=self.reading, style=data.style, rationale_context=data.rationale_context, markers=data.markers
        )

    def records(self, split: Split) -> tuple[TaskRecord, ...]:
        """The cell's records of a split, whole contexts: the training subset, validation ids, scored test ids."""
        return records_of(self.config, self.source, self.task.name, split)

    def asked_records(self, split: Split) -> tuple[TaskRecord, ...]:
        """The same records as they are asked, passages cut to `data.max_context_words`."""
        return tuple(cut_context(record, self.config.data.max_context_words) for record in self.records(split))

    @property
    def earlier(self) -> "tuple[Cell, ...]":
        """The cells that must have trained before, each once."""
        found = [self.student_from, self.teacher_from, *self.students.values()]
        return tuple({cell.run_id: cell for cell in found if cell is not None}.values())

    @property
    def run_id(self) -> str:
        """A readable name with the digest of the cell."""
        name = self.name.replace("/", ".") + ("-training" if self.trains_only else "")
        return f"{name}-{self.task.name}-{self.reading}-s{self.seed}-{digest(identity_of(self))[:10]}"


def records_of(config: BenchConfig, source: Source, task: str, split: Split) -> tuple[TaskRecord, ...]:
    """The records of a split that the settings mean: a fixed stratified subset, or all of them."""
    limits = {"train": config.data.train_limit, "valid": config.eval.valid_limit, "test": config.eval.limit}
    limit = limits[split]
    return load_split(source, task, split) if limit is None else _subset(source, task, split, limit)


@lru_cache(maxsize=64)
def _subset(source: Source, task: str, split: Split, limit: int) -> tuple[TaskRecord, ...]:
    return stratified_subset(load_split(source, task, split), limit, salt=split)


def plan_cells(request: Request, *, anchors: bool = False, check_hub: bool = True) -> tuple[str, list[Cell]]:
    """Resolve a request into cells, every one checked before anything expensive starts.

    Args:
        request: What was asked for.
        anchors: Also plan the anchors.
        check_hub: Also ask whether models of the hub can be had; what lies on this machine is checked in any case.

    Returns:
        The preset's name and the cells: per task the anchors, if asked, then per seed the methods and their variants.
    """
    forget()
    preset = load_preset(request.preset or default_preset())
    methods = expand("method", request.methods)
    check_method_keys(request, methods)
    cells: list[Cell] = []
    for task in expand("task", request.tasks):
        if anchors:
            cells += _anchors(request, preset, task)
        for seed in range(request.seeds):
            for method in methods:
                rows: dict[str, Cell] = {}
                for variant, values in {"": {}, **preset.variants.get(method, {})}.items():
                    row = _method(request, preset, task, method, seed, variant, values)
                    rows.setdefault(row.run_id, row)  # one whose settings were all given otherwise is an earlier row
                cells += rows.values()
    cells = [replace(cell, shared_by=_sharing(cell, cells)) for cell in cells]
    if not cells:
        raise UserError(f"nothing to run: give --method (of {', '.join(names('method'))}) and --task")
    _check_markers(cells)
    check_trackers(dict.fromkeys(name for cell in cells for name in cell.config.report_to))
    if check_hub:
        for spec in dict.fromkeys(spec for cell in cells for spec in _models(cell) if spec.kind == "hf"):
            check_spec(spec)
    return preset.name, cells


def _check_markers(cells: Sequence[Cell]) -> None:
    """Refuse a marker that was asked for and belongs to no channel of any cell: it would change nothing."""
    asked = [cell for cell in cells if cell.origin.get("data.markers") in ("--config", "command line")]
    if not asked:
        return
    known = {LABEL}
    for cell in cells:
        specs = [parse_spec(text, role="teacher") for text in cell.config.teachers]
        keys = {*(teacher_key(spec) for spec in specs), *(teacher.key for teacher in cell.teachers)}
        known |= {rationale_channel(key) for key in keys}
        if cell.method is not None:
            known |= set(cell.method.decoding().channels)
            first = cell.records("train")[0]
            kinds: tuple[Literal["rationale", "program"], ...] = ("rationale", "program")
            said = [Annotation(record_id=first.id, teacher=key, kind=kind, text="a") for key in keys for kind in kinds]
            known |= {example.channel for example in cell.method.examples(first, said, cell.ask)}
    for name in (name for cell in asked for name in cell.config.data.markers):
        if name not in known:
            raise unknown_name("channel of data.markers", name, known)


def _models(cell: Cell) -> list[ModelSpec]:
    """Every model that a cell loads: its student, its teachers, and those of the cells that come first."""
    teachers = [parse_spec(teacher.spec, role="teacher") for teacher in cell.teachers]
    earlier = [spec for first in cell.earlier for spec in _models(first)]
    return [cell.student, *([cell.signal] if cell.signal else []), *teachers, *earlier]


def _sharing(cell: Cell, cells: Sequence[Cell]) -> int:
    """Methods among `cells` that learn from the teachers' texts that this cell learns from."""
    texts = {teacher.text_digest(cell.task.name) for teacher in cell.teachers}
    others = [c for c in cells if c.task == cell.task and c.seed == cell.seed]
    return max(1, sum(not texts.isdisjoint(t.text_digest(c.task.name) for t in c.teachers) for c in others))


def choose_reading(wanted: str, offered: tuple[Reading, ...], answered: tuple[Reading, ...]) -> Reading:
    """The wanted reading where task and method both allow it; `auto` and everything else fall back to what both allow.

    Raises:
        UserError: task and method share no reading.
    """
    both = [reading for reading in READINGS if reading in offered and reading in answered]
    if not both:
        raise UserError(
            f"the task offers {', '.join(offered)}, the method answers {', '.join(answered)}: nothing shared"
        )
    return next((reading for reading in both if reading == wanted), both[0])


def _method(
    request: Request,
    preset: Preset,
    task: str,
    name: str,
    seed: int,
    variant: str,
    values: Mapping[str, Any],
    made_for: Mapping[str, Any] = MappingProxyType({}),
) -> Cell:
    found, method = settings_of(request, preset, method=name, task=task, variant=values, made_for=made_for)
    assert method is not None
    config: BenchConfig = found.config
    info: TaskInfo = load_task(task)
    teachers, notes = text_teachers(config, method, info.name, request.runs)
    if not config.train.looks and config.train.look_every is None:
        raise UserError("train.looks=[]: validation must be scored at least once; [1.0] is the end alone")
    if not config.budget.is_one:
        raise UserError(f"set exactly one of {', '.join(f'budget.{key}' for key in BUDGETS)} (the others to null)")
    # without such a note there is none because none has a weight
    if not teachers and notes and not method.needs().annotations.isdisjoint({"rationale", "program"}):
        kinds = " and ".join(f"{kind}s" for kind in sorted(method.needs().annotations - {"response"}))
        raise UserError(f"{name} needs {kinds} and no teacher has any for task {task}")
    if config.student.dtype != "float32":
        raise UserError(
            f"student.dtype={config.student.dtype}: {name} trains its weights, and 16 bits round small steps away;"
            " set student.dtype=float32, and train.mixed_precision=bf16 to compute in 16 bits"
        )
    if method.rolls and config.student.lora is not None and config.student.lora.dropout:
        notes = (*notes, f"student.lora.dropout={config.student.lora.dropout:g} has no effect: {name} draws texts")
    label = f"{name} ({variant})" if variant else name
    cell = _cell(request, found, "method", name, label, info, seed, method, teachers, notes)
    if config.student.lora is not None:
        check_targets(cell.student, config.student.lora.target_modules, runs=request.runs)
    _check_rationales(cell)
    if method.decoding().policy is not None and config.train.select == "loss":
        raise UserError(f"train.select=loss: {name} answers by paths and has no such loss; use train.select=best")
    cell = check_plain_text(_with_model_teacher(_with_init(cell, request, preset), request, preset))
    return replace(cell, students=students_of(cell))


def students_of(cell: Cell) -> Mapping[str, Cell]:
    """Who writes each channel, where a policy decides: a cell that only trains, shared by all that read it otherwise.

    Where channels have students of their own (`Decoding.members`), each gets an equal part of the budget.
    """
    method = cell.method
    assert method is not None
    decoding = method.decoding()
    if decoding.policy is None:
        return {}
    kept = {k: v for k, v in cell.config.method.items() if k not in type(method).reading_settings}
    made = [_training_cell(cell, {**kept, **one}, 1 / len(decoding.members)) for one in decoding.members]
    if not made:
        made = [_training_cell(cell, _readable(method, kept), 1.0)] * len(decoding.channels)
    return dict(zip(decoding.channels, made, strict=True))


def _readable(method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the training with a policy that its channels allow; it is not used to read anything."""
    (policy, *_) = possible(method.decoding().channels)
    return {**settings, "policy": policy}


def _training_cell(cell: Cell, settings: Mapping[str, Any], share: float) -> Cell:
    assert cell.method is not None
    kind = type(cell.method)
    method = kind(kind.Config.model_validate(dict(settings)))
    name, amount = cell.config.budget.asked
    part = round(share * amount) if name == "student_tokens" else share * amount
    budget = cell.config.budget.model_copy(update={name: part})
    config = cell.config.model_copy(update={"method": method.config.model_dump(mode="json"), "budget": budget})
    kinds = kinds_read(config, method, cell.task.name, cell.runs)
    teachers = tuple(teacher for teacher in cell.teachers if teacher.kind in kinds)
    return replace(cell, trains_only=True, share=share, config=config, method=method, teachers=teachers)


def _with_init(cell: Cell, request: Request, preset: Preset) -> Cell:
    """The cell with a student that another cell makes, where the settings ask for one."""
    init = cell.config.student.init
    if init is None:
        return cell
    first = _first(cell, request, preset, cell.config.student.model, init, seed=cell.seed)
    return replace(cell, student=parse_spec(f"run:{first.run_id}", role="student"), student_from=first)


def _with_model_teacher(cell: Cell, request: Request, preset: Preset) -> Cell:
    """The cell with the model that teaches it, where the method learns from distributions or from what it answers."""
    assert cell.method is not None
    needs, config = cell.method.needs(), cell.config.teacher
    if needs.signal == "none" and "response" not in needs.annotations:
        return cell
    spec = model_teacher(cell.method, config.model, cell.config.teachers)
    if spec.has_weights and spec.kind != "hf":
        check_spec(spec, runs=cell.runs)
    if needs.signal != "none":
        check_signal(cell.method, config, cell.config.student.model, spec, runs=cell.runs)
    if config.init is not None and spec.has_weights:
        first = _first(cell, request, preset, spec.text, config.init, seed=0)  # as with texts, a seed changes nothing
        cell = replace(cell, teacher_from=first)
        spec = parse_spec(f"run:{first.run_id}", role="teacher")
    if spec.has_weights:
        check_teaches(cell, spec)
    if needs.signal != "none":
        cell = replace(cell, signal=spec)
    if "response" in needs.annotations:
        place = place_of(cell.config, cell.task.name, cell.runs)
        cell = replace(cell, teachers=(open_responder(spec, cell.config.annotations, place, cell.ask),))
    return cell


def _first(cell: Cell, request: Request, preset: Preset, model: str, init: InitConfig, *, seed: int) -> Cell:
    """The cell that makes a model first: the same task and data, another model, method and budget."""
    budget = dict.fromkeys(BUDGETS) | {"student_tokens": init.student_tokens, "epochs": init.epochs}
    chosen = {"select": "loss"}  # as MiniLLM does it for every fine-tuning that comes first
    values = {"student": {"model": model, "init": None}, "teacher": {"init": None}, "budget": budget, "train": chosen}
    values["eval"] = {"reading": cell.reading}
    if isinstance(init, TeacherInitConfig):
        values["data"] = {"train_limit": init.train_limit}
    kept = tuple(text for text in request.assignments if not text.startswith(("method.", "eval.reading=")))
    asked = replace(request, assignments=kept, methods=(init.method,))
    name = expand("method", (init.method,))[0]
    _, method = settings_of(asked, preset, method=name, task=cell.task.name, variant={}, made_for=values)
    if method is not None and method.decoding().policy is not None:
        raise UserError(
            f"init.method={init.method} writes by several paths, and no one student of it can be gone on from;"
            " choose a method that makes one"
        )
    return replace(_method(asked, preset, cell.task.name, name, seed, "", {}, values), trains_only=True)


def _check_rationales(cell: Cell) -> None:
    """Refuse recorded texts that are missing, damaged or about other questions before anything is trained."""
    for teacher in cell.teachers:
        if teacher.kind == "program":
            continue  # not every question has one
        lacking = teacher.lacks(cell.records("train"))
        if lacking is not None:
            raise UserError(
                f"teacher {teacher.spec} holds no rationale for {lacking} ({cell.source.kind} data);"
                f" name a teacher that was recorded on this data, e.g. replay:{cell.source.kind}#NAME"
            )


def _anchors(request: Request, preset: Preset, task: str) -> list[Cell]:
    """The guesses, then the student and every teacher that can answer, asked without and with examples."""
    found, _ = settings_of(request, preset, method=None, task=task, variant={})
    teachers = [parse_spec(text, role="teacher") for text in found.config.teachers]
    asked = [spec for spec in teachers if spec.has_weights]
    cells = [_anchor(request, found, task, name, None) for name in ANCHORS]
    return cells + [_anchor(request, found, task, name, spec) for spec in asked for name in ASKED]


def _anchor(request: Request, found: Resolved, task: str, name: str, teacher: ModelSpec | None) -> Cell:
    shots = f" ({found.config.eval.shots} shots)" if name == "few_shot" else ""
    label = f"{name}{shots}" if teacher is None else f"teacher {name}{shots}"
    return _cell(request, found, "anchor", name, label, load_task(task), 0, None, (), (), asked=teacher)


def _cell(
    request: Request,
    found: Resolved,
    kind: Literal["method", "anchor"],
    name: str,
    label: str,
    info: TaskInfo,
    seed: int,
    method: Method | None,
    teachers: tuple[Teacher, ...],
    notes: tuple[str, ...],
    *,
    asked: ModelSpec | None = None,
) -> Cell:
    config: BenchConfig = found.config
    source = find_source(config.data.source, config.data.dir)
    student = asked or parse_spec(config.student.model, role="student")
    if student.kind != "hf":
        check_spec(student, runs=request.runs)
    reading = choose_reading(config.eval.reading, info.readings, method.readings if method is not None else READINGS)
    if config.data.cut_tokens and reading != "gen":
        raise UserError(f"data.cut_tokens cuts prompts of generated answers; reading {reading} ranks options: drop one")
    if config.eval.match == "exact" and not load_split(source, info.name, "test")[0].choices:
        raise UserError(f"eval.match=exact compares with a choice's text; {info.name} has none: set eval.match=parser")
    backend_for(config.backend.engine, reading, is_encoder_decoder(student, runs=request.runs))
    for filter_name in config.annotations.filters:  # each alone: the first that rejects would hide an unknown one
        rejected_by("", (filter_name,))
    return Cell(
        kind=kind,
        name=name,
        label=label,
        task=info,
        reading=reading,
        seed=seed,
        config=config,
        origin=found.origin,
        method=method,
        student=student,
        source=source,
        data=_facts(source, info.name),
        teachers=teachers,
        notes=notes,
        asked=request.asked(),
        runs=request.runs,
        looks_at_test=request.looks_at_test and kind == "method",
    )


@lru_cache(maxsize=64)
def _facts(source: Source, task: str) -> Mapping[str, SplitFacts]:
    return manifest(source, task)
