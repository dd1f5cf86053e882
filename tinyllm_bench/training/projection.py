"""From the student's vocabulary to the teacher's: which columns both can be compared in.

A column is a token of the teacher. The student's probabilities flow into columns by a sparse matrix W, at most four
columns for a token: 1 where the teacher has a token of the same bytes, otherwise shared out over the teacher's own
tokenisation of these bytes. Tokens of the teacher that no token of the student spells are counted in the column of
what the student would begin them with; without that the student would be blamed for a word it can only write in
pieces. What reaches no column on either side is one last bucket, the rest, where that means the same on both sides.

Inside a group of several tokens, a token is read from where the other side's last token begins (`Lead`): a student's
`347` beside the teacher's `3 4 7` is compared by its `7`.

Shape suffixes: G groups, S student's vocabulary, T teacher's vocabulary, C columns, E entries of a matrix.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinyllm_bench.models.vocabulary import Overlap, Vocabulary, overlap, spell, vocabulary

# Columns that one token of the student is shared out over at most (X-Token's number).
MOST = 4
# Log-probability of what cannot be. Finite, because infinities meet as NaN in gradients.
NEVER = -1e30
_KEPT_LEADS = 4096

Rows = Literal["split", "first"]
Entry = tuple[int, int, float]


class Lead(NamedTuple):
    """Bytes that one side has written of a group while the other side's last token still covers them."""

    side: Literal["student", "teacher"]
    written: bytes


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

        With a gradient it is right also where a probability is too small for a number; without one such a column is
        as good as empty, which is faster.
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
    """Both vocabularies' ways into the same columns; has_rest: whether what is left is compared as one bucket too."""

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
    """What is known of a pair of tokenizers; made once, each part when it is first asked for.

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
        """Only what means the same on both sides; the others of either vocabulary are the rest, if there are any."""
        return make_projection(
            [(ours, theirs, 1.0) for ours, theirs in self.pairs],
            [(theirs, theirs, 1.0) for _, theirs in self.pairs],
            self.device,
            has_rest=len(self.pairs) < len(self.student.pieces),
        )

    @cached_property
    def whole(self) -> Projection:
        """All of the student's vocabulary in the teacher's, and what of the teacher's the student writes otherwise.

        What is left are special tokens of either side, which have nothing to do with each other: no rest is compared.
        """
        pinned = dict(self.pairs)
        left = [n for n, piece in enumerate(self.student.pieces) if piece and n not in pinned]
        ours = [*((token, name, 1.0) for token, name in pinned.items()), *self._shared_out(left)]
        begins = {token: name for token, name, _ in reversed(self._shared_out(left, rows="first"))} | pinned
        named = {name for _, name, _ in ours}
        unread = [n for n, piece in enumerate(self.teacher.pieces) if piece and n not in named]
        return make_projection(
            ours,
            [*((name, name, 1.0) for name in named), *self._folded(unread, begins)],
            self.device,
            has_rest=False,
        )

    def after(self, lead: Lead | None) -> Projection:
        """The projection of last tokens of a group, given what one side has written of the other's last token."""
        if lead is None:
            return self.whole
        if lead not in self._after:
            if len(self._after) >= _KEPT_LEADS:
                self._after.clear()
            entries = self._remainders(lead.written) if lead.side == "teacher" else self._completions(lead.written)
            names = {name for _, name, _ in entries}
            theirs = [(name, name, 1.0) for name in names]
            self._after[lead] = make_projection(entries, theirs, self.device, has_rest=True)
        return self._after[lead]

    def _shared_out(self, tokens: Sequence[int], *, rows: Rows | None = None) -> list[Entry]:
        """Rows of tokens that have no equal, over the teacher's own tokenisation of their bytes."""
        return self._spread([(token, self.student.pieces[token] or b"") for token in tokens], rows or self.rows)

    def _spread(self, texts: Sequence[tuple[int, bytes]], rows: Rows) -> list[Entry]:
        spelled = spell(self._tokenizers[1], [text for _, text in texts])
        found: list[Entry] = []
        for (token, _), ids in zip(texts, spelled, strict=True):
            counts = Counter(ids[:1] if rows == "first" else ids).most_common(MOST)
            total = sum(count for _, count in counts)
            found += [(token, name, count / total) for name, count in counts]
        return found

    def _folded(self, unread: Sequence[int], begins: dict[int, int]) -> list[Entry]:
        """Tokens of the teacher into the column of what the student would begin them with."""
        spelled = spell(self._tokenizers[0], [self.teacher.pieces[token] or b"" for token in unread])
        return [
            (token, begins[ids[0]], 1.0) for token, ids in zip(unread, spelled, strict=True) if ids and ids[0] in begins
        ]

    def _remainders(self, written: bytes) -> list[Entry]:
        """The student's tokens that begin with what the teacher has written, by what is left of them."""
        left = [(self.student.ids[text], text[len(written) :]) for text in self.student.beginning_with(written)]
        left = [(token, rest) for token, rest in left if rest]
        found = [(token, self.teacher.ids[rest], 1.0) for token, rest in left if rest in self.teacher.ids]
        return found + self._spread([row for row in left if row[1] not in self.teacher.ids], self.rows)

    def _completions(self, written: bytes) -> list[Entry]:
        """The teacher's tokens that begin with what the student has written, by what completes them."""
        ends = [(self.student.ids.get(text[len(written) :]), text) for text in self.teacher.beginning_with(written)]
        return [(token, self.teacher.ids[text], 1.0) for token, text in ends if token is not None]
