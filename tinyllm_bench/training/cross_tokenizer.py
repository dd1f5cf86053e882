"""A white-box teacher with another tokenizer: what it reads of a batch, aligned with the student's positions.

1. Alignment: which tokens of two tokenizations of one text belong together, by the bytes that they end at.
2. View: each model reads its own form of the prompt; only the bytes of the response are shared. The teacher's tokens of
   the response are aligned with the ids that the student really has, never with ids made again from its text.
3. Teacher: reads the view, and the loss per position of the student (`cross_losses`).
4. What methods call: the divergence from a teacher, whatever its tokenizer.

Shape suffixes: N student's target positions, M teacher's, H hidden size, G groups, P pairs, V student's vocabulary,
T teacher's.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded, text_ids, without_control
from tinyllm_bench.models.vocabulary import Vocabulary, vocabulary, written
from tinyllm_bench.training.batching import Batch, Collator
from tinyllm_bench.training.cross_losses import LOSSES, Crossing, Lead, Spans
from tinyllm_bench.training.divergences import NEEDS_EVERY_TOKEN, DivergenceConfig, divergence_of
from tinyllm_bench.training.losses import PerPosition
from tinyllm_bench.training.method import TeacherSignal

CrossTokenizer = Literal["none", "span_projection", "overlap", "uld"]
Note = Callable[[str, float, float], None]

# --- 1. Alignment ---------------------------------------------------------------------------------------------------
# A group closes where tokens of both sides end at the same byte. Between two such places the tokens of one side
# spell what those of the other spell: one to one, one to many (`123` beside `1 2 3`), or many to many. Inside a
# character that one side writes as several byte tokens there is no common end, so such tokens stay together.

# A token that ends the text. It spells nothing and is matched with the other side's end alone.
END: Final = None
Piece = bytes | None


class AlignedGroup(NamedTuple):
    """Neighbouring tokens of the student and of the teacher that spell the same bytes (or both end the text)."""

    student: slice
    teacher: slice

    @property
    def is_single(self) -> bool:
        """Whether it is one token on either side."""
        return self.student.stop - self.student.start == 1 == self.teacher.stop - self.teacher.start


class _Bytes:
    """Tokens that spell something, and the byte where each ends; `ends[0]` is the start of the text."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.tokens = [number for number, piece in enumerate(pieces) if piece]
        self.ends = [0, *accumulate(len(pieces[number] or b"") for number in self.tokens)]
        self.at = {end: number for number, end in enumerate(self.ends)}
        self.text = b"".join(pieces[number] or b"" for number in self.tokens)

    def between(self, start: int, stop: int) -> slice | None:
        """Place of some tokens in the whole sequence; None where a token that spells nothing is among them."""
        first, last = self.tokens[start], self.tokens[stop - 1]
        return slice(first, last + 1) if last - first == stop - 1 - start else None


def align(student: Sequence[Piece], teacher: Sequence[Piece]) -> list[AlignedGroup]:
    """Smallest groups of tokens that spell the same bytes, in order; `END` at the end of both is a group of its own.

    Tokens that spell nothing (other special tokens) belong to no group. Where a tokenizer changes the text (a space
    in front, white space run together, a broken character), only tokens in unchanged stretches are grouped.
    """
    ours, theirs = _Bytes(student), _Bytes(teacher)
    groups = [group for block in _blocks(ours.text, theirs.text) for group in _inside(block, ours, theirs)]
    if student and teacher and student[-1] is END and teacher[-1] is END:
        groups.append(AlignedGroup(slice(len(student) - 1, len(student)), slice(len(teacher) - 1, len(teacher))))
    return groups


def align_ratio(groups: Sequence[AlignedGroup], student_tokens: int) -> float:
    """Share of the student's tokens that stand one to one with a token of the teacher."""
    return sum(group.is_single for group in groups) / student_tokens if student_tokens else 0.0


def _blocks(ours: bytes, theirs: bytes) -> list[tuple[int, int, int]]:
    """Stretches of equal bytes: (start in ours, start in theirs, length)."""
    if ours == theirs:
        return [(0, 0, len(ours))]
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    return [(block.a, block.b, block.size) for block in blocks]


def _inside(block: tuple[int, int, int], ours: _Bytes, theirs: _Bytes) -> Iterator[AlignedGroup]:
    start, other, size = block
    common = [
        (number, theirs.at[end - start + other])
        for number, end in enumerate(ours.ends)
        if start <= end <= start + size and end - start + other in theirs.at
    ]
    for (first, first_other), (last, last_other) in pairwise(common):
        student, teacher = ours.between(first, last), theirs.between(first_other, last_other)
        if student is not None and teacher is not None:
            yield AlignedGroup(student, teacher)


