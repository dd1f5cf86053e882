"""What a teacher with another tokenizer reads of a batch, and which of its positions belong to which of the student's.

Each model reads its own form of the prompt; only the bytes of the response are shared. The teacher's tokens of the
response are aligned with the ids the student really has, never with ids made anew from its text.

Shape suffixes: N student's target positions, M teacher's, G groups, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.tokens import Encoded, text_ids
from tinyllm_bench.models.vocabulary import Vocabulary, vocabulary, written
from tinyllm_bench.training.alignment import END, Group, Piece, align
from tinyllm_bench.training.batching import Batch, Collator
from tinyllm_bench.training.projection import Lead


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
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in found.items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def within(self, rows: slice) -> tuple["Spans", slice]:
        """The part for some of the student's positions, counted from their start, and the teacher's rows it needs.

        A group that begins before the part is left out: its earlier probabilities are not at hand. At most one a
        chunk; give a student chunks of all its positions where results must not depend on the chunk.
        """
        keep_G = (self.student_G2[:, 0] >= rows.start) & (self.student_G2[:, 1] < rows.stop)
        keep_P = (self.pairs_P2[:, 0] >= rows.start) & (self.pairs_P2[:, 0] < rows.stop)
        used = torch.cat([self.teacher_G2[keep_G].flatten(), self.pairs_P2[keep_P][:, 1]])
        theirs = slice(int(used.min()), int(used.max()) + 1) if used.numel() else slice(0, 0)
        start = torch.tensor([rows.start, theirs.start], device=self.pairs_P2.device)
        part = Spans(
            student_G2=self.student_G2[keep_G] - rows.start,
            teacher_G2=self.teacher_G2[keep_G] - theirs.start,
            leads=tuple(lead for lead, kept in zip(self.leads, keep_G.tolist(), strict=True) if kept),
            pairs_P2=self.pairs_P2[keep_P] - start,
            student_ids_N=self.student_ids_N[rows],
            teacher_ids_M=self.teacher_ids_M[theirs],
        )
        return part, theirs


@dataclass(frozen=True, kw_only=True)
class CrossView:
    """What a teacher with another tokenizer needs of a batch (`Batch.teacher_view`).

    teacher: the batch that it reads, in its own ids, its examples and target positions in the order of the student's;
    tokens: the student's target tokens; single: those that stand one to one with a teacher's; grouped: those in any
    group.
    """

    teacher: Batch
    spans: Spans
    tokens: int
    single: int
    grouped: int

    @property
    def align_ratio(self) -> float:
        """Share of the student's tokens that stand one to one with a token of the teacher."""
        return self.single / self.tokens if self.tokens else 0.0

    def to(self, device: torch.device) -> "CrossView":
        """The same on another device."""
        return replace(self, teacher=self.teacher.to(device), spans=self.spans.to(device))


def make_view(
    items: Sequence[Encoded],
    student_tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    add_bos: bool = False,
) -> CrossView:
    """The teacher's view of a batch's examples (`batch.items`, in that order).

    prompts: what the decoder-only teacher reads before each response, in its own form, without a BOS; add_bos: force
    one that its tokenizer does not add by itself.

    Raises:
        UserError: a tokenizer whose bytes are not known, or a teacher without an end-of-text token.
    """
    ours, theirs = vocabulary(student_tokenizer), vocabulary(teacher_tokenizer)
    if "eos" not in theirs.roles:
        raise UserError("the teacher's tokenizer has no end-of-text token; set eos_token in its tokenizer_config.json")
    read, groups, sides = [], [], []
    for item, prompt in zip(items, prompts, strict=True):
        lead = str(teacher_tokenizer.bos_token) if add_bos else ""
        read.append(_retold(item, lead + prompt, ours, teacher_tokenizer, theirs))
        sides.append((_pieces(item.target, ours), _pieces(read[-1].target, theirs)))
        groups.append(align(*sides[-1]))
    collator = Collator(encoder_decoder=False, pad_id=teacher_tokenizer.pad_token_id or 0)
    single = sum(group.is_single for of_item in groups for group in of_item)
    grouped = sum(group.student.stop - group.student.start for of_item in groups for group in of_item)
    return CrossView(
        teacher=collator.collate([row for one in read for row in collator.rows([one])]),
        spans=_spans(items, read, groups, sides),
        tokens=sum(len(item.target) for item in items),
        single=single,
        grouped=grouped,
    )


def _retold(
    item: Encoded, prompt: str, ours: Vocabulary, tokenizer: PreTrainedTokenizerBase, theirs: Vocabulary
) -> Encoded:
    """An example in the teacher's ids; it ends where the student's does, or is cut as that is."""
    said = written(ours, item.target).decode(errors="replace")
    eos = theirs.roles["eos"]
    read, both = (_ids(tokenizer, text, eos) for text in (prompt, prompt + said))
    if both[: len(read)] == read:
        target = both[len(read) :]
    else:  # the border lies inside a token: the response is tokenised apart
        target = tuple(text_ids(tokenizer, said, add_special_tokens=False))
    ended = item.target[-1:] == (ours.roles.get("eos"),)
    return Encoded(item.record_id, item.channel, read, (*target, eos) if ended else target, item.cut)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, eos: int) -> tuple[int, ...]:
    ids = tuple(text_ids(tokenizer, text))
    return ids[:-1] if ids[-1:] == (eos,) else ids


def _pieces(target: Sequence[int], known: Vocabulary) -> list[Piece]:
    pieces: list[Piece] = [(known.pieces[token] if token < len(known.pieces) else None) or b"" for token in target]
    return [*pieces[:-1], END] if target and target[-1] == known.roles.get("eos") else pieces


def _spans(
    items: Sequence[Encoded],
    read: Sequence[Encoded],
    groups: Sequence[Sequence[Group]],
    sides: Sequence[tuple[list[Piece], list[Piece]]],
) -> Spans:
    starts = [list(accumulate((len(one.target) for one in side), initial=0)) for side in (items, read)]
    ours, theirs, pairs = [], [], []
    for start, other, of_item, (mine, its) in zip(starts[0], starts[1], groups, sides, strict=False):
        ours += [(start + group.student.start, start + group.student.stop - 1) for group in of_item]
        theirs += [(other + group.teacher.start, other + group.teacher.stop - 1) for group in of_item]
        both = zip(mine, its, strict=False)
        pairs += [(start + n, other + n) for n, (a, b) in enumerate(both) if a is not END and b is not END]
    return Spans(
        student_G2=torch.tensor(ours, dtype=torch.long).reshape(-1, 2),
        teacher_G2=torch.tensor(theirs, dtype=torch.long).reshape(-1, 2),
        leads=tuple(
            _lead(group, mine, its) for of_item, (mine, its) in zip(groups, sides, strict=True) for group in of_item
        ),
        pairs_P2=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        student_ids_N=torch.tensor([token for item in items for token in item.target], dtype=torch.long),
        teacher_ids_M=torch.tensor([token for item in read for token in item.target], dtype=torch.long),
    )


def _lead(group: Group, mine: Sequence[Piece], its: Sequence[Piece]) -> Lead | None:
    if group.is_single:
        return None
    ours = b"".join(piece or b"" for piece in mine[group.student][:-1])
    theirs = b"".join(piece or b"" for piece in its[group.teacher][:-1])
    longer = len(theirs) > len(ours)
    return Lead("teacher", theirs[len(ours) :]) if longer else Lead("student", ours[len(theirs) :])
