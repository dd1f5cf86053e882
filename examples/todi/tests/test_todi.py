"""ToDi passes the contract of methods, and its loss is the published one."""

import math

import pytest
import torch
from todi import ToDi, todi_N
from torch import Tensor

from tinyllm_bench import MethodContract, load_method


class TestToDi(MethodContract):
    method = ToDi


def logits_and_teacher(count: int = 5, size: int = 9) -> tuple[Tensor, Tensor]:
    """Logits of a student and log-probabilities of a teacher, in float64."""
    torch.manual_seed(0)
    logits_NV = (torch.randn(count, size, dtype=torch.float64) * 2).requires_grad_()
    return logits_NV, (torch.randn(count, size, dtype=torch.float64) * 2).log_softmax(-1)


def gradient(logits_NV: Tensor, logp_NV: Tensor, temperature: float = 1.0) -> Tensor:
    return torch.autograd.grad(todi_N(logits_NV, logp_NV, temperature).sum(), logits_NV)[0]


def test_the_installed_package_offers_it_with_its_defaults() -> None:
    assert load_method("todi") is ToDi


def test_two_entries_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/2, 1/2): w = (3/5, 1/3)."""
    p, q, w = (0.75, 0.25), (0.5, 0.5), (0.6, 1 / 3)
    expected = sum(w[i] * p[i] * math.log(p[i] / q[i]) + (1 - w[i]) * q[i] * math.log(q[i] / p[i]) for i in range(2))
    actual = todi_N(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([p], dtype=torch.float64).log())
    assert actual.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_value_is_the_sum_of_both_kl_divergences(temperature: float) -> None:
    logits_NV, logp_NV = logits_and_teacher()
    q_NV = (logits_NV / temperature).softmax(-1)
    p_NV = (logp_NV / temperature).softmax(-1)
    expected_N = ((p_NV - q_NV) * (p_NV / q_NV).log()).sum(-1)
    torch.testing.assert_close(todi_N(logits_NV, logp_NV, temperature), expected_N, rtol=1e-12, atol=1e-12)


def test_the_gradient_is_the_one_with_weights_held_fixed() -> None:
    """By hand: g_i = -w_i p_i + (1 - w_i) q_i (log(q_i / p_i) + 1), then g - q * sum(g)."""
    logits_NV, logp_NV = logits_and_teacher()
    q_NV, p_NV = logits_NV.detach().softmax(-1), logp_NV.exp()
    w_NV = p_NV / (p_NV + q_NV)
    g_NV = -w_NV * p_NV + (1 - w_NV) * q_NV * ((q_NV / p_NV).log() + 1)
    expected_NV = g_NV - q_NV * g_NV.sum(-1, keepdim=True)
    torch.testing.assert_close(gradient(logits_NV, logp_NV), expected_NV, rtol=1e-10, atol=1e-12)


def test_it_is_zero_where_both_sides_agree() -> None:
    logits_NV, _ = logits_and_teacher()
    logp_NV = logits_NV.detach().log_softmax(-1)
    assert todi_N(logits_NV, logp_NV).abs().max() < 1e-12
    assert gradient(logits_NV, logp_NV).abs().max() < 1e-12


def test_an_impossible_entry_is_left_out_and_the_gradient_is_finite() -> None:
    logits_NV, logp_NV = logits_and_teacher()
    cut_NV = logp_NV[:, :-1].log_softmax(-1)
    padded_NV = torch.cat([cut_NV, torch.full((len(cut_NV), 1), -math.inf, dtype=torch.float64)], -1)
    masked_NV = logits_NV.detach().clone()
    masked_NV[:, -1] = -math.inf
    torch.testing.assert_close(todi_N(masked_NV, padded_NV), todi_N(logits_NV[:, :-1], cut_NV))
    assert gradient(masked_NV.requires_grad_(), padded_NV).isfinite().all()


def test_float32_agrees_with_float64() -> None:
    logits_NV, logp_NV = logits_and_teacher()
    actual_N = todi_N(logits_NV.float(), logp_NV.float())
    assert actual_N.dtype == torch.float32
    torch.testing.assert_close(actual_N.double(), todi_N(logits_NV, logp_NV), rtol=1e-5, atol=1e-6)
