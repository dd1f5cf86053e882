"""The plan of a training run, which questions meet in which optimiser step until the budget is spent, and its FLOPs.

A token budget counts non-pad prompt and target tokens through the student's forward and backward pass (an inner epoch
counts again). Records cycle in a new seeded order each epoch; the last step is the one that comes nearest to the
budget. Where the cost of a step is not known before it is taken (sampled targets, a budget in FLOPs or seconds), the
plan has no end of its own, and the trainer stops by the same rule (`limit`).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.training.batching import Group

if TYPE_CHECKING:
    from tinyllm_bench.models.lm import LM

Unit = Literal["student_tokens", "flops", "seconds"]
Round = tuple[tuple[int, ...], ...]
BUDGETS = ("student_tokens", "epochs", "flops", "seconds")
_NO_END = 2**31  # rounds


class Limit(NamedTuple):
    """When a run ends whose steps are not known beforehand."""

    unit: Unit
    amount: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Mini-batches of every round as indices of groups, and what they cost.

    `rounds[r]` holds the mini-batches of round r; each round is passed `inner_epochs` times. `tokens` are student
    tokens, `epochs` how often each record is seen on average; both are 0 and rounds never end where there is a `limit`.
    """

    rounds: Sequence[Round]
    inner_epochs: int
    seed: int
    tokens: int
    epochs: float
    limit: Limit | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps; 0 where they are not known beforehand."""
        return 0 if self.limit else self.inner_epochs * sum(len(minis) for minis in self.rounds)

    def progress(self, steps: int, spent: float) -> tuple[float, float]:
        """How much is done after some steps and so much of the limit's unit, and of how much."""
        return (steps, self.steps) if self.limit is None else (spent, self.limit.amount)

    def expected_steps(self, steps: int, spent: float) -> int:
        """Optimiser steps of the whole run, estimated after some of them."""
        if self.limit is None:
            return self.steps
        return max(steps, 1, round(steps * self.limit.amount / spent)) if spent else max(steps, 1)

    def ends_before(self, cost: float, spent: float) -> bool:
        """Whether to stop now ends nearer to the limit than one more mini-batch of this cost."""
        return self.limit is not None and spent > 0 and spent + cost / 2 > self.limit.amount

    def members_of(self, number: int) -> tuple[int, ...]:
        """The groups of one round, with repetitions, in the order of the first pass."""
        return tuple(index for mini in self.rounds[number] for index in mini)

    def places_of(self, number: int) -> Iterator[tuple[int, ...]]:
        """The mini-batches of one round, as places among its members, in the order they are trained: reshuffled over
        the round in each inner epoch.
        """
        sizes = [len(mini) for mini in self.rounds[number]]
        for epoch in range(self.inner_epochs):
            flat = list(range(sum(sizes)))
            if epoch > 0:
                random.Random(f"{self.seed}/inner/{number}/{epoch}").shuffle(flat)
            places = iter(flat)
            yield from (tuple(next(places) for _ in range(size)) for size in sizes)

    def steps_of(self, number: int) -> Iterator[tuple[int, ...]]:
        """The mini-batches of one round as indices of groups, in the order they are trained."""
        members = self.members_of(number)
        yield from (tuple(members[place] for place in places) for places in self.places_of(number))


def make_plan(
    groups: Sequence[Group],
    *,
    batch_records: int,
    seed: int,
    student_tokens: int | None = None,
    epochs: float | None = None,
    limit: Limit | None = None,
    group_size: int = 1,
    inner_epochs: int = 1,
) -> Plan:
    """Plan a run to a token budget, to a number of epochs, or to a limit that is reached on the way (one of the three).

    Raises:
        UserError: nothing to train on, or not exactly one budget.
    """
    if not groups:
        raise UserError("no training record has anything to learn; check data.train_limit and the teachers' rationales")
    if sum(asked is not None for asked in (student_tokens, epochs, limit)) != 1:
        raise UserError(f"give exactly one of {', '.join(f'budget.{key}' for key in BUDGETS)}")
    if limit is not None:
        rounds = _Endless(len(groups), batch_records, seed, group_size)
        return Plan(rounds=rounds, inner_epochs=inner_epochs, seed=seed, tokens=0, epochs=0.0, limit=limit)
    most = student_tokens if student_tokens is not None else float("inf")
    records = max(round(len(groups) * epochs), 1) if epochs is not None else float("inf")
    minis: list[tuple[int, ...]] = []
    spent, seen = 0, 0
    for mini in _endless(len(groups), batch_records, seed):
        if epochs is not None and seen + len(mini) > records:
            mini = mini[: int(records) - seen]
        cost = inner_epochs * sum(groups[index].tokens for index in mini)
        if minis and spent + cost / 2 > most or not mini:
            break
        minis.append(mini)
        spent, seen = spent + cost, seen + len(mini)
    fixed = tuple(tuple(minis[i : i + group_size]) for i in range(0, len(minis), group_size))
    return Plan(rounds=fixed, inner_epochs=inner_epochs, seed=seed, tokens=spent, epochs=seen / len(groups))


class _Endless(Sequence[Round]):
    """Rounds without end, made when they are read."""

    def __init__(self, count: int, size: int, seed: int, group_size: int) -> None:
        self._minis, self._group_size = _endless(count, size, seed), group_size
        self._made: list[Round] = []

    def __len__(self) -> int:
        return _NO_END

    @overload
    def __getitem__(self, number: int) -> Round: ...
    @overload
    def __getitem__(self, number: slice) -> list[Round]: ...
    def __getitem__(self, number: int | slice) -> Round | list[Round]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(_NO_END))]
        while len(self._made) <= number:
            self._made.append(tuple(next(self._minis) for _ in range(self._group_size)))
        return self._made[number]


def _endless(count: int, size: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Mini-batches without end: epochs are joined, so that only the last mini-batch of a run can be short."""
    rest: list[int] = []
    epoch = 0
    while True:
        while len(rest) < size:
            order = list(range(count))
            random.Random(f"{seed}/order/{epoch}").shuffle(order)
            rest += order
            epoch += 1
        yield tuple(rest[:size])
        rest = rest[size:]


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
