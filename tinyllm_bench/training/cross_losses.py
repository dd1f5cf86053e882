"""Losses for a teacher with another tokenizer: pure functions of both models' logits and of the aligned positions.

`span_projection`: every group of tokens that spell the same bytes. The student's distribution is carried into the
teacher's vocabulary (`Crossing`) and compared by KL(teacher || student). For a group of several tokens both
distributions are those of its LAST position times the probabilities of the tokens before it (chain rule; what TRL's
GOLD calls `bayesian`); all else is rest.
`overlap`: one-to-one positions only, KL over the shared sub-vocabulary and one bucket for the rest. Words that only
one side has as a token are rest on that side alone, which pulls the student towards its own unshared tokens.
`uld` (arXiv:2402.12030): position by position without alignment, L1 between the sorted probabilities.

Losses are per target position of the student and in nats (ULD: probability, at most 2). A group's loss is placed at its
last position and counts once, however many tokens it has. The trainer sums and divides; cross-entropy is added outside.
For one tokenizer on both sides the first two are the plain forward KL.

Shape suffixes: N student's target positions, M teacher's, S and T their vocabularies, V the larger, G groups,
C columns, P pairs, E entries of a matrix.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from tinyllm_bench.models.vocabulary import Overlap, Vocabulary, overlap, spell, vocabulary

# Columns that one token of the student is shared out over at most (X-Token's number).
MOST = 4
# Log-probability of the impossible. Finite, because infinities meet as NaN in gradients.
NEVER = -1e30
_MOST_LEADS = 4096

Rows = Literal["split", "first"]
Entry = tuple[int, int, float]


class Lead(NamedTuple):
    """Bytes that one side has written of a group while the other side's last token still covers them."""

    side: Literal["student", "teacher"]
    written: bytes


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Groups of target positions as index tensors; positions count over all examples of a batch.

    student_G2 and teacher_G2: first and last position of each group; leads: of each group, None where it is one to
    one; pairs_P2: positions side by side without alignment, ends of text left out; student_ids_N and teacher_ids_M:
    the ids at the positions.
    """

    student_G2: Tensor
    teacher_G2: Tensor
    leads: tuple[Lead | None, ...]
    pairs_P2: Tensor
    student_ids_N: Tensor
    teacher_ids_M: Tensor

    def to(self, device: torch.device | str) -> "Spans":
        """The same on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def within(self, rows: slice) -> tuple["Spans", slice]:
        """The part for some of the student's positions, counted from their start, and the teacher's rows it needs.

        A group that begins before the part is left out: its earlier probabilities are not in this chunk. Give a student
        chunks of whole examples where results must not depend on the chunk.
        """
        keep_G = (self.student_G2[:, 0] >= rows.start) & (self.student_G2[:, 1] < rows.stop)
        keep_P = (self.pairs_P2[:, 0] >= rows.start) & (self.pairs_P2[:, 0] < rows.stop)
        used = torch.cat([self.teacher_G2[keep_G].flatten(), self.pairs_P2[keep_P][:, 1]])
        theirs = slice(int(used.min()), int(used.max()) + 1) if used.numel() else slice(0, 0)
        start = torch.tensor([rows.start, theirs.start], device=self.pairs_P2.device)
        part = Spans(
            student_G2=self.student_G2[keep_G] - rows.start,
            teacher_G2=self.teacher_G2[keep_G] - theirs.start,
            leads=tuple(lead for lead, inside in zip(self.leads, keep_G.tolist(), strict=True) if inside),
            pairs_P2=self.pairs_P2[keep_P] - start,
            student_ids_N=self.student_ids_N[rows],
            teacher_ids_M=self.teacher_ids_M[theirs],
        )
        return part, theirs


# --- From the student's vocabulary to the teacher's: the columns that both are compared in ---------------------------
# A column is a token of the teacher. The student's probabilities flow into columns by a sparse matrix W, at most four
# columns for a token: 1 where the teacher has a token of the same bytes, otherwise shared out over the teacher's own
# tokenisation of these bytes. Tokens of the teacher that no token of the student spells are counted in the column of
# what the student would begin them with; without that the student would be blamed for a word it can only write in
# pieces. What reaches no column on either side is one last bucket, the rest, where that means the same on both sides.
#
# Inside a group of several tokens, a token is read from where the other side's last token begins (`Lead`): a student's
# `347` beside the teacher's `3 4 7` is compared by its `7`.


