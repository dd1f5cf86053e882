"""Losses for a teacher with another tokenizer: pure functions of both models' logits and of the aligned positions.

`span_projection`: every group. The student's distribution is carried into the teacher's vocabulary (`projection`) and
compared by KL(teacher || student). For a group of several tokens both distributions are those of its LAST position
times the probabilities of the tokens before it (chain rule; what TRL's GOLD calls `bayesian`); all else is rest.
`overlap`: one-to-one positions only, KL over the shared sub-vocabulary and one bucket for the rest. Words that only
one side has as a token are rest on that side alone, which pulls the student towards its own unshared tokens.
`uld` (arXiv:2402.12030): position by position without alignment, L1 between the sorted probabilities.

Losses are per target position of the student and in nats (ULD: probability, at most 2). A group's loss stands at its
last position and counts once, however many tokens it has. The trainer sums and divides; cross-entropy is added outside.
For one tokenizer on both sides the first two are the plain forward KL.

Shape suffixes: N student's target positions, M teacher's, S and T their vocabularies, V the larger, G groups,
C columns, P pairs.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tinyllm_bench.models.vocabulary import Vocabulary
from tinyllm_bench.training.cross_view import CrossView as CrossView
from tinyllm_bench.training.cross_view import Spans as Spans
from tinyllm_bench.training.cross_view import make_view as make_view
from tinyllm_bench.training.projection import NEVER, Crossing, Lead, Projection, Side

# Probability that several tokens together are at most taken to have, so that the log of what is left stays finite.
_ALMOST_SURE = -1e-6
# And what an impossible one at least has, so that a running sum over it does not drown the others.
_ALMOST_NEVER = -1e4
# Numbers of the teacher's distributions that are held at once: 256 MiB in float32, some times over.
_MOST_NUMBERS = 2**26


class Crossed(NamedTuple):
    """A loss per student's position, and for the log: the teacher's probability in columns that are compared.

    `covered / groups` is the covered mass: a mean over the groups (ULD: pairs) that count.
    """

    loss_N: Tensor
    covered: Tensor
    groups: int


def overlap_N(logits_NS: Tensor, teacher_MT: Tensor, spans: Spans, crossing: Crossing) -> Crossed:
    """KL over the shared sub-vocabulary and the rest, at one-to-one positions.

    Logits or log-probabilities of the teacher; rows of vocabularies beyond the tokenizers' entries are left out.
    """
    logq_NS, logp_MT = _sure(logits_NS, crossing.student), _sure(teacher_MT, crossing.teacher)
    return _collect(logq_NS, logp_MT, spans, {None: crossing.exact})


def span_projection_N(logits_NS: Tensor, teacher_MT: Tensor, spans: Spans, crossing: Crossing) -> Crossed:
    """KL in the teacher's vocabulary, for every group; arguments as of `overlap_N`."""
    logq_NS, logp_MT = _sure(logits_NS, crossing.student), _sure(teacher_MT, crossing.teacher)
    return _collect(logq_NS, logp_MT, spans, {lead: crossing.after(lead) for lead in dict.fromkeys(spans.leads)})


def uld_N(logits_NS: Tensor, teacher_MT: Tensor, spans: Spans, crossing: Crossing) -> Crossed:
    """L1 between the sorted probabilities, the smaller vocabulary filled with zeros; arguments as of `overlap_N`."""
    ours, theirs = spans.pairs_P2.unbind(1)
    q_PS = _sure(logits_NS[ours], crossing.student).exp().sort(dim=-1, descending=True).values
    p_PT = _sure(teacher_MT[theirs], crossing.teacher).exp().detach().sort(dim=-1, descending=True).values
    width = max(q_PS.shape[1], p_PT.shape[1])
    q_PV, p_PV = (functional.pad(x, (0, width - x.shape[1])) for x in (q_PS, p_PT))
    loss_N = q_PV.new_zeros(logits_NS.shape[0]).index_add(0, ours, (q_PV - p_PV).abs().sum(-1))
    return Crossed(loss_N, _mass(p_PV), len(ours))


CrossLoss = Callable[[Tensor, Tensor, Spans, Crossing], Crossed]
LOSSES: Mapping[str, CrossLoss] = {"span_projection": span_projection_N, "overlap": overlap_N, "uld": uld_N}


def _sure(logits_NV: Tensor, known: Vocabulary) -> Tensor:
    """Log-probabilities over the tokenizer's entries, in float32 at least and finite."""
    logits_NV = logits_NV[:, : len(known.pieces)]
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return torch.log_softmax(logits_NV.clamp_min(NEVER), dim=-1)


