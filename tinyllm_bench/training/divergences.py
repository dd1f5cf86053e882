"""Divergences of a student's distributions from a teacher's, per target position.

p is the teacher's distribution and q the student's, both over the same vocabulary; values are in nats. What is known of
p is `Dense` (every log-probability) or `TopK` (the top-k tokens and the mass of the rest). With `TopK` both sides
are compared over K + 1 outcomes, the last being "any other token": the value is a lower bound of the dense one (data
processing inequality) and equal to it at K = V. That is well defined for forward KL, skew forward KL, JSD and total
variation. Divergences that need p where q is large (reverse KL, skew reverse KL, adaptive KL) are refused unless K = V.

`divergence_N` works out the gradient by hand, a few rows at a time: it stores one number per logit for the backward
pass. `autograd_divergence_N` is the same by plain autograd; it is the reference and stores several times more.

Shape suffixes: N target positions, V entries of a distribution (the vocabulary), K top-k tokens, B = K + 1 outcomes.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.autograd.function import once_differentiable

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.training.losses import PerPosition

Kind = Literal[
    "forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl", "total_variation", "adaptive_kl"
]
NEEDS_EVERY_TOKEN = ("reverse_kl", "skew_reverse_kl", "adaptive_kl")
_BLOCK_LOGITS = 2**20  # 4 MiB in float32: what a formula holds at once, several times over


class Dense(NamedTuple):
    """A teacher's log-probability of every token."""

    logp_NV: Tensor

    def rows(self, rows: slice) -> "Dense":
        """Some of the positions."""
        return Dense(self.logp_NV[rows])


class TopK(NamedTuple):
    """A teacher's top-k tokens: ids without repetition, their log-probabilities, the log of the mass outside."""

    ids_NK: Tensor
    logp_NK: Tensor
    tail_N: Tensor

    def rows(self, rows: slice) -> "TopK":
        """Some of the positions."""
        return TopK(self.ids_NK[rows], self.logp_NK[rows], self.tail_N[rows])


class DivergenceConfig(BaseModel):
    """Which divergence, and its settings.

    kind: forward_kl KL(p|q); reverse_kl KL(q|p); jsd GKD's `beta KL(p|m) + (1 - beta) KL(q|m)`, m = beta p +
    (1 - beta) q; skew_forward_kl KL(p | skew p + (1 - skew) q); skew_reverse_kl KL(q | (1 - skew) p + skew q);
    total_variation `sum |p - q| / 2`; adaptive_kl forward and reverse KL mixed by where p and q differ, in the head
    (the most likely tokens up to probability mu) or in the tail; the mixing weights carry no gradient.

    The scale trap: JSD(beta) falls to 0 with beta (as beta KL(p|q)) and with 1 - beta (as (1 - beta) KL(q|p)), so
    beta 0.001 is a thousand times weaker than forward KL, while TRL and Liger read beta 0 as forward KL itself.
    `normalize` divides by beta (1 - beta): the limits are then forward KL at 0 and reverse KL at 1, and both ends are
    allowed. Without it they would be 0 everywhere and are refused.

    temperature divides the logits of both sides; temperature_squared multiplies by its square (Hinton et al.).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "forward_kl"
    beta: float = Field(0.5, ge=0, le=1)
    normalize: bool = False
    skew: float = Field(0.1, ge=0, lt=1)
    mu: float = Field(0.5, gt=0, le=1)
    temperature: float = Field(1.0, ge=0.01, le=1000)
    temperature_squared: bool = False

    @model_validator(mode="after")
    def _has_a_gradient(self) -> Self:
        if self.kind == "jsd" and self.beta in (0, 1) and not self.normalize:
            instead = "forward_kl" if self.beta == 0 else "reverse_kl"
            raise UserError(
                f"jsd with beta {self.beta:g} is 0 everywhere; set normalize=true or kind={instead}, which is its limit"
            )
        return self

    @property
    def form(self) -> Kind:
        """The formula that is used: a normalised JSD at beta 0 or 1 is its limit."""
        if self.kind != "jsd" or self.beta not in (0, 1):
            return self.kind
        return "forward_kl" if self.beta == 0 else "reverse_kl"

    @property
    def jsd_scale(self) -> float:
        """Factor of the JSD."""
        return 1 / (self.beta * (1 - self.beta)) if self.normalize else 1.0

    @property
    def factor(self) -> float:
        """Factor of every value."""
        return self.temperature**2 if self.temperature_squared else 1.0


def divergence_N(
    logits_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig, *, vocabulary: int | None = None
) -> Tensor:
    """Divergence per position in nats, differentiable (once) in the student's logits; float64 stays, else float32.

    `vocabulary` is the tokenizer's size where either side has padded rows: both are cut to it and share their mass
    among the tokens that exist. Logits of -inf are impossible tokens.

    Raises:
        UserError: sizes differ and no vocabulary is given, or a `TopK` cannot answer what is asked.
    """
    logits_NV, teacher = _fitting(logits_NV, teacher, config, vocabulary)
    return _ByHand.apply(logits_NV, teacher, config)


def autograd_divergence_N(
    logits_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig, *, vocabulary: int | None = None
) -> Tensor:
    """The same, differentiated by autograd; for comparison, and for second derivatives."""
    logits_NV, teacher = _fitting(logits_NV, teacher, config, vocabulary)
    return config.factor * _VALUES[config.form](*_both(_wide(logits_NV), teacher, config), config)


def divergence_of(teacher: Any, config: DivergenceConfig, *, vocabulary: int | None = None) -> PerPosition:
    """Divergence of a chunk from `teacher.rows(rows)`, so that a teacher computes one chunk at a time."""
    return lambda logits_NV, rows: divergence_N(logits_NV, teacher.rows(rows), config, vocabulary=vocabulary)


class _ByHand(torch.autograd.Function):
    """Values and gradient block by block; only the gradient is stored, in the logits' own type."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig) -> Tensor:
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        values_N = torch.empty(len(logits_NV), dtype=_wide(logits_NV[:0]).dtype, device=logits_NV.device)
        for rows in _blocks(*logits_NV.shape):
            z_NV, part = _wide(logits_NV[rows]), teacher.rows(rows)
            if gradient_NV is None:
                values_N[rows] = _VALUES[config.form](*_both(z_NV, part, config), config)
            else:
                values_N[rows], gradient_NV[rows] = _value_and_gradient(z_NV, part, config)
        if gradient_NV is not None:
            ctx.save_for_backward(gradient_NV)
            ctx.factor = config.factor / config.temperature
        return values_N.mul_(config.factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor, None, None]:
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * (ctx.factor * upstream_N).to(gradient_NV.dtype)[:, None], None, None


