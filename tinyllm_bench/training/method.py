"""The interface of a distillation method, and what its implementations share.

A method says what the student is trained on (`examples`), may replace it by sampled text (`rollout`), computes the loss
(`loss`) and says how the trained student answers (`decoding`). It holds its settings; never a model, a file or a
device. Methods share functions, not base classes.
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
    """One summand of a loss: a sum that the trainer turns into a mean over the whole mini-batch.

    per: what it is divided by, the target tokens of its channel (`token`), or the examples (`sequence`), where `sum` is
    a sum of the examples' means over their own target tokens.
    """

    channel: str
    weight: float
    sum: Tensor
    per: Average = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What must exist before training starts.

    annotations: kinds of teacher text (`response`: the teacher's answer to the student's own prompt); signal: the
    teacher's distributions: `cached`, top-k tokens over given texts, which may come from a cache; `live`, all tokens;
    `on_policy`, over texts that are sampled during training; plain_text: texts of channel `plain` beside the task's, if
    any are configured; same_tokenizer: teacher and student must share one.
    """

    annotations: frozenset[AnnotationKind] = frozenset()
    signal: Literal["none", "cached", "live", "on_policy"] = "none"
    same_tokenizer: bool = False
    plain_text: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a method may know of the current optimiser step, and what it may call.

    total: steps of the whole run, an estimate where lengths are not known yet. tokens, examples: target tokens and
    examples per channel of this mini-batch, over all processes.
    all_reduce sums a tensor over processes. seed_of(group.key) seeds anything random, so that results do not depend on
    batching and a question that occurs twice in a round is sampled twice. note(name, sum, count) adds to a mean in the
    metrics. recompute_logq(groups) returns a rollout's groups with log q of their sampled tokens (`rollout["logq"]`) as
    the forward pass of training computes it, in the same micro-batches, so that the importance ratio of the first inner
    step is 1. If one process calls all_reduce or recompute_logq, all must.
    """

    index: int
    total: int
    tokens: Mapping[str, int]
    all_reduce: Callable[[Tensor], Tensor]
    seed_of: Callable[[str], int]
    note: Callable[[str, float, float], None] = lambda name, total, count: None
    examples: Mapping[str, int] = field(default_factory=dict)
    recompute_logq: "Callable[[list[Group]], list[Group]]" = lambda groups: groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How a trained student answers; plain data that is stored in the run record.

    Without a policy the label channel answers in the run's scoring mode. With one, texts of `channels` are generated
    (one greedy, and `samples` per channel) and the policy chooses the answer (`answers.voting`); `every`: all policies
    that the channels allow are reported. `members`: an ensemble, one set of changed settings per channel, each for a
    student of its own, trained with its part of the budget.
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
    """A teacher's distributions at a batch's target positions, without gradient.

    vocabulary: the tokenizer's size, where a model's vocabulary is padded; None for all entries. parameters: of the
    model that runs on every batch; 0 where nothing is computed.
    """

    vocabulary: int | None
    parameters: int

    @property
    def lm(self) -> "LM | None":
        """The teacher model, to sample with it; None unless it is in memory and has the student's tokenizer."""

    def on(self, batch: "Batch") -> Any:
        """The distributions in the order of the batch's target positions."""


