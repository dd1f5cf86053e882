"""Formulas of the divergences between two distributions given as log-probabilities, and their gradients by hand.

p is the teacher's distribution, q the student's; the last dimension is summed. Mixtures are made in log space. An entry
of -inf is an impossible token: masks act on what goes into a formula, never on what comes out, because a masked
output still sends NaN backwards. A divergence that is infinite (forward KL where q is 0 and p is not, reverse KL the
other way round) comes out as inf.

Shape suffixes: N positions, V entries.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tinyllm_bench.training.divergences import DivergenceConfig


class Pull(NamedTuple):
    """A divergence per position, and `q * dD/dq` per entry up to a multiple of q: what its gradient is made of."""

    value_N: Tensor
    pull_NV: Tensor


def gradient(pull_NV: Tensor, q_NV: Tensor) -> Tensor:
    """Gradient by the logits of q: the pull less q times its sum. `pull_NV` is overwritten."""
    return pull_NV.addcmul_(q_NV, pull_NV.sum(-1, keepdim=True), value=-1)


def kl(loga_NV: Tensor, logb_NV: Tensor) -> Tensor:
    """KL(a || b) per position."""
    return _terms(loga_NV, logb_NV).sum(-1)


def mixture(loga_NV: Tensor, logb_NV: Tensor, share_of_a: float) -> Tensor:
    """log(w a + (1 - w) b)."""
    nowhere = (loga_NV == -math.inf) & (logb_NV == -math.inf)
    a_NV = loga_NV.masked_fill(nowhere, 0) + _log(share_of_a)
    b_NV = logb_NV.masked_fill(nowhere, 0) + _log(1 - share_of_a)
    return torch.logaddexp(a_NV, b_NV).masked_fill(nowhere, -math.inf)


def head_mask(logp_NV: Tensor, mass: float) -> Tensor:
    """AKL's head: the most likely entries while their cumulative probability is at most `mass`, and always the first.

    The entry that crosses the border belongs to the tail, as in the authors' code; DSKD and KDFlow put it in the head.
    """
    sorted_NV, order_NV = logp_NV.sort(dim=-1, descending=True, stable=True)
    inside_NV = sorted_NV.exp().cumsum(-1) <= mass
    inside_NV[..., 0] = True
    return torch.zeros_like(inside_NV).scatter(-1, order_NV, inside_NV)


def head_share_N(logq_NV: Tensor, logp_NV: Tensor, mass: float) -> Tensor:
    """Share of |p - q| that lies in the head: AKL's weight of the forward KL. Without gradient; 0 where p equals q."""
    with torch.no_grad():
        gap_NV = (logp_NV.exp() - logq_NV.exp()).abs()
        head_N = (gap_NV * head_mask(logp_NV, mass)).sum(-1)
        return head_N / gap_NV.sum(-1).clamp_min(torch.finfo(gap_NV.dtype).tiny)


def value(logq_NV: Tensor, logp_NV: Tensor, config: "DivergenceConfig") -> Tensor:
    """Divergence per position at temperature 1, for autograd to differentiate."""
    return _VALUES[config.form](logq_NV, logp_NV, config)


def value_and_pull(logq_NV: Tensor, logp_NV: Tensor, config: "DivergenceConfig") -> Pull:
    """The same value, with its gradient worked out by hand; neither argument may require a gradient."""
    return _PULLS[config.form](logq_NV, logp_NV, config)


def _terms(loga_NV: Tensor, logb_NV: Tensor) -> Tensor:
    seen = loga_NV.exp() > 0  # an entry that underflows counts as impossible, or 0 * inf would be NaN
    a_NV, b_NV = loga_NV.masked_fill(~seen, 0), logb_NV.masked_fill(~seen, 0)
    return (a_NV.exp() * (a_NV - b_NV)).masked_fill(~seen, 0)


def _share(loga_NV: Tensor, logb_NV: Tensor) -> Tensor:
    """a / b, where a > 0 implies b > 0; 0 where a is 0."""
    none = loga_NV == -math.inf
    return (loga_NV.masked_fill(none, 0) - logb_NV.masked_fill(none, 0)).exp_().masked_fill_(none, 0)


def _log(share: float) -> float:
    return math.log(share) if share > 0 else -math.inf


def _forward(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Tensor:
    return kl(logp, logq)


def _reverse(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Tensor:
    return kl(logq, logp)


def _jsd(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Tensor:
    logm = mixture(logp, logq, config.beta)
    return config.jsd_scale * (config.beta * kl(logp, logm) + (1 - config.beta) * kl(logq, logm))


def _skew_forward(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Tensor:
    return kl(logp, mixture(logp, logq, config.skew))


def _skew_reverse(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Tensor:
    return kl(logq, mixture(logq, logp, config.skew))


def _total_variation(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Tensor:
    return 0.5 * (logq.exp() - logp.exp()).abs().sum(-1)


def _adaptive(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Tensor:
    head_N = head_share_N(logq, logp, config.mu)
    return head_N * kl(logp, logq) + (1 - head_N) * kl(logq, logp)


def _pull_forward(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Pull:
    return Pull(kl(logp, logq), logp.exp().neg_())


def _pull_reverse(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Pull:
    terms = _terms(logq, logp)
    return Pull(terms.sum(-1), terms)


def _pull_jsd(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Pull:
    # dD/dq = (1 - beta) (log q - log m): what comes through m cancels.
    logm = mixture(logp, logq, config.beta)
    terms = _terms(logq, logm).mul_((1 - config.beta) * config.jsd_scale)
    return Pull(config.jsd_scale * config.beta * kl(logp, logm) + terms.sum(-1), terms)


def _pull_skew_forward(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Pull:
    logm = mixture(logp, logq, config.skew)
    return Pull(kl(logp, logm), _share(logq, logm).mul_(logp.exp()).mul_(config.skew - 1))


def _pull_skew_reverse(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Pull:
    logm = mixture(logq, logp, config.skew)
    terms = _terms(logq, logm)
    value_N = terms.sum(-1)
    return Pull(value_N, terms.addcmul_(_share(logq, logm), logq.exp(), value=-config.skew))


def _pull_total_variation(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Pull:
    gap = logq.exp() - logp.exp()
    return Pull(0.5 * gap.abs().sum(-1), gap.sign_().mul_(logq.exp()).mul_(0.5))


def _pull_adaptive(logq: Tensor, logp: Tensor, config: "DivergenceConfig") -> Pull:
    head_N = head_share_N(logq, logp, config.mu)
    terms = _terms(logq, logp)
    value_N = head_N * kl(logp, logq) + (1 - head_N) * terms.sum(-1)
    return Pull(value_N, terms.mul_((1 - head_N)[..., None]).addcmul_(head_N[..., None], logp.exp(), value=-1))


_VALUES: dict[str, Callable[[Tensor, Tensor, "DivergenceConfig"], Tensor]] = {
    "forward_kl": _forward,
    "reverse_kl": _reverse,
    "jsd": _jsd,
    "skew_forward_kl": _skew_forward,
    "skew_reverse_kl": _skew_reverse,
    "total_variation": _total_variation,
    "adaptive_kl": _adaptive,
}
_PULLS: dict[str, Callable[[Tensor, Tensor, "DivergenceConfig"], Pull]] = {
    "forward_kl": _pull_forward,
    "reverse_kl": _pull_reverse,
    "jsd": _pull_jsd,
    "skew_forward_kl": _pull_skew_forward,
    "skew_reverse_kl": _pull_skew_reverse,
    "total_variation": _pull_total_variation,
    "adaptive_kl": _pull_adaptive,
}
