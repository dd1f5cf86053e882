"""Teachers behind one call: `annotate(records)` gives one annotation per record and sample.

A teacher is recorded text (`replay:release#flan-t5-xl`, `replay:sample#terse`) or a live model (`teachers.live`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Protocol

from tinyllm_bench.answers.parser import read, reader_version
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Report
from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import Annotation, Recorded, Split, TaskRecord
from tinyllm_bench.data.sources import Source, gold_visible, load_rationales, load_split
from tinyllm_bench.generation.requests import GenerationRequest
from tinyllm_bench.teachers.filters import FILTERS_VERSION, rejections


class Unwritten(NamedTuple):
    """A text that is not in the cache: the key it would have there, the record, the sample, and the request."""

    key: str
    record_id: str
    sample: int
    request: GenerationRequest


class Teacher(Protocol):
    """What the pipeline asks of a teacher."""

    @property
    def key(self) -> str:
        """The name of its channel."""

    @property
    def spec(self) -> str:
        """How it was given."""

    @property
    def kind(self) -> Literal["rationale", "program", "response"]:
        """What it writes."""

    @property
    def gold_visible(self) -> bool:
        """Whether it saw the right answer when it wrote."""

    def text_digest(self, task: str) -> str:
        """What its texts for a task's training records depend on: the digest of recorded ones, and the filters."""

    def lacks(self, records: Sequence[TaskRecord]) -> str | None:
        """The first record that it cannot annotate, or None."""

    @property
    def recorded(self) -> bool:
        """Whether its texts were written before, by somebody else: they cost nothing now and cannot be asked for."""

    def annotate(self, records: Sequence[TaskRecord], *, report: Report) -> list[Annotation]:
        """One annotation per record and sample, in order; a text that a filter rejects keeps the reason."""

    def kept(self, records: Sequence[TaskRecord]) -> tuple[list[Annotation], list[Unwritten]]:
        """The same of what is written already, without asking anybody, and what is not."""


@dataclass(frozen=True, slots=True)
class ReplayTeacher:
    """Recorded rationales, or programs. A teacher that saw the gold answer cannot be scored.

    What another one answered is read from its rationale, which stays as it is; what a program answers is known when it
    has run. `gold_visible` speaks for all tasks; a task may know that the teacher did not see its answers.
    """

    key: str
    spec: str
    source: Source
    filters: tuple[str, ...]
    gold_visible: bool = True
    recorded: bool = True
    kind: Recorded = "rationale"

    def text_digest(self, task: str) -> str:
        """Digest of the recorded training texts and of the filters' names and version; of programs and of answers that
        are read, what they are and who reads them too.
        """
        texts = _texts_digest(self.source, task, self.key, self.kind)
        facts: list[Any] = [texts, list(self.filters), FILTERS_VERSION]
        if self.kind != "rationale":
            return digest([*facts, self.kind])
        if self._visible(task):
            return digest(facts)
        return digest([*facts, reader_version(load_split(self.source, task, "train")[0].choices)])

    def _visible(self, task: str) -> bool:
        return self.gold_visible and gold_visible(self.source, task, self.key)

    def lacks(self, records: Sequence[TaskRecord]) -> str | None:
        """The first record without a recorded text, or None; damaged or misaligned files are errors."""
        texts = {split: self._texts(records[0].task, split) for split in {record.split for record in records}}
        return next((record.id for record in records if record.id not in texts[record.split]), None)

    def _texts(self, task: str, split: Split) -> Mapping[str, str]:
        return _recorded(self.source, task, split, self.key, self.kind)

    def annotate(self, records: Sequence[TaskRecord], *, report: Report) -> list[Annotation]:
        """EvaluationInfo each record's text up.

        Raises:
            UserError: a record has no recorded text.
        """
        said = [self._annotation(record) for record in records]
        return rejections(said, {record.id: record for record in records}, self.filters)

    def kept(self, records: Sequence[TaskRecord]) -> tuple[list[Annotation], list[Unwritten]]:
        """Everything: it is recorded."""
        return self.annotate(records, report=lambda _: None), []

    def _annotation(self, record: TaskRecord) -> Annotation:
        texts = self._texts(record.task, record.split)
        if record.id not in texts:
            raise UserError(f"{self.spec} holds no {self.kind} for {record.id}; were the data and it made together?")
        text, visible = texts[record.id].strip(), self._visible(record.task)
        return Annotation(
            record_id=record.id,
            teacher=self.key,
            kind=self.kind,
            text=text,
            answer=None if visible or self.kind == "program" else _answer(text, record),
            gold_visible=visible,
        )


def recorded_annotations(source: Source, records: Sequence[TaskRecord], key: str) -> list[Annotation]:
    """What a recorded teacher said about some records, unfiltered, for reports."""
    teacher = ReplayTeacher(key, f"replay:{source.kind}#{key}", source, ())
    return teacher.annotate(records, report=lambda _: None)


def _answer(text: str, record: TaskRecord) -> str | None:
    """The choice's text, or the number, that a rationale names as its answer."""
    key = read(text, record.choices).key
    return record.choices[key] if isinstance(key, int) else key


@lru_cache(maxsize=16)
def _recorded(source: Source, task: str, split: Split, key: str, kind: Recorded) -> Mapping[str, str]:
    return load_rationales(source, task, split, key, kind=kind)


@lru_cache(maxsize=64)
def _texts_digest(source: Source, task: str, key: str, kind: Recorded) -> str:
    return digest(_recorded(source, task, "train", key, kind))
