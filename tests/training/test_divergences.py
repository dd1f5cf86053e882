"""Divergences: the form by hand against autograd and finite differences, limits, caches, padding and chunks."""

import itertools
import math
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.learning import make_groups, make_method
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.training import divergences
from tinyllm_bench.training.batching import Collator
from tinyllm_bench.training.divergences import (
    NEEDS_EVERY_TOKEN,
    Dense,
    DivergenceConfig,
    Kind,
    TopK,
    autograd_divergence_N,
    divergence_N,
    divergence_of,
)
from tinyllm_bench.training.losses import channel_cross_entropy, channel_sums, cross_entropy_N

KINDS = get_args(Kind)
BUCKETED = [kind for kind in KINDS if kind not in NEEDS_EVERY_TOKEN]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 2.0, "temperature_squared": True},
    {"beta": 0.1, "normalize": True},
]


def logits(count: int = 6, size: int = 11, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.randn(count, size) * 1.5).to(dtype)


def config(kind: str, **settings: Any) -> DivergenceConfig:
    return DivergenceConfig.model_validate({"kind": kind, **settings})


def teacher(count: int = 6, size: int = 11) -> Dense:
    return Dense(logits(count, size).log_softmax(-1))


def top_k(dense: Dense, k: int) -> TopK:
    logp_NK, ids_NK = dense.logp_NV.topk(k)
    others_NV = dense.logp_NV.scatter(-1, ids_NK, -math.inf)
    return TopK(ids_NK.int(), logp_NK, others_NV.logsumexp(-1))


