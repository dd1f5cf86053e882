"""The plan of a training run: which questions meet in which optimiser step, until the token budget is spent.

The budget counts non-pad prompt and target tokens through the student's forward and backward pass (an inner epoch
counts again). Records cycle in a new seeded order each epoch; the last step is the one that comes nearest to the
budget. Where targets are drawn during training their lengths are not known yet: such a plan holds more rounds than are
needed, and the trainer stops by the same rule (`limit`).
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.learn.batching import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Mini-batches of every round as indices of groups, and what they cost.

    `rounds[r]` holds the mini-batches of round r; each round is passed `inner_epochs` times. `tokens` are student
    tokens,
    `epochs` how often each record is seen on average. With a `limit` (student tokens) these are upper bounds.
    """

    rounds: tuple[tuple[tuple[int, ...], ...], ...]
    inner_epochs: int
    seed: int
    tokens: int
    epochs: float
    limit: int | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.inner_epochs * sum(len(minis) for minis in self.rounds)

    def progress(self, steps: int, tokens: int) -> tuple[float, float]:
        """How much is done after some steps and student tokens, and of how much: steps, or tokens with a limit."""
        return (steps, self.steps) if self.limit is None else (tokens, self.limit)

    def expected_steps(self, steps: int, tokens: int) -> int:
        """Optimiser steps of the whole run, as far as can be told after some of them."""
        if self.limit is None or not tokens:
            return self.steps
        return max(steps, round(steps * self.limit / tokens))

    def ends_before(self, cost: int, tokens: int) -> bool:
        """Whether a mini-batch of `cost` tokens after `tokens` would end farther from the limit than no more does."""
        return self.limit is not None and tokens > 0 and tokens + cost / 2 > self.limit

    def steps_of(self, number: int) -> Iterator[tuple[int, ...]]:
        """The mini-batches of one round in the order they are trained: reshuffled over the round in each inner
        epoch.
        """
        minis = self.rounds[number]
        for epoch in range(self.inner_epochs):
            if epoch == 0:
                yield from minis
                continue
            flat = [index for mini in minis for index in mini]
            random.Random(f"{self.seed}/inner/{number}/{epoch}").shuffle(flat)
            sizes = iter(flat)
            yield from (tuple(next(sizes) for _ in mini) for mini in minis)


def make_plan(
    groups: Sequence[Group],
    *,
    batch_records: int,
    seed: int,
    student_tokens: int | None = None,
    epochs: float | None = None,
    group_size: int = 1,
    inner_epochs: int = 1,
    drawn: bool = False,
) -> Plan:
    """Plan a run to a token budget, or to a number of epochs (one of the two).

    drawn: targets are replaced by drawn text, of which no more is known than that each has a token or more.

    Raises:
        UserError: nothing to train on, or not exactly one budget.
    """
    if not groups:
        raise UserError("no training record has anything to learn; check data.train_limit and the teachers' rationales")
    if (student_tokens is None) == (epochs is None):
        raise UserError("give exactly one of budget.student_tokens and budget.epochs")
    limit = student_tokens if student_tokens is not None else float("inf")

    def least(group: Group) -> int:
        return sum(len(item.prompt) + 1 for item in group.items)

    records = max(round(len(groups) * epochs), 1) if epochs is not None else float("inf")
    minis: list[tuple[int, ...]] = []
    spent, seen = 0, 0
    for mini in _endless(len(groups), batch_records, seed):
        if epochs is not None and seen + len(mini) > records:
            mini = mini[: int(records) - seen]
        cost = inner_epochs * sum(least(groups[index]) if drawn else groups[index].tokens for index in mini)
        if minis and spent + cost / 2 > limit or not mini:
            break
        minis.append(mini)
        spent, seen = spent + cost, seen + len(mini)
    rounds = tuple(tuple(minis[i : i + group_size]) for i in range(0, len(minis), group_size))
    return Plan(
        rounds=rounds,
        inner_epochs=inner_epochs,
        seed=seed,
        tokens=spent,
        epochs=seen / len(groups),
        limit=student_tokens if drawn else None,
    )


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
