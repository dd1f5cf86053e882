"""MiniLLM's two parts as the method puts them together, its switches, and what they make of a gradient."""

from typing import Any

import pytest
import torch

from tests.learning import make_groups, make_method, make_signal
from tinyllm_bench.base.plugins import load_method
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.testing.tiny_models import tiny_llama
from tinyllm_bench.training.batching import Batch, Group, collator_of
from tinyllm_bench.training.budget import make_plan
from tinyllm_bench.training.method import Step
from tinyllm_bench.training.policy_gradient import returns_NT, rewards_NT
from tinyllm_bench.training.teacher_signals import InMemoryTeacher


class SampledBatch:
    """A student, a teacher and a batch of sampled texts, all in float64."""

    def __init__(self, **settings: Any) -> None:
        model, tokenizer = tiny_llama()
        self.method = make_method("minillm", **settings)
        self.student = LM(model.double().eval())
        signal = make_signal(self.method, model)
        assert signal is not None
        self.teacher: InMemoryTeacher = signal
        self.notes: dict[str, tuple[float, float]] = {}
        self.step = Step(
            index=0,
            total=1,
            tokens={"label": 1},
            all_reduce=lambda tensor: tensor,
            seed_of=lambda record_id: len(record_id) * 7919 + ord(record_id[-1]),
            note=lambda name, total, count: self.notes.update({name: (total, count)}),
        )
        self.groups = self.method.rollout(make_groups(self.method, tokenizer, count=3), self.student, signal, self.step)
        self.collator = collator_of(model, tokenizer)

    @property
    def batch(self) -> Batch:
        items = [item for group in self.groups for item in group.items]
        return self.collator.collate(self.collator.rows(items))

    def log_probs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """log q and log p, (N, V)."""
        q, p = (
            lm.logits(lm.target_hidden_states(self.batch)).log_softmax(-1) for lm in (self.student, self.teacher.lm)
        )
        return q, p.detach()

    def gradient(self, loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, self.student.hf_model.lm_head.weight)[0]

    def loss(self) -> torch.Tensor:
        (term,) = self.method.loss(self.batch, self.student, self.teacher, self.step)
        assert (term.channel, term.weight) == ("label", 1.0)
        return term.sum


def rows_of(batch: Batch, values_N: torch.Tensor) -> list[torch.Tensor]:
    return [values_N[batch.item_N == n] for n in range(len(batch.items))]


