"""From a request to the cells that it means: each resolved, and checked before anything expensive starts.

`resolved_cell` and `with_teachers` say what a cell is, from settings and data alone; `verify` calls them too, for the
settings of a finished run. `_check` refuses what cannot run here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

from tinyllm_bench.base.config import Resolved
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.plugins import load_task, names
from tinyllm_bench.data.prompts import LABEL, rationale_channel
from tinyllm_bench.data.records import SCORING_MODES, Annotation, ScoringMode, TaskInfo
from tinyllm_bench.data.sources import Source, find_source, load_split, manifest
from tinyllm_bench.data.splits import SplitFacts
from tinyllm_bench.evaluation.sampled_answers import policies_for
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.cell_teachers import (
    check_signal,
    check_teaches,
    kinds_read,
    model_teacher,
    place_of,
    teacher_key,
    text_teachers,
)
from tinyllm_bench.experiment.identity import GUESSES
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
from tinyllm_bench.generation.vllm import backend_for
from tinyllm_bench.models.hub import forget
from tinyllm_bench.models.load import check_spec, check_targets, is_encoder_decoder
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teachers.filters import rejected_by
from tinyllm_bench.teachers.teacher import open_responder
from tinyllm_bench.training.budget import BUDGETS
from tinyllm_bench.training.method import Method

ASKED = ("zero_shot", "few_shot")
REFERENCE_BASELINES = (*GUESSES, *ASKED)

# The run that makes a model for a cell (the spec's text, its settings, its seed): its id, and its cell where it is
# planned here.
First = Callable[[Cell, str, InitConfig, int], tuple[str, Cell | None]]


def plan_cells(
    request: Request, *, reference_baselines: bool = False, check_hub: bool = True
) -> tuple[str, list[Cell]]:
    """Resolve a request into cells, every one checked before anything expensive starts.

    Args:
        request: What was asked for.
        reference_baselines: Also plan the reference baselines.
        check_hub: Also ask whether models of the hub can be had; what lies on this machine is checked in any case.

    Returns:
        The preset's name and the cells: per task the reference baselines, if asked, then per seed the methods and their
        variants.
    """
    forget()
    preset = load_preset(request.preset or default_preset())
    methods = expand("method", request.methods)
    check_method_keys(request, methods)
    cells: list[Cell] = []
    for task in expand("task", request.tasks):
        if reference_baselines:
            cells += _reference_baselines(request, preset, task)
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
    label = f"{name} ({variant})" if variant else name

    def first(cell: Cell, model: str, init: InitConfig, seed: int) -> tuple[str, Cell]:
        made = _first(cell, request, preset, model, init, seed)
        return made.run_id, made

    bare = resolved_cell(found, request, name=name, label=label, task=task, seed=seed, method=method)
    return _check(with_teachers(bare, first))


def _first(cell: Cell, request: Request, preset: Preset, model: str, init: InitConfig, seed: int) -> Cell:
    """The cell that makes a model first: the same task and data, another model, method and budget."""
    budget = dict.fromkeys(BUDGETS) | {"student_tokens": init.student_tokens, "epochs": init.epochs}
    chosen = {"select": "loss"}  # as MiniLLM does it for every fine-tuning that comes first
    values = {"student": {"model": model, "init": None}, "teacher": {"init": None}, "budget": budget, "train": chosen}
    values["eval"] = {"mode": cell.mode}
    if isinstance(init, TeacherInitConfig):
        values["data"] = {"train_limit": init.train_limit}
    assignments = tuple(text for text in request.assignments if not text.startswith(("method.", "eval.mode=")))
    asked = replace(request, assignments=assignments, methods=(init.method,))
    name = expand("method", (init.method,))[0]
    _, method = settings_of(asked, preset, method=name, task=cell.task.name, variant={}, made_for=values)
    if method is not None and method.decoding().policy is not None:
        raise UserError(
            f"init.method={init.method} writes by several paths, and no one student of it can be gone on from;"
            " choose a method that makes one"
        )
    return replace(_method(asked, preset, cell.task.name, name, seed, "", {}, values), trains_only=True)


def _reference_baselines(request: Request, preset: Preset, task: str) -> list[Cell]:
    """The guesses, then the student and every teacher that can answer, asked without and with examples."""
    found, _ = settings_of(request, preset, method=None, task=task, variant={})
    teachers = [parse_spec(text, role="teacher") for text in found.config.teachers]
    shots = f" ({found.config.eval.shots} shots)"

    def cell(name: str, teacher: ModelSpec | None = None) -> Cell:
        label = ("" if teacher is None else "teacher ") + name + (shots if name == "few_shot" else "")
        return _check(resolved_cell(found, request, name=name, label=label, task=task, model=teacher))

    own = [cell(name) for name in REFERENCE_BASELINES]
    return own + [cell(name, teacher) for teacher in teachers if teacher.has_weights for name in ASKED]


# --- what a cell is ---------------------------------------------------------------------------------------------------


def resolved_cell(
    found: Resolved,
    request: Request,
    *,
    name: str,
    label: str,
    task: str,
    seed: int = 0,
    method: Method | None = None,
    model: ModelSpec | None = None,
) -> Cell:
    """A cell as far as asking and scoring need it, from settings and data: no model is looked at.

    Args:
        found: Its settings.
        request: What was asked for, and the folder of runs.
        name: Of the method or the reference baseline.
        label: Of its row.
        task: The task's name.
        seed: Of the training.
        method: None for a reference baseline.
        model: The model that is asked, where that is not the settings' student.

    Raises:
        UserError: settings that contradict each other, or data that is not there.
    """
    config: BenchConfig = found.config
    info: TaskInfo = load_task(task)
    if method is not None and not config.train.evaluations and config.train.eval_every is None:
        raise UserError("train.evaluations=[]: validation must be scored at least once; [1.0] is the end alone")
    if method is not None and not config.budget.is_one:
        raise UserError(f"set exactly one of {', '.join(f'budget.{key}' for key in BUDGETS)} (the others to null)")
    if method is not None and config.student.dtype != "float32":
        raise UserError(
            f"student.dtype={config.student.dtype}: {name} trains its weights, and 16 bits round small steps away;"
            " set student.dtype=float32, and train.mixed_precision=bf16 to compute in 16 bits"
        )
    mode = choose_mode(config.eval.mode, info.scoring_modes, SCORING_MODES if method is None else method.scoring_modes)
    if config.data.cut_tokens and mode != "generate":
        raise UserError(f"data.cut_tokens cuts prompts of generated answers; mode {mode} ranks options: drop one")
    if method is not None and method.decoding().policy is not None and config.train.select == "loss":
        raise UserError(f"train.select=loss: {name} answers by paths and has no such loss; use train.select=best")
    source = find_source(config.data.source, config.data.dir)
    return Cell(
        kind="reference_baseline" if method is None else "method",
        name=name,
        label=label,
        task=info,
        mode=mode,
        seed=seed,
        config=config,
        origin=found.origin,
        method=method,
        student=model or parse_spec(config.student.model, role="student"),
        source=source,
        data=_facts(source, info.name),
        teachers=(),
        notes=(),
        request=request.recorded(),
        runs=request.runs,
        select_on_test=request.select_on_test and method is not None,
    )


def choose_mode(wanted: str, offered: tuple[ScoringMode, ...], answered: tuple[ScoringMode, ...]) -> ScoringMode:
    """The wanted mode where task and method both allow it; `auto` and everything else fall back to what both allow.

    Raises:
        UserError: task and method share no mode.
    """
    both = [mode for mode in SCORING_MODES if mode in offered and mode in answered]
    if not both:
        raise UserError(
            f"the task offers {', '.join(offered)}, the method answers {', '.join(answered)}: nothing shared"
        )
    return next((mode for mode in both if mode == wanted), both[0])


@lru_cache(maxsize=64)
def _facts(source: Source, task: str) -> Mapping[str, SplitFacts]:
    return manifest(source, task)


def with_teachers(cell: Cell, first: First) -> Cell:
    """A method's cell with its teachers, with the runs that make its models, and with notes on what was left out.

    Raises:
        UserError: a teacher that is not there, is the student itself, or lacks the texts that the method needs.
    """
    method, config, task = cell.method, cell.config, cell.task.name
    assert method is not None
    needs = method.needs()
    teachers, notes = text_teachers(config, method, task, cell.runs)
    # without such a note there is none because none has a weight
    if not teachers and notes and not needs.annotations.isdisjoint({"rationale", "program"}):
        kinds = " and ".join(f"{kind}s" for kind in sorted(needs.annotations - {"response"}))
        raise UserError(f"{cell.name} needs {kinds} and no teacher has any for task {task}")
    if method.is_on_policy and config.student.lora is not None and config.student.lora.dropout:
        dropout = f"student.lora.dropout={config.student.lora.dropout:g}"
        notes = (*notes, f"{dropout} has no effect: {cell.name} samples texts")
    if needs.plain_text and config.data.plain_text is None:
        notes = (*notes, "no data.plain_text: the method's loss on plain text is left out")
    cell = replace(cell, teachers=teachers, notes=notes)
    if config.student.init is not None:
        made_by, planned = first(cell, config.student.model, config.student.init, cell.seed)
        cell = replace(cell, student=parse_spec(f"run:{made_by}", role="student"), student_from=planned)
    if needs.signal != "none" or "response" in needs.annotations:
        spec = model_teacher(method, config.teacher.model, config.teachers)
        if config.teacher.init is not None and spec.has_weights:
            # as with texts, a seed changes nothing
            made_by, planned = first(cell, spec.text, config.teacher.init, 0)
            cell = replace(cell, teacher_from=planned)
            spec = parse_spec(f"run:{made_by}", role="teacher")
        if spec.has_weights:
            check_teaches(cell, spec)
        if needs.signal != "none":
            cell = replace(cell, signal=spec)
        if "response" in needs.annotations:
            responder = open_responder(spec, config.annotations, place_of(config, task, cell.runs), cell.ask)
            cell = replace(cell, teachers=(responder,))
    return replace(cell, students=_students(cell))


def _students(cell: Cell) -> Mapping[str, Cell]:
    """Who writes each channel, where a policy decides: a cell that only trains, shared by all that read it otherwise.

    Where channels have students of their own (`Decoding.members`), each gets an equal part of the budget.
    """
    method = cell.method
    assert method is not None
    decoding = method.decoding()
    if decoding.policy is None:
        return {}
    settings = {k: v for k, v in cell.config.method.items() if k not in type(method).inference_settings}
    if decoding.members:
        share = 1 / len(decoding.members)
        made = [_training_cell(cell, {**settings, **member}, share) for member in decoding.members]
    else:
        (policy, *_) = policies_for(decoding.channels)  # a training has one, though it is not used to read anything
        made = [_training_cell(cell, {**settings, "policy": policy}, 1.0)] * len(decoding.channels)
    return dict(zip(decoding.channels, made, strict=True))


def _training_cell(cell: Cell, settings: Mapping[str, Any], share: float) -> Cell:
    assert cell.method is not None
    kind = type(cell.method)
    method = kind(kind.Config.model_validate(dict(settings)))
    name, amount = cell.config.budget.limit
    part = round(share * amount) if name == "student_tokens" else share * amount
    budget = cell.config.budget.model_copy(update={name: part})
    config = cell.config.model_copy(update={"method": method.config.model_dump(mode="json"), "budget": budget})
    kinds = kinds_read(config, method, cell.task.name, cell.runs)
    teachers = tuple(teacher for teacher in cell.teachers if teacher.kind in kinds)
    return replace(cell, trains_only=True, share=share, config=config, method=method, teachers=teachers)


# --- what cannot run here ---------------------------------------------------------------------------------------------


def _check(cell: Cell) -> Cell:
    """The cell, if nothing on this machine stands against running it.

    Raises:
        UserError: a model that is not there or does not fit, texts that are missing, settings that nothing obeys.
    """
    config, runs = cell.config, cell.runs
    base = parse_spec(config.student.model, role="student") if cell.method is not None else cell.student
    if base.kind != "hf":
        check_spec(base, runs=runs)
    if config.eval.match == "exact" and not load_split(cell.source, cell.task.name, "test")[0].choices:
        raise UserError(
            f"eval.match=exact compares with a choice's text; {cell.task.name} has none: set eval.match=parser"
        )
    backend_for(config.backend.engine, cell.mode, is_encoder_decoder(base, runs=runs))
    for filter_name in config.annotations.filters:  # each alone: the first that rejects would hide an unknown one
        rejected_by("", (filter_name,))
    if cell.method is None:
        return cell
    if config.student.lora is not None:
        check_targets(base, config.student.lora.target_modules, runs=runs)
    _check_recorded_texts(cell)
    needs = cell.method.needs()
    if needs.signal != "none" or "response" in needs.annotations:
        spec = model_teacher(cell.method, config.teacher.model, config.teachers)
        if spec.has_weights and spec.kind != "hf":
            check_spec(spec, runs=runs)
        if needs.signal != "none":
            check_signal(cell.method, config.teacher, config.student.model, spec, runs=runs)
    check_plain_text(cell)
    return cell


def _check_recorded_texts(cell: Cell) -> None:
    """Refuse recorded texts that are missing, damaged or about other questions before anything is trained."""
    for teacher in cell.teachers:
        if teacher.kind == "program":
            continue  # not every question has one
        missing = teacher.first_missing(cell.records("train"))
        if missing is not None:
            raise UserError(
                f"teacher {teacher.spec} holds no rationale for {missing} ({cell.source.kind} data);"
                f" name a teacher that was recorded on this data, e.g. replay:{cell.source.kind}#NAME"
            )
