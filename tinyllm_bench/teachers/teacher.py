"""Teachers behind one call: `annotate(records)` gives one annotation per record and sample.

A teacher is recorded text (`replay:release#flan-t5-xl`, `replay:sample#terse`) or live: a local model, an API or a
plugin, whose texts go through the cache that all methods share. `open_teacher` makes one from a model spec.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, cast

from tinyllm_bench.answers.parser import read, reader_version
from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Report
from tinyllm_bench.base.files import digest
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Annotation, Recorded, Split, TaskRecord, cut_context
from tinyllm_bench.data.sources import (
    Source,
    find_source,
    gold_visible,
    load_rationales,
    load_split,
    program_keys,
    rationale_keys,
)
from tinyllm_bench.generation.requests import GenerationRequest, SamplingConfig, TextGenerator
from tinyllm_bench.generation.thoughts import without_thoughts
from tinyllm_bench.models.hub import hub_folder
from tinyllm_bench.models.identity import model_identity
from tinyllm_bench.models.load import check_spec, is_encoder_decoder, spec_folder
from tinyllm_bench.models.specs import KINDS, ModelSpec, parse_spec
from tinyllm_bench.teachers.cache import CachedText, TextCache, text_key, texts_folder
from tinyllm_bench.teachers.few_shot import ShotSelector
from tinyllm_bench.teachers.filters import FILTERS_VERSION, apply_filters
from tinyllm_bench.teachers.prompts import AnnotationPrompts, PromptSource, Reply, StudentPrompts
from tinyllm_bench.teachers.settings import AnnotationConfig


class MissingAnnotation(NamedTuple):
    """A text that is not in the cache: the key it would have there, the record, the sample, and the request."""

    key: str
    record_id: str
    sample: int
    request: GenerationRequest


class Teacher(Protocol):
    """A source of annotations."""

    @property
    def key(self) -> str:
        """The name of its channel."""

    @property
    def spec(self) -> str:
        """The model spec it was made from."""

    @property
    def kind(self) -> Literal["rationale", "program", "response"]:
        """The kind of its texts."""

    @property
    def gold_visible(self) -> bool:
        """Whether it saw the right answer when it wrote."""

    @property
    def recorded(self) -> bool:
        """Whether its texts come with the data: they cost nothing now, and no others can be generated."""

    def text_digest(self, task: str) -> str:
        """Digest of all that its texts for a task's training records depend on, filters included."""

    def first_missing(self, records: Sequence[TaskRecord]) -> str | None:
        """The id of the first record that it cannot annotate, or None."""

    def annotate(self, records: Sequence[TaskRecord], *, report: Report) -> list[Annotation]:
        """One annotation per record and sample, in order; a text that a filter rejects names the filter."""

    def cached(self, records: Sequence[TaskRecord]) -> tuple[list[Annotation], list[MissingAnnotation]]:
        """The annotations that exist already, and those that do not; nothing is generated."""


class TextCost(NamedTuple):
    """What a teacher's texts cost: tokens, wall seconds and US dollars (None without a price)."""

    tokens_in: int
    tokens_out: int
    seconds: float
    usd: float | None
    engines: list[str]


def cost_of(annotations: Sequence[Annotation], price: tuple[float, float] | None) -> TextCost:
    """The sum over a teacher's texts.

    A cell is charged in full for the texts it trains on, although they may come from the cache: another machine, or
    another order of cells, would have paid for them here. `price`: US dollars per million tokens (in, out).
    """
    tokens_in = sum(a.tokens_in or 0 for a in annotations)
    tokens_out = sum(a.tokens_out or 0 for a in annotations)
    return TextCost(
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        seconds=round(sum(a.seconds or 0.0 for a in annotations), 2),
        usd=None if price is None else round((tokens_in * price[0] + tokens_out * price[1]) / 1e6, 6),
        engines=sorted({a.engine for a in annotations if a.engine}),
    )


