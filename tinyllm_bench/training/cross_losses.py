"""Losses for a teacher with another tokenizer: pure functions of both models' logits and of the aligned positions.

`span_projection`: all groups of tokens that spell the same bytes. The student's distribution is projected to the
teacher's vocabulary (`TokenizerPair`) and compared by KL(teacher || student). For a group of several tokens both
distributions are those of its LAST position times the probabilities of the tokens before it (chain rule; `bayesian` in
TRL's GOLD); everything else is the rest.
`overlap`: one-to-one positions only; KL over the shared sub-vocabulary and one bucket for the rest. Words that only
one side has as a token are rest on that side alone, which pulls the student towards its own unshared tokens.
`uld` (arXiv:2402.12030): position by position without alignment; L1 between the sorted probabilities.

Losses are per target position of the student and in nats (ULD: probability, at most 2). A group's loss is at its last
position and counts once, however many tokens it has. The trainer sums and divides; cross-entropy is added elsewhere.
With one tokenizer on both sides the first two are the plain forward KL.

Shape suffixes: N student's target positions, M teacher's, S and T their vocabularies, V the larger, G groups,
C columns, P pairs, E entries of a matrix.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from tinyllm_bench.models.vocabulary import Overlap, Vocabulary, encode_bytes, overlap, vocabulary

# The most columns that a token of the student is split over (as in X-Token).
MAX_COLUMNS_PER_TOKEN = 4
# The log-probability of an impossible token; finite, because infinities become NaN in gradients.
LOG_ZERO = -1e30
_MAX_CACHED_PREFIXES = 4096

SplitRule = Literal["split", "first"]
# (token, the teacher's token that names the column, weight)
Entry = tuple[int, int, float]


class Prefix(NamedTuple):
    """Bytes by which one side's last token of a group begins earlier than the other side's.

    side: the one that has already written these bytes, in tokens before its last.
    """

    side: Literal["student", "teacher"]
    written: bytes


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Groups of target positions as index tensors; positions count over all examples of a batch.

    student_G2, teacher_G2: first and last position of each group; prefixes: of each group, None if it is one to one;
    pairs_P2: n-th positions of both texts, without alignment and without ends of text; student_ids_N, teacher_ids_M:
    the ids at the positions.
    """

    student_G2: Tensor
    teacher_G2: Tensor
    prefixes: tuple[Prefix | None, ...]
    pairs_P2: Tensor
    student_ids_N: Tensor
    teacher_ids_M: Tensor

    def to(self, device: torch.device | str) -> "Spans":
        """The same spans on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def within(self, rows: slice) -> tuple["Spans", slice]:
        """The part for some of the student's positions, counted from their start, and the teacher's rows it needs.

        A group that begins before the part is left out: its earlier probabilities are not in this chunk. Use chunks of
        whole examples if results must not depend on the chunks.
        """
        keep_G = (self.student_G2[:, 0] >= rows.start) & (self.student_G2[:, 1] < rows.stop)
        keep_P = (self.pairs_P2[:, 0] >= rows.start) & (self.pairs_P2[:, 0] < rows.stop)
        used = torch.cat([self.teacher_G2[keep_G].flatten(), self.pairs_P2[keep_P][:, 1]])
        teacher_rows = slice(int(used.min()), int(used.max()) + 1) if used.numel() else slice(0, 0)
        start = torch.tensor([rows.start, teacher_rows.start], device=self.pairs_P2.device)
        part = Spans(
            student_G2=self.student_G2[keep_G] - rows.start,
            teacher_G2=self.teacher_G2[keep_G] - teacher_rows.start,
            prefixes=tuple(prefix for prefix, inside in zip(self.prefixes, keep_G.tolist(), strict=True) if inside),
            pairs_P2=self.pairs_P2[keep_P] - start,
            student_ids_N=self.student_ids_N[rows],
            teacher_ids_M=self.teacher_ids_M[teacher_rows],
        )
        return part, teacher_rows


# --- From the student's vocabulary to the teacher's: the columns in which both are compared --------------------------
# A column is a token of the teacher. The student's probabilities are mapped to columns by a sparse matrix W, at most
# four columns per token: weight 1 if the teacher has a token of the same bytes, otherwise the token is split over the
# teacher's own tokenisation of its bytes. A token of the teacher that no token of the student spells is counted in the
# column of the token that the student would begin it with; otherwise the student would be penalised for a word that it
# can only write in pieces. Tokens without a column are one last bucket, the rest, if that means the same on both sides.
#
# In a group of several tokens, the last tokens of both sides may begin at different bytes (`Prefix`). They are compared
# from the later beginning: the student's `347` with the teacher's `3 4 7` by its `7`.


@dataclass(frozen=True, eq=False)
class ColumnMap:
    """A sparse matrix from one vocabulary to the columns; the weights of a token sum to 1 over its columns."""

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

        With a gradient it is exact also if a probability underflows; without one such a column counts as empty, which
        is faster.
        """
        if self.one_to_one:
            return log_GV.index_select(1, self.tokens_E)
        parts_GE = log_GV.index_select(1, self.tokens_E) + self.log_weights_E
        if not log_GV.requires_grad:
            sums_GC = parts_GE.new_zeros(len(parts_GE), self.size).index_add(1, self.columns_E, parts_GE.exp())
            return torch.where(sums_GC > 0, sums_GC, 1.0).log().masked_fill(sums_GC == 0, LOG_ZERO)
        index_GE = self.columns_E.expand(parts_GE.shape[0], -1)
        # log-sum-exp per column
        max_GC = parts_GE.new_full((parts_GE.shape[0], self.size), LOG_ZERO)
        max_GC = max_GC.scatter_reduce(1, index_GE, parts_GE.detach(), "amax")
        scaled_GE = (parts_GE - max_GC.gather(1, index_GE)).exp()
        sums_GC = parts_GE.new_zeros(max_GC.shape).index_add(1, self.columns_E, scaled_GE)
        return sums_GC.log() + max_GC

    def log_rest(self, log_GV: Tensor) -> Tensor:
        """Log of the probability of tokens without a column, (G,)."""
        mapped_V = torch.zeros(log_GV.shape[1], dtype=torch.bool, device=log_GV.device)
        mapped_V[self.tokens_E] = True
        return log_GV.masked_fill(mapped_V, LOG_ZERO).logsumexp(-1)


