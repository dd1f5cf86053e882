"""Plans: tokens, orders, rounds."""

import itertools
from typing import Any

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Group
from tinyllm_bench.training.budget import make_plan
from tinyllm_bench.training.trainer import rate


def groups(count: int, tokens: int = 10) -> list[Group]:
    return [Group(str(i), (Encoded(str(i), "label", (1,) * (tokens - 2), (2, 3), False),)) for i in range(count)]


@pytest.mark.parametrize("budget", [400, 799, 801, 5000])
def test_a_token_budget_is_met_within_half_a_mini_batch(budget: int) -> None:
    plan = make_plan(groups(37), batch_records=8, seed=0, student_tokens=budget)
    assert abs(plan.tokens - budget) <= 8 * 10 / 2
    assert plan.tokens == 10 * sum(len(mini) for minis in plan.rounds for mini in minis)
    assert plan.epochs == pytest.approx(plan.tokens / 370)


def test_every_record_is_seen_once_before_any_is_seen_twice() -> None:
    plan = make_plan(groups(10), batch_records=4, seed=1, epochs=3)
    order = [i for minis in plan.rounds for mini in minis for i in mini]
    assert len(order) == 30
    for epoch in range(3):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert order[:10] != order[10:20]


def test_seeds_change_the_order_and_nothing_else() -> None:
    first, same, other = (make_plan(groups(20), batch_records=4, seed=s, epochs=1) for s in (0, 0, 1))
    assert first == same and first.rounds != other.rounds
    assert (first.steps, first.tokens) == (other.steps, other.tokens)


def test_rounds_of_minillm_s_paper_give_16_steps_each() -> None:
    """256 rollouts in mini-batches of 64, 4 inner epochs: 16 optimiser steps a round."""
    plan = make_plan(groups(256), batch_records=64, seed=0, epochs=2, group_size=4, inner_epochs=4)
    assert len(plan.rounds) == 2 and plan.steps == 32
    assert [len(list(plan.steps_of(r))) for r in (0, 1)] == [16, 16]
    steps = list(plan.steps_of(0))
    whole = sorted(itertools.chain.from_iterable(steps[:4]))
    for epoch in range(4):
        assert sorted(itertools.chain.from_iterable(steps[4 * epoch : 4 * epoch + 4])) == whole
    assert steps[:4] != steps[4:8]
    assert plan.tokens == 4 * 512 * 10, "an inner epoch is paid for again"


def test_a_short_last_mini_batch_completes_a_whole_epoch() -> None:
    plan = make_plan(groups(10), batch_records=4, seed=0, epochs=1)
    assert [len(mini) for minis in plan.rounds for mini in minis] == [4, 4, 2]


@pytest.mark.parametrize("budget", [{}, {"student_tokens": 10, "epochs": 1.0}])
def test_exactly_one_budget(budget: dict[str, float]) -> None:
    with pytest.raises(UserError, match="exactly one"):
        make_plan(groups(3), batch_records=1, seed=0, **budget)  # type: ignore[arg-type]


def test_nothing_to_learn_is_an_error() -> None:
    with pytest.raises(UserError, match="no training record"):
        make_plan([], batch_records=1, seed=0, epochs=1)


def test_the_learning_rate_rises_and_falls_over_the_whole_run() -> None:
    assert [rate(step, 4, 0.0) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    warmed = [rate(step, 10, 0.2) for step in range(10)]
    assert warmed[0] < warmed[1] < warmed[2] == 1.0 and warmed[-1] == pytest.approx(1 / 8)


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 20])
def test_schedules_are_those_of_transformers(scheduler: Any, warmup: int) -> None:
    import torch
    from transformers import get_scheduler

    name = "constant_with_warmup" if scheduler == "constant" else scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=100)
    for step in range(100):
        found = rate(step, 100, warmup / 100, scheduler)
        off = 0.05 if step < warmup else 1e-9  # a warm-up of theirs begins at 0
        assert found == pytest.approx(theirs.get_last_lr()[0], abs=off) and found > 0
        optimizer.step()
        theirs.step()
