"""MiniLLM's pieces: its gradient identity on a table, returns, weights, clip and whitening."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tinyllm_bench.generation.sampler import mixed_log_probs
from tinyllm_bench.training.divergences import Dense, DivergenceConfig, divergence_N
from tinyllm_bench.training.policy_gradient import (
    clipped_policy_loss_NT,
    importance_log_weight_NT,
    returns_NT,
    rewards_NT,
    whitened_NT,
)

TOKENS, STEPS = 3, 3
TEXTS = list(itertools.product(range(TOKENS), repeat=STEPS))
PREFIXES = [prefix for length in range(STEPS) for prefix in itertools.product(range(TOKENS), repeat=length)]


def table() -> Tensor:
    """Logits of a next token after each of the 13 prefixes: a whole model."""
    return torch.randn(len(PREFIXES), TOKENS).double()


def along(table_PV: Tensor) -> Tensor:
    """Log-probabilities (text, step, token) on the way through every text."""
    places = [[PREFIXES.index(text[:step]) for step in range(STEPS)] for text in TEXTS]
    return table_PV.log_softmax(-1)[torch.tensor(places)]


def log_probs(logp_NTV: Tensor) -> Tensor:
    return logp_NTV.gather(-1, torch.tensor(TEXTS)[..., None])[..., 0]


def sequence_reverse_kl(student_PV: Tensor, teacher_PV: Tensor) -> Tensor:
    """Equation 1: over all 27 texts."""
    logq_N, logp_N = log_probs(along(student_PV)).sum(-1), log_probs(along(teacher_PV)).sum(-1)
    return (logq_N.exp() * (logq_N - logp_N)).sum()


def finite_differences(student_PV: Tensor, teacher_PV: Tensor, step: float = 1e-6) -> Tensor:
    actual = torch.zeros_like(student_PV)
    for place in itertools.product(*map(range, student_PV.shape)):
        for sign in (1, -1):
            moved_PV = student_PV.clone()
            moved_PV[place] += sign * step
            actual[place] += sign * sequence_reverse_kl(moved_PV, teacher_PV) / (2 * step)
    return actual


def test_single_and_long_parts_are_the_gradient_of_the_sequence_divergence() -> None:
    """Equations 2 and 3, expectation over every text; Single from `divergences`, Long from `returns_NT`."""
    student_PV, teacher_PV = table(), table()
    expected = finite_differences(student_PV, teacher_PV)
    student_PV.requires_grad_()
    logq_NTV, logp_NTV = along(student_PV), along(teacher_PV)
    chance_N = log_probs(logq_NTV).sum(-1).exp().detach()
    mask_NT = torch.ones(len(TEXTS), STEPS)
    rewards = rewards_NT(log_probs(logp_NTV), log_probs(logq_NTV), mask_NT)

    def gradient(parts_NT: Tensor) -> Tensor:
        return torch.autograd.grad((chance_N[:, None] * parts_NT).sum(), student_PV, retain_graph=True)[0]

    from_here = returns_NT(rewards, mask_NT, length_normalize=False, include_current=True)
    after = returns_NT(rewards, mask_NT, length_normalize=False)
    equation_2 = gradient(-(from_here - 1) * log_probs(logq_NTV))
    flat = divergence_N(logq_NTV.flatten(0, 1), Dense(logp_NTV.flatten(0, 1)), DivergenceConfig(kind="reverse_kl"))
    equation_3 = gradient(flat.view(len(TEXTS), STEPS)) + gradient(-after * log_probs(logq_NTV))
    torch.testing.assert_close(equation_2, expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(equation_3, expected, rtol=1e-7, atol=1e-9)
    counted_twice = gradient(flat.view(len(TEXTS), STEPS)) + gradient(-from_here * log_probs(logq_NTV))
    assert not torch.allclose(counted_twice, expected, atol=1e-3)  # what `include_current` beside Single does


def test_rewards_are_clipped_masked_and_without_gradient() -> None:
    logq = torch.tensor([[-1.0, -9.0, -2.0]], requires_grad=True)
    actual = rewards_NT(torch.tensor([[-2.0, -1.0, -math.inf]]), logq, torch.tensor([[1, 1, 0]]), limit=5.0)
    assert actual.tolist() == [[-1.0, 5.0, 0.0]] and not actual.requires_grad


def test_returns_by_hand() -> None:
    rewards, mask = torch.tensor([[1.0, 2.0, 4.0, 8.0]]).double(), torch.tensor([[1, 1, 1, 0]])

    def actual(**settings: bool | float) -> list[float]:
        return returns_NT(rewards, mask, **settings)[0].tolist()  # type: ignore[arg-type]

    assert actual(length_normalize=False) == [6, 4, 0, 0]
    assert actual() == [3, 4, 0, 0]
    assert actual(gamma=0.5, length_normalize=False) == [4, 4, 0, 0]
    assert actual(gamma=0.5) == pytest.approx([4 / 1.5, 4, 0, 0])
    assert actual(gamma=0.5, length_normalize=False, include_current=True) == [3, 4, 4, 0]
    parity = actual(gamma=0.5, include_current=True, discount_length=False)
    assert parity == pytest.approx([3 / 3, 4 / 2, 4, 0])


@pytest.mark.parametrize("length_normalize", [True, False])
def test_long_discounted_returns_are_finite_and_exact(length_normalize: bool) -> None:
    """gamma^4096 is 0 in float32: absolute powers would end in 0 / 0 (TRL issue 6626)."""
    rewards, mask = torch.randn(2, 4096), torch.ones(2, 4096)
    mask[1, 3000:] = 0
    actual = returns_NT(rewards, mask, gamma=0.95, length_normalize=length_normalize)
    expected = returns_NT(rewards.double(), mask, gamma=0.95, length_normalize=length_normalize)
    assert actual.dtype == torch.float32 and actual.isfinite().all()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    powers = 0.95 ** torch.arange(2000).double()
    direct = (powers * rewards[0, 1001:3001].double()).sum() / (powers.sum() if length_normalize else 1)
    assert actual[0, 1000].item() == pytest.approx(direct.item(), abs=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.9])
def test_weight_is_bounded_and_exact_where_probabilities_underflow(alpha: float) -> None:
    logq, logp = -200 * torch.rand(4, 50).double(), -200 * torch.rand(4, 50).double()
    weights = importance_log_weight_NT(logq, logq, logp, alpha).exp()
    assert (weights <= 1 / (1 - alpha) + 1e-12).all() and weights.isfinite().all()
    far = importance_log_weight_NT(logq - 3000, logq - 3000, logp - 3000, alpha).exp()
    torch.testing.assert_close(far, weights)


def test_expected_weight_is_one_under_the_mixture() -> None:
    logq, logp = torch.randn(5, 7).double().log_softmax(-1), torch.randn(5, 7).double().log_softmax(-1)
    sampler = mixed_log_probs(logq, logp, 0.2)
    torch.testing.assert_close(sampler.exp(), 0.2 * logp.exp() + 0.8 * logq.exp())
    expected = (sampler.exp() * importance_log_weight_NT(logq, logq, logp, 0.2).exp()).sum(-1)
    torch.testing.assert_close(expected, torch.ones(5).double())
    torch.testing.assert_close(mixed_log_probs(logq, logp, 1.0), logp)


def test_weight_has_a_gradient_in_the_new_student_alone() -> None:
    new, old, teacher = (torch.randn(1, 3, requires_grad=True) for _ in range(3))
    importance_log_weight_NT(new, old, teacher, 0.2).sum().backward()
    assert new.grad is not None and old.grad is None and teacher.grad is None


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.5, 2.0, -2.4, False),
        (1.5, -2.0, 3.0, True),
        (0.5, 2.0, -1.0, True),
        (0.5, -2.0, 1.6, False),
        (1.1, 1.0, -1.1, True),
    ],
)
def test_clip_by_hand(ratio: float, advantage: float, loss: float, moves: bool) -> None:
    log_ratio = torch.tensor([[math.log(ratio)]]).double().requires_grad_()
    actual = clipped_policy_loss_NT(log_ratio, torch.tensor([[advantage]]).double(), epsilon=0.2)
    actual.sum().backward()
    assert actual.item() == pytest.approx(loss) and log_ratio.grad is not None
    assert bool(log_ratio.grad.any()) == moves


def test_whitening_excludes_padding_and_sums_over_processes() -> None:
    values, mask = torch.randn(4, 6).double(), (torch.rand(4, 6) < 0.6).double()
    actual = whitened_NT(values, mask)
    whitened = actual[mask.bool()]
    assert whitened.mean().item() == pytest.approx(0, abs=1e-12)
    assert whitened.var(correction=0).item() == pytest.approx(1)
    torch.testing.assert_close(whitened_NT(values + 1e3 * (1 - mask), mask), actual)
    halves = [(values[:1], mask[:1]), (values[1:], mask[1:])]
    torch.testing.assert_close(torch.cat(in_two_processes(halves)), actual)
    assert not whitened_NT(values, torch.zeros_like(mask)).any()


def in_two_processes(halves: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Two processes that wait for each other, as threads."""
    import threading

    barrier, shared, actual = threading.Barrier(2), [torch.zeros(0)] * 2, [torch.zeros(0)] * 2

    def run(rank: int) -> None:
        def all_reduce(tensor: Tensor) -> Tensor:
            shared[rank] = tensor.clone()
            barrier.wait(10)
            total = shared[0] + shared[1]
            barrier.wait(10)
            return total

        actual[rank] = whitened_NT(*halves[rank], all_reduce=all_reduce)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return actual
