"""The one interface between a distillation method and the machine.

A method is text in (`examples`), optionally new text (`rollout`), a loss (`loss`) and how to read the student
(`decoding`).
It holds a config; never a model, a file or a device. Methods share functions, not parents.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.data.prompts import LABEL, Ask, rationale_channel
from tinyllm_bench.data.records import SCORING_MODES, Annotation, Example, ScoringMode, TaskRecord

if TYPE_CHECKING:
    from tinyllm_bench.models.lm import LM
    from tinyllm_bench.training.batching import Batch, Group


class MethodConfig(BaseModel):
    """Base of a method's settings: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Average = Literal["token", "sequence"]
AnnotationKind = Literal["rationale", "program", "response"]


class Term(NamedTuple):
    """One summand of a loss, which the trainer divides by what the whole mini-batch has of its channel.

    per: `token`, `sum` is over target tokens and divided by their number; `sequence`, it is over examples, each of them
    the mean over its own target tokens, and divided by the number of examples.
    """

    channel: str
    weight: float
    sum: Tensor
    per: Average = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What must exist before training starts.

    annotations: kinds of teacher text (`response`: what the teacher answers to the student's own prompt); signal: what
    of a teacher's distributions is needed: `cached` the top-k tokens over given texts, so that they may be cached,
    `live` every token's, `on_policy` over texts that are sampled during training; plain_text: texts of channel `plain`
    beside the task's, where there are any; same_tokenizer: teacher and student must share one.
    """

    annotations: frozenset[AnnotationKind] = frozenset()
    signal: Literal["none", "cached", "live", "on_policy"] = "none"
    same_tokenizer: bool = False
    plain_text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a method may know of the optimiser step it is in.

    total: steps of the whole run, an estimate where lengths are not known yet; tokens and examples: target tokens
    and examples per channel of this mini-batch over all processes; all_reduce sums a tensor over processes;
    seed_of(group.key) seeds anything random, so that results do not depend on batching and a question that comes
    twice in a round is sampled twice; note(name, sum, count) puts a mean into the metrics; reread(groups) gives a
    rollout's groups back with log q of their sampled tokens (`rollout["logq"]`) as the forward pass of training
    computes it, in the very micro-batches that are trained, so that the importance ratio of the first inner step is
    1. Processes call all_reduce and reread alike.
    """

    index: int
    total: int
    tokens: Mapping[str, int]
    all_reduce: Callable[[Tensor], Tensor]
    seed_of: Callable[[str], int]
    note: Callable[[str, float, float], None] = lambda name, total, count: None
    examples: Mapping[str, int] = field(default_factory=dict)
    reread: "Callable[[list[Group]], list[Group]]" = lambda groups: groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How a trained student is read; plain data that the run record keeps.

    Without a policy the label channel answers, as the cell's mode asks. With one, texts of `channels` are written
    (a greedy one, and `samples` per channel) and the policy decides (`answers.voting`); `every`: all policies that
    the channels allow are reported. `members`: changes of the method's settings, one for each channel, where each
    channel is another student, trained with its part of the budget.
    """

    channels: tuple[str, ...] = ("label",)
    policy: str | None = None
    samples: Mapping[str, int] = field(default_factory=dict)
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    every: bool = False
    members: tuple[Mapping[str, Any], ...] = ()


class TeacherSignal(Protocol):
    """A teacher's distributions at a batch's target positions; never carries a gradient.

    `vocabulary`: entries that exist, where a model's vocabulary is padded; None = all. `parameters`: of the model that
    reads every batch; 0 where nothing is computed.
    """

    vocabulary: int | None
    parameters: int

    @property
    def lm(self) -> "LM | None":
        """The teacher itself, to sample with it, where it reads the student's ids and is in memory."""

    def on(self, batch: "Batch") -> Any:
        """Distributions in the student's order of target positions."""


class Method(ABC):
    """How one paper trains a student.

    group_size: mini-batches of one rollout round; inner_epochs: passes over a round; grouping: whether a question's
    channels must stay in one micro-batch (`record`) or may be packed apart by length (`example`); reading_settings:
    settings that only decide how a trained student is read, so that cells that differ in them share the training.
    """

    paper: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    grouping: ClassVar[Literal["record", "example"]] = "example"
    reading_settings: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: MethodConfig) -> None:
        self.config: Any = config

    @property
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """How a student of this configuration can be asked."""
        return SCORING_MODES

    @property
    def rolls(self) -> bool:
        """Whether the student writes texts of its own during training; it is then trained without dropout, as it
        samples."""
        return self.needs().signal == "on_policy"

    @property
    def reads_teacher(self) -> bool:
        """Whether the loss reads a white-box teacher over what is trained; what it takes is then counted in FLOPs."""
        return self.needs().signal != "none"

    @property
    def max_sampled_tokens(self) -> int:
        """Tokens of the longest text that the student writes during training (`max_new_tokens`)."""
        return getattr(self.config, "max_new_tokens", 0) if self.rolls else 0

    @property
    def scatters(self) -> bool:
        """Whether the examples of a question are shuffled apart instead of meeting one optimiser step.

        `train.batch_records` and the record's counts are then of examples.
        """
        return False

    @property
    def group_size(self) -> int:
        """Mini-batches per rollout round."""
        return 1

    @property
    def inner_epochs(self) -> int:
        """Passes over one round."""
        return 1

    def needs(self) -> Needs:
        """What this configuration needs; checked before anything is loaded."""
        return Needs()

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """Which of the given teachers (keys) this configuration learns from: by default all, if it needs any.

        Raises:
            UserError: none is given where one is needed.
        """
        if not self.needs().annotations and self.needs().signal == "none":
            return ()
        if not teachers:
            raise UserError("this method needs a teacher and none is given; set teachers=[replay:release#...]")
        return tuple(teachers)

    @abstractmethod
    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """What the student should imitate for this record: pure text, deterministic; rejected annotations are not
        given.
        """

    def rollout(self, group: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step) -> "list[Group]":
        """On-policy methods replace targets by sampled text; called once per round, without gradient, with the groups
        that this process samples for."""
        return group

    def probe(
        self, groups: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step
    ) -> Mapping[str, float]:
        """Measurements on fixed validation questions at every evaluation, by name; they never select anything."""
        return {}

    @abstractmethod
    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """Terms of the loss on one micro-batch: sums over target tokens, differentiable in the student."""

    def decoding(self) -> Decoding:
        """How a trained student is read."""
        return Decoding()


