"""A live teacher: a local model or an API that is asked for its texts, through the cache that all methods share."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tinyllm_bench.base.energy import EnergyMeter
from tinyllm_bench.base.events import Report
from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.generation.requests import GenerationRequest, SamplingConfig, TextGenerator
from tinyllm_bench.generation.thoughts import without_thoughts
from tinyllm_bench.teachers.cache import Row, TextCache, text_key, texts_folder
from tinyllm_bench.teachers.filters import FILTERS_VERSION, rejections
from tinyllm_bench.teachers.prompting import Words
from tinyllm_bench.teachers.prompts import Reply
from tinyllm_bench.teachers.settings import AnnotationConfig
from tinyllm_bench.teachers.teacher import Unwritten


@dataclass(frozen=True, kw_only=True)
class LiveTeacher:
    """A teacher that writes when it is asked. `identity` says which model it is, wherever that runs;
    `local` whether it runs on this machine, whose energy is then its own."""

    key: str
    spec: str
    identity: Mapping[str, Any]
    settings: AnnotationConfig
    words: Words
    open_generator: Callable[[], TextGenerator]
    local: bool = True
    recorded: bool = False

    @property
    def gold_visible(self) -> bool:
        """Whether the right answer stands in its prompt."""
        return self.words.gold_visible

    @property
    def kind(self) -> Literal["rationale", "program", "response"]:
        """What kind of text it writes."""
        return self.words.kind

    @property
    def folder(self) -> Path:
        """Where its texts are kept."""
        return texts_folder(self.key, self.identity)

    def text_digest(self, task: str) -> str:
        """What its texts depend on: the model, the words of the prompt, how they are sampled, and the filters."""
        settings = self.settings
        return digest(
            {
                "teacher": self.identity,
                "prompt": self.words.facts,
                "sampling": settings.sampling.model_dump(),
                "filters": [list(self._filters), FILTERS_VERSION],
                "task": task,
            }
        )

    def lacks(self, records: Sequence[TaskRecord]) -> str | None:
        """None: it can be asked about anything."""
        return None

    def annotate(self, records: Sequence[TaskRecord], *, report: Report) -> list[Annotation]:
        """Its texts on the records, in order, `sampling.samples` for each; asks only for what the cache lacks.

        Raises:
            UserError: the teacher cannot be had, or failed on a record where `on_teacher_error` is `stop`.
        """
        requests = self._requests(records)
        rows = TextCache(self.folder, self.identity).fill(
            [request for _, _, request in requests],
            self.open_generator,
            on_error=self.settings.on_teacher_error,
            report=report,
            meter=EnergyMeter().since_last if self.local else None,
        )
        return self._annotations(requests, rows)

    def kept(self, records: Sequence[TaskRecord]) -> tuple[list[Annotation], list[Unwritten]]:
        """Its texts on the records that the cache holds, and what it would be asked for."""
        requests = self._requests(records)
        rows = TextCache(self.folder, self.identity).kept([request for _, _, request in requests])
        keyed = [(text_key(self.identity, request), record, n, request) for record, n, request in requests]
        lacking = [Unwritten(key, record.id, n, request) for key, record, n, request in keyed if key not in rows]
        return self._annotations(requests, rows), lacking

    def _requests(self, records: Sequence[TaskRecord]) -> list[tuple[TaskRecord, int, GenerationRequest]]:
        return [
            (record, n, self._request(record, n)) for record in records for n in range(self.settings.sampling.samples)
        ]

    def _annotations(
        self, requests: Sequence[tuple[TaskRecord, int, GenerationRequest]], rows: Mapping[str, Row]
    ) -> list[Annotation]:
        found = [(record, n, rows.get(text_key(self.identity, request))) for record, n, request in requests]
        annotations = [self._annotation(record, n, row) for record, n, row in found if row is not None]
        prompts = {record.id: request.prompt for record, _, request in requests}
        by_id = {record.id: record for record, _, _ in requests}
        return rejections(annotations, by_id, self._filters, prompts=prompts)

    @property
    def _filters(self) -> tuple[str, ...]:
        """Those of the settings, and always the one for thoughts: one without an end is never an answer."""
        return tuple(dict.fromkeys(("thought", *self.settings.filters)))

    def _request(self, record: TaskRecord, sample: int) -> GenerationRequest:
        settings = self.settings.sampling
        sampling = SamplingConfig(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
            stop=self.words.stops,
        )
        seed = 0 if settings.temperature == 0 else _seed(settings.seed, record.id, sample)
        return GenerationRequest(self.words.prompt(record), sampling, seed)

    def _annotation(self, record: TaskRecord, sample: int, row: Row) -> Annotation:
        answered = without_thoughts(row["text"])
        reply = Reply(row["text"], None) if answered.unclosed else self.words.read(answered.text, record)
        # the limit cuts what is kept only where that reaches to the end of what was written
        last_line = reply.text.rpartition("\n")[2]
        is_whole = row["finish"] == "length" and not row["text"].rstrip().endswith(last_line)
        return Annotation(
            record_id=record.id,
            teacher=self.key,
            kind=self.words.kind,
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
            joules=row.get("joules"),
            engine=row["engine"],
        )


def _seed(seed: int, record_id: str, sample: int) -> int:
    """A seed of 31 bits that depends on nothing but these three."""
    text = f"{seed}/{record_id}/{sample}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1