# --- 2. View --------------------------------------------------------------------------------------------------------


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
    chat: bool = False,
) -> CrossView:
    """The teacher's view of a batch's examples (`batch.items`, in that order).

    prompts: what the decoder-only teacher reads before each response, in its own form, without a BOS; add_bos: force
    one that its tokenizer does not add by itself; chat: prompts are rendered by a chat template, whose special tokens
    are control tokens.

    Raises:
        UserError: a tokenizer whose bytes are not known, or a teacher without an end-of-text token.
    """
    ours, theirs = vocabulary(student_tokenizer), vocabulary(teacher_tokenizer)
    if "eos" not in theirs.roles:
        raise UserError("the teacher's tokenizer has no end-of-text token; set eos_token in its tokenizer_config.json")
    teacher_items, groups, sides = [], [], []
    for item, prompt in zip(items, prompts, strict=True):
        encode = partial(_ids, teacher_tokenizer, lead=add_bos, chat=chat)
        teacher_items.append(_in_teacher_ids(item, prompt, ours, teacher_tokenizer, theirs, encode))
        sides.append((_pieces(item.target, ours), _pieces(teacher_items[-1].target, theirs)))
        groups.append(align(*sides[-1]))
    collator = Collator(encoder_decoder=False, pad_id=teacher_tokenizer.pad_token_id or 0)
    single = sum(group.is_single for of_item in groups for group in of_item)
    grouped = sum(group.student.stop - group.student.start for of_item in groups for group in of_item)
    return CrossView(
        teacher=collator.collate([row for item in teacher_items for row in collator.rows([item])]),
        spans=_spans(items, teacher_items, groups, sides),
        tokens=sum(len(item.target) for item in items),
        single=single,
        grouped=grouped,
    )


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, lead: bool, chat: bool) -> list[int]:
    return list(tokenizer(text)["input_ids"]) if chat else text_ids(tokenizer, text, lead=lead)


def _in_teacher_ids(
    item: Encoded,
    prompt: str,
    ours: Vocabulary,
    tokenizer: PreTrainedTokenizerBase,
    theirs: Vocabulary,
    encode: Callable[[str], list[int]],
) -> Encoded:
    """An example in the teacher's ids; it ends where the student's does, or is cut as that is."""
    response = written(ours, item.target).decode(errors="replace")
    eos = theirs.roles["eos"]

    def ids_of(text: str) -> tuple[int, ...]:
        ids = tuple(encode(text))
        return ids[:-1] if ids[-1:] == (eos,) else ids

    prompt_ids, both = ids_of(prompt), ids_of(prompt + response)
    names_control = any(name in response for name in tokenizer.all_special_tokens)
    if both[: len(prompt_ids)] == prompt_ids and not names_control:
        target = both[len(prompt_ids) :]
    else:  # the border lies inside a token, or a special token's name is text: the response is tokenised apart
        target = tuple(text_ids(tokenizer, response, add_special_tokens=False))
    ended = item.target[-1:] == (ours.roles.get("eos"),)
    return Encoded(item.record_id, item.channel, prompt_ids, (*target, eos) if ended else target, item.cut)


def _pieces(target: Sequence[int], vocabulary: Vocabulary) -> list[Piece]:
    pieces: list[Piece] = [
        (vocabulary.pieces[token] if token < len(vocabulary.pieces) else None) or b"" for token in target
    ]
    return [*pieces[:-1], END] if target and target[-1] == vocabulary.roles.get("eos") else pieces


def _spans(
    items: Sequence[Encoded],
    teacher_items: Sequence[Encoded],
    groups: Sequence[Sequence[AlignedGroup]],
    sides: Sequence[tuple[list[Piece], list[Piece]]],
) -> Spans:
    starts = [list(accumulate((len(one.target) for one in side), initial=0)) for side in (items, teacher_items)]
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
        teacher_ids_M=torch.tensor([token for item in teacher_items for token in item.target], dtype=torch.long),
    )


def _lead(group: AlignedGroup, mine: Sequence[Piece], its: Sequence[Piece]) -> Lead | None:
    if group.is_single:
        return None
    ours = b"".join(piece or b"" for piece in mine[group.student][:-1])
    theirs = b"".join(piece or b"" for piece in its[group.teacher][:-1])
    longer = len(theirs) > len(ours)
    return Lead("teacher", theirs[len(ours) :]) if longer else Lead("student", ours[len(theirs) :])


# --- 3. Teacher -----------------------------------------------------------------------------------------------------