class Projection(NamedTuple):
    """Maps of both vocabularies to the same columns; has_rest: whether the rest is compared as one more bucket."""

    student: ColumnMap
    teacher: ColumnMap
    has_rest: bool


def make_projection(
    student: Iterable[Entry], teacher: Iterable[Entry], device: torch.device, *, has_rest: bool
) -> Projection:
    """A projection from the entries of both sides.

    Columns are those of the student's entries; a teacher's entry for any other column is left out.
    """
    student_entries = sorted(student, key=lambda entry: (entry[1], entry[0]))
    column_of = {name: column for column, name in enumerate(dict.fromkeys(name for _, name, _ in student_entries))}
    teacher_entries = sorted(
        (entry for entry in teacher if entry[1] in column_of), key=lambda entry: (column_of[entry[1]], entry[0])
    )

    def column_map(entries: Sequence[Entry]) -> ColumnMap:
        weights = torch.tensor([weight for _, _, weight in entries], dtype=torch.float64)
        return ColumnMap(
            torch.tensor([token for token, _, _ in entries], dtype=torch.long, device=device),
            torch.tensor([column_of[name] for _, name, _ in entries], dtype=torch.long, device=device),
            weights.log().float().to(device),
            len(column_of),
        )

    return Projection(column_map(student_entries), column_map(teacher_entries), has_rest)


