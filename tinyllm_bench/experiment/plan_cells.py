"""From a request to its cells: each is resolved, and checked before anything expensive starts.

`resolved_cell` and `with_teachers` make a cell from settings and data alone; `verify` calls them too, for the settings
of a finished run. The checks at the end refuse what cannot run on this machine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from tinyllm_bench.base.config import Resolved
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import read_text
from tinyllm_bench.base.plugins import load_task, names
from tinyllm_bench.data.prompts import LABEL, rationale_channel
from tinyllm_bench.data.records import SCORING_MODES, Annotation, ScoringMode, TaskInfo
from tinyllm_bench.data.sources import Source, find_source, load_split, manifest
from tinyllm_bench.data.splits import SplitFacts
from tinyllm_bench.evaluation.sampled_answers import policies_for
from tinyllm_bench.experiment.annotate import kinds_read, teacher_context, text_teachers
from tinyllm_bench.experiment.cell import GUESSES, Cell
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
from tinyllm_bench.experiment.settings import BenchConfig, InitConfig, TeacherConfig, TeacherInitConfig
from tinyllm_bench.generation.vllm import backend_for
from tinyllm_bench.models.hub import forget_revisions
from tinyllm_bench.models.identity import same_weights
from tinyllm_bench.models.load import (
    check_spec,
    check_targets,
    is_encoder_decoder,
    pretrained_source,
    spec_folder,
    user_errors,
)
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teachers.filters import rejected_by
from tinyllm_bench.teachers.teacher import live_key, open_responder
from tinyllm_bench.training.budget import BUDGETS
from tinyllm_bench.training.method import Method

PROMPTED = ("zero_shot", "few_shot")  # reference baselines of a model as it is
REFERENCE_BASELINES = (*GUESSES, *PROMPTED)

# Returns the run that trains a model for a cell, given the cell, the model's spec, settings and seed: the run's id, and
# its cell where it is planned here.
ModelMaker = Callable[[Cell, str, InitConfig, int], tuple[str, Cell | None]]


def plan_cells(
    request: Request, *, reference_baselines: bool = False, check_hub: bool = True
) -> tuple[str, list[Cell]]:
    """Resolve a request into cells, every one checked before anything expensive starts.

    Args:
        request: The user's request.
        reference_baselines: Also plan the reference baselines.
        check_hub: Also check that models of the hub are available; those on this machine are checked in any case.

    Returns:
        The preset's name and the cells: per task the reference baselines, if requested, then per seed the methods and
        their variants.
    """
    forget_revisions()
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
                    row = _method_cell(request, preset, task, method, seed, variant, values)
                    # other layers may set all that a variant sets: it is then the same cell as an earlier row
                    rows.setdefault(row.run_id, row)
                cells += rows.values()
    digests = [{teacher.text_digest(cell.task.name) for teacher in cell.teachers} for cell in cells]
    for index, (cell, own) in enumerate(zip(cells, digests, strict=True)):
        same = (texts for c, texts in zip(cells, digests, strict=True) if (c.task, c.seed) == (cell.task, cell.seed))
        cells[index] = replace(cell, shared_by=max(1, sum(not own.isdisjoint(texts) for texts in same)))
    if not cells:
        raise UserError(f"nothing to run: give --method (of {', '.join(names('method'))}) and --task")
    _check_markers(cells)
    check_trackers(dict.fromkeys(name for cell in cells for name in cell.config.report_to))
    if check_hub:
        for spec in dict.fromkeys(spec for cell in cells for spec in _models(cell) if spec.kind == "hf"):
            check_spec(spec)
    return preset.name, cells


def _check_markers(cells: Sequence[Cell]) -> None:
    """Refuse a marker of the user's that belongs to no channel of any cell: it would change nothing."""
    with_markers = [cell for cell in cells if cell.origin.get("data.markers") in ("--config", "command line")]
    if not with_markers:
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
            texts = [Annotation(record_id=first.id, teacher=key, kind=kind, text="a") for key in keys for kind in kinds]
            known |= {example.channel for example in cell.method.examples(first, texts, cell.ask)}
    for name in (name for cell in with_markers for name in cell.config.data.markers):
        if name not in known:
            raise unknown_name("channel of data.markers", name, known)


def _models(cell: Cell) -> list[ModelSpec]:
    """Every model that a cell loads: its student, its teachers, and those of its prerequisites."""
    teachers = [parse_spec(teacher.spec, role="teacher") for teacher in cell.teachers]
    prerequisites = [spec for prerequisite in cell.prerequisites for spec in _models(prerequisite)]
    return [cell.student, *([cell.signal] if cell.signal else []), *teachers, *prerequisites]