@dataclass(frozen=True, eq=False)
class Side:
    """A sparse matrix from one vocabulary to the columns; weights of one token sum to 1 over its columns."""

    tokens_E: Tensor
    columns_E: Tensor
    log_weights_E: Tensor
    size: int

    @cached_property
    def one_to_one(self) -> bool:
        """Whether column c is token `tokens_E[c]` and nothing else."""
        columns = torch.arange(self.size, device=self.columns_E.device)
        return torch.equal(self.columns_E, columns) and not bool(self.log_weights_E.any())

    def log_columns(self, log_GV: Tensor) -> Tensor:
        """Log of the probability in each column, (G, C).

        With a gradient it is exact also where a probability underflows; without one such a column counts as empty,
        which is faster.
        """
        if self.one_to_one:
            return log_GV.index_select(1, self.tokens_E)
        parts_GE = log_GV.index_select(1, self.tokens_E) + self.log_weights_E
        if not log_GV.requires_grad:
            sums_GC = parts_GE.new_zeros(len(parts_GE), self.size).index_add(1, self.columns_E, parts_GE.exp())
            return torch.where(sums_GC > 0, sums_GC, 1.0).log().masked_fill(sums_GC == 0, NEVER)
        index_GE = self.columns_E.expand(parts_GE.shape[0], -1)
        most_GC = parts_GE.new_full((parts_GE.shape[0], self.size), NEVER)
        most_GC = most_GC.scatter_reduce(1, index_GE, parts_GE.detach(), "amax")
        scaled_GE = (parts_GE - most_GC.gather(1, index_GE)).exp()
        sums_GC = parts_GE.new_zeros(most_GC.shape).index_add(1, self.columns_E, scaled_GE)
        return sums_GC.log() + most_GC

    def log_rest(self, log_GV: Tensor) -> Tensor:
        """Log of the probability of tokens that reach no column, (G,)."""
        reached_V = torch.zeros(log_GV.shape[1], dtype=torch.bool, device=log_GV.device)
        reached_V[self.tokens_E] = True
        return log_GV.masked_fill(reached_V, NEVER).logsumexp(-1)


class Projection(NamedTuple):
    """Both vocabularies' matrices into the same columns; has_rest: whether all else is compared as one bucket too."""

    student: Side
    teacher: Side
    has_rest: bool


def make_projection(
    student: Iterable[Entry], teacher: Iterable[Entry], device: torch.device, *, has_rest: bool
) -> Projection:
    """A projection from (token, teacher's token that names the column, weight) of either side.

    Every column is reached by the student; a teacher's entry for a column that is not is left out.
    """
    ours = sorted(student, key=lambda entry: (entry[1], entry[0]))
    number = {name: place for place, name in enumerate(dict.fromkeys(name for _, name, _ in ours))}
    theirs = sorted((entry for entry in teacher if entry[1] in number), key=lambda e: (number[e[1]], e[0]))

    def side(entries: Sequence[Entry]) -> Side:
        columns = [number[name] for _, name, _ in entries]
        weights = torch.tensor([weight for _, _, weight in entries], dtype=torch.float64)
        return Side(
            torch.tensor([token for token, _, _ in entries], dtype=torch.long, device=device),
            torch.tensor(columns, dtype=torch.long, device=device),
            weights.log().float().to(device),
            len(number),
        )

    return Projection(side(ours), side(theirs), has_rest)


