"""The teachers of a cell: whose texts it learns from, which model teaches it, whether that fits the student."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.sources import find_source, load_split
from tinyllm_bench.experiment.settings import BenchConfig, TeacherConfig
from tinyllm_bench.experiment.verified_texts import AGREE_BELOW
from tinyllm_bench.models.identity import same_weights
from tinyllm_bench.models.load import Loaded, is_encoder_decoder, load_model, needs_bos, opened, readable, spec_folder
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teachers.teacher import Teacher, TeacherContext, live_key, open_program_teacher, open_teacher
from tinyllm_bench.training.method import Method, TeacherSignal

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell
    from tinyllm_bench.training.teacher_signals import InMemoryTeacher


def place_of(config: BenchConfig, task: str, runs: Path) -> TeacherContext:
    """Where the settings' teachers stand for a task."""
    return TeacherContext(
        task=task,
        source=find_source(config.data.source, config.data.dir),
        data_dir=config.data.dir,
        max_context_words=config.data.max_context_words,
        device=config.backend.device,
        runs=runs,
    )


def text_teachers(
    config: BenchConfig, method: Method, task: str, runs: Path
) -> tuple[tuple[Teacher, ...], tuple[str, ...]]:
    """The teachers a method uses on a task, opened; those without a text for it are refused or dropped with a note.

    A method that learns rationales and programs has each teacher twice, once for either.
    """
    kinds = kinds_read(config, method, task, runs)
    if not kinds:
        return (), ()
    place = place_of(config, task, runs)
    found: dict[str, _Found] = {}
    for text in config.teachers:
        spec = parse_spec(text, role="teacher")
        texts = [one for kind in kinds if (one := _open(spec, kind, config, place)) is not None]
        key = texts[0].key if texts else spec.fragment or text
        if key in found:
            raise UserError(f"teachers {found[key].spec} and {text} are both called {key!r}")
        found[key] = _Found(text, texts, len(texts) == len(kinds))
    lacking = [
        one.spec for key, one in found.items() if not one.whole and (len(kinds) == 1 or key in _used(method, found))
    ]
    if lacking and config.annotations.on_missing_teacher == "refuse":
        wanted = " or no ".join(_WORDS[kind] for kind in kinds)
        raise UserError(
            f"teacher {lacking[0]} has no {wanted} for task {task}; remove it from `teachers`"
            " or set annotations.on_missing_teacher=drop"
        )
    notes = tuple(f"teacher {spec} has no text for {task} and was dropped" for spec in lacking)
    return tuple(one for key in _used(method, found) if found[key].whole for one in found[key].texts), notes


def kinds_read(config: BenchConfig, method: Method, task: str, runs: Path) -> list[str]:
    """The kinds of text that are read for a method, rationales first.

    Beside those it learns: rationales where a program must agree with one (`AGREE_BELOW`), so that students of one mode
    learn the same programs as students of both.
    """
    kinds = set(method.needs().annotations - {"response"})
    if "program" in kinds:
        records = load_split(place_of(config, task, runs).source, task, "train")
        if any(0 < len(record.choices) < AGREE_BELOW for record in records):
            kinds.add("rationale")
    return sorted(kinds, reverse=True)


class _Found(NamedTuple):
    """A teacher as it was given, what it has, and whether that is all that is needed."""

    spec: str
    texts: list[Teacher]
    whole: bool


_WORDS = {"rationale": "text", "program": "program"}


def _used(method: Method, found: Mapping[str, _Found]) -> tuple[str, ...]:
    return method.uses(tuple(found))


def _open(spec: ModelSpec, kind: str, config: BenchConfig, place: TeacherContext) -> Teacher | None:
    if kind != "program":
        return open_teacher(spec, config.annotations, place)
    if spec.kind == "replay":
        return open_program_teacher(spec, config.annotations, place)
    asked = config.annotations.model_copy(update={"kind": "program", "filters": ("empty",)})
    return open_teacher(spec, asked, place)


# --- the model that teaches ------------------------------------------------------------------------------------------


def model_teacher(method: Method, named: str | None, teachers: Sequence[str]) -> ModelSpec:
    """The model that the method learns from: the one that is named, else the one of `teachers`.

    Raises:
        UserError: none is given, or the one that is used cannot give what is needed.
    """
    if named is not None:
        spec = parse_spec(named, role="teacher")
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