def _value_and_gradient(z_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig) -> tuple[Tensor, Tensor]:
    """Of z / temperature. With a rest bucket, its tokens share the bucket's gradient as they share its probability."""
    logq_NV = torch.log_softmax(z_NV / config.temperature, -1)
    if isinstance(teacher, Dense):
        value_N, term_NV = _TERMS[config.form](logq_NV, _teacher(teacher, logq_NV, config), config)
        return value_N, logit_gradient(term_NV, logq_NV.exp_())
    logq_NB, logp_NB = _buckets(logq_NV, teacher)
    value_N, term_NB = _TERMS[config.form](logq_NB, logp_NB, config)
    gradient_NB = logit_gradient(term_NB, logq_NB.exp())
    empty_N = logq_NB[:, -1] == -math.inf
    share_NV = (logq_NV - logq_NB[:, -1].masked_fill(empty_N, 0)[:, None]).exp_()
    gradient_NV = share_NV.mul_(gradient_NB[:, -1].masked_fill(empty_N, 0)[:, None])
    return value_N, gradient_NV.scatter_(-1, teacher.ids_NK.long(), gradient_NB[:, :-1])


def _both(z_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the student and of the teacher over the same outcomes."""
    logq_NV = torch.log_softmax(z_NV / config.temperature, -1)
    if isinstance(teacher, TopK):
        return _buckets(logq_NV, teacher)
    return logq_NV, _teacher(teacher, logq_NV, config)


def _teacher(teacher: Dense, like_NV: Tensor, config: DivergenceConfig) -> Tensor:
    """Log-probabilities can be tempered like logits: they differ from them by a constant over the tokens."""
    with torch.no_grad():
        logp_NV = teacher.logp_NV.to(like_NV.dtype)[:, : like_NV.shape[-1]]
        whole = config.temperature == 1 and logp_NV.shape[-1] == teacher.logp_NV.shape[-1]
        return logp_NV if whole else torch.log_softmax(logp_NV / config.temperature, -1)


def _buckets(logq_NV: Tensor, teacher: TopK) -> tuple[Tensor, Tensor]:
    """Both sides over the K tokens and the rest; the rest of q is summed, for 1 - sum would lose its digits."""
    ids_NK = teacher.ids_NK.long()
    others_NV = logq_NV.scatter(-1, ids_NK, -math.inf)
    empty_N = (others_NV == -math.inf).all(-1)
    rest_N = others_NV.masked_fill(empty_N[:, None], 0).logsumexp(-1).masked_fill(empty_N, -math.inf)
    logp_NB = torch.cat([teacher.logp_NK, teacher.tail_N[:, None]], -1).detach().to(logq_NV.dtype)
    return torch.cat([logq_NV.gather(-1, ids_NK), rest_N[:, None]], -1), logp_NB


def _fitting(
    logits_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig, vocabulary: int | None
) -> tuple[Tensor, Dense | TopK]:
    """Student and teacher over one vocabulary, checked."""
    size = logits_NV.shape[-1]
    theirs = teacher.logp_NV.shape[-1] if isinstance(teacher, Dense) else size
    if vocabulary is None and theirs != size:
        raise UserError(
            f"the student has {size} logits and the teacher {theirs}; where they share a tokenizer, give its size as"
            " vocabulary, so that both are cut to it"
        )
    vocabulary = size if vocabulary is None else vocabulary
    if not 0 < vocabulary <= min(size, theirs):
        raise UserError(f"vocabulary {vocabulary}: it must be 1 to {min(size, theirs)}, the rows that both sides have")
    logits_NV = logits_NV[:, :vocabulary]
    return logits_NV, teacher if isinstance(teacher, Dense) else _answerable(teacher, config, vocabulary)


def _answerable(teacher: TopK, config: DivergenceConfig, vocabulary: int) -> Dense | TopK:
    """A `TopK` that can answer this divergence; at K = V it is `Dense`."""
    if teacher.ids_NK.numel() and int(teacher.ids_NK.max()) >= vocabulary:
        raise UserError(
            f"the teacher's top-k tokens include id {int(teacher.ids_NK.max())}, the vocabulary ends at"
            f" {vocabulary - 1}; cut the teacher's logits to the tokenizer's size before they are cached"
        )
    k = teacher.ids_NK.shape[-1]
    if k == vocabulary:
        return Dense(torch.empty_like(teacher.logp_NK).scatter_(-1, teacher.ids_NK.long(), teacher.logp_NK))
    if config.form in NEEDS_EVERY_TOKEN:
        raise UserError(
            f"{config.form} needs the teacher's probability of every token the student may prefer; of {vocabulary} only"
            f" {k} are cached. Use forward_kl, skew_forward_kl, jsd or total_variation, or a live teacher"
        )
    if config.temperature != 1:
        raise UserError(
            f"temperature {config.temperature:g} cannot be applied to {k} of {vocabulary} tokens: the rest would"
            " change its mass by an unknown factor. Use temperature 1, or a live teacher"
        )
    return teacher


def _blocks(count: int, size: int) -> Iterator[slice]:
    step = max(_BLOCK_LOGITS // max(size, 1), 1)
    return (slice(start, start + step) for start in range(0, count, step))


def _wide(logits_NV: Tensor) -> Tensor:
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


# --- Formulas over log-probabilities, and their gradients by hand ---------------------------------------------------
# The last dimension is summed. Mixtures are made in log space. An entry of -inf is an impossible token: masks act on
# what goes into a formula, never on what comes out, because a masked output still sends NaN backwards. A divergence
# that is infinite (forward KL where q is 0 and p is not, reverse KL the other way round) comes out as inf.


class FormTerm(NamedTuple):
    """A divergence D per position, and its logit-gradient term: `q * dD/dq` per entry, up to a multiple of q."""

    value_N: Tensor
    term_NV: Tensor


def logit_gradient(term_NV: Tensor, q_NV: Tensor) -> Tensor:
    """dD/dz for q = softmax(z): the term less q times the term's sum. `term_NV` is overwritten."""
    return term_NV.addcmul_(q_NV, term_NV.sum(-1, keepdim=True), value=-1)


def kl(loga_NV: Tensor, logb_NV: Tensor) -> Tensor:
    """KL(a || b) per position."""
    return _kl_terms(loga_NV, logb_NV).sum(-1)


def mixture(loga_NV: Tensor, logb_NV: Tensor, share_of_a: float) -> Tensor:
    """log(w a + (1 - w) b)."""
    log_a, log_b = (math.log(share) if share > 0 else -math.inf for share in (share_of_a, 1 - share_of_a))
    nowhere = (loga_NV == -math.inf) & (logb_NV == -math.inf)
    a_NV = loga_NV.masked_fill(nowhere, 0) + log_a
    b_NV = logb_NV.masked_fill(nowhere, 0) + log_b
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


def _kl_terms(loga_NV: Tensor, logb_NV: Tensor) -> Tensor:
    """a log(a / b) per entry, 0 where a is 0."""
    possible = loga_NV.exp() > 0  # an entry that underflows counts as impossible, or 0 * inf would be NaN
    a_NV, b_NV = loga_NV.masked_fill(~possible, 0), logb_NV.masked_fill(~possible, 0)
    return (a_NV.exp() * (a_NV - b_NV)).masked_fill(~possible, 0)


def _ratio(loga_NV: Tensor, logb_NV: Tensor) -> Tensor:
    """a / b, where a > 0 implies b > 0; 0 where a is 0."""
    none = loga_NV == -math.inf
    return (loga_NV.masked_fill(none, 0) - logb_NV.masked_fill(none, 0)).exp_().masked_fill_(none, 0)


def _forward(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(logp, logq)


def _reverse(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(logq, logp)


def _jsd(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    logm = mixture(logp, logq, config.beta)
    return config.jsd_scale * (config.beta * kl(logp, logm) + (1 - config.beta) * kl(logq, logm))


def _skew_forward(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(logp, mixture(logp, logq, config.skew))


def _skew_reverse(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(logq, mixture(logq, logp, config.skew))


def _total_variation(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return 0.5 * (logq.exp() - logp.exp()).abs().sum(-1)


def _adaptive(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    head_N = head_share_N(logq, logp, config.mu)
    return head_N * kl(logp, logq) + (1 - head_N) * kl(logq, logp)


def _term_forward(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> FormTerm:
    return FormTerm(kl(logp, logq), logp.exp().neg_())


def _term_reverse(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> FormTerm:
    terms = _kl_terms(logq, logp)
    return FormTerm(terms.sum(-1), terms)


def _term_jsd(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> FormTerm:
    # dD/dq = (1 - beta) (log q - log m): what comes through m cancels.
    logm = mixture(logp, logq, config.beta)
    terms = _kl_terms(logq, logm).mul_((1 - config.beta) * config.jsd_scale)
    return FormTerm(config.jsd_scale * config.beta * kl(logp, logm) + terms.sum(-1), terms)


def _term_skew_forward(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> FormTerm:
    logm = mixture(logp, logq, config.skew)
    return FormTerm(kl(logp, logm), _ratio(logq, logm).mul_(logp.exp()).mul_(config.skew - 1))


def _term_skew_reverse(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> FormTerm:
    logm = mixture(logq, logp, config.skew)
    terms = _kl_terms(logq, logm)
    value_N = terms.sum(-1)
    return FormTerm(value_N, terms.addcmul_(_ratio(logq, logm), logq.exp(), value=-config.skew))


def _term_total_variation(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> FormTerm:
    gap = logq.exp() - logp.exp()
    return FormTerm(0.5 * gap.abs().sum(-1), gap.sign_().mul_(logq.exp()).mul_(0.5))


def _term_adaptive(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> FormTerm:
    head_N = head_share_N(logq, logp, config.mu)
    terms = _kl_terms(logq, logp)
    value_N = head_N * kl(logp, logq) + (1 - head_N) * terms.sum(-1)
    return FormTerm(value_N, terms.mul_((1 - head_N)[..., None]).addcmul_(head_N[..., None], logp.exp(), value=-1))


# Divergence per position at temperature 1, for autograd to differentiate.
_VALUES: dict[str, Callable[[Tensor, Tensor, DivergenceConfig], Tensor]] = {
    "forward_kl": _forward,
    "reverse_kl": _reverse,
    "jsd": _jsd,
    "skew_forward_kl": _skew_forward,
    "skew_reverse_kl": _skew_reverse,
    "total_variation": _total_variation,
    "adaptive_kl": _adaptive,
}
# The same value with its gradient worked out by hand; neither argument may require a gradient.
_TERMS: dict[str, Callable[[Tensor, Tensor, DivergenceConfig], FormTerm]] = {
    "forward_kl": _term_forward,
    "reverse_kl": _term_reverse,
    "jsd": _term_jsd,
    "skew_forward_kl": _term_skew_forward,
    "skew_reverse_kl": _term_skew_reverse,
    "total_variation": _term_total_variation,
    "adaptive_kl": _term_adaptive,
}