# --- recorded texts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplayTeacher:
    """Recorded rationales, or programs. A teacher that saw the gold answer cannot be scored.

    The answer of one that did not is read from its rationale, which stays as it is; a program's answer is known once it
    has run. `gold_visible` holds for all tasks; for some, the data may know that the teacher did not see the answers.
    """

    key: str
    spec: str
    source: Source
    filters: tuple[str, ...]
    gold_visible: bool = True
    recorded: bool = True
    kind: Recorded = "rationale"

    def text_digest(self, task: str) -> str:
        """Digest of the recorded training texts and the filters' names and version; of programs also their kind, and of
        texts from which answers are read also the reader's version.
        """
        facts: list[Any] = [
            _recorded_digest(self.source, task, self.key, self.kind),
            list(self.filters),
            FILTERS_VERSION,
        ]
        if self.kind != "rationale":
            return digest([*facts, self.kind])
        if self._saw_gold(task):
            return digest(facts)
        return digest([*facts, reader_version(load_split(self.source, task, "train")[0].choices)])

    def _saw_gold(self, task: str) -> bool:
        return self.gold_visible and gold_visible(self.source, task, self.key)

    def first_missing(self, records: Sequence[TaskRecord]) -> str | None:
        """The first record without a recorded text, or None; damaged or misaligned files are errors."""
        texts = {split: self._texts(records[0].task, split) for split in {record.split for record in records}}
        return next((record.id for record in records if record.id not in texts[record.split]), None)

    def _texts(self, task: str, split: Split) -> Mapping[str, str]:
        return _recorded_texts(self.source, task, split, self.key, self.kind)

    def annotate(self, records: Sequence[TaskRecord], *, report: Report) -> list[Annotation]:
        """Each record's recorded text.

        Raises:
            UserError: a record has no recorded text.
        """
        annotations = [self._annotation(record) for record in records]
        return apply_filters(annotations, {record.id: record for record in records}, self.filters)

    def cached(self, records: Sequence[TaskRecord]) -> tuple[list[Annotation], list[MissingAnnotation]]:
        """All annotations, and nothing missing: they are recorded."""
        return self.annotate(records, report=lambda _: None), []

    def _annotation(self, record: TaskRecord) -> Annotation:
        texts = self._texts(record.task, record.split)
        if record.id not in texts:
            raise UserError(f"{self.spec} holds no {self.kind} for {record.id}; were the data and it made together?")
        text, saw_gold, answer = texts[record.id].strip(), self._saw_gold(record.task), None
        if not saw_gold and self.kind != "program":
            key = read(text, record.choices).key
            answer = record.choices[key] if isinstance(key, int) else key
        return Annotation(
            record_id=record.id,
            teacher=self.key,
            kind=self.kind,
            text=text,
            answer=answer,
            gold_visible=saw_gold,
        )


@lru_cache(maxsize=16)
def _recorded_texts(source: Source, task: str, split: Split, key: str, kind: Recorded) -> Mapping[str, str]:
    return load_rationales(source, task, split, key, kind=kind)


@lru_cache(maxsize=64)
def _recorded_digest(source: Source, task: str, key: str, kind: Recorded) -> str:
    return digest(_recorded_texts(source, task, "train", key, kind))