class CrossDistributions:
    """A teacher's distributions over one batch, in its own tokens; logits are computed chunk by chunk."""

    def __init__(self, view: CrossView, hidden_MH: Tensor, lm: LM, crossing: Crossing) -> None:
        self.view, self.crossing = view, crossing
        self._hidden_MH, self._lm = hidden_MH, lm

    @torch.no_grad()
    def logits(self, rows: slice) -> Tensor:
        """Logits at some of the teacher's positions, (M, T)."""
        return self._lm.logits(self._hidden_MH[rows])


class CrossTeacher:
    """A teacher in memory that reads the student's responses in its own tokens.

    It reads the student's prompt as plain text, or in its own chat template (`chat`). `vocabulary` is the student's.
    """

    lm = None

    def __init__(
        self,
        lm: LM,
        tokenizer: PreTrainedTokenizerBase,
        student_tokenizer: PreTrainedTokenizerBase,
        *,
        add_bos: bool = False,
        chat: bool = False,
    ) -> None:
        self._lm = lm.eval().requires_grad_(False)
        self._tokenizer, self._student = tokenizer, student_tokenizer
        self._student_vocabulary = vocabulary(student_tokenizer)
        self._add_bos, self._chat = add_bos and not chat, chat
        self.vocabulary: int | None = len(student_tokenizer)
        self.parameters = sum(p.numel() for p in lm.parameters())
        self.crossing = Crossing(student_tokenizer, tokenizer, device=next(lm.parameters()).device)

    @torch.no_grad()
    def on(self, batch: Batch) -> CrossDistributions:
        """The teacher's view of the batch's examples, read once."""
        prompts = [self._prompt(item.prompt) for item in batch.items]
        view = make_view(batch.items, self._student, self._tokenizer, prompts, add_bos=self._add_bos, chat=self._chat)
        view = view.to(batch.target_ids_N.device)
        return CrossDistributions(view, self._lm.at_targets(view.teacher), self._lm, self.crossing)

    def _prompt(self, ids: tuple[int, ...]) -> str:
        """The words of a prompt, without special tokens such as the student's BOS."""
        text = written(self._student_vocabulary, ids).decode(errors="replace")
        if not self._chat:
            return text
        messages = [{"role": "user", "content": without_control(self._tokenizer, text)}]
        prompt: Any = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # where the tokenizer puts a BOS in front by itself, the template's would be a second one
        adds_bos = self._tokenizer("a")["input_ids"][:1] == [self._tokenizer.bos_token_id]
        bos = self._tokenizer.bos_token
        return prompt.removeprefix(bos) if isinstance(bos, str) and adds_bos else prompt


def crossed(teacher: CrossDistributions, kind: CrossTokenizer, note: Note) -> PerPosition:
    """Loss per position of the student (`cross_losses`); notes the share of its tokens that are aligned one to one, and
    the teacher's probability in what is compared. Needs whole examples in a chunk."""
    note("align_ratio", teacher.view.single, teacher.view.tokens)
    loss = LOSSES[kind]

    def per_position(logits_NV: Tensor, rows: slice) -> Tensor:
        part, teacher_rows = teacher.view.spans.within(rows)
        result = loss(logits_NV, teacher.logits(teacher_rows), part, teacher.crossing)
        note("covered_mass", float(result.covered), result.groups)
        return result.loss_N

    return per_position


# --- 4. What methods call -------------------------------------------------------------------------------------------


def check_one_divergence(cross_tokenizer: CrossTokenizer, *, changed: bool) -> None:
    """Refuse a divergence that is `changed` from its default where another tokenizer's loss takes its place."""
    if cross_tokenizer != "none" and changed:
        raise UserError(
            f"cross_tokenizer={cross_tokenizer} has a divergence of its own; leave the method's `divergence` as it is"
        )


def signal_for(divergence: DivergenceConfig, cross_tokenizer: CrossTokenizer) -> Literal["cached", "live"]:
    """Whether the top-k tokens and the mass of the rest are enough, or every token's probability is needed."""
    enough = divergence.form not in NEEDS_EVERY_TOKEN and divergence.temperature == 1 and cross_tokenizer == "none"
    return "cached" if enough else "live"


def divergence_from(
    teacher: TeacherSignal,
    batch: Batch,
    divergence: DivergenceConfig,
    cross_tokenizer: CrossTokenizer,
    note: Note,
) -> PerPosition:
    """Loss per position from a batch's teacher: the divergence, or with another tokenizer the crossing loss, which
    needs whole examples in a chunk."""
    distributions = teacher.on(batch)
    if cross_tokenizer == "none":
        return divergence_of(distributions, divergence, vocabulary=teacher.vocabulary)
    return crossed(distributions, cross_tokenizer, note)
