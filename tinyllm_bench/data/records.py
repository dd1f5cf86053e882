"""The records of an experiment: questions, annotations, training examples, predictions.

All carry the id of their question, from the data set to the leaderboard.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tinyllm_bench.base import plugins

Split = Literal["train", "valid", "test"]
ScoringMode = Literal["generate", "multiple_choice", "cloze"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
SCORING_MODES: tuple[ScoringMode, ...] = ("generate", "multiple_choice", "cloze")
Suite = Literal["main", "native"]
SUITES: tuple[Suite, ...] = ("main", "native")
Recorded = Literal["rationale", "program"]
NUMBER_KEY = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"  # the form of a number's key, as `rows.number_key` writes it


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One question; `id` is `task/split/source_id`. It asks for one of `choices`, or for a number.

    With choices, `answer` is the index of the right one. Without, `answer` is -1 and `number` is the key of the right
    number, at most six significant digits ("51", "2.5"); `full_number` is the whole number if its key has fewer digits,
    otherwise empty.
    """

    id: str
    task: str
    split: Split
    question: str
    choices: tuple[str, ...] = ()
    answer: int = -1
    context: str = ""
    number: str | None = None
    full_number: str = ""

    def __post_init__(self) -> None:
        if self.number is None:
            if not 0 <= self.answer < len(self.choices):
                raise ValueError(f"{self.id}: answer {self.answer} is not one of {len(self.choices)} choices")
        elif self.choices or self.answer != -1:
            raise ValueError(f"{self.id}: asks for the number {self.number} and has choices or answer {self.answer}")
        elif not re.fullmatch(NUMBER_KEY, self.number):
            raise ValueError(f"{self.id}: {self.number!r} is not the key of a number, such as 51 or 2.5")
        if self.full_number and self.number is None:
            raise ValueError(f"{self.id}: {self.full_number!r} is a number in full, but the question asks for a choice")

    @property
    def gold_key(self) -> int | str:
        """What a right prediction's `answer` equals: the choice's index, or the number's key."""
        return self.answer if self.number is None else self.number

    @property
    def gold_text(self) -> str:
        """The answer in words: the choice's text, or the number in full."""
        return self.choices[self.answer] if self.number is None else self.full_number or self.number


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """A task: where its questions come from and how they are read; `TASK` in `tasks/<name>.py`.

    `sizes` are rows per split in the release. `to_record(row, split)` turns a row of the release's form into a record.
    `hub` is None where the data may not be fetched; `file` is a file of the task's own, if it is not part of the
    release. `rationale_keys` and `program_keys` name the teachers whose texts are recorded (in the release: in the
    order of the texts in one rationale string), `blind_keys` those who were not given the right answer. `suite` is the
    group that the task is run with: `--task all` runs `main`. `title`, `source` and `licence` are for display.
    """

    name: str
    title: str
    version: int
    sizes: Mapping[Split, int]
    to_record: Callable[[Mapping[str, Any], Split], TaskRecord]
    source: str
    licence: str
    scoring_modes: tuple[ScoringMode, ...] = SCORING_MODES
    rationale_keys: tuple[str, ...] = ()
    program_keys: tuple[str, ...] = ()
    blind_keys: tuple[str, ...] = ()
    hub: "HubSource | None" = None
    file: "FileSource | None" = None
    rebuild_train: bool = False
    suite: Suite = "main"


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
class FileSource:
    """A task's own file of JSON lines, all splits in one.

    `path` is searched inside the release folder and beside it. `splits_of(rows)` names every row's split.
    `text_of(row, kind, key)` is the text of one teacher in a row; None or empty if there is none.
    """

    path: str
    splits_of: Callable[[Sequence[Mapping[str, Any]]], Sequence[Split]]
    text_of: Callable[[Mapping[str, Any], Recorded, str], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation:
    """A teacher's text about a record. A rejected text is stored, with the reason in `rejected`.

    `answer` is the choice or the number that the teacher named itself. The fields from `prompt_digest` are those of
    live teachers: how the text was sampled, its tokens, why it ended, and its share of the wall seconds.
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
    engine: str | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the teacher's token limit ended the text; False if the reason was not recorded."""
        return self.finish == "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One training example: a prompt of `context` and `marker` (in the style's order), and its `target`.

    `ends`: the target is followed by an end-of-sequence token; a text that was cut at a teacher's limit is not.
    """

    record_id: str
    channel: str
    context: str
    marker: str
    target: str
    ends: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One text the student wrote for a record.

    `answer_key` is the answer that was read or computed from it, `executed` whether a program gave an answer, `logprob`
    the mean log-probability of its tokens; `sampled` is False for a greedy text.
    """

    channel: str
    text: str
    answer_key: str | None = None
    executed: bool | None = None
    logprob: float | None = None
    tokens: int | None = None
    sampled: bool = False
    hit_limit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One answered question. `answer` is a choice's index or a number's key, None if the text was unparsed (wrong).

    `option_logprobs` are natural-log probabilities of the options' texts (cloze) or letters (multiple_choice),
    `option_chars` their lengths in characters; both are empty in `generate`. `choices_read` are the choices as the
    student's tokenizer decodes them if the answer is scored by exact match, else empty.
    """

    record_id: str
    mode: ScoringMode
    answer: int | str | None
    correct: bool
    option_logprobs: tuple[float, ...] = ()
    option_chars: tuple[int, ...] = ()
    samples: tuple[Sample, ...] = ()
    choices_read: tuple[str, ...] = ()
    parsed_by: str | None = None
    stopped: str | None = None


def cut_context(record: TaskRecord, max_words: int) -> TaskRecord:
    """The record with only the last `max_words` words of its context; the question is never cut."""
    words = record.context.split()
    if len(words) <= max_words:
        return record
    return replace(record, context=" ".join(words[len(words) - max_words :]))


def _plugin_problem(name: str, task: Any) -> str | None:
    """Why an object cannot be the task of a plugin, or None."""
    if not isinstance(task, TaskInfo):
        return f"a task is a tinyllm_bench.TaskInfo, not {task!r}"
    if not isinstance(task.sizes, Mapping) or set(task.sizes) != set(SPLITS):
        return f"its sizes are {task.sizes!r}, not rows of {', '.join(SPLITS)}"
    return None if task.name == name else f"its TaskInfo is called {task.name!r}, not {name!r}"


plugins.define("task", problem=_plugin_problem)
