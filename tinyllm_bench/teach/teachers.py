"""Teachers behind one call: `annotate(records)` gives one annotation per record and sample.

Today a teacher is recorded text (`replay:release#flan-t5-xl`, `replay:sample#terse`); live models join through the
same call.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, cast

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import Annotation, Split, TaskRecord
from tinyllm_bench.data.sources import Source, find_source, load_rationales, rationale_keys
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.teach.filters import FILTERS_VERSION, rejected_by


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

    def annotate(self, records: Sequence[TaskRecord]) -> Iterator[Annotation]:
        """One annotation per record, in order; a text that a filter rejects keeps the reason."""


@dataclass(frozen=True, slots=True)
class ReplayTeacher:
    """Recorded rationales; their teachers saw the gold answer, so they cannot be scored."""

    key: str
    spec: str
    source: Source
    filters: tuple[str, ...]
    gold_visible: bool = True

    def text_digest(self, task: str) -> str:
        """Digest of the recorded training texts and of the filters' names and version."""
        return digest([_texts_digest(self.source, task, self.key), list(self.filters), FILTERS_VERSION])

    def lacks(self, records: Sequence[TaskRecord]) -> str | None:
        """The first record without a recorded text, or None; damaged or misaligned files are errors."""
        texts = {split: self._texts(records[0].task, split) for split in {record.split for record in records}}
        return next((record.id for record in records if record.id not in texts[record.split]), None)

    def _texts(self, task: str, split: Split) -> Mapping[str, str]:
        return _recorded(self.source, task, split, self.key)

    def annotate(self, records: Sequence[TaskRecord]) -> Iterator[Annotation]:
        """Look each record's rationale up.

        Raises:
            UserError: a record has no recorded rationale.
        """
        for record in records:
            texts = self._texts(record.task, record.split)
            if record.id not in texts:
                raise UserError(f"{self.spec} holds no rationale for {record.id}; were the data and it made together?")
            text = texts[record.id].strip()
            yield Annotation(
                record_id=record.id,
                teacher=self.key,
                kind="rationale",
                text=text,
                gold_visible=self.gold_visible,
                rejected=rejected_by(text, self.filters),
            )


@lru_cache(maxsize=16)
def _recorded(source: Source, task: str, split: Split, key: str) -> Mapping[str, str]:
    return load_rationales(source, task, split, key)


@lru_cache(maxsize=64)
def _texts_digest(source: Source, task: str, key: str) -> str:
    return digest(_recorded(source, task, "train", key))


def open_teacher(spec: ModelSpec, task: str, *, data_dir: str | None, filters: tuple[str, ...]) -> Teacher | None:
    """The teacher a spec names, or None when its source holds nothing of it for this task.

    Raises:
        UserError: a spec that cannot teach, or a key that the source does not have for any task.
    """
    if spec.kind != "replay":
        raise UserError(
            f"teacher {spec.text!r}: only recorded rationales (replay:release#NAME, replay:sample#NAME) can teach yet"
        )
    source = _replay_source(spec, data_dir)
    keys = rationale_keys(source, task)
    if spec.fragment is None:
        raise UserError(f"teacher {spec.text!r} names no rationales; add #NAME, one of: {', '.join(keys) or 'none'}")
    if spec.fragment not in keys:
        return None
    return ReplayTeacher(spec.fragment, spec.text, source, filters)


def _replay_source(spec: ModelSpec, data_dir: str | None) -> Source:
    if spec.location in ("release", "sample"):
        return find_source(cast(Literal["release", "sample"], spec.location), data_dir)
    if not Path(spec.location).is_dir():
        raise UserError(f"teacher {spec.text!r}: {spec.location} is not a folder, `release` or `sample`")
    return Source("release", spec.location)