def _method_cell(
    request: Request,
    preset: Preset,
    task: str,
    name: str,
    seed: int,
    variant: str,
    values: Mapping[str, Any],
    init_settings: Mapping[str, Any] = MappingProxyType({}),
) -> Cell:
    settings, method = settings_of(request, preset, method=name, task=task, variant=values, init_settings=init_settings)
    label = f"{name} ({variant})" if variant else name

    def make_model(cell: Cell, model: str, init: InitConfig, seed: int) -> tuple[str, Cell]:
        init_cell = _init_cell(cell, request, preset, model, init, seed)
        return init_cell.run_id, init_cell

    cell = resolved_cell(settings, request, name=name, label=label, task=task, seed=seed, method=method)
    return _check(with_teachers(cell, make_model))


def _init_cell(cell: Cell, request: Request, preset: Preset, model: str, init: InitConfig, seed: int) -> Cell:
    """The cell that makes the initial student or the teacher: the same task and data, another model, method, budget."""
    budget = dict.fromkeys(BUDGETS) | {"student_tokens": init.student_tokens, "epochs": init.epochs}
    values: dict[str, dict[str, Any]] = {
        "student": {"model": model, "init": None},
        "teacher": {"init": None},
        "budget": budget,
        "train": {"select": "loss"},  # as MiniLLM does for every fine-tuning before the distillation
        "eval": {"mode": cell.mode},
    }
    if isinstance(init, TeacherInitConfig):
        values["data"] = {"train_limit": init.train_limit}
    assignments = tuple(text for text in request.assignments if not text.startswith(("method.", "eval.mode=")))
    request = replace(request, assignments=assignments, methods=(init.method,))
    name = expand("method", (init.method,))[0]
    _, method = settings_of(request, preset, method=name, task=cell.task.name, variant={}, init_settings=values)
    if method is not None and method.decoding().policy is not None:
        raise UserError(
            f"init.method={init.method} answers by a policy over sampled texts and may have several students; choose a"
            " method that trains a single one"
        )
    return replace(_method_cell(request, preset, cell.task.name, name, seed, "", {}, values), trains_only=True)


def _reference_baselines(request: Request, preset: Preset, task: str) -> list[Cell]:
    """The guesses, then the student and every teacher with weights, zero-shot and few-shot."""
    settings, _ = settings_of(request, preset, method=None, task=task, variant={})
    teachers = [parse_spec(text, role="teacher") for text in settings.config.teachers]
    shots = f" ({settings.config.eval.shots} shots)"

    def cell(name: str, teacher: ModelSpec | None = None) -> Cell:
        label = ("" if teacher is None else "teacher ") + name + (shots if name == "few_shot" else "")
        return _check(resolved_cell(settings, request, name=name, label=label, task=task, model=teacher))

    own = [cell(name) for name in REFERENCE_BASELINES]
    return own + [cell(name, teacher) for teacher in teachers if teacher.has_weights for name in PROMPTED]


# --- a cell from settings and data ------------------------------------------------------------------------------------


