"""Divergences of a student's distributions from a teacher's, per target position.

p is the teacher's distribution and q the student's, both over the same vocabulary; values are in nats. The teacher is
`Dense` (every log-probability) or `TopK` (the top-k tokens and the mass of the rest). With `TopK` both sides are
compared over K + 1 outcomes, the last being "any other token": the value is a lower bound of the dense one (data
processing inequality) and equal to it at K = V. That is well defined for forward KL, skew forward KL, JSD and total
variation. Divergences that need p where q is large (reverse KL, skew reverse KL, adaptive KL) are refused unless K = V.

`divergence_N` uses closed-form gradients, a few rows at a time: it stores one number per logit for the backward pass.
`autograd_divergence_N` is the same by plain autograd; it is the reference and stores several times more.

Shape suffixes: N target positions, V entries of a distribution (the vocabulary), K top-k tokens, B = K + 1 outcomes.
"""

import math
from collections.abc import Callable
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
_BLOCK_LOGITS = 2**20  # logits that a formula works on at once: 4 MiB in float32, times its temporaries


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
    """A divergence and its settings.

    kind: forward_kl KL(p|q); reverse_kl KL(q|p); jsd GKD's `beta KL(p|m) + (1 - beta) KL(q|m)`, m = beta p +
    (1 - beta) q; skew_forward_kl KL(p | skew p + (1 - skew) q); skew_reverse_kl KL(q | (1 - skew) p + skew q);
    total_variation `sum |p - q| / 2`; adaptive_kl forward and reverse KL mixed by where p and q differ, in the head
    (the most likely tokens up to probability mu) or in the tail; the mixing weights carry no gradient.

    The scale of JSD: JSD(beta) falls to 0 with beta (as beta KL(p|q)) and with 1 - beta (as (1 - beta) KL(q|p)), so
    that beta 0.001 is a thousand times weaker than forward KL, while TRL and Liger take beta 0 as forward KL itself.
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
    def _check_beta(self) -> Self:
        if self.kind == "jsd" and self.beta in (0, 1) and not self.normalize:
            instead = "forward_kl" if self.beta == 0 else "reverse_kl"
            raise UserError(
                f"jsd with beta {self.beta:g} is 0 everywhere; set normalize=true or kind={instead}, which is its limit"
            )
        return self

    @property
    def form(self) -> Kind:
        """The formula in use: a normalised JSD at beta 0 or 1 is its limit."""
        if self.kind != "jsd" or self.beta not in (0, 1):
            return self.kind
        return "forward_kl" if self.beta == 0 else "reverse_kl"

    @property
    def jsd_scale(self) -> float:
        """The factor of a JSD: 1 / (beta (1 - beta)) if it is normalised."""
        return 1 / (self.beta * (1 - self.beta)) if self.normalize else 1.0

    @property
    def factor(self) -> float:
        """The factor of every divergence: the squared temperature if that is set."""
        return self.temperature**2 if self.temperature_squared else 1.0


def divergence_N(
    logits_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig, *, vocabulary: int | None = None
) -> Tensor:
    """Divergence per position in nats, differentiable (once) in the student's logits; float64 stays, else float32.

    `vocabulary` is the tokenizer's size if a model's vocabulary is padded: both sides are cut to it and renormalised.
    Logits of -inf are impossible tokens.

    Raises:
        UserError: sizes differ and no vocabulary is given, or a `TopK` is not enough for this divergence.
    """
    logits_NV, teacher = _same_vocabulary(logits_NV, teacher, config, vocabulary)
    return _ClosedForm.apply(logits_NV, teacher, config)


def autograd_divergence_N(
    logits_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig, *, vocabulary: int | None = None
) -> Tensor:
    """The same, differentiated by autograd; for comparison, and for second derivatives."""
    logits_NV, teacher = _same_vocabulary(logits_NV, teacher, config, vocabulary)
    return config.factor * _VALUES[config.form](*_log_probs(_wide(logits_NV), teacher, config), config)


def divergence_of(teacher: Any, config: DivergenceConfig, *, vocabulary: int | None = None) -> PerPosition:
    """The divergence as a loss per position; the teacher computes its distributions chunk by chunk."""
    return lambda logits_NV, rows: divergence_N(logits_NV, teacher.rows(rows), config, vocabulary=vocabulary)


class _ClosedForm(torch.autograd.Function):
    """Values and gradient block by block; only the gradient is stored, in the logits' own type."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig) -> Tensor:
        gradient_NV = torch.empty_like(logits_NV) if ctx.needs_input_grad[0] else None
        values_N = torch.empty(len(logits_NV), dtype=_wide(logits_NV[:0]).dtype, device=logits_NV.device)
        count, size = logits_NV.shape
        rows_per_block = max(_BLOCK_LOGITS // max(size, 1), 1)
        for start in range(0, count, rows_per_block):
            rows = slice(start, start + rows_per_block)
            z_NV, part = _wide(logits_NV[rows]), teacher.rows(rows)
            if gradient_NV is None:
                values_N[rows] = _VALUES[config.form](*_log_probs(z_NV, part, config), config)
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
    """The divergence and its gradient in z / temperature."""
    logq_NV = torch.log_softmax(z_NV / config.temperature, -1)
    if isinstance(teacher, Dense):
        value_N, term_NV = _TERMS[config.form](logq_NV, _teacher_log_probs(teacher, logq_NV, config), config)
        return value_N, logit_gradient(term_NV, logq_NV.exp_())
    logq_NB, logp_NB = _buckets(logq_NV, teacher)
    value_N, term_NB = _TERMS[config.form](logq_NB, logp_NB, config)
    gradient_NB = logit_gradient(term_NB, logq_NB.exp())
    # the tokens of the rest share its gradient in proportion to their probabilities
    empty_N = logq_NB[:, -1] == -math.inf
    share_NV = (logq_NV - logq_NB[:, -1].masked_fill(empty_N, 0)[:, None]).exp_()
    gradient_NV = share_NV.mul_(gradient_NB[:, -1].masked_fill(empty_N, 0)[:, None])
    return value_N, gradient_NV.scatter_(-1, teacher.ids_NK.long(), gradient_NB[:, :-1])


def _log_probs(z_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the student and of the teacher over the same outcomes."""
    logq_NV = torch.log_softmax(z_NV / config.temperature, -1)
    if isinstance(teacher, TopK):
        return _buckets(logq_NV, teacher)
    return logq_NV, _teacher_log_probs(teacher, logq_NV, config)


def _teacher_log_probs(teacher: Dense, like_NV: Tensor, config: DivergenceConfig) -> Tensor:
    """The teacher's log-probabilities in the shape and type of the student's, at the temperature."""
    with torch.no_grad():
        logp_NV = teacher.logp_NV.to(like_NV.dtype)[:, : like_NV.shape[-1]]
        if config.temperature == 1 and logp_NV.shape[-1] == teacher.logp_NV.shape[-1]:
            return logp_NV
        # log-probabilities differ from logits by a constant over the tokens, which the softmax removes
        return torch.log_softmax(logp_NV / config.temperature, -1)


def _buckets(logq_NV: Tensor, teacher: TopK) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both sides over the top-k tokens and the rest."""
    ids_NK = teacher.ids_NK.long()
    others_NV = logq_NV.scatter(-1, ids_NK, -math.inf)
    empty_N = (others_NV == -math.inf).all(-1)
    # the rest of q is a sum of its tokens: 1 - (sum of the others) would lose its digits
    rest_N = others_NV.masked_fill(empty_N[:, None], 0).logsumexp(-1).masked_fill(empty_N, -math.inf)
    logp_NB = torch.cat([teacher.logp_NK, teacher.tail_N[:, None]], -1).detach().to(logq_NV.dtype)
    return torch.cat([logq_NV.gather(-1, ids_NK), rest_N[:, None]], -1), logp_NB


def _same_vocabulary(
    logits_NV: Tensor, teacher: Dense | TopK, config: DivergenceConfig, vocabulary: int | None
) -> tuple[Tensor, Dense | TopK]:
    """Student and teacher over one vocabulary, checked; a `TopK` with K = V becomes `Dense`."""
    size = logits_NV.shape[-1]
    teacher_size = teacher.logp_NV.shape[-1] if isinstance(teacher, Dense) else size
    if vocabulary is None and teacher_size != size:
        raise UserError(
            f"the student has {size} logits and the teacher {teacher_size}; if they share a tokenizer, give its size as"
            " vocabulary, so that both are cut to it"
        )
    vocabulary = size if vocabulary is None else vocabulary
    smaller = min(size, teacher_size)
    if not 0 < vocabulary <= smaller:
        raise UserError(f"vocabulary {vocabulary}: it must be 1 to {smaller}, the entries that both sides have")
    logits_NV = logits_NV[:, :vocabulary]
    if isinstance(teacher, Dense):
        return logits_NV, teacher
    if teacher.ids_NK.numel() and int(teacher.ids_NK.max()) >= vocabulary:
        raise UserError(
            f"the teacher's top-k tokens include id {int(teacher.ids_NK.max())}, the vocabulary ends at"
            f" {vocabulary - 1}; cut the teacher's logits to the tokenizer's size before they are cached"
        )
    k = teacher.ids_NK.shape[-1]
    if k == vocabulary:
        return logits_NV, Dense(torch.empty_like(teacher.logp_NK).scatter_(-1, teacher.ids_NK.long(), teacher.logp_NK))
    if config.form in NEEDS_EVERY_TOKEN:
        raise UserError(
            f"{config.form} needs the teacher's probability of every token the student may prefer; only {k} of"
            f" {vocabulary} are cached. Use forward_kl, skew_forward_kl, jsd or total_variation, or a live teacher"
        )
    if config.temperature != 1:
        raise UserError(
            f"temperature {config.temperature:g} cannot be applied to {k} of {vocabulary} tokens: the mass of the rest"
            " would change by an unknown factor. Use temperature 1, or a live teacher"
        )
    return logits_NV, teacher


def _wide(logits_NV: Tensor) -> Tensor:
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


# --- Formulas over log-probabilities, and their closed-form gradients -----------------------------------------------
# The last dimension is summed. Mixtures are computed in log space. An entry of -inf is an impossible token: masks are
# applied to the inputs of a formula, never to its output, because a masked output still propagates NaN backwards. A
# divergence that is infinite (forward KL where q is 0 and p is not, reverse KL the other way round) is inf.


class ValueAndTerm(NamedTuple):
    """A divergence D per position, and its logit-gradient term: `q * dD/dq` per entry, up to a multiple of q."""

    value_N: Tensor
    term_NV: Tensor


def logit_gradient(term_NV: Tensor, q_NV: Tensor) -> Tensor:
    """dD/dz for q = softmax(z): the term minus q times the sum of the term. `term_NV` is overwritten."""
    return term_NV.addcmul_(q_NV, term_NV.sum(-1, keepdim=True), value=-1)


def kl(loga_NV: Tensor, logb_NV: Tensor) -> Tensor:
    """KL(a || b) per position."""
    return _kl_terms(loga_NV, logb_NV).sum(-1)


def mixture(loga_NV: Tensor, logb_NV: Tensor, share_of_a: float) -> Tensor:
    """log(w a + (1 - w) b)."""
    log_w, log_1_w = (math.log(share) if share > 0 else -math.inf for share in (share_of_a, 1 - share_of_a))
    impossible = (loga_NV == -math.inf) & (logb_NV == -math.inf)
    a_NV = loga_NV.masked_fill(impossible, 0) + log_w
    b_NV = logb_NV.masked_fill(impossible, 0) + log_1_w
    return torch.logaddexp(a_NV, b_NV).masked_fill(impossible, -math.inf)


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
    impossible = loga_NV == -math.inf
    return (loga_NV.masked_fill(impossible, 0) - logb_NV.masked_fill(impossible, 0)).exp_().masked_fill_(impossible, 0)


# Each divergence as a value, for autograd to differentiate, and with its logit-gradient term; for the term neither
# argument may require a gradient.


def _forward_kl(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(logp, logq)


def _forward_kl_term(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> ValueAndTerm:
    # q dD/dq = -p
    return ValueAndTerm(kl(logp, logq), logp.exp().neg_())


def _reverse_kl(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(logq, logp)


def _reverse_kl_term(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> ValueAndTerm:
    # q dD/dq = q log(q / p) + q
    terms = _kl_terms(logq, logp)
    return ValueAndTerm(terms.sum(-1), terms)


def _jsd(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    logm = mixture(logp, logq, config.beta)
    return config.jsd_scale * (config.beta * kl(logp, logm) + (1 - config.beta) * kl(logq, logm))


def _jsd_term(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> ValueAndTerm:
    # q dD/dq = (1 - beta) q log(q / m): the derivative through m cancels
    logm = mixture(logp, logq, config.beta)
    terms = _kl_terms(logq, logm).mul_((1 - config.beta) * config.jsd_scale)
    return ValueAndTerm(config.jsd_scale * config.beta * kl(logp, logm) + terms.sum(-1), terms)


def _skew_forward_kl(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(logp, mixture(logp, logq, config.skew))


def _skew_forward_kl_term(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> ValueAndTerm:
    # q dD/dq = -(1 - skew) p q / m
    logm = mixture(logp, logq, config.skew)
    return ValueAndTerm(kl(logp, logm), _ratio(logq, logm).mul_(logp.exp()).mul_(config.skew - 1))


def _skew_reverse_kl(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return kl(logq, mixture(logq, logp, config.skew))


def _skew_reverse_kl_term(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> ValueAndTerm:
    # q dD/dq = q log(q / m) + q - skew q^2 / m
    logm = mixture(logq, logp, config.skew)
    terms = _kl_terms(logq, logm)
    value_N = terms.sum(-1)
    return ValueAndTerm(value_N, terms.addcmul_(_ratio(logq, logm), logq.exp(), value=-config.skew))


def _total_variation(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    return 0.5 * (logq.exp() - logp.exp()).abs().sum(-1)


def _total_variation_term(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> ValueAndTerm:
    # q dD/dq = q sign(q - p) / 2
    gap = logq.exp() - logp.exp()
    return ValueAndTerm(0.5 * gap.abs().sum(-1), gap.sign_().mul_(logq.exp()).mul_(0.5))


def _adaptive_kl(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> Tensor:
    head_N = head_share_N(logq, logp, config.mu)
    return head_N * kl(logp, logq) + (1 - head_N) * kl(logq, logp)


def _adaptive_kl_term(logq: Tensor, logp: Tensor, config: DivergenceConfig) -> ValueAndTerm:
    # with h the head's share, held fixed: q dD/dq = (1 - h) q log(q / p) - h p
    head_N = head_share_N(logq, logp, config.mu)
    terms = _kl_terms(logq, logp)
    value_N = head_N * kl(logp, logq) + (1 - head_N) * terms.sum(-1)
    return ValueAndTerm(value_N, terms.mul_((1 - head_N)[..., None]).addcmul_(head_N[..., None], logp.exp(), value=-1))


_VALUES: dict[str, Callable[[Tensor, Tensor, DivergenceConfig], Tensor]] = {
    "forward_kl": _forward_kl,
    "reverse_kl": _reverse_kl,
    "jsd": _jsd,
    "skew_forward_kl": _skew_forward_kl,
    "skew_reverse_kl": _skew_reverse_kl,
    "total_variation": _total_variation,
    "adaptive_kl": _adaptive_kl,
}
_TERMS: dict[str, Callable[[Tensor, Tensor, DivergenceConfig], ValueAndTerm]] = {
    "forward_kl": _forward_kl_term,
    "reverse_kl": _reverse_kl_term,
    "jsd": _jsd_term,
    "skew_forward_kl": _skew_forward_kl_term,
    "skew_reverse_kl": _skew_reverse_kl_term,
    "total_variation": _total_variation_term,
    "adaptive_kl": _adaptive_kl_term,
}