def with_gradient(function: Any, z_NV: Tensor, *args: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """Values, and the gradient of a sum in which every position has another weight."""
    z_NV = z_NV.clone().requires_grad_()
    values_N = function(z_NV, *args, **named)
    weights_N = torch.linspace(0.5, 2, len(values_N), dtype=values_N.dtype)
    return values_N.detach(), torch.autograd.grad((weights_N * values_N).sum(), z_NV)[0]


@pytest.mark.parametrize(("kind", "settings"), itertools.product(KINDS, SETTINGS))
def test_by_hand_equals_autograd(kind: str, settings: dict[str, Any]) -> None:
    z_NV, p = logits(), teacher()
    z_NV[0, 3] = p.logp_NV[0, 3] = -math.inf
    for vocabulary in (11, 9):
        arguments = (z_NV, p, config(kind, **settings))
        got, expected = (
            with_gradient(form, *arguments, vocabulary=vocabulary) for form in (divergence_N, autograd_divergence_N)
        )
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        assert got[1].isfinite().all() and not got[1][:, vocabulary:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_float32_and_bfloat16_are_worked_out_in_float32(kind: str) -> None:
    z_NV, p = logits(dtype=torch.float32), teacher()
    exact = with_gradient(divergence_N, z_NV.double(), p, config(kind))
    single = with_gradient(divergence_N, z_NV, p, config(kind))
    half = with_gradient(divergence_N, z_NV.bfloat16(), p, config(kind))
    rounded = with_gradient(divergence_N, z_NV.bfloat16().double(), p, config(kind))
    torch.testing.assert_close(single, exact, rtol=1e-5, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(half[0], rounded[0], rtol=1e-5, atol=1e-5, check_dtype=False)
    torch.testing.assert_close(half[1], rounded[1], rtol=1e-2, atol=1e-4, check_dtype=False)
    assert (single[0].dtype, half[0].dtype, half[1].dtype) == (torch.float32, torch.float32, torch.bfloat16)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "adaptive_kl"])  # its weights carry no gradient
def test_gradient_by_finite_differences(kind: str) -> None:
    p, tau = teacher(3, 5), {"temperature": 1.7, "temperature_squared": True}
    z_NV = logits(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: divergence_N(z, p, config(kind, **tau)), z_NV)
    if kind in BUCKETED:
        assert torch.autograd.gradcheck(lambda z: divergence_N(z, top_k(p, 2), config(kind)), z_NV)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_have_no_divergence_and_no_gradient(kind: str) -> None:
    z_NV = logits()
    values, gradient = with_gradient(divergence_N, z_NV, Dense((z_NV + 3).log_softmax(-1)), config(kind))
    assert values.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_never_negative(kind: str) -> None:
    assert (divergence_N(logits(), teacher(), config(kind)) > 0).all()


def test_skew_falls_to_the_plain_divergences() -> None:
    z_NV, p = logits(), teacher()
    for skewed, plain in (("skew_forward_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")):
        expected = with_gradient(divergence_N, z_NV, p, config(plain))
        torch.testing.assert_close(with_gradient(divergence_N, z_NV, p, config(skewed, skew=0)), expected)
        near = with_gradient(divergence_N, z_NV, p, config(skewed, skew=1e-8))
        torch.testing.assert_close(near, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("end", "plain"), [(0.0, "forward_kl"), (1.0, "reverse_kl")])
def test_limits_of_the_jsd(end: float, plain: str) -> None:
    z_NV, p = logits(), teacher()
    expected = with_gradient(divergence_N, z_NV, p, config(plain))
    at_end = with_gradient(divergence_N, z_NV, p, config("jsd", beta=end, normalize=True))
    torch.testing.assert_close(at_end, expected)
    close = abs(end - 1e-6)
    near = with_gradient(divergence_N, z_NV, p, config("jsd", beta=close, normalize=True))
    torch.testing.assert_close(near, expected, rtol=1e-4, atol=1e-4)
    trapped = divergence_N(z_NV, p, config("jsd", beta=abs(end - 1e-3)))
    torch.testing.assert_close(trapped, expected[0] * 1e-3, rtol=2e-2, atol=0)  # the scale trap
    with pytest.raises(ValidationError, match=f"0 everywhere; set normalize=true or kind={plain}"):
        config("jsd", beta=end)


def test_even_jsd_is_symmetric_and_bounded() -> None:
    z_NV, p = logits() * 4, teacher()
    there = divergence_N(z_NV, p, config("jsd"))
    back = divergence_N(p.logp_NV, Dense(z_NV.log_softmax(-1)), config("jsd"))
    torch.testing.assert_close(there, back)
    assert (there < math.log(2)).all()


def test_adaptive_weights_by_hand() -> None:
    """Head {0.5}: 0.5 + 0.3 crosses the border, so the second token is tail. Gaps 0.3 | 0.1, 0.2."""
    p, q = torch.tensor([[[0.5, 0.3, 0.2]], [[0.2, 0.4, 0.4]]], dtype=torch.float64)
    forward, reverse = ((a * (a / b).log()).sum() for a, b in ((p, q), (q, p)))
    got = divergence_N(q.log(), Dense(p.log()), config("adaptive_kl", mu=0.6))
    assert got.item() == pytest.approx((0.5 * forward + 0.5 * reverse).item(), abs=1e-12)
    sharp = divergence_N(q.log(), Dense(p.log()), config("adaptive_kl", mu=0.1))  # the first token is always head
    assert sharp.item() == pytest.approx(got.item(), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_of_all_tokens_equals_dense(kind: str) -> None:
    z_NV, p = logits(), teacher()
    settings = {"temperature": 2.0}
    expected = with_gradient(divergence_N, z_NV, p, config(kind, **settings))
    whole = with_gradient(divergence_N, z_NV, top_k(p, 11), config(kind, **settings))
    torch.testing.assert_close(whole, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "k"), itertools.product(BUCKETED, [1, 3, 10]))
def test_top_k_bounds_the_dense_value_from_below(kind: str, k: int) -> None:
    z_NV, p = logits(), teacher()
    arguments = (z_NV, top_k(p, k), config(kind))
    got, expected = with_gradient(divergence_N, *arguments), with_gradient(autograd_divergence_N, *arguments)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    dense = divergence_N(z_NV, p, config(kind))
    assert (got[0] <= dense + 1e-12).all() and (k < 10 or torch.allclose(got[0], dense, atol=1e-12))


def test_top_k_where_the_student_has_no_other_token() -> None:
    z_NV, p = logits(), teacher()
    cache = top_k(p, 4)
    others_NV = torch.ones_like(z_NV, dtype=torch.bool).scatter(-1, cache.ids_NK.long(), False)
    z_NV = z_NV.masked_fill(others_NV, -math.inf)
    for kind in ("jsd", "total_variation"):
        value, gradient = with_gradient(divergence_N, z_NV, cache, config(kind))
        assert value.isfinite().all() and gradient.isfinite().all()
        torch.testing.assert_close((value, gradient), with_gradient(autograd_divergence_N, z_NV, cache, config(kind)))


def test_divergences_that_need_every_token_refuse_a_top_k_teacher() -> None:
    z_NV, cache = logits(), top_k(teacher(), 4)
    for kind in NEEDS_EVERY_TOKEN:
        with pytest.raises(UserError, match=f"{kind} needs the teacher's probability of every token.*only 4 of 11"):
            divergence_N(z_NV, cache, config(kind))
    with pytest.raises(UserError, match="reverse_kl needs"):
        divergence_N(z_NV, cache, config("jsd", beta=1.0, normalize=True))
    with pytest.raises(UserError, match="temperature 2 cannot be applied to 4 of 11 tokens"):
        divergence_N(z_NV, cache, config("forward_kl", temperature=2.0))
    with pytest.raises(UserError, match="include id .* the vocabulary ends at 4"):
        divergence_N(z_NV, TopK(cache.ids_NK + 5, cache.logp_NK, cache.tail_N), config("jsd"), vocabulary=5)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_vocabulary_rows_change_nothing(kind: str) -> None:
    z_NV, raw_NV = logits(), logits()
    expected = with_gradient(divergence_N, z_NV, Dense(raw_NV.log_softmax(-1)), config(kind))
    wide_z_NV = torch.cat([z_NV, torch.full((6, 2), 7.0).double()], -1)
    wide_p = Dense(torch.cat([raw_NV, torch.zeros(6, 5).double()], -1).log_softmax(-1))
    value, gradient = with_gradient(divergence_N, wide_z_NV, wide_p, config(kind), vocabulary=11)
    torch.testing.assert_close((value, gradient[:, :11]), expected, rtol=1e-9, atol=1e-9)
    assert not gradient[:, 11:].any()


def test_vocabularies_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="the student has 11 logits and the teacher 13.*give its size as vocabulary"):
        divergence_N(logits(), teacher(6, 13), config("jsd"))
    with pytest.raises(UserError, match="vocabulary 12: it must be 1 to 11"):
        divergence_N(logits(), teacher(6, 13), config("jsd"), vocabulary=12)