class Crossing:
    """The projections of a pair of tokenizers; made once, each when it is first used.

    rows: how a token of the student that the teacher writes in several is shared out: `split` over them evenly (the
    recipe of X-Token's projection), or `first` all to the one the teacher would begin with, which is what the
    teacher's own distribution at that position counts.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        *,
        rows: Rows = "split",
        device: torch.device | str = "cpu",
    ) -> None:
        self.student: Vocabulary = vocabulary(student)
        self.teacher: Vocabulary = vocabulary(teacher)
        self.rows = rows
        self.device = torch.device(device)
        self._tokenizers = student, teacher
        self._after: dict[Lead, Projection] = {}

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Entries that mean the same on both sides."""
        return self.overlap.pairs

    @cached_property
    def overlap(self) -> Overlap:
        """The shared sub-vocabulary and its size."""
        return overlap(*self._tokenizers)

    @cached_property
    def exact(self) -> Projection:
        """Only what means the same on both sides; all other tokens of either vocabulary are the rest."""
        return make_projection(
            [(ours, theirs, 1.0) for ours, theirs in self.pairs],
            [(theirs, theirs, 1.0) for _, theirs in self.pairs],
            self.device,
            has_rest=len(self.pairs) < len(self.student.pieces),
        )

    @cached_property
    def whole(self) -> Projection:
        """All of the student's vocabulary in the teacher's, and those of the teacher's that the student writes in
        pieces. What is left are special tokens of either side, which are unrelated: no rest is compared.
        """
        pinned = dict(self.pairs)
        left = [n for n, piece in enumerate(self.student.pieces) if piece and n not in pinned]
        ours = [*((token, name, 1.0) for token, name in pinned.items()), *self._shared_out(left)]
        first_of = {token: name for token, name, _ in reversed(self._shared_out(left, rows="first"))} | pinned
        named = {name for _, name, _ in ours}
        unreached = [n for n, piece in enumerate(self.teacher.pieces) if piece and n not in named]
        return make_projection(
            ours,
            [*((name, name, 1.0) for name in named), *self._folded(unreached, first_of)],
            self.device,
            has_rest=False,
        )

    def after(self, lead: Lead | None) -> Projection:
        """The projection of last tokens of a group, given what one side has written of the other's last token."""
        if lead is None:
            return self.whole
        if lead not in self._after:
            if len(self._after) >= _MOST_LEADS:
                self._after.clear()
            entries = self._remainders(lead.written) if lead.side == "teacher" else self._completions(lead.written)
            names = {name for _, name, _ in entries}
            theirs = [(name, name, 1.0) for name in names]
            self._after[lead] = make_projection(entries, theirs, self.device, has_rest=True)
        return self._after[lead]

    def _shared_out(self, tokens: Sequence[int], *, rows: Rows | None = None) -> list[Entry]:
        """Rows of tokens without an equal, over the teacher's own tokenisation of their bytes."""
        return self._spread([(token, self.student.pieces[token] or b"") for token in tokens], rows or self.rows)

    def _spread(self, texts: Sequence[tuple[int, bytes]], rows: Rows) -> list[Entry]:
        spelled = spell(self._tokenizers[1], [text for _, text in texts])
        entries: list[Entry] = []
        for (token, _), ids in zip(texts, spelled, strict=True):
            counts = Counter(ids[:1] if rows == "first" else ids).most_common(MOST)
            total = sum(count for _, count in counts)
            entries += [(token, name, count / total) for name, count in counts]
        return entries

    def _folded(self, unreached: Sequence[int], first_of: dict[int, int]) -> list[Entry]:
        """Tokens of the teacher into the column of the token that the student would begin them with."""
        spelled = spell(self._tokenizers[0], [self.teacher.pieces[token] or b"" for token in unreached])
        pairs = zip(unreached, spelled, strict=True)
        return [(token, first_of[ids[0]], 1.0) for token, ids in pairs if ids and ids[0] in first_of]

    def _remainders(self, written: bytes) -> list[Entry]:
        """The student's tokens that begin with what the teacher has written, by what is left of them."""
        left = [(self.student.ids[text], text[len(written) :]) for text in self.student.beginning_with(written)]
        left = [(token, rest) for token, rest in left if rest]
        exact = [(token, self.teacher.ids[rest], 1.0) for token, rest in left if rest in self.teacher.ids]
        return exact + self._spread([row for row in left if row[1] not in self.teacher.ids], self.rows)

    def _completions(self, written: bytes) -> list[Entry]:
        """The teacher's tokens that begin with what the student has written, by what completes them."""
        ends = [(self.student.ids.get(text[len(written) :]), text) for text in self.teacher.beginning_with(written)]
        return [(token, self.teacher.ids[text], 1.0) for token, text in ends if token is not None]


# --- The losses -----------------------------------------------------------------------------------------------------

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
    logq_NS, logp_MT = _log_probs(logits_NS, crossing.student), _log_probs(teacher_MT, crossing.teacher)
    return _collect(logq_NS, logp_MT, spans, {None: crossing.exact})


def span_projection_N(logits_NS: Tensor, teacher_MT: Tensor, spans: Spans, crossing: Crossing) -> Crossed:
    """KL in the teacher's vocabulary, for every group; arguments as of `overlap_N`."""
    logq_NS, logp_MT = _log_probs(logits_NS, crossing.student), _log_probs(teacher_MT, crossing.teacher)
    return _collect(logq_NS, logp_MT, spans, {lead: crossing.after(lead) for lead in dict.fromkeys(spans.leads)})


def uld_N(logits_NS: Tensor, teacher_MT: Tensor, spans: Spans, crossing: Crossing) -> Crossed:
    """L1 between the sorted probabilities, the smaller vocabulary filled with zeros; arguments as of `overlap_N`."""
    ours, theirs = spans.pairs_P2.unbind(1)
    q_PS = _log_probs(logits_NS[ours], crossing.student).exp().sort(dim=-1, descending=True).values
    p_PT = _log_probs(teacher_MT[theirs], crossing.teacher).exp().detach().sort(dim=-1, descending=True).values
    width = max(q_PS.shape[1], p_PT.shape[1])
    q_PV, p_PV = (functional.pad(x, (0, width - x.shape[1])) for x in (q_PS, p_PT))
    loss_N = q_PV.new_zeros(logits_NS.shape[0]).index_add(0, ours, (q_PV - p_PV).abs().sum(-1))
    return Crossed(loss_N, _mass(p_PV), len(ours))


CrossLoss = Callable[[Tensor, Tensor, Spans, Crossing], Crossed]
LOSSES: Mapping[str, CrossLoss] = {"span_projection": span_projection_N, "overlap": overlap_N, "uld": uld_N}


def _log_probs(logits_NV: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Log-probabilities over the tokenizer's entries, in float32 at least and finite."""
    logits_NV = logits_NV[:, : len(vocabulary.pieces)]
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
    if rest_G is None or bool(alone_G.all()):  # groups without a rest are one to one
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