class TokenizerPair:
    """The projections between the vocabularies of two tokenizers, each computed once, when it is first used.

    split_rule: how to split a token of the student that the teacher writes in several: `split` evenly over them (as
    X-Token's projection), or `first`, all to the teacher's first token, which is the one that the teacher's own
    distribution at that position counts.
    """

    def __init__(
        self,
        student: PreTrainedTokenizerBase,
        teacher: PreTrainedTokenizerBase,
        *,
        split_rule: SplitRule = "split",
        device: torch.device | str = "cpu",
    ) -> None:
        self.student: Vocabulary = vocabulary(student)
        self.teacher: Vocabulary = vocabulary(teacher)
        self.split_rule: SplitRule = split_rule
        self.device = torch.device(device)
        self._tokenizers = student, teacher
        self._after_prefix: dict[Prefix, Projection] = {}

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Ids of the student and of the teacher that mean the same."""
        return self.overlap.pairs

    @cached_property
    def overlap(self) -> Overlap:
        """The shared sub-vocabulary and its size."""
        return overlap(*self._tokenizers)

    @cached_property
    def exact(self) -> Projection:
        """Only tokens that mean the same on both sides; all others of either vocabulary are the rest."""
        return make_projection(
            [(student_id, teacher_id, 1.0) for student_id, teacher_id in self.pairs],
            [(teacher_id, teacher_id, 1.0) for _, teacher_id in self.pairs],
            self.device,
            has_rest=len(self.pairs) < len(self.student.pieces),
        )

    @cached_property
    def whole(self) -> Projection:
        """The whole vocabularies of both sides. Only special tokens have no column; they are unrelated on the two
        sides, so no rest is compared.
        """
        # the student's tokens: paired with a token of the teacher, or split over several
        paired = dict(self.pairs)
        others = [(token, piece) for token, piece in enumerate(self.student.pieces) if piece and token not in paired]
        student_entries = [
            *((token, name, 1.0) for token, name in paired.items()),
            *self._split(others, self.split_rule),
        ]
        # the teacher's tokens: a column of their own, or that of the token with which the student begins them
        columns = {name for _, name, _ in student_entries}
        first_column = {token: name for token, name, _ in reversed(self._split(others, "first"))} | paired
        without_column = [
            (token, piece) for token, piece in enumerate(self.teacher.pieces) if piece and token not in columns
        ]
        spellings = encode_bytes(self._tokenizers[0], [piece for _, piece in without_column])
        teacher_entries = [
            *((name, name, 1.0) for name in columns),
            *(
                (token, first_column[ids[0]], 1.0)
                for (token, _), ids in zip(without_column, spellings, strict=True)
                if ids and ids[0] in first_column
            ),
        ]
        return make_projection(student_entries, teacher_entries, self.device, has_rest=False)

    def after(self, prefix: Prefix | None) -> Projection:
        """The projection of last tokens of a group with this prefix."""
        if prefix is None:
            return self.whole
        if prefix not in self._after_prefix:
            if len(self._after_prefix) >= _MAX_CACHED_PREFIXES:
                self._after_prefix.clear()
            written = prefix.written
            if prefix.side == "teacher":
                # the student's tokens that begin with what the teacher has written, by their remaining bytes
                tokens = [
                    (self.student.ids[text], text[len(written) :]) for text in self.student.beginning_with(written)
                ]
                tokens = [(token, remainder) for token, remainder in tokens if remainder]
                ids = self.teacher.ids
                entries = [(token, ids[remainder], 1.0) for token, remainder in tokens if remainder in ids]
                entries += self._split([entry for entry in tokens if entry[1] not in ids], self.split_rule)
            else:
                # the teacher's tokens that begin with what the student has written, by what completes them
                texts = self.teacher.beginning_with(written)
                completions = [(self.student.ids.get(text[len(written) :]), text) for text in texts]
                entries = [(token, self.teacher.ids[text], 1.0) for token, text in completions if token is not None]
            teacher_entries = [(name, name, 1.0) for name in {name for _, name, _ in entries}]
            self._after_prefix[prefix] = make_projection(entries, teacher_entries, self.device, has_rest=True)
        return self._after_prefix[prefix]

    def _split(self, texts: Sequence[tuple[int, bytes]], rule: SplitRule) -> list[Entry]:
        """Entries of tokens of the student over the teacher's tokenisation of their bytes."""
        spellings = encode_bytes(self._tokenizers[1], [text for _, text in texts])
        entries: list[Entry] = []
        for (token, _), ids in zip(texts, spellings, strict=True):
            counts = Counter(ids[:1] if rule == "first" else ids).most_common(MAX_COLUMNS_PER_TOKEN)
            total = sum(count for _, count in counts)
            entries += [(token, name, count / total) for name, count in counts]
        return entries