def _mass(p_GC: Tensor) -> Tensor:
    """Probability of all columns, added over rows; of a quarter million numbers the sum may round to more than 1."""
    return p_GC.detach().sum(-1).clamp_max(1).sum()


def _collect(logq_NS: Tensor, logp_MT: Tensor, spans: Spans, projections: Mapping[Lead | None, Projection]) -> Crossed:
    """Losses of the groups whose lead has a projection, those of one lead together."""
    loss_N, covered, groups = 0 * logq_NS[:, 0], logq_NS.new_zeros(()), 0
    before_q = _before(logq_NS, spans.student_ids_N, spans.student_G2)
    before_p = _before(logp_MT.detach(), spans.teacher_ids_M, spans.teacher_G2)
    for lead, of in _by_lead(spans, projections, max(_MOST_NUMBERS // max(logp_MT.shape[1], 1), 1)):
        student, teacher, has_rest = projections[lead]
        last = spans.student_G2[of, 1]
        ours = _buckets(student, logq_NS[last], before_q[of], _alone(spans.student_G2[of]), has_rest=has_rest)
        with torch.no_grad():
            last_p = logp_MT[spans.teacher_G2[of, 1]]
            theirs = _buckets(teacher, last_p, before_p[of], _alone(spans.teacher_G2[of]), has_rest=has_rest)
        loss_N = loss_N.index_add(0, last, theirs.kl_to(ours))
        covered = covered + _mass(theirs.log_GC.exp())
        groups += len(of)
    return Crossed(loss_N, covered, groups)


def _by_lead(spans: Spans, leads: Mapping[Lead | None, Projection], most: int) -> Iterator[tuple[Lead | None, Tensor]]:
    """Numbers of the groups of each lead, at most so many at once."""
    members: dict[Lead | None, list[int]] = {}
    for number, lead in enumerate(spans.leads):
        if lead in leads:
            members.setdefault(lead, []).append(number)
    for lead, numbers in members.items():
        for part in torch.tensor(numbers, device=spans.student_G2.device).split(most):
            yield lead, part


def _alone(groups_G2: Tensor) -> Tensor:
    return groups_G2[:, 0] == groups_G2[:, 1]


def _before(log_NV: Tensor, ids_N: Tensor, groups_G2: Tensor) -> Tensor:
    """Log-probability of each group's tokens before its last; differences of running sums, hence in float64."""
    chosen_N = log_NV.gather(1, ids_N[:, None])[:, 0].double().clamp_min(_ALMOST_NEVER)
    sums_N = functional.pad(chosen_N.cumsum(0), (1, 0))
    return (sums_N[groups_G2[:, 1]] - sums_N[groups_G2[:, 0]]).to(log_NV.dtype)


class _Buckets(NamedTuple):
    """A distribution over columns and the rest, as logs; None where the rest is not compared."""

    log_GC: Tensor
    rest_G: Tensor | None

    def kl_to(self, other: "_Buckets") -> Tensor:
        """KL(self || other) per group; without a rest, of self within the columns, weighed by its mass in them."""
        inside_G = (self.log_GC.exp() * (self.log_GC - other.log_GC)).sum(-1)
        if self.rest_G is not None and other.rest_G is not None:
            return inside_G + self.rest_G.exp() * (self.rest_G - other.rest_G)
        mass_G = self.log_GC.logsumexp(-1)
        return inside_G - mass_G.exp() * mass_G


def _buckets(side: Side, last_GV: Tensor, before_G: Tensor, alone_G: Tensor, *, has_rest: bool) -> _Buckets:
    """The distribution of groups' ends: of the last token, times the probability of those before it if there are any.

    What is left is the rest: other tokens before, and other last tokens than the columns count.
    """
    columns_GC, rest_G = side.log_columns(last_GV), side.log_rest(last_GV) if has_rest else None
    if rest_G is None or bool(alone_G.all()):  # what has no rest stands one to one
        return _Buckets(columns_GC, rest_G)
    before_G = torch.where(alone_G, _ALMOST_SURE, before_G.clamp_max(_ALMOST_SURE))
    left_G = torch.logaddexp(_log1mexp(before_G), rest_G + before_G)
    chained_GC = columns_GC + before_G[:, None]
    return _Buckets(torch.where(alone_G[:, None], columns_GC, chained_GC), torch.where(alone_G, rest_G, left_G))


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of numbers below zero; each form only sees what it is exact for."""
    near = x > -math.log(2)
    close = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