def test_infinite_divergences_say_so() -> None:
    z_NV, p = logits(), teacher()
    z_NV[0, 1] = p.logp_NV[1, 1] = -math.inf
    assert divergence_N(z_NV, p, config("forward_kl")).isinf().tolist() == [True] + [False] * 5
    assert divergence_N(z_NV, p, config("reverse_kl")).isinf().tolist() == [False, True] + [False] * 4
    for kind in ("jsd", "total_variation", "skew_forward_kl", "skew_reverse_kl"):
        value, gradient = with_gradient(divergence_N, z_NV, p, config(kind))
        assert value.isfinite().all() and gradient.isfinite().all()


def test_no_position_and_no_gradient() -> None:
    none_NV = torch.zeros(0, 11).requires_grad_()
    divergence_N(none_NV, teacher(0), config("jsd")).sum().backward()
    assert none_NV.grad is not None and none_NV.grad.shape == (0, 11)
    assert not divergence_N(logits(), teacher(), config("jsd")).requires_grad


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (logits(), teacher(), config("jsd"))
    expected = with_gradient(divergence_N, *arguments)
    monkeypatch.setattr(divergences, "_BLOCK_LOGITS", 22)
    torch.testing.assert_close(with_gradient(divergence_N, *arguments), expected)


def test_backward_keeps_one_number_per_logit() -> None:
    saved_numbers: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        saved_numbers.append(tensor.numel())
        return tensor

    z_NV = logits().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        divergence_N(z_NV, teacher(), config("jsd"))
    assert sum(saved_numbers) == z_NV.numel()


class Teacher:
    """Distributions that depend on the position alone."""

    def __init__(self, logp_NV: Tensor) -> None:
        self.logp_NV, self.requested = logp_NV, []

    def on(self, batch: Any) -> Any:
        return SimpleNamespace(rows=self._rows)

    def _rows(self, rows: slice) -> Dense:
        self.requested.append(rows)
        return Dense(self.logp_NV[rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_channel_sums_do_not_depend_on_chunks(kind: str, tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    model = model.double()
    groups = make_groups(make_method("tinyllm"), tokenizer, encoder_decoder=False, count=3)
    collator = Collator(encoder_decoder=False, pad_id=tokenizer.pad_token_id)
    batch = collator.collate(collator.rows([item for group in groups for item in group.items]))
    signal = Teacher(logits(len(batch.target_ids_N), model.config.vocab_size).log_softmax(-1))
    results = []
    for chunk in (10**6, 7):
        model.zero_grad()
        signal.requested.clear()
        losses = [divergence_of(signal.on(batch), config(kind))]
        (sums,) = channel_sums(batch, LM(model, chunk_positions=chunk), losses)
        sum(sums.values()).backward()
        results.append((sums, model.get_input_embeddings().weight.grad.clone()))
    assert max(rows.stop - rows.start for rows in signal.requested) == 7
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
    logits_NV = model(batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[
        batch.target_row_N, batch.target_position_N
    ]
    values_N = autograd_divergence_N(logits_NV, Dense(signal.logp_NV), config(kind))
    for number, channel in enumerate(batch.channels):
        torch.testing.assert_close(results[0][0][channel], values_N[batch.channel_N == number].sum())


def test_several_losses_come_from_one_pass(tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    groups = make_groups(make_method("tinyllm"), tokenizer, encoder_decoder=False, count=2)
    collator = Collator(encoder_decoder=False, pad_id=tokenizer.pad_token_id)
    batch = collator.collate(collator.rows([item for group in groups for item in group.items]))
    signal = Teacher(logits(len(batch.target_ids_N), model.config.vocab_size, dtype=torch.float32).log_softmax(-1))
    losses = [
        lambda z, rows: cross_entropy_N(z, batch.target_ids_N[rows]),
        divergence_of(signal.on(batch), config("jsd")),
    ]
    both = channel_sums(batch, LM(model), losses)
    alone = [channel_cross_entropy(batch, LM(model)), *channel_sums(batch, LM(model), losses[1:])]
    torch.testing.assert_close(both, alone)
