"""Policy gradient for distillation on a student's own text, after MiniLLM (arXiv:2306.08543): pure functions.

p is the teacher, q the student, r_t = log p(y_t) - log q(y_t). The paper's gradient has two parts: L_Single is the
exact reverse KL at every position (`divergences`); L_Long weights the gradient of log q(y_t) by the return *after* t,
which is computed here. The functions say where the released code (LMOps, commit 4f2a9de) differs.

Tensors are right-padded, one row per text; masks are 1 on response tokens, the end token included. Advantages and the
sampler's probabilities carry no gradient.

Shape suffixes: N texts, T response positions, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tinyllm_bench.generation.sampler import mixed_log_probs

AllReduce = Callable[[Tensor], Tensor]


def rewards_NT(logp_NT: Tensor, logq_NT: Tensor, mask_NT: Tensor, *, limit: float | None = None) -> Tensor:
    """r_t = log p(y_t) - log q(y_t), clipped to +-limit, 0 outside the mask; no gradient, float32 at least."""
    log_ratio_NT = _wide(logp_NT).detach() - _wide(logq_NT).detach()
    log_ratio_NT = torch.where(mask_NT.bool(), log_ratio_NT, 0)
    return log_ratio_NT if limit is None else log_ratio_NT.clamp(-limit, limit)


def returns_NT(
    rewards_NT: Tensor,
    mask_NT: Tensor,
    *,
    gamma: float = 1.0,
    length_normalize: bool = True,
    include_current: bool = False,
    discount_length: bool = True,
) -> Tensor:
    """The return after each position, a mean if `length_normalize` is set (equation 6); 0 at the last token.

    G_t = sum over k > t of gamma^(k-t-1) r_k, by the recurrence G_t = r_(t+1) + gamma G_(t+1): absolute powers of gamma
    would scale a position by gamma^t and underflow to 0 / 0. The mean divides by the same sum with r replaced by 1, so
    that at gamma 1 it is the mean of the T - t rewards that follow; the paper prints T - t - 1.

    The released code counts r_t too (`include_current`, gamma 0.95) and divides by the undiscounted number of tokens
    from t on (`discount_length=False`).
    """
    mask_NT = mask_NT.to(_wide(rewards_NT).dtype)
    rewards_NT = _wide(rewards_NT).detach() * mask_NT
    totals_NT = _discounted_sums(rewards_NT, gamma, include_current=include_current)
    if length_normalize:
        counts_NT = _discounted_sums(mask_NT, gamma if discount_length else 1.0, include_current=include_current)
        totals_NT = torch.where(counts_NT > 0, totals_NT / counts_NT.clamp_min(torch.finfo(counts_NT.dtype).tiny), 0)
    return totals_NT * mask_NT


def importance_log_weight_NT(logq_new_NT: Tensor, logq_old_NT: Tensor, logp_NT: Tensor, alpha: float) -> Tensor:
    """log of q_new(y_t) / (alpha p(y_t) + (1 - alpha) q_old(y_t)), for tokens sampled from that mixture.

    It is both PPO's ratio and equation 5's importance weight of the current step; in log space, so that neither side
    underflows. With q_new = q_old the weight is at most 1 / (1 - alpha). Differentiable in q_new only.
    """
    return _wide(logq_new_NT) - mixed_log_probs(_wide(logq_old_NT), _wide(logp_NT), alpha).detach()


def clipped_policy_loss_NT(log_ratio_NT: Tensor, advantages_NT: Tensor, *, epsilon: float = 0.2) -> Tensor:
    """PPO's loss per token: max(-A rho, -A clip(rho, 1 - epsilon, 1 + epsilon)).

    The paper prints A times the minimum, which differs for A < 0; its released code is as PPO's.
    """
    ratio_NT = log_ratio_NT.exp()
    advantages_NT = advantages_NT.detach()
    return torch.maximum(-advantages_NT * ratio_NT, -advantages_NT * ratio_NT.clamp(1 - epsilon, 1 + epsilon))


def whitened_NT(
    values_NT: Tensor, mask_NT: Tensor, *, all_reduce: AllReduce | None = None, epsilon: float = 1e-8
) -> Tensor:
    """(value - mean) / sqrt(variance + epsilon), both over the masked tokens of all processes; 0 outside the mask.

    The released code includes padded positions, so that an advantage depends on the lengths of other texts.
    """
    summed = all_reduce or (lambda tensor: tensor)
    mask_NT = mask_NT.to(_wide(values_NT).dtype)
    values_NT = _wide(values_NT).detach() * mask_NT
    count, total = summed(torch.stack([mask_NT.sum(), values_NT.sum()])).unbind()
    centred_NT = (values_NT - total / count.clamp_min(1)) * mask_NT
    variance = summed((centred_NT**2).sum()) / count.clamp_min(1)
    return centred_NT * torch.rsqrt(variance + epsilon)


def _discounted_sums(values_NT: Tensor, gamma: float, *, include_current: bool) -> Tensor:
    """Discounted sums over the positions after each, or with `include_current` from it on; computed in float64."""
    sums_NT = torch.zeros_like(values_NT, dtype=torch.float64)
    after_N = torch.zeros_like(sums_NT[:, 0])
    for t in range(values_NT.shape[1] - 1, -1, -1):
        from_here_N = values_NT[:, t].double() + gamma * after_N
        sums_NT[:, t] = from_here_N if include_current else after_N
        after_N = from_here_N
    return sums_NT.to(values_NT.dtype)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