# --- live teachers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LiveTeacher:
    """A teacher that generates its texts on request. `identity`: which model it is, wherever it runs."""

    key: str
    spec: str
    identity: Mapping[str, Any]
    settings: AnnotationConfig
    prompts: PromptSource
    open_generator: Callable[[], TextGenerator]
    recorded: bool = False

    @property
    def gold_visible(self) -> bool:
        """Whether the right answer is in its prompt."""
        return self.prompts.gold_visible

    @property
    def kind(self) -> Literal["rationale", "program", "response"]:
        """The kind of its texts."""
        return self.prompts.kind

    @property
    def folder(self) -> Path:
        """The folder of its cached texts."""
        return texts_folder(self.key, self.identity)

    @property
    def _filters(self) -> tuple[str, ...]:
        """Those of the settings, and always the one for reasoning: unclosed reasoning is never an answer."""
        return tuple(dict.fromkeys(("thought", *self.settings.filters)))

    def text_digest(self, task: str) -> str:
        """Digest of the model, the wording of its prompts, how its texts are sampled, and the filters."""
        return digest(
            {
                "teacher": self.identity,
                "prompt": self.prompts.facts,
                "sampling": self.settings.sampling.model_dump(),
                "filters": [list(self._filters), FILTERS_VERSION],
                "task": task,
            }
        )

    def first_missing(self, records: Sequence[TaskRecord]) -> str | None:
        """None: it can annotate every record."""
        return None

    def annotate(self, records: Sequence[TaskRecord], *, report: Report) -> list[Annotation]:
        """Its texts on the records, in order, `sampling.samples` for each; only those not in the cache are generated.

        Raises:
            UserError: the teacher is not available, or failed on a record where `on_teacher_error` is `stop`.
        """
        requests = self._requests(records)
        rows = TextCache(self.folder, self.identity).fill(
            [request for _, _, request in requests],
            self.open_generator,
            on_error=self.settings.on_teacher_error,
            report=report,
        )
        return self._annotations(requests, rows)

    def cached(self, records: Sequence[TaskRecord]) -> tuple[list[Annotation], list[MissingAnnotation]]:
        """Its texts on the records that are in the cache, and the requests for the others."""
        requests = self._requests(records)
        rows = TextCache(self.folder, self.identity).lookup([request for _, _, request in requests])
        keyed = [(text_key(self.identity, request), record, n, request) for record, n, request in requests]
        missing = [
            MissingAnnotation(key, record.id, n, request) for key, record, n, request in keyed if key not in rows
        ]
        return self._annotations(requests, rows), missing

    def _requests(self, records: Sequence[TaskRecord]) -> list[tuple[TaskRecord, int, GenerationRequest]]:
        """`(record, number of the sample, request)` of every text."""
        settings = self.settings.sampling
        sampling = SamplingConfig(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            stop=self.prompts.stops,
        )
        requests = []
        for record in records:
            prompt = self.prompts.prompt(record)
            for n in range(settings.samples):
                seed = 0
                if settings.temperature > 0:  # 31 bits that depend on the settings' seed, the record and n alone
                    text = f"{settings.seed}/{record.id}/{n}"
                    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1
                requests.append((record, n, GenerationRequest(prompt, sampling, seed)))
        return requests

    def _annotations(
        self, requests: Sequence[tuple[TaskRecord, int, GenerationRequest]], rows: Mapping[str, CachedText]
    ) -> list[Annotation]:
        """The filtered annotations of those requests that have a row."""
        pairs = [(record, n, rows.get(text_key(self.identity, request))) for record, n, request in requests]
        annotations = [self._annotation(record, n, row) for record, n, row in pairs if row is not None]
        prompts = {record.id: request.prompt for record, _, request in requests}
        by_id = {record.id: record for record, _, _ in requests}
        return apply_filters(annotations, by_id, self._filters, prompts=prompts)

    def _annotation(self, record: TaskRecord, sample: int, row: CachedText) -> Annotation:
        answered = without_thoughts(row["text"])
        reply = Reply(row["text"], None) if answered.unclosed else self.prompts.read(answered.text, record)
        # the limit cut the part that is used only where this part reaches to the end of the generated text
        last_line = reply.text.rpartition("\n")[2]
        is_whole = row["finish"] == "length" and not row["text"].rstrip().endswith(last_line)
        return Annotation(
            record_id=record.id,
            teacher=self.key,
            kind=self.prompts.kind,
            text=reply.text,
            sample=sample,
            answer=reply.answer,
            gold_visible=self.gold_visible,
            prompt_digest=hashlib.sha256(row["prompt"].encode()).hexdigest(),
            sampling={**row["sampling"], "seed": row["seed"]},
            tokens_in=row["tokens_in"],
            tokens_out=row["tokens_out"],
            finish="stop" if is_whole else row["finish"],
            seconds=row["seconds"],
            engine=row["engine"],
        )