def check_signal(method: Method, config: TeacherConfig, student: str, teacher: ModelSpec, *, runs: Path) -> None:
    """Refuse a teacher that cannot give what the method learns from, before any weights are loaded.

    What lies on this machine is compared; models of the hub are compared when they are loaded.

    Raises:
        UserError: another family, another tokenizer, or a cache that cannot serve.
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
        raise _other_tokenizer(method, own.text, teacher.text)


def check_teaches(cell: "Cell", teacher: ModelSpec) -> None:
    """Refuse a teacher with the student's own weights, before anything is trained: there is nothing to learn from it.

    Two models that are yet to be made are the same where the same method makes them of the same weights on the same
    records; the seed of the student's is not compared, since another order of the same records knows no more.

    Raises:
        UserError: teacher and student are one model.
    """
    first, own = cell.teacher_from, cell.student_from
    same = same_weights(teacher, cell.student, cell.runs)
    if first is not None and own is not None and same_weights(first.student, own.student, cell.runs):
        same = same or replace(first, seed=0).run_id == replace(own, seed=0, student=first.student).run_id
    if not same:
        return
    told = cell.student.text if own is None else f"{own.student.text} after {own.name}"
    more = (
        "let it learn more than the student does (teacher.init.train_limit, teacher.init.epochs), or "
        if first is not None
        else "teach the teacher the task first (teacher.init), or "
    )
    raise UserError(
        f"{cell.label} on {cell.task.name}: teacher and student are the same weights ({told}), so that a model would be"
        f" distilled into itself; {more}name another teacher (teacher.model)"
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
            "teacher.cache: a teacher with another tokenizer is compared by more than its likeliest tokens;"
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

    with opened(spec, runs) as (folder, where), readable(spec):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **where)


def _other_tokenizer(method: Method, student: str, teacher: str) -> UserError:
    crosses = "cross_tokenizer" in type(method.config).model_fields
    way = "set method.cross_tokenizer=span_projection (or overlap, uld), " if crosses else ""
    return UserError(
        f"teacher {teacher} and student {student} have different tokenizers: a distribution over one vocabulary says"
        f" nothing about the other; {way}choose a teacher of the student's family, or a method that learns from texts"
    )


def open_teacher_model(cell: "Cell", student: Loaded, device: str) -> "TeacherSignal":
    """The cell's white-box teacher in memory, reading the student's ids or, across tokenizers, its own.

    Raises:
        UserError: its tokenizer is not the student's where it must be, or its head is of a kind that is not known.
    """
    from tinyllm_bench.models.lm import LM
    from tinyllm_bench.models.vocabulary import same_tokenizer
    from tinyllm_bench.training.cross_tokenizer import CrossTeacher

    assert cell.method is not None and cell.signal is not None
    loaded = load_model(cell.signal, dtype=cell.config.teacher.dtype, device=device, runs=cell.runs)
    lm = LM(loaded.model)
    lm.check()
    if cell.method.needs().same_tokenizer:
        if not same_tokenizer(loaded.tokenizer, student.tokenizer):
            raise _other_tokenizer(cell.method, cell.student.text, cell.signal.text)
        return _in_memory(lm, student)
    if lm.encoder_decoder or student.model.config.is_encoder_decoder:
        raise UserError(f"teacher {cell.signal.text}: only decoder-only models are read across tokenizers")
    chat = cell.config.teacher.chat
    if chat and loaded.tokenizer.chat_template is None:
        raise UserError(f"teacher.chat: {cell.signal.text} has no chat template; set teacher.chat=false")
    bos = needs_bos(*loaded)
    return CrossTeacher(lm, loaded.tokenizer, student.tokenizer, add_bos=bos, chat=chat)


def _in_memory(lm: Any, student: Loaded) -> "InMemoryTeacher":
    from tinyllm_bench.models.lm import LM
    from tinyllm_bench.training.teacher_signals import InMemoryTeacher, check_same_family

    check_same_family(LM(student.model), lm)
    return InMemoryTeacher(lm, vocabulary=len(student.tokenizer))
