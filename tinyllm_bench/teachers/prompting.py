"""How a live teacher is prompted and its reply read: as `teachers.prompts` has it, or as the student is."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from tinyllm_bench.answers.parser import reader_version
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import TaskRecord, cut_context
from tinyllm_bench.teachers import prompts as elicit
from tinyllm_bench.teachers.few_shot import Shots
from tinyllm_bench.teachers.prompts import Reply


class Words(Protocol):
    """What a live teacher is asked about a record."""

    @property
    def kind(self) -> Literal["rationale", "program", "response"]:
        """The kind of annotation that comes of it."""

    @property
    def gold_visible(self) -> bool:
        """Whether the right answer of the question stands in the prompt."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply."""

    @property
    def facts(self) -> Any:
        """All that decides the prompt besides the record, in JSON."""

    def prompt(self, record: TaskRecord) -> str:
        """The whole prompt."""

    def read(self, text: str, record: TaskRecord) -> Reply:
        """What a reply says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Elicited:
    """A rationale or a program, asked for with examples in front."""

    asked: elicit.Kind
    shots: Shots
    max_context_words: int

    @property
    def kind(self) -> Literal["rationale", "program"]:
        """A program, or a rationale."""
        return elicit.annotation_kind(self.asked)

    @property
    def gold_visible(self) -> bool:
        """In `forced` prompts."""
        return elicit.gold_visible(self.asked)

    @property
    def stops(self) -> tuple[str, ...]:
        """Where a base model would invent the next question."""
        return elicit.stops(self.asked)

    @property
    def facts(self) -> list[Any]:
        """Kind, versions, examples and cap of the passage."""
        return [self.asked, elicit.PROMPTS_VERSION, self._reader, self.shots.digest, self.max_context_words]

    @property
    def _reader(self) -> list[str]:
        """A reply's answer may be a choice or a number."""
        return [reader_version(("a", "b")), reader_version(())]

    def prompt(self, record: TaskRecord) -> str:
        """Examples, then the question."""
        asked = cut_context(record, self.max_context_words)
        return elicit.prompt(asked, self.shots.of(asked), self.asked)

    def read(self, text: str, record: TaskRecord) -> Reply:
        """As `elicit.read`."""
        return elicit.read(self.asked, text, record)


@dataclass(frozen=True, slots=True, kw_only=True)
class AsStudent:
    """The student's own prompt, without an example and without the answer; the reply is kept as it was written."""

    ask: Ask
    max_context_words: int
    kind: Literal["response"] = "response"
    gold_visible: bool = False
    stops: tuple[str, ...] = ()

    @property
    def facts(self) -> Mapping[str, Any]:
        """The wording of the student's prompts, and how the reply is read."""
        return {**asdict(self.ask), "max_context_words": self.max_context_words, "reply": "as written"}

    def prompt(self, record: TaskRecord) -> str:
        """What the student reads; white space at its end belongs to what is written, as in training."""
        return self.ask.prompt(cut_context(record, self.max_context_words)).rstrip()

    def read(self, text: str, record: TaskRecord) -> Reply:
        """The whole text, white space around it apart."""
        return Reply(text.strip(), None)
