"""The plan of a training run (which questions are in which optimiser step until the budget is spent) and its FLOPs.

A token budget counts non-pad prompt and target tokens through the student's forward and backward pass (an inner epoch
counts again). Records cycle in a new seeded order each epoch; the run ends at the step that is nearest to the budget.
If the cost of a step is not known beforehand (sampled targets, a budget in FLOPs or seconds), the plan is endless, and
the trainer stops by the same rule (`limit`).
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
_ENDLESS = 2**31  # rounds


class Limit(NamedTuple):
    """The budget of a run whose number of steps is not known beforehand."""

    unit: Unit
    amount: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The mini-batches of every round, as indices of groups, and their cost.

    `rounds[r]` holds the mini-batches of round r, over which there are `inner_epochs` passes. `tokens` are student
    tokens, `epochs` the mean number of times that a record is seen; with a `limit` both are 0 and rounds never end.
    """

    rounds: Sequence[Round]
    inner_epochs: int
    seed: int
    tokens: int
    epochs: float
    limit: Limit | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps; 0 if they are not known beforehand."""
        return 0 if self.limit else self.inner_epochs * sum(len(mini_batches) for mini_batches in self.rounds)

    def progress(self, steps: int, spent: float) -> tuple[float, float]:
        """How much of how much is done: of the steps, or of the limit's unit if there is a limit."""
        return (steps, self.steps) if self.limit is None else (spent, self.limit.amount)

    def expected_steps(self, steps: int, spent: float) -> int:
        """Optimiser steps of the whole run; with a limit, an estimate from the steps so far and what they spent."""
        if self.limit is None:
            return self.steps
        return max(steps, 1, round(steps * self.limit.amount / spent)) if spent else max(steps, 1)

    def ends_before(self, cost: float, spent: float) -> bool:
        """Whether stopping now is nearer to the limit than one more mini-batch of this cost."""
        return self.limit is not None and spent > 0 and spent + cost / 2 > self.limit.amount

    def members_of(self, number: int) -> tuple[int, ...]:
        """The groups of one round, with repetitions, in the order of the first pass."""
        return tuple(index for mini_batch in self.rounds[number] for index in mini_batch)

    def positions_of(self, number: int) -> Iterator[tuple[int, ...]]:
        """The mini-batches of one round in training order, as positions among its members: reshuffled over the round in
        each inner epoch.
        """
        sizes = [len(mini_batch) for mini_batch in self.rounds[number]]
        for epoch in range(self.inner_epochs):
            flat = list(range(sum(sizes)))
            if epoch > 0:
                random.Random(f"{self.seed}/inner/{number}/{epoch}").shuffle(flat)
            positions = iter(flat)
            yield from (tuple(next(positions) for _ in range(size)) for size in sizes)

    def steps_of(self, number: int) -> Iterator[tuple[int, ...]]:
        """The mini-batches of one round in training order, as indices of groups."""
        members = self.members_of(number)
        yield from (tuple(members[position] for position in positions) for positions in self.positions_of(number))


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
    """Plan a run for a token budget, a number of epochs, or a limit (exactly one of the three).

    Raises:
        UserError: nothing to train on, or not exactly one budget.
    """
    if not groups:
        raise UserError("no training record has anything to learn; check data.train_limit and the teachers' rationales")
    if sum(budget is not None for budget in (student_tokens, epochs, limit)) != 1:
        raise UserError(f"give exactly one of {', '.join(f'budget.{key}' for key in BUDGETS)}")
    if limit is not None:
        rounds = _EndlessRounds(len(groups), batch_records, seed, group_size)
        return Plan(rounds=rounds, inner_epochs=inner_epochs, seed=seed, tokens=0, epochs=0.0, limit=limit)
    token_budget = student_tokens if student_tokens is not None else float("inf")
    record_budget = max(round(len(groups) * epochs), 1) if epochs is not None else float("inf")
    mini_batches: list[tuple[int, ...]] = []
    tokens, records = 0, 0
    for mini_batch in _endless_mini_batches(len(groups), batch_records, seed):
        if epochs is not None and records + len(mini_batch) > record_budget:
            mini_batch = mini_batch[: int(record_budget) - records]
        cost = inner_epochs * sum(groups[index].tokens for index in mini_batch)
        # stop before the mini-batch that would end further from the budget than stopping now
        if mini_batches and tokens + cost / 2 > token_budget or not mini_batch:
            break
        mini_batches.append(mini_batch)
        tokens, records = tokens + cost, records + len(mini_batch)
    return Plan(
        rounds=tuple(tuple(mini_batches[i : i + group_size]) for i in range(0, len(mini_batches), group_size)),
        inner_epochs=inner_epochs,
        seed=seed,
        tokens=tokens,
        epochs=records / len(groups),
    )


class _EndlessRounds(Sequence[Round]):
    """Endless rounds, generated on demand."""

    def __init__(self, count: int, size: int, seed: int, group_size: int) -> None:
        self._mini_batches, self._group_size = _endless_mini_batches(count, size, seed), group_size
        self._rounds: list[Round] = []

    def __len__(self) -> int:
        return _ENDLESS

    @overload
    def __getitem__(self, number: int) -> Round: ...
    @overload
    def __getitem__(self, number: slice) -> list[Round]: ...
    def __getitem__(self, number: int | slice) -> Round | list[Round]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(_ENDLESS))]
        while len(self._rounds) <= number:
            self._rounds.append(tuple(next(self._mini_batches) for _ in range(self._group_size)))
        return self._rounds[number]


def _endless_mini_batches(count: int, size: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Endless mini-batches; one may span two epochs, so that only the last of a run can be short."""
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
    """Floating-point operations per token.

    trained: a token that is trained on, with the white-box teacher's forward pass; student, teacher: a forward pass.
    """

    trained: float
    student: float
    teacher: float

    def sampled(self, with_teacher: bool) -> float:
        """A token that the student samples, with a forward pass of the teacher or without."""
        return self.student + (self.teacher if with_teacher else 0.0)


def flops_per_token(lm: "LM", teacher_parameters: int, *, loss_uses_teacher: bool = True) -> FlopsPerToken:
    """The usual estimate (arXiv:2001.08361): per parameter 2 for the forward pass, 2 for the gradient of activations,
    and 2 for its own gradient if it is trained; 2 per parameter of a white-box teacher, if the loss uses it.

    Attention over long texts is left out, and so are encoder-decoders, whose tokens pass only some of the parameters.
    """
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in lm.parameters()]
    parameters = sum(count for count, _ in counts)
    trained_parameters = sum(count for count, is_trained in counts if is_trained)
    teacher = 2.0 * teacher_parameters
    trained = 4.0 * parameters + 2.0 * trained_parameters + (teacher if loss_uses_teacher else 0.0)
    return FlopsPerToken(trained, 2.0 * parameters, teacher)