def label_and_rationales(record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
    """The gold answer, and one example per teacher's rationale that is given; one that was cut teaches no end."""
    label = ask.example(record, LABEL, ask.label_target(record))
    return [
        label,
        *(ask.example(record, rationale_channel(a.teacher), a.text, ends=not a.is_cut) for a in annotations),
    ]


# What methods that learn from distributions imitate: a response to the question, in the label's channel. `answer` is
# the gold answer as the task's mode asks for it. `rationale` is a teacher's rationale and the gold answer in one
# line, to be read in `generate`: "... The answer is X." `teacher` is what the teacher itself answers to the student's
# prompt, as in sequence-level distillation: the text as written, without an end where the teacher's limit cut it.
Response = Literal["answer", "rationale", "teacher"]


def annotations_for(response: Response) -> frozenset[AnnotationKind]:
    """The kinds of teacher text that a response is made of."""
    kinds: dict[Response, frozenset[AnnotationKind]] = {
        "answer": frozenset(),
        "rationale": frozenset({"rationale"}),
        "teacher": frozenset({"response"}),
    }
    return kinds[response]


def scoring_modes_for(response: Response) -> tuple[ScoringMode, ...]:
    """How a student that writes such responses can be asked: a rationale is text, not an option to be ranked."""
    return ("generate",) if response == "rationale" else SCORING_MODES


def response_examples(
    record: TaskRecord, annotations: Sequence[Annotation], ask: Ask, response: Response
) -> list[Example]:
    """The response to a question as one example; none where the teacher gave no usable text."""
    if response == "answer":
        return [ask.example(record, LABEL, ask.label_target(record))]
    annotation = annotations[0] if annotations else None
    if annotation is None or not annotation.text.strip():
        return []
    if response == "teacher":
        return [ask.example(record, LABEL, annotation.text.strip(), ends=not annotation.is_cut)]
    line = " ".join(annotation.text.split())  # an answer among choices is read from the first line alone
    stop = "" if line.endswith((".", "!", "?")) else "."
    return [ask.example(record, LABEL, f"{line}{stop} The answer is {ask.label_target(record)}.")]


def choose_teacher(method: str, name: str | None, teachers: Sequence[str]) -> str:
    """The one teacher of a single-teacher method.

    Raises:
        UserError: none is given, or several and none is chosen, or the chosen one is not given.
    """
    if name is not None:
        unknown_teachers(method, [name], teachers)
        return name
    if len(teachers) != 1:
        given = ", ".join(teachers) or "none"
        raise UserError(f"{method} learns from one teacher; given: {given}; choose with method.{method}.teacher=NAME")
    return teachers[0]


def unknown_teachers(method: str, names: Iterable[str], teachers: Sequence[str]) -> None:
    """Refuse a teacher key in a method's settings that is not among the teachers given."""
    for key in names:
        if key not in teachers:
            raise unknown_name(f"teacher in method.{method}", key, teachers)


def _fault(name: str, loaded: Any) -> str | None:
    """What keeps an object from being the method of a plugin."""
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        return f"a method is a subclass of tinyllm_bench.Method, not {loaded!r}"
    config = getattr(loaded, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Method.Config)):
        return f"its Config is no subclass of {Method.Config.__name__}"
    missing = sorted(getattr(loaded, "__abstractmethods__", ()))
    missing += [] if isinstance(getattr(loaded, "paper", None), str) else ["paper"]
    return f"it is missing {', '.join(missing)}" if missing else None


plugins.define("method", fault=_fault)
