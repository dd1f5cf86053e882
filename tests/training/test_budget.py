"""Plans of a token budget and of epochs; runs with a limit stop nearest to it, and resume after a crash."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.learning import make_groups, make_method, make_trainer, run
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.testing.tiny_models import tiny_llama
from tinyllm_bench.training.batching import Group
from tinyllm_bench.training.budget import Limit, flops_per_token, make_plan
from tinyllm_bench.training.trainer import Trainer, rate

# --- Plans -----------------------------------------------------------------------------------------------------------


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


# --- Runs with a limit -----------------------------------------------------------------------------------------------

LIMIT = 1800


def build(
    folder: Path, *, name: str = "minillm", limit: float = LIMIT, unit: Any = "student_tokens", **config: Any
) -> Trainer:
    model, tokenizer = tiny_llama()
    method = make_method(name, **({"group_size": 2, "inner_epochs": 2} if name == "minillm" else {}))
    groups = make_groups(method, tokenizer)
    plan = make_plan(
        groups,
        batch_records=2,
        seed=0,
        limit=Limit(unit, limit),
        group_size=method.group_size,
        inner_epochs=method.inner_epochs,
    )
    settings = {"evaluations": (0.25, 0.5, 0.75, 1.0), "learning_rate": 1e-3, "checkpoint_seconds": 0.0, **config}
    return make_trainer(model, tokenizer, method, groups, folder, plan=plan, **settings)


@pytest.mark.parametrize("name", ["minillm", "gkd"])
@pytest.mark.slow
def test_a_run_ends_nearest_to_its_budget(name: str, tmp_path: Path) -> None:
    trained, _ = run(build(tmp_path, name=name))
    assert abs(trained.student_tokens - LIMIT) < 120  # half a mini-batch of two short questions
    assert trained.rollout_tokens > 0 and trained.rollout_seconds > 0
    assert [evaluation.fraction for evaluation in trained.evaluations] == [0.25, 0.5, 0.75, 1.0]
    steps = [evaluation.step for evaluation in trained.evaluations]
    assert steps == sorted(set(steps)) and steps[-1] == trained.steps
    assert trained.start is not None and trained.start.step == 0


def test_a_round_that_is_cut_short_counts_what_was_trained(tmp_path: Path) -> None:
    whole = build(tmp_path / "a", limit=10**6)
    assert whole.plan.limit == ("student_tokens", 10**6) and whole.plan.steps == 0
    trained, _ = run(build(tmp_path / "b", limit=700))
    assert trained.steps % 4, "the budget ended inside a round of four steps"
    assert trained.records == 2 * trained.steps


def test_the_rate_falls_with_the_tokens_that_are_spent(tmp_path: Path) -> None:
    trainer = build(tmp_path)
    recorded: list[tuple[int, float]] = []
    step = trainer.optimizer.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        recorded.append((trainer.state.tokens, trainer.optimizer.param_groups[0]["lr"]))
        return step(*args, **kwargs)

    trainer.optimizer.step = spy  # type: ignore[method-assign]
    trainer.run()
    assert all(lr == pytest.approx(1e-3 * rate(tokens, LIMIT, 0.0)) for tokens, lr in recorded)
    assert recorded[0][1] == 1e-3 and recorded[-1][1] < 2e-4


@pytest.mark.slow
def test_a_crash_changes_nothing(tmp_path: Path) -> None:
    trained, after = run(build(tmp_path / "whole"))
    broken = build(tmp_path / "broken")
    inner, calls = broken.optimise, 0

    def fail(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        inner(*args)

    broken.optimise = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again, resumed = run(build(tmp_path / "broken"))
    assert (again.student_tokens, again.steps, again.evaluations, again.start) == (
        trained.student_tokens,
        trained.steps,
        trained.evaluations,
        trained.start,
    )
    assert again.measured == trained.measured
    assert all(torch.equal(after[key], resumed[key]) for key in after)


@pytest.mark.parametrize("name", ["finetune", "kd", "gkd", "minillm"])
@pytest.mark.slow
def test_a_budget_in_flops_counts_what_is_computed(name: str, tmp_path: Path) -> None:
    """Full training costs 6 per parameter and token, a teacher that reads along 2 of its own."""
    trainer = build(tmp_path, name=name, unit="flops", limit=5e8)
    parameters = sum(p.numel() for p in trainer.module.parameters())
    trained, _ = run(trainer)
    theirs = 0 if trainer.teacher is None else 2 * trainer.teacher.parameters
    per_token = flops_per_token(trainer.module, theirs // 2)
    assert per_token.trained == 6 * parameters + theirs
    drawing = trained.flops - trained.computed_tokens * per_token.trained
    # GKD's teacher reads no sampled token; MiniLLM's student reads each again, by the pass that trains
    read = {"gkd": 2 * parameters, "minillm": 4 * parameters + theirs}.get(name)
    assert drawing == 0 if read is None else drawing >= trained.rollout_tokens * read
    assert drawing % (2 * parameters) == 0
    assert trained.flops == pytest.approx(5e8, rel=0.25)
    assert [evaluation.fraction for evaluation in trained.evaluations][-1] == 1.0


def test_frozen_parameters_cost_less() -> None:
    model, _ = tiny_llama()
    every = sum(p.numel() for p in model.parameters())
    model.requires_grad_(False)
    assert flops_per_token(LM(model), 0).trained == 4 * every


@pytest.mark.slow
def test_a_budget_in_seconds_ends_in_time(tmp_path: Path) -> None:
    trained, _ = run(build(tmp_path, name="finetune", unit="seconds", limit=1.5, checkpoint_seconds=100))
    assert 1.0 < trained.seconds < 4.0 and trained.steps > 3


def test_rounds_without_end_are_those_of_a_plan_with_one() -> None:
    _, tokenizer = tiny_llama()
    groups = make_groups(make_method("finetune"), tokenizer)
    fixed = make_plan(groups, batch_records=3, seed=1, epochs=3, group_size=2)
    endless = make_plan(groups, batch_records=3, seed=1, limit=Limit("seconds", 1.0), group_size=2)
    assert list(endless.rounds[:3]) == list(fixed.rounds[:3]) and endless.expected_steps(5, 0.5) == 10