# --- The losses -----------------------------------------------------------------------------------------------------

# The largest log-probability of several tokens together: the log of the remaining probability must stay finite.
_LOG_ALMOST_ONE = -1e-6
# The smallest log-probability of a token in a running sum: a smaller one would drown the others.
_LOG_ALMOST_ZERO = -1e4
# Numbers of the teacher's distributions that are processed at once: 256 MiB in float32, times their temporaries.
_MAX_NUMBERS = 2**26


class CrossLoss(NamedTuple):
    """A loss per position of the student, and for the log the teacher's probability in the compared columns.

    `covered / groups` is the covered mass: a mean over the groups (ULD: pairs) in the loss.
    """

    loss_N: Tensor
    covered: Tensor
    groups: int


def overlap_N(logits_NS: Tensor, teacher_MT: Tensor, spans: Spans, pair: TokenizerPair) -> CrossLoss:
    """KL over the shared sub-vocabulary and the rest, at one-to-one positions.

    The teacher's may be logits or log-probabilities; entries beyond the tokenizers' vocabularies are left out.
    """
    logq_NS, logp_MT = _log_probs(logits_NS, pair.student), _log_probs(teacher_MT, pair.teacher)
    return _group_losses(logq_NS, logp_MT, spans, {None: pair.exact})


def span_projection_N(logits_NS: Tensor, teacher_MT: Tensor, spans: Spans, pair: TokenizerPair) -> CrossLoss:
    """KL in the teacher's vocabulary, for all groups; arguments as for `overlap_N`."""
    logq_NS, logp_MT = _log_probs(logits_NS, pair.student), _log_probs(teacher_MT, pair.teacher)
    projections = {prefix: pair.after(prefix) for prefix in dict.fromkeys(spans.prefixes)}
    return _group_losses(logq_NS, logp_MT, spans, projections)


def uld_N(logits_NS: Tensor, teacher_MT: Tensor, spans: Spans, pair: TokenizerPair) -> CrossLoss:
    """L1 between the sorted probabilities, the smaller vocabulary padded with zeros; arguments as for `overlap_N`."""
    student_P, teacher_P = spans.pairs_P2.unbind(1)
    q_PS = _log_probs(logits_NS[student_P], pair.student).exp().sort(dim=-1, descending=True).values
    p_PT = _log_probs(teacher_MT[teacher_P], pair.teacher).exp().detach().sort(dim=-1, descending=True).values
    width = max(q_PS.shape[1], p_PT.shape[1])
    q_PV, p_PV = (functional.pad(x, (0, width - x.shape[1])) for x in (q_PS, p_PT))
    loss_N = q_PV.new_zeros(logits_NS.shape[0]).index_add(0, student_P, (q_PV - p_PV).abs().sum(-1))
    return CrossLoss(loss_N, _mass(p_PV), len(student_P))


CrossLossFunction = Callable[[Tensor, Tensor, Spans, TokenizerPair], CrossLoss]
LOSSES: Mapping[str, CrossLossFunction] = {"span_projection": span_projection_N, "overlap": overlap_N, "uld": uld_N}


