"""What a training run leaves behind: its looks at validation, and its result."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from tinyllm_bench.models.lm import LM

Select = Literal["best", "loss", "last"]
Scheduler = Literal["linear", "cosine", "constant"]
Sums = dict[str, tuple[float, float]]


class Checked(NamedTuple):
    """What validation found: accuracy, mean probability of the gold option (rankings only), questions, and the token
    mean of the gold answer's cross-entropy in nats (measured where weights are selected by it)."""

    accuracy: float
    gold_probability: float | None
    n: int
    loss: float | None = None


class Look(NamedTuple):
    """One look at validation after `step` steps and `fraction` of the run; `probe` holds what the method measured."""

    step: int
    fraction: float
    accuracy: float
    gold_probability: float | None
    n: int
    loss: float | None = None
    probe: Mapping[str, float] = {}


def merit(look: Look, select: Select) -> tuple[float, float, int]:
    """Larger is better: accuracy, then gold probability, then earlier; or lower loss, then earlier."""
    if select == "loss":
        return (-float("inf") if look.loss is None else -look.loss, 0.0, -look.step)
    return (look.accuracy, look.gold_probability or 0.0, -look.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a run did. The module holds the selected weights when it is returned.

    Losses are weighted sums of mean nats per token; `seconds` are of training alone, without the looks at validation.
    `tokens` are the examples' own, `computed_tokens` those that went through the student: a shared prompt counts once.
    `flops` is the estimate of `flops_per_token`, rollouts and a white-box teacher included. `records` counts a question
    again each time it is trained on. `drawn_tokens` and `roll_seconds` are what rollouts wrote and took (within
    `seconds`). `start` is the look before the first step, of methods that roll out; it is never selected. `means` are
    the method's own measurements over all steps.
    """

    steps: int
    records: int
    tokens: int
    computed_tokens: int
    flops: float
    tokens_by_channel: Mapping[str, int]
    first_loss: float
    last_loss: float
    looks: tuple[Look, ...]
    selected_step: int
    seconds: float
    drawn_tokens: int = 0
    roll_seconds: float = 0.0
    start: Look | None = None
    means: Mapping[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class State:
    """What a checkpoint keeps of a run besides weights; `sums` are (sum, count) of the method's measurements,
    `roll_cost` what the last round's drawing took of the limit's unit."""

    looks: list[Look] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    records: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    flops: float = 0.0
    tokens_by_channel: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    look_seconds: float = 0.0
    drawn_tokens: int = 0
    roll_seconds: float = 0.0
    roll_cost: float = 0.0
    start: Look | None = None
    sums: Sums = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        start = None if self.start is None else list(self.start)
        return {**vars(self), "looks": [list(look) for look in self.looks], "start": start}

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> "State":
        """The same from JSON."""
        start = kept["start"]
        return cls(
            **{
                **kept,
                "looks": [Look(*look) for look in kept["looks"]],
                "start": None if start is None else Look(*start),
                "sums": {name: (total, count) for name, (total, count) in kept["sums"].items()},
            }
        )


class FlopsPerToken(NamedTuple):
    """Floating-point operations of a token: trained on, the white-box teacher's reading included; read by either."""

    trained: float
    student: float
    teacher: float

    def drawn(self, with_teacher: bool) -> float:
        """Of a token that the student draws, with a teacher that reads along or without."""
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
        had = into.get(name, (0.0, 0.0))
        into[name] = (had[0] + total, had[1] + count)


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