def test_single_is_the_exact_reverse_kl_and_long_uses_the_mean_of_later_rewards() -> None:
    """At the first update q is what drew the texts, so that rho = q / p~ and no clip acts where alpha is 0."""
    case = SampledBatch(teacher_mix=0.0)
    batch, (logq_NV, logp_NV) = case.batch, case.log_probs()
    ids = batch.target_ids_N[:, None]
    logq_N, logp_N = logq_NV.gather(1, ids)[:, 0], logp_NV.gather(1, ids)[:, 0]
    single = (logq_NV.exp() * (logq_NV - logp_NV)).sum()
    long = torch.zeros((), dtype=torch.float64)
    for q_T, p_T in zip(rows_of(batch, logq_N), rows_of(batch, logp_N), strict=True):
        rewards = (p_T - q_T).detach()
        for t in range(len(q_T) - 1):  # equation 6 as a true mean over the tokens after t
            long = long - rewards[t + 1 :].mean() * (q_T[t] - q_T[t].detach()).exp()
    actual = case.loss()
    torch.testing.assert_close(actual, single + long, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(case.gradient(case.loss()), case.gradient(single + long), rtol=1e-4, atol=1e-5)


def test_on_policy_distillation_is_a_setting() -> None:
    """-(log p - log q) of the sampled token times the gradient of log q: nothing of other tokens, nothing to come."""
    case = SampledBatch(
        single_step_weight=0, teacher_mix=0, gamma=0, include_current=True, length_normalize=False, epsilon=None
    )
    batch, (logq_NV, logp_NV) = case.batch, case.log_probs()
    ids = batch.target_ids_N[:, None]
    logq_N, logp_N = logq_NV.gather(1, ids)[:, 0], logp_NV.gather(1, ids)[:, 0]
    expected = -((logp_N - logq_N).detach() * logq_N).sum()
    torch.testing.assert_close(case.gradient(case.loss()), case.gradient(expected), rtol=1e-4, atol=1e-5)


def test_the_paper_s_form_weights_single_by_the_importance_weight() -> None:
    plain, weighed = SampledBatch(), SampledBatch(single_step_importance_weights=True)
    batch, (logq_NV, logp_NV) = plain.batch, plain.log_probs()
    kl_N = (logq_NV.exp() * (logq_NV - logp_NV)).sum(-1)
    ids = batch.target_ids_N[:, None]
    q, p = (x.gather(1, ids)[:, 0].exp() for x in (logq_NV, logp_NV))
    weight_N = (q / (0.2 * p + 0.8 * q)).detach()
    assert float(weight_N.max()) <= 1.25 + 1e-9
    torch.testing.assert_close(weighed.loss() - plain.loss(), ((weight_N - 1) * kl_N).sum(), rtol=1e-4, atol=1e-4)


def test_parity_takes_the_released_code_s_values_and_keeps_explicit_settings() -> None:
    kind = load_method("minillm")
    released = kind.Config(parity="released_code")
    assert (released.gamma, released.include_current, released.discount_length) == (0.95, True, False)
    assert (released.whiten, released.reward_limit, released.kd_ratio) == (True, 50.0, 0.5)
    assert kind.Config(parity="released_code", gamma=1.0).gamma == 1.0
    paper = kind.Config()
    assert (paper.gamma, paper.include_current, paper.whiten, paper.reward_limit) == (1.0, False, False, None)
    assert kind.Config(**released.model_dump()) == released


def test_the_released_code_s_advantages() -> None:
    """R_t = r_t + 0.95 R_(t+1), divided by the tokens from t on, then whitened over the texts' tokens."""
    case = SampledBatch(parity="released_code")
    rows = []
    for group in case.groups:
        rollout = group.items[0].rollout
        r = [p - q for p, q in zip(rollout["logp"], rollout["logq"], strict=True)]
        back = 0.0
        results = []
        for t in reversed(range(len(r))):
            back = r[t] + 0.95 * back
            results.append(back / (len(r) - t))
        rows.append(torch.tensor(results[::-1], dtype=torch.float64))
    raw = torch.cat(rows)
    expected = (raw - raw.mean()) / (raw.var(unbiased=False) + 1e-8).sqrt()
    recorded = torch.tensor([a for g in case.groups for a in g.items[0].rollout["advantage"]], dtype=torch.float64)
    torch.testing.assert_close(recorded, expected, rtol=1e-6, atol=1e-6)


def test_the_released_code_s_cut_is_of_log_ratios_already_divided() -> None:
    """Its sampler.py: `rewards / reward_scaling` (0.5), then `clip(-100, 100)`; whitening loses the scale alone."""
    config = load_method("minillm").Config(parity="released_code")
    logp_NT = torch.tensor([[-80.0, -1.0, -60.0], [-0.5, -55.0, -2.0]], dtype=torch.float64)
    logq_NT, mask_NT = -torch.ones_like(logp_NT), torch.ones_like(logp_NT)
    theirs_NT = ((logp_NT - logq_NT) / 0.5).clip(-100, 100)
    ours_NT = rewards_NT(logp_NT, logq_NT, mask_NT, limit=config.reward_limit)
    torch.testing.assert_close(2 * ours_NT, theirs_NT)
    assert ours_NT.min() == -50


def test_advantages_are_means_of_later_rewards_and_the_last_is_zero() -> None:
    for group in SampledBatch().groups:
        rollout = group.items[0].rollout
        rewards = torch.tensor(
            [[p - q for p, q in zip(rollout["logp"], rollout["logq"], strict=True)]], dtype=torch.float64
        )
        expected = returns_NT(rewards, torch.ones_like(rewards))[0].tolist()
        assert rollout["advantage"] == pytest.approx(expected) and rollout["advantage"][-1] == 0.0


def test_a_round_without_a_question_takes_part_in_sums() -> None:
    """A process may have no question to draw for; the others still wait for its share of the sums."""
    case, calls = SampledBatch(parity="released_code"), []
    step = Step(index=0, total=1, tokens={}, all_reduce=lambda t: calls.append(t) or t, seed_of=hash)  # type: ignore[func-returns-value]
    assert case.method.rollout([], case.student, case.teacher, step) == [] and len(calls) == 2


def test_plain_text_is_trained_beside_sampled_texts() -> None:
    case = SampledBatch(lm_coef=0.5)
    plain = Encoded(case.groups[0].record_id, "plain", (3,), (9, 8, 7, 6), False)
    case.groups[0] = Group(case.groups[0].record_id, (*case.groups[0].items, plain))
    terms = {t.channel: t for t in case.method.loss(case.batch, case.student, case.teacher, case.step)}
    batch, (logq_NV, logp_NV) = case.batch, case.log_probs()
    here = batch.channel_N == batch.channels.index("plain")
    ce = -logq_NV.gather(1, batch.target_ids_N[:, None])[:, 0][here].sum()
    assert terms["plain"].weight == 0.5
    torch.testing.assert_close(terms["plain"].sum, ce, rtol=1e-6, atol=1e-6)
    both = make_method("minillm", kd_ratio=0.5)
    mixed = {t.channel: t for t in both.loss(batch, case.student, case.teacher, case.step)}
    kl = (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)[here].sum()
    torch.testing.assert_close(mixed["plain"].sum, 0.5 * ce + 0.5 * kl, rtol=1e-6, atol=1e-6)


def test_the_paper_s_round_has_sixteen_steps() -> None:
    """256 rollouts in mini-batches of 64, four passes (appendix B)."""
    kind = load_method("minillm")
    paper = kind(kind.Config())
    groups = [Group(f"r{n}", (Encoded(f"r{n}", "label", (1, 2), (3,), False),)) for n in range(256)]
    plan = make_plan(
        groups, batch_records=64, seed=0, epochs=1, group_size=paper.group_size, inner_epochs=paper.inner_epochs
    )
    assert len(plan.rounds) == 1 and len(list(plan.steps_of(0))) == 16


def test_rollouts_note_their_length_and_reverse_kl() -> None:
    case = SampledBatch()
    tokens, texts = case.notes["rollout_length"]
    assert texts == 3 and tokens == sum(len(group.items[0].target) for group in case.groups)
    assert case.notes["rollout_reverse_kl"][1] == tokens
