"""Runs whose texts are sampled: they stop at their token budget, look at shares of it, and go on after a crash."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.learning import make_groups, make_method, make_trainer, run
from tinyllm_bench.base.events import Evaluation
from tinyllm_bench.models.lm import LM
from tinyllm_bench.testing.tiny_models import tiny_llama
from tinyllm_bench.training.budget import Limit, flops_per_token, make_plan
from tinyllm_bench.training.checkpoint import State
from tinyllm_bench.training.result import checkpoint_score
from tinyllm_bench.training.trainer import Trainer, rate

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
    assert [one.fraction for one in trained.evaluations] == [0.25, 0.5, 0.75, 1.0]
    steps = [one.step for one in trained.evaluations]
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
    seen: list[tuple[int, float]] = []
    step = trainer.optimizer.step

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append((trainer.state.tokens, trainer.optimizer.param_groups[0]["lr"]))
        return step(*args, **kwargs)

    trainer.optimizer.step = spy  # type: ignore[method-assign]
    trainer.run()
    assert all(lr == pytest.approx(1e-3 * rate(tokens, LIMIT, 0.0)) for tokens, lr in seen)
    assert seen[0][1] == 1e-3 and seen[-1][1] < 2e-4


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


def test_selection_by_loss_takes_the_lowest_and_then_the_earlier() -> None:
    scores = [(0.9, 0.9, 8, 3.0), (0.1, 0.1, 8, 2.0), (0.5, 0.5, 8, 2.0)]
    evaluations = [Evaluation(n, n / 4, *score) for n, score in enumerate(scores, start=1)]
    assert max(evaluations, key=lambda one: checkpoint_score(one, "loss")).step == 2
    assert max(evaluations, key=lambda one: checkpoint_score(one, "best")).step == 1


def test_a_state_survives_json() -> None:
    evaluation = Evaluation(1, 0.5, 0.5, None, 8, 1.5, {"length": 3.0})
    state = State(evaluations=[evaluation], losses=[1.0], start=evaluation, sums={"x": (1.0, 2.0)})
    import json

    assert State.from_json(json.loads(json.dumps(state.to_json()))) == state


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
    assert [one.fraction for one in trained.evaluations][-1] == 1.0


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
