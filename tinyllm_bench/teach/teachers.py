"""Teachers behind one call: `annotate(records)` gives one annotation per record and sample.

Today a teacher is recorded text (`replay:release#flan-t5-xl`, `replay:sample#terse`); live models join through the
same call.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, cast

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Annotation, Split, TaskRecord
from tinyllm_bench.data.sources import Source, find_source, load_rationales, rationale_keys
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.teach.filters import rejected_by


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

    def annotate(self, records: Sequence[TaskRecord]) -> Iterator[Annotation]:
        """Look each record's rationale up.

        Raises:
            UserError: a record has no recorded rationale.
        """
        texts: dict[tuple[str, Split], dict[str, str]] = {}
        for record in records:
            place = (record.task, record.split)
            if place not in texts:
                texts[place] = load_rationales(self.source, *place, self.key)
            if record.id not in texts[place]:
                raise UserError(f"{self.spec} holds no rationale for {record.id}; were the data and it made together?")
            text = texts[place][record.id].strip()
            yield Annotation(
                record_id=record.id,
                teacher=self.key,
                kind="rationale",
                text=text,
                gold_visible=self.gold_visible,
                rejected=rejected_by(text, self.filters),
            )


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
