"""From a model spec to a teacher: recorded texts, a local model, an API, or somebody's plugin."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Recorded, TaskRecord, cut_context
from tinyllm_bench.data.sources import (
    Source,
    find_source,
    gold_visible,
    load_rationales,
    load_split,
    program_keys,
    rationale_keys,
)
from tinyllm_bench.generation.requests import TextGenerator
from tinyllm_bench.models.hub import hub_folder
from tinyllm_bench.models.identity import model_identity
from tinyllm_bench.models.load import check_spec, is_encoder_decoder, spec_folder
from tinyllm_bench.models.specs import KINDS, ModelSpec, parse_spec
from tinyllm_bench.teachers.few_shot import Shots
from tinyllm_bench.teachers.live import LiveTeacher
from tinyllm_bench.teachers.prompting import AsStudent, Elicited, Words
from tinyllm_bench.teachers.settings import AnnotationConfig
from tinyllm_bench.teachers.teacher import ReplayTeacher, Teacher


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a teacher stands: the questions it is asked about, the folder of runs, and the device of local models."""

    task: str
    source: Source
    data_dir: str | None
    max_context_words: int
    device: Literal["auto", "cpu", "cuda"]
    runs: Path


def open_teacher(spec: ModelSpec, settings: AnnotationConfig, place: Place) -> Teacher | None:
    """The teacher a spec names, or None when recorded texts hold nothing of it for this task; no weights are loaded.

    Raises:
        UserError: a model that is not there, a recorded source without a name, demonstrations that cannot be had.
    """
    return (
        _replay(spec, settings.filters, place, "rationale") if spec.kind == "replay" else _live(spec, settings, place)
    )


def open_program_teacher(spec: ModelSpec, settings: AnnotationConfig, place: Place) -> Teacher | None:
    """The recorded programs a spec names, or None when there are none of it for this task.

    Only empty ones are rejected: `settings.filters` judge prose, and what a program is worth is known when it has run.

    Raises:
        UserError: a spec of a model, or a recorded source without a name.
    """
    if spec.kind != "replay":
        raise UserError(f"teacher {spec.text!r} has no recorded programs; name some, such as replay:sample#stepwise")
    return _replay(spec, ("empty",), place, "program")


def _replay(spec: ModelSpec, filters: tuple[str, ...], place: Place, kind: Recorded) -> Teacher | None:
    source = replay_source(spec, place.data_dir)
    keys = (rationale_keys if kind == "rationale" else program_keys)(source, place.task)
    if spec.fragment is None:
        raise UserError(f"teacher {spec.text!r} names no {kind}s; add #NAME, one of: {', '.join(keys) or 'none'}")
    if spec.fragment not in keys:
        return None
    visible = gold_visible(source, place.task, spec.fragment)
    return ReplayTeacher(spec.fragment, spec.text, source, filters, visible, kind=kind)


def replay_source(spec: ModelSpec, data_dir: str | None) -> Source:
    """The data that a `replay:` spec means.

    Raises:
        UserError: neither a folder, nor `release`, nor `sample`.
    """
    if spec.location in ("release", "sample"):
        return find_source(cast(Literal["release", "sample"], spec.location), data_dir)
    if not Path(spec.location).is_dir():
        raise UserError(f"teacher {spec.text!r}: {spec.location} is not a folder, `release` or `sample`")
    return Source("release", spec.location)


def _live(spec: ModelSpec, settings: AnnotationConfig, place: Place) -> LiveTeacher:
    if spec.kind not in KINDS:
        plugins.load("teacher", spec.kind)  # a plugin that cannot be used is refused before anything starts
    elif spec.kind not in ("api", "hf"):  # what the hub has is asked once the whole request is planned
        check_spec(spec, runs=place.runs)
    words = Elicited(asked=settings.kind, shots=_shots(settings, place), max_context_words=place.max_context_words)
    return _asked_for(spec, settings, place, words)


def open_responder(spec: ModelSpec, settings: AnnotationConfig, place: Place, ask: Ask) -> LiveTeacher:
    """A teacher that answers the student's own prompts; whether the model is there is the caller's to check.

    Only empty answers are rejected, and where asked those that were cut: the other filters are of rationales and would
    take short answers for junk.
    """
    filters = ("empty", *(name for name in settings.filters if name == "cut"))
    plain = settings.model_copy(update={"chat": "never", "filters": filters})
    return _asked_for(spec, plain, place, AsStudent(ask=ask, max_context_words=place.max_context_words))


def _asked_for(spec: ModelSpec, settings: AnnotationConfig, place: Place, words: Words) -> LiveTeacher:
    return LiveTeacher(
        key=live_key(spec),
        spec=spec.text,
        identity=_identity(spec, settings, place),
        settings=settings,
        words=words,
        open_generator=_generator(spec, settings, place),
        local=spec.has_weights,
    )