def resolved_cell(
    settings: Resolved,
    request: Request,
    *,
    name: str,
    label: str,
    task: str,
    seed: int = 0,
    method: Method | None = None,
    model: ModelSpec | None = None,
) -> Cell:
    """A cell without its teachers, from settings and data: no model is opened.

    Args:
        settings: Its settings.
        request: The user's request, with the folder of runs.
        name: Name of the method or the reference baseline.
        label: Label of its row.
        task: The task's name.
        seed: Seed of the training.
        method: None for a reference baseline.
        model: The model that is evaluated, where that is not the settings' student.

    Raises:
        UserError: settings that contradict each other, or missing data.
    """
    config: BenchConfig = settings.config
    info: TaskInfo = load_task(task)
    if method is not None and not config.train.evaluations and config.train.eval_every is None:
        raise UserError("train.evaluations=[]: validation must be scored at least once; [1.0] is the end alone")
    if method is not None and not config.budget.has_one_unit:
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
        raise UserError(
            f"train.select=loss: {name} answers by sampled texts and has no such loss; use train.select=best"
        )
    source = find_source(config.data.source, config.data.dir)
    return Cell(
        kind="reference_baseline" if method is None else "method",
        name=name,
        label=label,
        task=info,
        mode=mode,
        seed=seed,
        config=config,
        origin=settings.origin,
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


def choose_mode(setting: str, offered: tuple[ScoringMode, ...], answered: tuple[ScoringMode, ...]) -> ScoringMode:
    """The mode of the setting where task and method both allow it, else (and for `auto`) the first that both allow.

    Raises:
        UserError: task and method share no mode.
    """
    both = [mode for mode in SCORING_MODES if mode in offered and mode in answered]
    if not both:
        raise UserError(
            f"the task offers {', '.join(offered)}, the method answers {', '.join(answered)}: they share no mode"
        )
    return next((mode for mode in both if mode == setting), both[0])


@lru_cache(maxsize=64)
def _facts(source: Source, task: str) -> Mapping[str, SplitFacts]:
    return manifest(source, task)


def with_teachers(cell: Cell, make_model: ModelMaker) -> Cell:
    """A method's cell with its teachers, with the runs that make its models, and with notes on what was left out.

    Raises:
        UserError: a teacher that does not exist, is the student itself, or has none of the texts that the method needs.
    """
    method, config, task = cell.method, cell.config, cell.task.name
    assert method is not None
    needs = method.needs()
    teachers, notes = text_teachers(config, method, task, cell.runs)
    # without a note there are no teachers because the method gives each a weight of 0
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
        made_by, planned = make_model(cell, config.student.model, config.student.init, cell.seed)
        cell = replace(cell, student=parse_spec(f"run:{made_by}", role="student"), student_from=planned)
    if needs.signal != "none" or "response" in needs.annotations:
        spec = model_teacher(method, config.teacher.model, config.teachers)
        if config.teacher.init is not None and spec.has_weights:
            # seed 0 for all runs: their seeds change the student alone, not its teacher
            made_by, planned = make_model(cell, spec.text, config.teacher.init, 0)
            cell = replace(cell, teacher_from=planned)
            spec = parse_spec(f"run:{made_by}", role="teacher")
        if spec.has_weights:
            check_teacher_differs(cell, spec)
        if needs.signal != "none":
            cell = replace(cell, signal=spec)
        if "response" in needs.annotations:
            responder = open_responder(spec, config.annotations, teacher_context(config, task, cell.runs), cell.ask)
            cell = replace(cell, teachers=(responder,))
    return replace(cell, students=_students(cell))


def _students(cell: Cell) -> Mapping[str, Cell]:
    """The cell that trains the student of each channel, where a policy decides between sampled texts.

    Cells that differ in decoding alone share it. Where channels have students of their own (`Decoding.members`), each
    gets an equal part of the budget.
    """
    method = cell.method
    assert method is not None
    decoding = method.decoding()
    if decoding.policy is None:
        return {}
    settings = {k: v for k, v in cell.config.method.items() if k not in type(method).inference_settings}
    if decoding.members:
        share = 1 / len(decoding.members)
        students = [_training_cell(cell, {**settings, **member}, share) for member in decoding.members]
    else:
        (policy, *_) = policies_for(decoding.channels)  # any: it does not change the training
        students = [_training_cell(cell, {**settings, "policy": policy}, 1.0)] * len(decoding.channels)
    return dict(zip(decoding.channels, students, strict=True))


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


def model_teacher(method: Method, model: str | None, teachers: Sequence[str]) -> ModelSpec:
    """The model that the method learns from: `teacher.model` if it is set, else the one of `teachers` that is used.

    Raises:
        UserError: none is given, or the one that is used cannot provide what the method needs.
    """
    if model is not None:
        spec = parse_spec(model, role="teacher")
    else:
        specs = {teacher_key(spec): spec for spec in (parse_spec(text, role="teacher") for text in teachers)}
        (key, *_) = method.uses(tuple(specs))
        spec = specs[key]
    if spec.kind == "replay" or (not spec.has_weights and method.needs().signal != "none"):
        what = "distributions" if method.needs().signal != "none" else "what the teacher answers to its own prompts"
        raise UserError(
            f"teacher {spec.text} gives text only and this method learns from {what};"
            " name a model with weights: teacher.model=bundled:NAME, hf:, dir: or gguf:"
        )
    return spec


def teacher_key(spec: ModelSpec) -> str:
    """The short name by which settings and channels name a teacher."""
    return spec.fragment or spec.text if spec.kind == "replay" else live_key(spec)


# --- checks before anything is trained --------------------------------------------------------------------------------


def _check(cell: Cell) -> Cell:
    """The cell, if it can run on this machine.

    Raises:
        UserError: a model that does not exist or does not fit, texts that are missing, settings without effect.
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
    for teacher in cell.teachers:
        # every question needs a recorded rationale; not every question has a program
        missing = None if teacher.kind == "program" else teacher.first_missing(cell.records("train"))
        if missing is not None:
            raise UserError(
                f"teacher {teacher.spec} holds no rationale for {missing} ({cell.source.kind} data);"
                f" name a teacher that was recorded on this data, e.g. replay:{cell.source.kind}#NAME"
            )
    needs = cell.method.needs()
    if needs.signal != "none" or "response" in needs.annotations:
        spec = model_teacher(cell.method, config.teacher.model, config.teachers)
        if spec.has_weights and spec.kind != "hf":
            check_spec(spec, runs=runs)
        if needs.signal != "none":
            check_signal(cell.method, config.teacher, config.student.model, spec, runs=runs)
    check_plain_text(cell)
    return cell


def check_signal(method: Method, config: TeacherConfig, student: str, teacher: ModelSpec, *, runs: Path) -> None:
    """Refuse a teacher that cannot provide what the method learns from, before any weights are loaded.

    Models on this machine are compared here, those of the hub when they are loaded.

    Raises:
        UserError: another family, another tokenizer, or a cache that the method cannot use.
    """
    from tinyllm_bench.models.vocabulary import same_tokenizer

    _check_cache(method, config)
    own = parse_spec(student, role="student")
    folders = [spec_folder(spec, runs=runs) for spec in (own, teacher)]
    if any(folder is None or not (folder / "config.json").is_file() for folder in folders):
        return
    if is_encoder_decoder(own, runs=runs) != is_encoder_decoder(teacher, runs=runs):
        raise UserError(f"teacher {teacher.text} and student {own.text}: one is an encoder-decoder, the other is not")
    if not method.needs().same_tokenizer:
        if is_encoder_decoder(teacher, runs=runs):
            raise UserError(f"teacher {teacher.text}: only decoder-only models are read across tokenizers")
    elif not same_tokenizer(*(_tokenizer(spec, runs) for spec in (own, teacher))):
        raise different_tokenizers(method, own.text, teacher.text)


def check_teacher_differs(cell: Cell, teacher: ModelSpec) -> None:
    """Refuse a teacher with the student's own weights, before anything is trained: there is nothing to learn from it.

    Two models that are still to be trained are the same where the same method trains the same weights on the same
    records; the seed is not compared, since another order of the same records adds no knowledge.

    Raises:
        UserError: teacher and student are one model.
    """
    first, own = cell.teacher_from, cell.student_from
    same = same_weights(teacher, cell.student, cell.runs)
    if first is not None and own is not None and same_weights(first.student, own.student, cell.runs):
        same = same or replace(first, seed=0).run_id == replace(own, seed=0, student=first.student).run_id
    if not same:
        return
    weights = cell.student.text if own is None else f"{own.student.text} after {own.name}"
    fix = (
        "train it on more than the student (teacher.init.train_limit, teacher.init.epochs), or "
        if first is not None
        else "train the teacher on the task first (teacher.init), or "
    )
    raise UserError(
        f"{cell.label} on {cell.task.name}: teacher and student are the same weights ({weights}), so a model would"
        f" be distilled into itself; {fix}name another teacher (teacher.model)"
    )


def _check_cache(method: Method, config: TeacherConfig) -> None:
    signal = method.needs().signal
    if config.cache is None or signal == "cached":
        return
    if signal == "on_policy":
        raise UserError(
            "teacher.cache: this method samples new texts at every step, and no cache can know them beforehand;"
            " set teacher.cache=null"
        )
    if not method.needs().same_tokenizer:
        raise UserError(
            "teacher.cache: a teacher with another tokenizer is compared by more than its top-k tokens;"
            " set teacher.cache=null"
        )
    if config.cache.k != "all":
        raise UserError(
            f"teacher.cache.k={config.cache.k}: with these settings the method needs the teacher's probability of every"
            " token (reverse, skew reverse and adaptive KL, and temperatures other than 1); set teacher.cache.k=all, or"
            " teacher.cache=null for the live teacher"
        )


@lru_cache(maxsize=16)
def _tokenizer(spec: ModelSpec, runs: Path) -> Any:
    from transformers import AutoTokenizer

    with pretrained_source(spec, runs) as (folder, where), user_errors(spec):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **where)


def different_tokenizers(method: Method, student: str, teacher: str) -> UserError:
    """The error for a teacher whose tokenizer is not the student's, where the method needs the same."""
    crosses = "cross_tokenizer" in type(method.config).model_fields
    option = "set method.cross_tokenizer=span_projection (or overlap, uld), " if crosses else ""
    return UserError(
        f"teacher {teacher} and student {student} have different tokenizers: a distribution over one vocabulary says"
        f" nothing about the other; {option}choose a teacher of the student's family, or a method that learns from"
        " texts"
    )


def check_plain_text(cell: Cell) -> None:
    """Refuse a plain text that cannot be read, where the method trains on one.

    Raises:
        UserError: the file does not exist, or is no UTF-8 text.
    """
    assert cell.method is not None
    name = cell.config.data.plain_text
    if name is None or not cell.method.needs().plain_text:
        return
    if not Path(name).expanduser().exists():
        raise UserError(f"data.plain_text={name}: no such file; name a UTF-8 text file")
    read_text(Path(name).expanduser())