class Method(ABC):
    """A distillation method.

    paper: its reference; Config: its settings; grouping: whether a question's examples must stay in one micro-batch
    (`record`) or may be batched by length (`example`); inference_settings: settings that only affect how a trained
    student answers, so that runs that differ in them alone share one training.
    """

    paper: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    grouping: ClassVar[Literal["record", "example"]] = "example"
    inference_settings: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, config: MethodConfig) -> None:
        self.config: Any = config

    @property
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """Scoring modes in which a student of this configuration can be evaluated."""
        return SCORING_MODES

    @property
    def is_on_policy(self) -> bool:
        """Whether the student samples texts during training; it is then trained without dropout, as it samples."""
        return self.needs().signal == "on_policy"

    @property
    def loss_uses_teacher(self) -> bool:
        """Whether the loss runs a white-box teacher on every batch, which then counts in the FLOPs."""
        return self.needs().signal != "none"

    @property
    def max_sampled_tokens(self) -> int:
        """The limit of a text that the student samples during training (`max_new_tokens`); 0 if it samples none."""
        return getattr(self.config, "max_new_tokens", 0) if self.is_on_policy else 0

    @property
    def shuffles_examples(self) -> bool:
        """Whether a question's examples are shuffled independently, instead of being in one optimiser step.

        `train.batch_records` and the record's counts are then in examples.
        """
        return False

    @property
    def group_size(self) -> int:
        """Mini-batches per round of rollouts."""
        return 1

    @property
    def inner_epochs(self) -> int:
        """Passes over a round."""
        return 1

    def needs(self) -> Needs:
        """What this configuration requires; checked before anything is loaded."""
        return Needs()

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The keys of the given teachers that this configuration learns from: by default all, if it needs any.

        Raises:
            UserError: a teacher is needed and none is given.
        """
        if not self.needs().annotations and self.needs().signal == "none":
            return ()
        if not teachers:
            raise UserError("this method needs a teacher and none is given; set teachers=[replay:release#...]")
        return tuple(teachers)

    @abstractmethod
    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """What the student is trained on for this record: deterministic text. `annotations` are those that no filter
        rejected.
        """

    def rollout(self, groups: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step) -> "list[Group]":
        """On-policy methods replace targets by sampled text here. Called once per round, without gradient, with this
        process's share of the round's groups."""
        return groups

    def probe(
        self, groups: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step
    ) -> Mapping[str, float]:
        """Measurements on fixed validation questions at every evaluation, by name; never used to select weights."""
        return {}

    @abstractmethod
    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """Terms of the loss on one micro-batch: sums, differentiable in the student."""

    def decoding(self) -> Decoding:
        """How a trained student answers."""
        return Decoding()


def label_and_rationales(record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
    """The gold answer, and one example per rationale; a truncated rationale gets no end token."""
    label = ask.example(record, LABEL, ask.label_target(record))
    rationales = [
        ask.example(record, rationale_channel(annotation.teacher), annotation.text, ends=not annotation.is_cut)
        for annotation in annotations
    ]
    return [label, *rationales]


# The response on which a method matches the teacher's distributions; it is in the label's channel. `answer` is the gold
# answer in the scoring mode's form. `rationale` is a teacher's rationale followed by the gold answer, in one line, for
# `generate`: "... The answer is X." `teacher` is the teacher's own answer to the student's prompt, as in sequence-level
# distillation: the text as it was generated, without an end token if the length limit truncated it.
Response = Literal["answer", "rationale", "teacher"]


def annotations_for(response: Response) -> frozenset[AnnotationKind]:
    """The kinds of teacher text that such a response needs."""
    kinds: dict[Response, frozenset[AnnotationKind]] = {
        "answer": frozenset(),
        "rationale": frozenset({"rationale"}),
        "teacher": frozenset({"response"}),
    }
    return kinds[response]


def scoring_modes_for(response: Response) -> tuple[ScoringMode, ...]:
    """Scoring modes of a student that is trained on such responses: options with rationales cannot be ranked."""
    return ("generate",) if response == "rationale" else SCORING_MODES


def response_examples(
    record: TaskRecord, annotations: Sequence[Annotation], ask: Ask, response: Response
) -> list[Example]:
    """The response to a question as one example; none if the teacher's text is missing or empty."""
    if response == "answer":
        return [ask.example(record, LABEL, ask.label_target(record))]
    annotation = annotations[0] if annotations else None
    if annotation is None or not annotation.text.strip():
        return []
    if response == "teacher":
        return [ask.example(record, LABEL, annotation.text.strip(), ends=not annotation.is_cut)]
    # answers to multiple-choice questions are parsed from the first line alone
    line = " ".join(annotation.text.split())
    stop = "" if line.endswith((".", "!", "?")) else "."
    return [ask.example(record, LABEL, f"{line}{stop} The answer is {ask.label_target(record)}.")]


def choose_teacher(method: str, name: str | None, teachers: Sequence[str]) -> str:
    """The teacher of a single-teacher method: `name`, or the only one given.

    Raises:
        UserError: no teacher is given; several are and `name` is None; or `name` is not among them.
    """
    if name is not None:
        check_teacher_names(method, [name], teachers)
        return name
    if len(teachers) != 1:
        given = ", ".join(teachers) or "none"
        raise UserError(f"{method} learns from one teacher; given: {given}; choose with method.{method}.teacher=NAME")
    return teachers[0]


def check_teacher_names(method: str, names: Iterable[str], teachers: Sequence[str]) -> None:
    """Refuse a teacher key in a method's settings that is not among the given teachers.

    Raises:
        UserError: with the keys that are given.
    """
    for key in names:
        if key not in teachers:
            raise unknown_name(f"teacher in method.{method}", key, teachers)


def _plugin_problem(name: str, loaded: Any) -> str | None:
    """Why an object that a plugin offers is not a method; None if it is one."""
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        return f"a method is a subclass of tinyllm_bench.Method, not {loaded!r}"
    config = getattr(loaded, "Config", None)
    if not (isinstance(config, type) and issubclass(config, Method.Config)):
        return f"its Config is not a subclass of {Method.Config.__name__}"
    missing = sorted(getattr(loaded, "__abstractmethods__", ()))
    missing += [] if isinstance(getattr(loaded, "paper", None), str) else ["paper"]
    return f"it is missing {', '.join(missing)}" if missing else None


plugins.define("method", problem=_plugin_problem)
