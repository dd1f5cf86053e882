"""The result of a training run, and the state that its checkpoints hold."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Evaluation
from tinyllm_bench.base.files import read_json, write_json

if TYPE_CHECKING:
    from tinyllm_bench.models.lm import LM

RESULT_FILE = Path("train") / "result.json"
Select = Literal["best", "loss", "last"]
Scheduler = Literal["linear", "cosine", "constant"]
Sums = dict[str, tuple[float, float]]


class ValidationScore(NamedTuple):
    """The student on the validation split; the fields are those of `Evaluation`."""

    accuracy: float
    gold_probability: float | None
    n: int
    loss: float | None = None


def checkpoint_score(evaluation: Evaluation, select: Select) -> tuple[float, float, int]:
    """Larger is better: accuracy, then gold probability, then earlier; or lower loss, then earlier."""
    if select == "loss":
        return (-float("inf") if evaluation.loss is None else -evaluation.loss, 0.0, -evaluation.step)
    return (evaluation.accuracy, evaluation.gold_probability or 0.0, -evaluation.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSummary:
    """What the trainer did. The module holds the selected weights when it is returned.

    Losses are weighted sums of mean nats per token; `seconds` are of training alone, without the evaluations.
    `student_tokens` are the examples' own, `computed_tokens` those that went through the student: a shared prompt
    counts once. `flops` is the estimate of `flops_per_token`, rollouts and a white-box teacher included. `records`
    counts a question again each time it is trained on. `rollout_tokens` were sampled in `rollout_seconds` (within
    `seconds`). `start` is the evaluation before the first step, of methods that roll out; it is never selected.
    `measured` are the method's own measurements, means over all steps.
    """

    steps: int
    records: int
    student_tokens: int
    computed_tokens: int
    flops: float
    tokens_by_channel: Mapping[str, int]
    first_loss: float | None
    last_loss: float | None
    evaluations: tuple[Evaluation, ...]
    selected_step: int
    seconds: float
    rollout_tokens: int = 0
    rollout_seconds: float = 0.0
    start: Evaluation | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult(TrainingSummary):
    """The result of the training stage, `train/result.json`: what the trainer did, and the student it made.

    `epochs` is how often each question was trained on on average; `targets_cut` were longer than the limit,
    `targets_dropped` are programs that the student's tokenizer cannot write. `layout_reason` says why the layout is
    not the shared one. Digests are of weights and tokenizer; `student_files` are the saved files' digests by name.
    """

    initial_digest: str
    student_digest: str
    tokenizer_digest: str
    architecture: str
    parameters: int
    encoder_decoder: bool
    layout: str
    layout_reason: str | None
    targets_cut: int
    targets_dropped: int
    epochs: float
    peak_memory_bytes: int
    student_files: Mapping[str, str] = field(default_factory=dict)


def save_result(result: TrainResult, run: Path) -> None:
    """Write a run's `train/result.json`."""
    write_json(run / RESULT_FILE, asdict(result))


@cache
def _adapter() -> TypeAdapter[TrainResult]:
    return TypeAdapter(TrainResult)


def load_result(run: Path) -> TrainResult:
    """The result that a run's folder holds.

    Raises:
        UserError: it is damaged.
    """
    try:
        return _adapter().validate_python(read_json(run / RESULT_FILE))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(map(str, detail["loc"]))
        raise UserError(f"{run / RESULT_FILE}: {place}: {detail['msg']}; delete the folder {run}") from error


@dataclass(kw_only=True)
class State:
    """What a checkpoint holds of a run besides weights; `sums` are (sum, count) of the method's measurements,
    `rollout_cost` what the last round's rollout took of the limit's unit."""

    evaluations: list[Evaluation] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    records: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    flops: float = 0.0
    tokens_by_channel: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    rollout_tokens: int = 0
    rollout_seconds: float = 0.0
    rollout_cost: float = 0.0
    start: Evaluation | None = None
    sums: Sums = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the manifest of a checkpoint holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "State":
        """The state that `to_json` wrote."""
        return TypeAdapter(cls).validate_python(state)


class FlopsPerToken(NamedTuple):
    """Floating-point operations of a token: trained on, the white-box teacher's reading included; read by either."""

    trained: float
    student: float
    teacher: float

    def sampled(self, with_teacher: bool) -> float:
        """Of a token that the student samples, with a teacher that reads along or without."""
        return self.student + (self.teacher if with_teacher else 0.0)


def flops_per_token(lm: "LM", teacher_parameters: int, *, reads_teacher: bool = True) -> FlopsPerToken:
    """The usual estimate where every token meets every parameter: 2 per parameter forward, 2 for the gradient of the
    activations and 2 for that of each trained parameter; a white-box teacher reads every token too, where the loss
    does (`reads_teacher`).

    Attention over long texts is not in it; it does not hold for encoder-decoders, whose tokens meet a part.
    """
    counts = [(p.numel(), p.requires_grad) for p in lm.parameters()]
    every, trained = sum(n for n, _ in counts), sum(n for n, is_trained in counts if is_trained)
    theirs = 2.0 * teacher_parameters
    return FlopsPerToken(4.0 * every + 2.0 * trained + (theirs if reads_teacher else 0.0), 2.0 * every, theirs)


def add_sums(into: Sums, more: Mapping[str, tuple[float, float]]) -> None:
    """Add sums and counts by name."""
    for name, (total, count) in more.items():
        old_total, old_count = into.get(name, (0.0, 0.0))
        into[name] = (old_total + total, old_count + count)


def means_of(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Means by name, in the order of names; what was never counted is left out."""
    return {name: total / count for name, (total, count) in sorted(sums.items()) if count}


def rate(done: float, total: float, warmup: float, scheduler: Scheduler = "linear") -> float:
    """Share of the peak learning rate after `done` of `total`: linear warm-up over a share of it, then linear or cosine
    decay to 0, or none. As transformers' schedules, but that the first step of a warm-up is not at 0.
    """
    rising = warmup * total
    if done < rising:
        return (done + 1) / (rising + 1)
    left = max(total - done, 0) / max(total - rising, 1)
    return {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "constant": 1.0}[scheduler]