# --- from a spec to a teacher ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TeacherContext:
    """The task and data that a teacher annotates, the folder of runs, and the device of local models."""

    task: str
    source: Source
    data_dir: str | None
    max_context_words: int
    device: Literal["auto", "cpu", "cuda"]
    runs: Path


def open_teacher(spec: ModelSpec, settings: AnnotationConfig, context: TeacherContext) -> Teacher | None:
    """The teacher of a spec, or None if there are no recorded texts of it for this task; no weights are loaded.

    Raises:
        UserError: a missing model, a recorded source without a name, demonstrations that are not available.
    """
    if spec.kind == "replay":
        return _replay_teacher(spec, settings.filters, context, "rationale")
    if spec.kind not in KINDS:
        plugins.load("teacher", spec.kind)  # a plugin that cannot be used is refused before anything starts
    elif spec.kind not in ("api", "hf"):  # models of the hub are checked once the whole request is planned
        check_spec(spec, runs=context.runs)
    prompts = AnnotationPrompts(
        prompt_kind=settings.kind,
        shots=_shot_selector(settings, context),
        max_context_words=context.max_context_words,
    )
    return _live_teacher(spec, settings, context, prompts)


def open_program_teacher(spec: ModelSpec, settings: AnnotationConfig, context: TeacherContext) -> Teacher | None:
    """The recorded programs of a spec, or None if there are none for this task.

    Only empty ones are rejected: `settings.filters` judge prose, and a program is judged once it has run.

    Raises:
        UserError: a spec of a model, or a recorded source without a name.
    """
    if spec.kind != "replay":
        raise UserError(f"teacher {spec.text!r} has no recorded programs; name some, such as replay:sample#stepwise")
    return _replay_teacher(spec, ("empty",), context, "program")


def open_responder(spec: ModelSpec, settings: AnnotationConfig, context: TeacherContext, ask: Ask) -> LiveTeacher:
    """A teacher that answers the student's own prompts; whether the model exists is the caller's to check.

    Only empty answers are rejected, and cut ones if the settings say so: the other filters are made for rationales and
    would take short answers for junk.
    """
    filters = ("empty", *(name for name in settings.filters if name == "cut"))
    plain = settings.model_copy(update={"chat": "never", "filters": filters})
    prompts = StudentPrompts(ask=ask, max_context_words=context.max_context_words)
    return _live_teacher(spec, plain, context, prompts)


def replay_source(spec: ModelSpec, data_dir: str | None) -> Source:
    """The data of a `replay:` spec.

    Raises:
        UserError: neither a folder, nor `release`, nor `sample`.
    """
    if spec.location in ("release", "sample"):
        return find_source(cast(Literal["release", "sample"], spec.location), data_dir)
    if not Path(spec.location).is_dir():
        raise UserError(f"teacher {spec.text!r}: {spec.location} is not a folder, `release` or `sample`")
    return Source("release", spec.location)


def _replay_teacher(
    spec: ModelSpec, filters: tuple[str, ...], context: TeacherContext, kind: Recorded
) -> Teacher | None:
    source = replay_source(spec, context.data_dir)
    keys = (rationale_keys if kind == "rationale" else program_keys)(source, context.task)
    if spec.fragment is None:
        raise UserError(f"teacher {spec.text!r} names no {kind}s; add #NAME, one of: {', '.join(keys) or 'none'}")
    if spec.fragment not in keys:
        return None
    saw_gold = gold_visible(source, context.task, spec.fragment)
    return ReplayTeacher(spec.fragment, spec.text, source, filters, saw_gold, kind=kind)


def _live_teacher(
    spec: ModelSpec, settings: AnnotationConfig, context: TeacherContext, prompts: PromptSource
) -> LiveTeacher:
    def open_generator() -> TextGenerator:
        if spec.kind == "api":
            return _api_generator(spec, settings)
        return _local_generator(spec, settings, context) if spec.kind in KINDS else _plugin_generator(spec, settings)

    return LiveTeacher(
        key=live_key(spec),
        spec=spec.text,
        identity=_identity(spec, settings, context),
        settings=settings,
        prompts=prompts,
        open_generator=open_generator,
    )


