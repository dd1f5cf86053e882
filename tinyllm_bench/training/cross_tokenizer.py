"""A white-box teacher with another tokenizer: its own batch, aligned with the student's positions.

1. Alignment: which tokens of two tokenizations of a text belong together, by the bytes at which they end.
2. View: each model gets its own form of the prompt; only the bytes of the response are shared. The teacher's tokens of
   the response are aligned with the student's actual ids, never with ids from tokenizing its text again.
3. Teacher: runs on the view; the loss per position of the student is in `cross_losses`.
4. What methods call: the divergence from a teacher with any tokenizer.

Shape suffixes: N student's target positions, M teacher's, H hidden size, G groups, P pairs, V student's vocabulary,
T teacher's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded, text_ids, without_control
from tinyllm_bench.models.vocabulary import Vocabulary, decode_bytes, vocabulary
from tinyllm_bench.training.batching import Batch, Collator
from tinyllm_bench.training.cross_losses import LOSSES, Prefix, Spans, TokenizerPair
from tinyllm_bench.training.divergences import NEEDS_EVERY_TOKEN, DivergenceConfig, divergence_of
from tinyllm_bench.training.losses import PerPosition
from tinyllm_bench.training.method import TeacherSignal

CrossTokenizer = Literal["none", "span_projection", "overlap", "uld"]
Note = Callable[[str, float, float], None]

# --- 1. Alignment ---------------------------------------------------------------------------------------------------
# A group ends where tokens of both sides end at the same byte. Its tokens of either side spell the same bytes: one to
# one, one to many (`123` and `1 2 3`), or many to many. Inside a character that one side writes as several byte tokens
# there is no common end, so such tokens stay together.

# A token that ends the text. It spells nothing and is only matched with the other side's end token.
END: Final = None
Piece = bytes | None


class AlignedGroup(NamedTuple):
    """Neighbouring tokens of the student and of the teacher that spell the same bytes (or both end the text)."""

    student: slice
    teacher: slice

    @property
    def is_single(self) -> bool:
        """Whether it is one token on both sides."""
        return self.student.stop - self.student.start == 1 == self.teacher.stop - self.teacher.start


class _SpelledTokens:
    """The tokens that spell something, and the byte where each ends; `ends[0]` is the start of the text."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.positions = [position for position, piece in enumerate(pieces) if piece]
        self.ends = [0, *accumulate(len(pieces[position] or b"") for position in self.positions)]
        self.number_of_end = {end: number for number, end in enumerate(self.ends)}
        self.text = b"".join(pieces[position] or b"" for position in self.positions)

    def between(self, start: int, stop: int) -> slice | None:
        """Positions of some of these tokens in the sequence; None if a token that spells nothing is among them."""
        first, last = self.positions[start], self.positions[stop - 1]
        return slice(first, last + 1) if last - first == stop - 1 - start else None


def align(student: Sequence[Piece], teacher: Sequence[Piece]) -> list[AlignedGroup]:
    """The smallest groups of tokens that spell the same bytes, in order; `END` at the end of both is one of its own.

    Tokens that spell nothing (other special tokens) belong to no group. If a tokenizer changes the text (a space in
    front, collapsed white space, a broken character), only tokens in unchanged stretches are grouped.
    """
    student_tokens, teacher_tokens = _SpelledTokens(student), _SpelledTokens(teacher)
    blocks = [(0, 0, len(student_tokens.text))]
    if student_tokens.text != teacher_tokens.text:
        matcher = SequenceMatcher(None, student_tokens.text, teacher_tokens.text, autojunk=False)
        blocks = [(block.a, block.b, block.size) for block in matcher.get_matching_blocks()]
    groups: list[AlignedGroup] = []
    for student_start, teacher_start, size in blocks:
        # the tokens of both sides that end at the same byte of the block
        common_ends = [
            (number, teacher_tokens.number_of_end[end - student_start + teacher_start])
            for number, end in enumerate(student_tokens.ends)
            if student_start <= end <= student_start + size
            and end - student_start + teacher_start in teacher_tokens.number_of_end
        ]
        for (student_first, teacher_first), (student_last, teacher_last) in pairwise(common_ends):
            of_student, of_teacher = (
                student_tokens.between(student_first, student_last),
                teacher_tokens.between(teacher_first, teacher_last),
            )
            if of_student is not None and of_teacher is not None:
                groups.append(AlignedGroup(of_student, of_teacher))
    if student and teacher and student[-1] is END and teacher[-1] is END:
        groups.append(AlignedGroup(slice(len(student) - 1, len(student)), slice(len(teacher) - 1, len(teacher))))
    return groups