def _log_probs(logits_NV: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Log-probabilities over the tokenizer's entries, in float32 at least and finite."""
    logits_NV = logits_NV[:, : len(vocabulary.pieces)]
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return torch.log_softmax(logits_NV.clamp_min(LOG_ZERO), dim=-1)


def _mass(p_GC: Tensor) -> Tensor:
    """The probability of all columns, summed over rows; rounding can make a row's sum exceed 1."""
    return p_GC.detach().sum(-1).clamp_max(1).sum()


def _group_losses(
    logq_NS: Tensor, logp_MT: Tensor, spans: Spans, projections: Mapping[Prefix | None, Projection]
) -> CrossLoss:
    """The losses of the groups whose prefix has a projection; groups with the same prefix are computed together."""
    loss_N, covered, groups = 0 * logq_NS[:, 0], logq_NS.new_zeros(()), 0
    before_q_G = _log_prob_before_last(logq_NS, spans.student_ids_N, spans.student_G2)
    before_p_G = _log_prob_before_last(logp_MT.detach(), spans.teacher_ids_M, spans.teacher_G2)
    members: dict[Prefix | None, list[int]] = {}
    for number, prefix in enumerate(spans.prefixes):
        if prefix in projections:
            members.setdefault(prefix, []).append(number)
    groups_at_once = max(_MAX_NUMBERS // max(logp_MT.shape[1], 1), 1)
    for prefix, numbers in members.items():
        student_map, teacher_map, has_rest = projections[prefix]
        for groups_G in torch.tensor(numbers, device=spans.student_G2.device).split(groups_at_once):
            student_G2, teacher_G2 = spans.student_G2[groups_G], spans.teacher_G2[groups_G]
            q = _buckets(student_map, logq_NS[student_G2[:, 1]], before_q_G[groups_G], student_G2, has_rest=has_rest)
            with torch.no_grad():
                p = _buckets(
                    teacher_map, logp_MT[teacher_G2[:, 1]], before_p_G[groups_G], teacher_G2, has_rest=has_rest
                )
            loss_N = loss_N.index_add(0, student_G2[:, 1], p.kl_to(q))
            covered = covered + _mass(p.log_GC.exp())
            groups += len(groups_G)
    return CrossLoss(loss_N, covered, groups)


def _log_prob_before_last(log_NV: Tensor, ids_N: Tensor, groups_G2: Tensor) -> Tensor:
    """Log-probability of each group's tokens before its last: differences of running sums, hence in float64."""
    chosen_N = log_NV.gather(1, ids_N[:, None])[:, 0].double().clamp_min(_LOG_ALMOST_ZERO)
    sums_N = functional.pad(chosen_N.cumsum(0), (1, 0))
    return (sums_N[groups_G2[:, 1]] - sums_N[groups_G2[:, 0]]).to(log_NV.dtype)


class _Buckets(NamedTuple):
    """A distribution over columns and the rest, as logs; rest_G is None if the rest is not compared."""

    log_GC: Tensor
    rest_G: Tensor | None

    def kl_to(self, other: "_Buckets") -> Tensor:
        """KL(self || other) per group; without a rest, KL of self normalised over the columns, times its mass there."""
        inside_G = (self.log_GC.exp() * (self.log_GC - other.log_GC)).sum(-1)
        if self.rest_G is not None and other.rest_G is not None:
            return inside_G + self.rest_G.exp() * (self.rest_G - other.rest_G)
        mass_G = self.log_GC.logsumexp(-1)
        return inside_G - mass_G.exp() * mass_G


def _buckets(
    column_map: ColumnMap, last_GV: Tensor, before_G: Tensor, groups_G2: Tensor, *, has_rest: bool
) -> _Buckets:
    """The distribution of the groups' last tokens, times the probability of the tokens before them (chain rule).

    The rest is everything else: other tokens before, and last tokens without a column.
    """
    columns_GC, rest_G = column_map.log_columns(last_GV), column_map.log_rest(last_GV) if has_rest else None
    is_single_G = groups_G2[:, 0] == groups_G2[:, 1]
    if rest_G is None or bool(is_single_G.all()):  # groups without a rest are one to one
        return _Buckets(columns_GC, rest_G)
    before_G = torch.where(is_single_G, _LOG_ALMOST_ONE, before_G.clamp_max(_LOG_ALMOST_ONE))
    chained_GC = columns_GC + before_G[:, None]
    chained_rest_G = torch.logaddexp(_log1mexp(before_G), rest_G + before_G)
    return _Buckets(
        torch.where(is_single_G[:, None], columns_GC, chained_GC), torch.where(is_single_G, rest_G, chained_rest_G)
    )


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) of negative numbers; each of the two forms is used where it is exact."""
    near = x > -math.log(2)
    close = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    return torch.where(near, close, torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