def live_key(spec: ModelSpec) -> str:
    """The short name of a live teacher, its channel's name: the last part of its location, and its adapter's name."""
    location = spec.fragment or "" if spec.kind == "api" else spec.location
    name = Path(location).stem if spec.kind == "gguf" else location.rstrip("/").rpartition("/")[2]
    if spec.adapter is not None:  # one model with two adapters is two teachers
        name += f"-{Path(spec.adapter).name}"
    return name.replace(":", "-").lower()


def _identity(spec: ModelSpec, settings: AnnotationConfig, context: TeacherContext) -> dict[str, Any]:
    """Which model it is. An API's address is not part of it: the same model may be served elsewhere tomorrow."""
    plugin = plugins.origin("teacher", spec.kind)
    if plugin is not None:
        return {"model": {"plugin": plugin.fingerprint, "rest": spec.location}, "chat": settings.chat}
    model: Any = {"served": spec.fragment} if spec.kind == "api" else model_identity(spec, context.runs)
    return {"model": model, "chat": settings.chat}


def _shot_selector(settings: AnnotationConfig, context: TeacherContext) -> ShotSelector:
    config, source, texts = settings.demonstrations, context.source, None
    if config.rationales is not None:
        spec = parse_spec(config.rationales, role="teacher")
        if spec.kind != "replay" or spec.fragment is None:
            raise UserError(
                f"annotations.demonstrations.rationales={config.rationales!r}: recorded texts are needed, such as"
                " replay:sample#stepwise"
            )
        source = replay_source(spec, context.data_dir)
        texts = load_rationales(source, context.task, "train", spec.fragment)
    pool = load_split(source, context.task, "train") if config.shots else ()
    return ShotSelector(config, tuple(cut_context(r, settings.demonstration_words) for r in pool), texts)


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


def _plugin_generator(spec: ModelSpec, settings: AnnotationConfig) -> TextGenerator:
    generator: TextGenerator = plugins.load("teacher", spec.kind)(spec.location, settings)
    required = ("engine", "batch", "generate", "__enter__", "__exit__")
    missing = [name for name in required if not hasattr(generator, name)]
    if missing:
        raise UserError(
            f"teacher {spec.text}: the plugin's object is not a TextGenerator; it has no {', '.join(missing)}"
        )
    return generator


def _local_generator(spec: ModelSpec, settings: AnnotationConfig, context: TeacherContext) -> TextGenerator:
    """vLLM where it can serve the model, else transformers."""
    import torch

    from tinyllm_bench.generation.hf import HfGenerator
    from tinyllm_bench.generation.vllm import EngineOptions, VllmEngine
    from tinyllm_bench.generation.vllm_worker import vllm_installed

    gpu = torch.cuda.is_available() and context.device != "cpu"
    dtype = ("bfloat16" if gpu else "float32") if settings.dtype == "auto" else settings.dtype
    why_not = _why_not_vllm(spec, context, installed=vllm_installed())
    if settings.engine == "vllm" and why_not:
        raise UserError(f"annotations.engine=vllm: {spec.text} {why_not}; use annotations.engine=hf")
    if settings.engine == "hf" or why_not:
        device = "cuda" if gpu else "cpu"
        return HfGenerator(
            spec, dtype=dtype, device=device, chat=settings.chat, batch=settings.batch, runs=context.runs
        )
    return VllmEngine(
        spec_folder(spec, runs=context.runs) or hub_folder(spec, weights=True),
        EngineOptions(dtype=dtype),
        chat=settings.chat,
        batch=4 * settings.batch,
        advice="use annotations.engine=hf",
    )


def _why_not_vllm(spec: ModelSpec, context: TeacherContext, *, installed: bool) -> str | None:
    if not installed:
        return "needs vLLM, which is not installed"
    if spec.kind == "gguf" or spec.layers is not None or spec.adapter is not None:
        return "is not a whole model folder"
    return "is an encoder-decoder" if is_encoder_decoder(spec, runs=context.runs) else None
