"""Which tokens of two tokenizations of one text belong together: by the bytes that they end at.

A group closes where a token of either side ends at the same byte. Between two such places the tokens of one side spell
what those of the other spell: one to one, one to many (`123` beside `1 2 3`), or many to many. Inside a character
that one side writes as several byte tokens there is no common end, so such tokens stay together by themselves.
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import accumulate, pairwise
from typing import Final, NamedTuple

# A token that ends the text. It spells nothing and is matched with the other side's end alone.
END: Final = None
Piece = bytes | None


class Group(NamedTuple):
    """Neighbouring tokens of the student and of the teacher that spell the same bytes (or both end the text)."""

    student: slice
    teacher: slice

    @property
    def is_single(self) -> bool:
        """Whether it is one token on either side."""
        return self.student.stop - self.student.start == 1 == self.teacher.stop - self.teacher.start


class _Side:
    """Tokens that spell something, and the byte where each ends; `ends[0]` is the start of the text."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.tokens = [number for number, piece in enumerate(pieces) if piece]
        self.ends = [0, *accumulate(len(pieces[number] or b"") for number in self.tokens)]
        self.at = {end: number for number, end in enumerate(self.ends)}
        self.text = b"".join(pieces[number] or b"" for number in self.tokens)

    def between(self, start: int, stop: int) -> slice | None:
        """Place of some tokens in the whole sequence; None where a token that spells nothing stands among them."""
        first, last = self.tokens[start], self.tokens[stop - 1]
        return slice(first, last + 1) if last - first == stop - 1 - start else None


def align(student: Sequence[Piece], teacher: Sequence[Piece]) -> list[Group]:
    """Smallest groups of tokens that spell the same bytes, in order; `END` at the end of both is a group of its own.

    Tokens that spell nothing (other special tokens) belong to no group. Where a tokenizer changes the text (a space
    in front, white space run together, a broken character), only tokens in unchanged stretches are grouped.
    """
    ours, theirs = _Side(student), _Side(teacher)
    groups = [group for block in _blocks(ours.text, theirs.text) for group in _inside(block, ours, theirs)]
    if student and teacher and student[-1] is END and teacher[-1] is END:
        groups.append(Group(slice(len(student) - 1, len(student)), slice(len(teacher) - 1, len(teacher))))
    return groups


def align_ratio(groups: Sequence[Group], student_tokens: int) -> float:
    """Share of the student's tokens that stand one to one with a token of the teacher."""
    return sum(group.is_single for group in groups) / student_tokens if student_tokens else 0.0


def _blocks(ours: bytes, theirs: bytes) -> list[tuple[int, int, int]]:
    """Stretches of equal bytes: (start in ours, start in theirs, length)."""
    if ours == theirs:
        return [(0, 0, len(ours))]
    found = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    return [(block.a, block.b, block.size) for block in found]


def _inside(block: tuple[int, int, int], ours: _Side, theirs: _Side) -> Iterator[Group]:
    start, other, size = block
    common = [
        (number, theirs.at[end - start + other])
        for number, end in enumerate(ours.ends)
        if start <= end <= start + size and end - start + other in theirs.at
    ]
    for (first, first_other), (last, last_other) in pairwise(common):
        student, teacher = ours.between(first, last), theirs.between(first_other, last_other)
        if student is not None and teacher is not None:
            yield Group(student, teacher)
