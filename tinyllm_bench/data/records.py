"""The objects on every border of the pipeline: what is asked, said by a teacher, imitated, and predicted.

The same record id stands on each of them, all the way to the board's cell.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Split = Literal["train", "valid", "test"]
Reading = Literal["gen", "mc", "cloze"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
READINGS: tuple[Reading, ...] = ("gen", "mc", "cloze")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One question. `answer` is the index of the right choice; `id` is `task/split/source_id`."""

    id: str
    task: str
    split: Split
    question: str
    choices: tuple[str, ...]
    answer: int
    context: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"{self.id}: answer {self.answer} is not one of {len(self.choices)} choices")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """Facts of a task that the core needs; made in `tasks/<name>.py` as `TASK`.

    `sizes` are rows per split in the release. `to_record(row, split)` turns a row of the release's form into a record.
    `hub` is None where the data may not be fetched. `rationale_keys` are the teachers of the release, in the order in
    which one rationale string holds them. `title`, `source` and `licence` are for people.
    """

    name: str
    title: str
    version: int
    sizes: Mapping[Split, int]
    to_record: Callable[[Mapping[str, Any], Split], TaskRecord]
    source: str
    licence: str
    readings: tuple[Reading, ...] = READINGS
    rationale_keys: tuple[str, ...] = ()
    hub: "HubSource | None" = None
    rebuild_train: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A public data set at a pinned revision.

    `splits` names the hub's split for each of train, valid and test. `to_row(hub_row, index, hub_split)` gives the row
    in the release's form, or None for one that the release does not use.
    """

    path: str
    revision: str
    config: str | None
    splits: tuple[str, ...]
    to_row: Callable[[Mapping[str, Any], int, str], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """What a teacher said about a record. A rejected text is kept, with the reason in `rejected`.

    `answer` is the choice that the teacher named itself. Of live teachers: the prompt's digest, how the text was drawn,
    its tokens, why it ended, and its share of wall seconds and of energy (None where the machine does not tell).
    """

    record_id: str
    teacher: str
    kind: Literal["rationale", "program", "response"]
    text: str
    sample: int = 0
    answer: str | None = None
    gold_visible: bool = False
    rejected: str | None = None
    prompt_digest: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tokens_in: int | None = None
    tokens_out: int | None = None
    finish: str | None = None
    seconds: float | None = None
    joules: float | None = None
    engine: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One thing the student imitates: it reads `context` and `marker` (in the style's order) and writes `target`."""

    record_id: str
    channel: str
    context: str
    marker: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One text the student wrote for a record."""

    channel: str
    text: str
    answer_key: str | None = None
    executed: bool | None = None
    logprob: float | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answered question. `answer` is a choice's index, or None when nothing could be read (wrong, counted).

    `option_logprobs` are natural-log probabilities of the options' texts (cloze) or letters (mc), `option_chars` their
    lengths in characters; both are empty in `gen`.
    """

    record_id: str
    reading: Reading
    answer: int | None
    correct: bool
    option_logprobs: tuple[float, ...] = ()
    option_chars: tuple[int, ...] = ()
    samples: tuple[Sample, ...] = ()
    parsed_by: str | None = None
    stopped: str | None = None


def cut_context(record: TaskRecord, max_words: int) -> TaskRecord:
    """The record with only the last `max_words` white-space words of its context: the question is never cut."""
    words = record.context.split()
    if len(words) <= max_words:
        return record
    return replace(record, context=" ".join(words[len(words) - max_words :]))
