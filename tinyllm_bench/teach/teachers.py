"""Teachers behind one call: `annotate(records)` gives one annotation per record and sample.

A teacher is recorded text (`replay:release#flan-t5-xl`, `replay:sample#terse`) or a live model (`teach.live`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import Annotation, Split, TaskRecord
from tinyllm_bench.data.sources import Source, load_rationales
from tinyllm_bench.teach.filters import FILTERS_VERSION, rejections

Report = Callable[[Mapping[str, Any]], None]


class Teacher(Protocol):
    """What the pipeline asks of a teacher."""

    @property
    def key(self) -> str:
        """The name of its channel."""

    @property
    def spec(self) -> str:
        """How it was given."""

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


@dataclass(frozen=True, slots=True)
class ReplayTeacher:
    """Recorded rationales; their teachers saw the gold answer, so they cannot be scored."""

    key: str
    spec: str
    source: Source
    filters: tuple[str, ...]
    gold_visible: bool = True
    recorded: bool = True

    def text_digest(self, task: str) -> str:
        """Digest of the recorded training texts and of the filters' names and version."""
        return digest([_texts_digest(self.source, task, self.key), list(self.filters), FILTERS_VERSION])

    def lacks(self, records: Sequence[TaskRecord]) -> str | None:
        """The first record without a recorded text, or None; damaged or misaligned files are errors."""
        texts = {split: self._texts(records[0].task, split) for split in {record.split for record in records}}
        return next((record.id for record in records if record.id not in texts[record.split]), None)

    def _texts(self, task: str, split: Split) -> Mapping[str, str]:
        return _recorded(self.source, task, split, self.key)

    def annotate(self, records: Sequence[TaskRecord], *, report: Report) -> list[Annotation]:
        """Look each record's rationale up.

        Raises:
            UserError: a record has no recorded rationale.
        """
        said = [self._annotation(record) for record in records]
        return rejections(said, {record.id: record for record in records}, self.filters)

    def _annotation(self, record: TaskRecord) -> Annotation:
        texts = self._texts(record.task, record.split)
        if record.id not in texts:
            raise UserError(f"{self.spec} holds no rationale for {record.id}; were the data and it made together?")
        return Annotation(
            record_id=record.id,
            teacher=self.key,
            kind="rationale",
            text=texts[record.id].strip(),
            gold_visible=self.gold_visible,
        )


@lru_cache(maxsize=16)
def _recorded(source: Source, task: str, split: Split, key: str) -> Mapping[str, str]:
    return load_rationales(source, task, split, key)


@lru_cache(maxsize=64)
def _texts_digest(source: Source, task: str, key: str) -> str:
    return digest(_recorded(source, task, "train", key))