def align_ratio(groups: Sequence[AlignedGroup], student_tokens: int) -> float:
    """The share of the student's tokens that are aligned one to one."""
    return sum(group.is_single for group in groups) / student_tokens if student_tokens else 0.0


# --- 2. View --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CrossView:
    """A batch for a teacher with another tokenizer.

    teacher: the batch in the teacher's ids, examples and target positions in the order of the student's; tokens: the
    student's target tokens; single: those that are aligned one to one; grouped: those in any group.
    """

    teacher: Batch
    spans: Spans
    tokens: int
    single: int
    grouped: int

    @property
    def align_ratio(self) -> float:
        """The share of the student's tokens that are aligned one to one."""
        return self.single / self.tokens if self.tokens else 0.0

    def to(self, device: torch.device) -> "CrossView":
        """The same view on another device."""
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

    prompts: the decoder-only teacher's own form of each prompt, without a BOS; add_bos: add one if its tokenizer does
    not do so by itself; chat: prompts are rendered by a chat template, whose special tokens are control tokens.

    Raises:
        UserError: a tokenizer whose bytes are not known, or a teacher without an end-of-text token.
    """
    student_vocabulary, teacher_vocabulary = vocabulary(student_tokenizer), vocabulary(teacher_tokenizer)
    if "eos" not in teacher_vocabulary.roles:
        raise UserError("the teacher's tokenizer has no end-of-text token; set eos_token in its tokenizer_config.json")
    aligned: list[_AlignedItem] = []
    for item, prompt in zip(items, prompts, strict=True):
        teacher_item = _in_teacher_ids(
            item, prompt, student_vocabulary, teacher_tokenizer, teacher_vocabulary, add_bos=add_bos, chat=chat
        )
        student_pieces, teacher_pieces = (
            _pieces(item.target, student_vocabulary),
            _pieces(teacher_item.target, teacher_vocabulary),
        )
        groups = align(student_pieces, teacher_pieces)
        aligned.append(_AlignedItem(item, teacher_item, student_pieces, teacher_pieces, groups))
    collator = Collator(encoder_decoder=False, pad_id=teacher_tokenizer.pad_token_id or 0)
    all_groups = [group for of_item in aligned for group in of_item.groups]
    return CrossView(
        teacher=collator.collate([row for of_item in aligned for row in collator.rows([of_item.teacher])]),
        spans=_spans(aligned),
        tokens=sum(len(item.target) for item in items),
        single=sum(group.is_single for group in all_groups),
        grouped=sum(group.student.stop - group.student.start for group in all_groups),
    )


class _AlignedItem(NamedTuple):
    """An example in the ids of both sides, the bytes of its target tokens, and their groups."""

    student: Encoded
    teacher: Encoded
    student_pieces: list[Piece]
    teacher_pieces: list[Piece]
    groups: list[AlignedGroup]


def _in_teacher_ids(
    item: Encoded,
    prompt: str,
    student_vocabulary: Vocabulary,
    tokenizer: PreTrainedTokenizerBase,
    teacher_vocabulary: Vocabulary,
    *,
    add_bos: bool,
    chat: bool,
) -> Encoded:
    """An example in the teacher's ids, with an end token if the student's has one."""
    response = decode_bytes(student_vocabulary, item.target).decode(errors="replace")
    eos = teacher_vocabulary.roles["eos"]

    def ids_of(text: str) -> tuple[int, ...]:
        ids = tuple(tokenizer(text)["input_ids"] if chat else text_ids(tokenizer, text, add_bos=add_bos))
        return ids[:-1] if ids[-1:] == (eos,) else ids

    prompt_ids, all_ids = ids_of(prompt), ids_of(prompt + response)
    names_control = any(name in response for name in tokenizer.all_special_tokens)
    if all_ids[: len(prompt_ids)] == prompt_ids and not names_control:
        target = all_ids[len(prompt_ids) :]
    else:  # a token spans prompt and response, or the response names a special token: tokenize the response alone
        target = tuple(text_ids(tokenizer, response, add_special_tokens=False))
    ended = item.target[-1:] == (student_vocabulary.roles.get("eos"),)
    return Encoded(item.record_id, item.channel, prompt_ids, (*target, eos) if ended else target, item.cut)


def _pieces(target: Sequence[int], vocabulary: Vocabulary) -> list[Piece]:
    """The bytes of each token; `END` for an end token in the last place."""
    pieces: list[Piece] = [
        (vocabulary.pieces[token] if token < len(vocabulary.pieces) else None) or b"" for token in target
    ]
    return [*pieces[:-1], END] if target and target[-1] == vocabulary.roles.get("eos") else pieces


def _spans(aligned: Sequence[_AlignedItem]) -> Spans:
    """The groups and pairs of a batch's examples, their positions counted over the batch."""
    student_groups, teacher_groups, pairs = [], [], []
    prefixes: list[Prefix | None] = []
    start, teacher_start = 0, 0
    for item in aligned:
        for group in item.groups:
            student_groups.append((start + group.student.start, start + group.student.stop - 1))
            teacher_groups.append((teacher_start + group.teacher.start, teacher_start + group.teacher.stop - 1))
            prefixes.append(_prefix(group, item))
        pairs += [
            (start + n, teacher_start + n)
            for n, pieces in enumerate(zip(item.student_pieces, item.teacher_pieces, strict=False))
            if END not in pieces
        ]
        start, teacher_start = start + len(item.student.target), teacher_start + len(item.teacher.target)
    return Spans(
        student_G2=torch.tensor(student_groups, dtype=torch.long).reshape(-1, 2),
        teacher_G2=torch.tensor(teacher_groups, dtype=torch.long).reshape(-1, 2),
        prefixes=tuple(prefixes),
        pairs_P2=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        student_ids_N=torch.tensor([token for item in aligned for token in item.student.target], dtype=torch.long),
        teacher_ids_M=torch.tensor([token for item in aligned for token in item.teacher.target], dtype=torch.long),
    )