def live_key(spec: ModelSpec) -> str:
    """The short name of a live teacher, its channel's name: the last part of where it comes from, and its adapter's."""
    location = spec.fragment or "" if spec.kind == "api" else spec.location
    name = Path(location).stem if spec.kind == "gguf" else location.rstrip("/").rpartition("/")[2]
    if spec.adapter is not None:  # one model with two adapters is two teachers
        name += f"-{Path(spec.adapter).name}"
    return name.replace(":", "-").lower()


def _identity(spec: ModelSpec, settings: AnnotationConfig, place: Place) -> dict[str, Any]:
    """Which model it is. An API's address is no part of it: the same model may be served elsewhere tomorrow."""
    plugin = plugins.origin("teacher", spec.kind)
    if plugin is not None:
        return {"model": {"plugin": plugin.fingerprint, "rest": spec.location}, "chat": settings.chat}
    model: Any = {"served": spec.fragment} if spec.kind == "api" else model_identity(spec, place.runs)
    return {"model": model, "chat": settings.chat}


def _shots(settings: AnnotationConfig, place: Place) -> Shots:
    shown = settings.demonstrations
    if shown.rationales is None:
        return Shots(shown, _pool(place.source, settings, place), None)
    spec = parse_spec(shown.rationales, role="teacher")
    if spec.kind != "replay" or spec.fragment is None:
        raise UserError(
            f"annotations.demonstrations.rationales={shown.rationales!r}: recorded texts are needed, such as"
            " replay:sample#stepwise"
        )
    source = replay_source(spec, place.data_dir)
    texts = load_rationales(source, place.task, "train", spec.fragment)
    return Shots(shown, _pool(source, settings, place), texts)


def _pool(source: Source, settings: AnnotationConfig, place: Place) -> tuple[TaskRecord, ...]:
    records = load_split(source, place.task, "train") if settings.demonstrations.shots else ()
    return tuple(cut_context(record, settings.demonstration_words) for record in records)


def _generator(spec: ModelSpec, settings: AnnotationConfig, place: Place) -> Callable[[], TextGenerator]:
    if spec.kind == "api":
        return lambda: _api_generator(spec, settings)
    if spec.kind not in KINDS:
        return lambda: _plugin_generator(spec, settings)
    return lambda: _local_generator(spec, settings, place)


def _plugin_generator(spec: ModelSpec, settings: AnnotationConfig) -> TextGenerator:
    generator: TextGenerator = plugins.load("teacher", spec.kind)(spec.location, settings)
    lacking = [
        word for word in ("engine", "batch", "generate", "__enter__", "__exit__") if not hasattr(generator, word)
    ]
    if lacking:
        raise UserError(
            f"teacher {spec.text}: what the plugin opens is no TextGenerator, it lacks {', '.join(lacking)}"
        )
    return generator


def _api_generator(spec: ModelSpec, settings: AnnotationConfig) -> TextGenerator:
    from tinyllm_bench.generation.api import ApiGenerator

    api = settings.api
    return ApiGenerator(
        spec.location,
        spec.fragment or "",
        chat=settings.chat != "never",
        concurrency=api.concurrency,
        timeout=api.timeout,
        attempts=api.attempts,
    )


def _local_generator(spec: ModelSpec, settings: AnnotationConfig, place: Place) -> TextGenerator:
    """vLLM where it can serve the model, else transformers."""
    import torch

    from tinyllm_bench.generation.hf import HfGenerator
    from tinyllm_bench.generation.vllm import EngineOptions, VllmEngine
    from tinyllm_bench.generation.worker import vllm_installed

    gpu = torch.cuda.is_available() and place.device != "cpu"
    dtype = ("bfloat16" if gpu else "float32") if settings.dtype == "auto" else settings.dtype
    why_not = _why_not_vllm(spec, place, installed=vllm_installed())
    if settings.engine == "vllm" and why_not:
        raise UserError(f"annotations.engine=vllm: {spec.text} {why_not}; use annotations.engine=hf")
    if settings.engine == "hf" or why_not:
        device = "cuda" if gpu else "cpu"
        return HfGenerator(spec, dtype=dtype, device=device, chat=settings.chat, batch=settings.batch, runs=place.runs)
    return VllmEngine(
        _folder(spec, place),
        EngineOptions(dtype=dtype),
        chat=settings.chat,
        batch=4 * settings.batch,
        instead="use annotations.engine=hf",
    )


def _why_not_vllm(spec: ModelSpec, place: Place, *, installed: bool) -> str | None:
    if not installed:
        return "needs vLLM, which is not installed"
    if spec.kind == "gguf" or spec.layers is not None or spec.adapter is not None:
        return "is not a whole model folder"
    return "is an encoder-decoder" if is_encoder_decoder(spec, runs=place.runs) else None


def _folder(spec: ModelSpec, place: Place) -> Path:
    folder = spec_folder(spec, runs=place.runs)
    if folder is not None:
        return folder
    return hub_folder(spec, weights=True)
