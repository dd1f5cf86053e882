"""The trainer: selection, division, resume, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.learning import gradients, make_groups, make_method, make_trainer, run
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Evaluation, TrainingStep, from_json
from tinyllm_bench.base.files import read_checked
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.testing.tiny_models import tiny_llama as make_llama
from tinyllm_bench.testing.tiny_models import tiny_t5 as make_t5
from tinyllm_bench.training.batching import Group
from tinyllm_bench.training.budget import Plan, make_plan
from tinyllm_bench.training.checkpoint import State, load_checkpoint, preserved_random_state, save_checkpoint
from tinyllm_bench.training.result import ValidationScore, checkpoint_score
from tinyllm_bench.training.settings import TrainConfig
from tinyllm_bench.training.trainer import Trainer, parameter_groups, rate


class Scripted:
    """Validation that answers from a list and counts its calls."""

    def __init__(self, *scores: tuple[float, float]) -> None:
        self.scores, self.seen = list(scores), 0

    def __call__(self, lm: LM) -> ValidationScore:
        torch.manual_seed(123)  # what lm-eval may do; training must not notice
        self.seen += 1
        return ValidationScore(*self.scores[self.seen - 1], 8)


def build(folder: Path, validate: Any, *, name: str = "tinyllm", **config: Any) -> Trainer:
    model, tokenizer = make_llama()
    groups = make_groups(make_method(name), tokenizer)
    plan: Plan = make_plan(groups, batch_records=2, seed=0, epochs=2)
    settings = {"evaluations": (0.25, 0.5, 0.75, 1.0), "learning_rate": 1e-3, "checkpoint_seconds": 0.0, **config}
    return make_trainer(model, tokenizer, make_method(name), groups, folder, plan=plan, validate=validate, **settings)


def test_the_best_evaluation_is_selected_ties_go_to_gold_probability_then_to_the_earlier(tmp_path: Path) -> None:
    scores = [(0.5, 0.2), (0.6, 0.3), (0.6, 0.4), (0.6, 0.4)]
    trained, after = run(build(tmp_path / "best", Scripted(*scores)))
    assert [evaluation.step for evaluation in trained.evaluations] == [2, 4, 6, 8]
    assert trained.selected_step == 6
    stopped = build(tmp_path / "stopped", Scripted(*scores))
    stopped.plan = Plan(rounds=stopped.plan.rounds, inner_epochs=1, seed=0, tokens=0, epochs=2)
    weights: dict[str, torch.Tensor] = {}
    inner = stopped._evaluate_if_due

    def spy(done: int) -> None:
        inner(done)
        if done == 6:
            weights.update({key: p.detach().clone() for key, p in stopped.module.named_parameters()})

    stopped._evaluate_if_due = spy  # type: ignore[method-assign]
    stopped.run()
    assert all(torch.equal(after[key], weights[key]) for key in weights)


def test_select_last_keeps_the_end(tmp_path: Path) -> None:
    trained, _ = run(build(tmp_path, Scripted((0.9, 0.9), *[(0.1, 0.1)] * 3), select="last"))
    assert trained.selected_step == trained.steps == 8


@pytest.mark.slow
def test_evaluations_do_not_change_training(tmp_path: Path) -> None:
    evaluated = run(build(tmp_path / "a", Scripted(*[(0.1, 0.1)] * 4), select="last"))
    blind = run(build(tmp_path / "b", Scripted(), select="last", evaluations=()))
    assert all(torch.equal(evaluated[1][key], blind[1][key]) for key in blind[1])


class Crash(Exception):
    pass


@pytest.mark.parametrize(("at", "decay"), [(1, 0.0), (4, 0.1), (7, 0.0)])
@pytest.mark.slow
def test_a_crashed_training_resumes_and_ends_with_the_same_bytes(tmp_path: Path, at: int, decay: float) -> None:
    scores = [(0.5, 0.2), (0.6, 0.3), (0.7, 0.4), (0.6, 0.4)]
    whole, expected = run(build(tmp_path / "whole", Scripted(*scores), weight_decay=decay))
    broken = build(tmp_path / "broken", Scripted(*scores), weight_decay=decay)
    optimise = broken.optimise

    def crash(groups: Any, index: int) -> None:
        if index == at:
            raise Crash
        optimise(groups, index)

    broken.optimise = crash  # type: ignore[method-assign]
    with pytest.raises(Crash):
        broken.run()
    done = sum(step <= at for step in (2, 4, 6, 8))
    again, actual = run(build(tmp_path / "broken", Scripted(*scores[done:]), weight_decay=decay))
    assert all(torch.equal(actual[key], expected[key]) for key in expected)
    assert (again.student_tokens, again.evaluations, again.last_loss) == (
        whole.student_tokens,
        whole.evaluations,
        whole.last_loss,
    )
    logs = [list(read_checked(tmp_path / name / "metrics.jsonl")) for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_channel_means_are_over_the_whole_mini_batch(tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    """The first loss is the sum over channels of (sum of token losses / tokens), as one pass by hand gives it."""
    from tinyllm_bench.training.batching import Collator, count_targets
    from tinyllm_bench.training.losses import channel_cross_entropy

    model, tokenizer = tiny_llama
    groups = make_groups(make_method("tinyllm"), tokenizer)
    items = [item for group in groups for item in group.items]
    collator = Collator(encoder_decoder=False, pad_id=tokenizer.pad_token_id)
    batch = collator.collate(collator.rows(items))
    counts = count_targets(groups)
    with torch.no_grad():
        expected = sum(float(s) / counts[c] for c, s in channel_cross_entropy(batch, LM(model)).items())
    trained = make_trainer(model, tokenizer, make_method("tinyllm"), groups, tmp_path, micro_batch_tokens=200).run()
    assert trained.first_loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("average", ["sequence", "token"])
@pytest.mark.parametrize("name", ["gkd", "kd"])
def test_a_loss_is_a_mean_over_texts_or_over_tokens(name: str, average: str, tmp_path: Path) -> None:
    """One text of 64 tokens beside three of 4: a third or more of all tokens, and a quarter of the texts.

    GKD's paper (arXiv:2306.13649, equation 2) takes each text's mean first; the reference here is in float64, text by
    text, and the trainer has it in several micro-batches.
    """
    model, tokenizer = make_llama()
    model = model.double()
    settings: dict[str, Any] = {"lmbda": 0.0} if name == "gkd" else {"alpha": 1.0}
    method = make_method(name, average=average, divergence={"kind": "jsd"}, **settings)
    texts = [tuple(range(20, 84)), (5, 6, 7, 8), (9, 8, 7, 6), (11, 12, 13, 14)]
    groups = [Group(f"r{n}", (Encoded(f"r{n}", "label", (3, 4, n), text, False),)) for n, text in enumerate(texts)]
    trainer = make_trainer(model, tokenizer, method, groups, tmp_path, micro_batch_tokens=12)
    lm, signal, means, tokens = LM(model), trainer.teacher, [], 0
    for group in groups:
        batch = trainer.collator.collate(trainer.collator.rows(group.items))
        q, p = (model.logits(model.target_hidden_states(batch)).log_softmax(-1) for model in (lm, signal.lm))
        m = (0.5 * (q.exp() + p.detach().exp())).log()
        value = 0.5 * (p.detach().exp() * (p.detach() - m)).sum(-1) + 0.5 * (q.exp() * (q - m)).sum(-1)
        means.append(value.mean() if average == "sequence" else value.sum())
        tokens += len(value)
    expected = torch.stack(means).sum() / (len(texts) if average == "sequence" else tokens)
    grads = torch.autograd.grad(expected, list(model.parameters()))
    actual = gradients(trainer)
    assert trainer.state.losses[0] == pytest.approx(float(expected.detach()), rel=1e-6)
    for (key, _), grad in zip(trainer.module.named_parameters(), grads, strict=True):
        torch.testing.assert_close(actual[key], grad, rtol=0, atol=1e-6 * float(grad.abs().max()))


def test_gkd_averages_per_sequence_and_kd_per_token_by_default() -> None:
    assert make_method("gkd").config.average == "sequence"
    assert make_method("kd").config.average == "token"


@pytest.mark.parametrize(
    ("name", "settings", "channels"),
    [
        ("tinyllm", {"alpha": 0.0}, {"label"}),
        ("tinyllm", {"alpha": {"terse": 0.0}}, {"label", "rationale:stepwise"}),
        ("tinyllm", {"gamma": 0.0}, {"rationale:terse", "rationale:stepwise"}),
        ("dss", {"rationale_weight": 0.0}, {"label"}),
        ("dss", {"label_weight": 0.0}, {"rationale:terse"}),
        ("mixed_distillation", {"pot_weight": 0.0, "policy": "single_cot"}, {"cot"}),
        ("mixed_distillation", {"cot_weight": 0.0, "policy": "single_pot"}, {"pot"}),
    ],
)
def test_a_channel_with_weight_0_is_not_trained(
    name: str, settings: dict[str, Any], channels: set[str], tmp_path: Path
) -> None:
    model, tokenizer = make_llama()
    method = make_method(name, **settings)
    groups = make_groups(method, tokenizer)
    trainer = make_trainer(model, tokenizer, method, groups, tmp_path)
    trained = trainer.run()
    assert trained.tokens_by_channel.keys() == channels
    assert trained.student_tokens == sum(item.tokens for group in groups for item in group.items)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tinyllm", {"alpha": 0.0, "gamma": 0.0}),
        ("dss", {"label_weight": 0.0, "rationale_weight": 0.0}),
        ("mixed_distillation", {"cot_weight": 0.0, "pot_weight": 0.0}),
    ],
)
def test_nothing_to_learn_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="both 0: there is nothing"):
        make_method(name, **settings)


def test_a_teacher_that_no_loss_uses_is_not_run_and_not_charged(tmp_path: Path) -> None:
    """On-policy distillation (Single left out) runs the teacher only while texts are sampled."""
    flops = []
    for number, single in enumerate((0.0, 1.0)):
        model, tokenizer = make_llama()
        method = make_method("minillm", single_step_weight=single)
        groups = make_groups(method, tokenizer)
        trainer = make_trainer(model, tokenizer, method, groups, tmp_path / str(number))
        read: list[Any] = []
        on = trainer.teacher.on
        trainer.teacher.on = lambda batch, read=read, on=on: read.append(batch) or on(batch)
        trained = trainer.run()
        assert bool(read) == bool(single)
        flops.append((trained.flops, trained.computed_tokens))
    assert flops[1][0] - flops[0][0] == 2 * trainer.teacher.parameters * flops[0][1]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("make", [make_llama, make_t5])
def test_weight_decay_leaves_norms_and_biases_alone(make: Any, lora: bool, tmp_path: Path) -> None:
    """One step with decay and one without: matrices differ by the decay, and nothing else does."""
    results = []
    for decay in (0.0, 0.5):
        model, tokenizer = make()
        torch.manual_seed(0)
        settings = LoraConfig(r=2, target_modules="all-linear", bias="all", init_lora_weights=False)
        student = get_peft_model(model, settings) if lora else model
        groups = make_groups(make_method("finetune"), tokenizer, encoder_decoder=bool(model.config.is_encoder_decoder))
        trainer = make_trainer(
            student, tokenizer, make_method("finetune"), groups, tmp_path / str(decay), weight_decay=decay,
            learning_rate=1e-2,
        )  # fmt: skip
        before = {key: p.detach().clone() for key, p in trainer.module.named_parameters() if p.requires_grad}
        results.append(run(trainer)[1])
    for key, start in before.items():
        is_matrix = start.ndim > 1 and "relative_attention_bias" not in key
        gap = results[0][key] - results[1][key]
        torch.testing.assert_close(gap, 0.005 * start if is_matrix else torch.zeros_like(start), rtol=1e-3, atol=1e-6)
    assert any(start.ndim > 1 for start in before.values())


def test_a_checkpoint_of_other_parameter_groups_is_not_gone_on_from(tmp_path: Path) -> None:
    """As an earlier version saved them: all parameters in one group."""
    model, _ = make_llama()
    ungrouped = torch.optim.AdamW(model.parameters())
    save_checkpoint(tmp_path, step=3, module=model, optimizer=ungrouped, state=State())
    assert load_checkpoint(tmp_path, module=model, optimizer=ungrouped) == (3, State())
    two = torch.optim.AdamW(parameter_groups(model, 0.1))
    assert load_checkpoint(tmp_path, module=model, optimizer=two) is None


def test_a_loss_that_is_not_finite_stops_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.learning_rate"):
        build(tmp_path, Scripted(*[(0.0, 0.0)] * 4), learning_rate=1e30).run()


def test_random_state_is_preserved() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    with preserved_random_state():
        torch.manual_seed(2)
    assert torch.equal(torch.rand(1), expected)


def test_a_warm_up_in_steps_a_schedule_and_betas_are_the_optimizer_s(tmp_path: Path) -> None:
    model, tokenizer = make_llama()
    method = make_method("finetune")
    groups = make_groups(method, tokenizer)
    settings = {"scheduler": "constant", "warmup_steps": 3, "betas": (0.9, 0.95), "weight_decay": 1e-6}
    plan = make_plan(groups, batch_records=2, seed=0, student_tokens=sum(group.tokens for group in groups) * 2)
    trainer = make_trainer(
        model, tokenizer, method, groups, tmp_path, plan=plan, learning_rate=1e-3, batch_records=2, **settings
    )
    assert trainer.optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    trainer.run()
    events = [from_json(row, tmp_path) for row in read_checked(tmp_path / "metrics.jsonl")]
    rates = [event.learning_rate for event in events if isinstance(event, TrainingStep)]
    assert len(rates) > 4 and rates == pytest.approx([2.5e-4, 5e-4, 7.5e-4, *[1e-3] * (len(rates) - 3)])


def test_two_warm_ups_are_refused() -> None:
    with pytest.raises(ValueError, match="set warmup=0 or warmup_steps=null"):
        TrainConfig(warmup=0.1, warmup_steps=5)


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
        actual = rate(step, 100, warmup / 100, scheduler)
        off = 0.05 if step < warmup else 1e-9  # a warm-up of theirs begins at 0
        assert actual == pytest.approx(theirs.get_last_lr()[0], abs=off) and actual > 0
        optimizer.step()
        theirs.step()


def test_selection_by_loss_takes_the_lowest_and_then_the_earlier() -> None:
    scores = [(0.9, 0.9, 8, 3.0), (0.1, 0.1, 8, 2.0), (0.5, 0.5, 8, 2.0)]
    evaluations = [Evaluation(n, n / 4, *score) for n, score in enumerate(scores, start=1)]
    assert max(evaluations, key=lambda evaluation: checkpoint_score(evaluation, "loss")).step == 2
    assert max(evaluations, key=lambda evaluation: checkpoint_score(evaluation, "best")).step == 1