def _prefix(group: AlignedGroup, item: _AlignedItem) -> Prefix | None:
    """The bytes by which one side's last token begins earlier than the other's; None for a one-to-one group."""
    if group.is_single:
        return None
    student_bytes = b"".join(piece or b"" for piece in item.student_pieces[group.student][:-1])
    teacher_bytes = b"".join(piece or b"" for piece in item.teacher_pieces[group.teacher][:-1])
    if len(teacher_bytes) > len(student_bytes):
        return Prefix("teacher", teacher_bytes[len(student_bytes) :])
    return Prefix("student", student_bytes[len(teacher_bytes) :])


# --- 3. Teacher -----------------------------------------------------------------------------------------------------


class CrossDistributions:
    """A teacher's distributions over one batch, in its own tokens; logits are computed chunk by chunk."""

    def __init__(self, view: CrossView, hidden_MH: Tensor, lm: LM, pair: TokenizerPair) -> None:
        self.view, self.pair = view, pair
        self._hidden_MH, self._lm = hidden_MH, lm

    @torch.no_grad()
    def logits(self, rows: slice) -> Tensor:
        """Logits at some of the teacher's positions, (M, T)."""
        return self._lm.logits(self._hidden_MH[rows])


class CrossTeacher:
    """A teacher in memory that runs on the student's responses in its own tokens.

    Its prompt is the student's as plain text, or in its own chat template (`chat`). `vocabulary` is the student's.
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
        self.pair = TokenizerPair(student_tokenizer, tokenizer, device=next(lm.parameters()).device)

    @torch.no_grad()
    def on(self, batch: Batch) -> CrossDistributions:
        """The teacher's distributions over its view of the batch's examples; one forward pass."""
        prompts = [self._prompt(item.prompt) for item in batch.items]
        view = make_view(batch.items, self._student, self._tokenizer, prompts, add_bos=self._add_bos, chat=self._chat)
        view = view.to(batch.target_ids_N.device)
        return CrossDistributions(view, self._lm.target_hidden_states(view.teacher), self._lm, self.pair)

    def _prompt(self, ids: tuple[int, ...]) -> str:
        """The text of a prompt in the teacher's form, without special tokens such as the student's BOS."""
        text = decode_bytes(self._student_vocabulary, ids).decode(errors="replace")
        if not self._chat:
            return text
        messages = [{"role": "user", "content": without_control(self._tokenizer, text)}]
        prompt: Any = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # if the tokenizer adds a BOS by itself, the template's would be a second one
        adds_bos = self._tokenizer("a")["input_ids"][:1] == [self._tokenizer.bos_token_id]
        bos = self._tokenizer.bos_token
        return prompt.removeprefix(bos) if isinstance(bos, str) and adds_bos else prompt


def cross_tokenizer_loss(teacher: CrossDistributions, kind: CrossTokenizer, note: Note) -> PerPosition:
    """A loss of `cross_losses` per position of the student, for chunks of whole examples. Notes the share of the
    student's tokens that are aligned one to one, and the teacher's probability in the compared columns."""
    note("align_ratio", teacher.view.single, teacher.view.tokens)
    loss = LOSSES[kind]

    def per_position(logits_NV: Tensor, rows: slice) -> Tensor:
        spans, teacher_rows = teacher.view.spans.within(rows)
        result = loss(logits_NV, teacher.logits(teacher_rows), spans, teacher.pair)
        note("covered_mass", float(result.covered), result.groups)
        return result.loss_N

    return per_position


# --- 4. What methods call -------------------------------------------------------------------------------------------


def check_one_divergence(cross_tokenizer: CrossTokenizer, *, changed: bool) -> None:
    """Refuse a divergence that is `changed` from its default if a cross-tokenizer loss replaces it.

    Raises:
        UserError: both are set.
    """
    if cross_tokenizer != "none" and changed:
        raise UserError(
            f"cross_tokenizer={cross_tokenizer} has a divergence of its own; leave the method's `divergence` as it is"
        )


def signal_for(divergence: DivergenceConfig, cross_tokenizer: CrossTokenizer) -> Literal["cached", "live"]:
    """What a divergence needs of the teacher: top-k tokens, which may be cached, or all tokens, from a live one."""
    enough = divergence.form not in NEEDS_EVERY_TOKEN and divergence.temperature == 1 and cross_tokenizer == "none"
    return "cached" if enough else "live"


def divergence_from(
    teacher: TeacherSignal,
    batch: Batch,
    divergence: DivergenceConfig,
    cross_tokenizer: CrossTokenizer,
    note: Note,
) -> PerPosition:
    """The divergence from a batch's teacher as a loss per position; with another tokenizer the cross-tokenizer loss,
    for chunks of whole examples."""
    distributions = teacher.on(batch)
    if cross_tokenizer == "none":
        return divergence_of(distributions, divergence, vocabulary=teacher.vocabulary)
    return cross_tokenizer_loss(distributions, cross_tokenizer, note)
