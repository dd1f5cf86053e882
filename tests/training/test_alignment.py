"""Tokens of two tokenizations of one text, brought together by bytes."""

from itertools import pairwise
from typing import Any

import pytest

from tests.tokenizer_pair import bundled, numerals, splitting
from tinyllm_bench.models.vocabulary import vocabulary
from tinyllm_bench.training.cross_tokenizer import END, AlignedGroup, Piece, align, align_ratio


def pieces(tokenizer: Any, text: str) -> list[Piece]:
    found = vocabulary(tokenizer).pieces
    return [found[token] for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


def shown(
    groups: list[AlignedGroup], student: list[Piece], teacher: list[Piece]
) -> list[tuple[list[Piece], list[Piece]]]:
    return [(student[group.student], teacher[group.teacher]) for group in groups]


def assert_smallest(student: list[Piece], teacher: list[Piece]) -> list[AlignedGroup]:
    """Groups cover all tokens, spell the same, and cannot be cut."""
    groups = align(student, teacher)
    for group in groups:
        ours, theirs = student[group.student], teacher[group.teacher]
        assert b"".join(x or b"" for x in ours) == b"".join(x or b"" for x in theirs)
        ends = [{len(b"".join(x or b"" for x in side[:n])) for n in range(1, len(side))} for side in (ours, theirs)]
        assert not ends[0] & ends[1]
    for one, next_one in pairwise(groups):
        assert (one.student.stop, one.teacher.stop) == (next_one.student.start, next_one.teacher.start)
    assert (groups[0].student.start, groups[-1].student.stop) == (0, len(student))
    assert (groups[0].teacher.start, groups[-1].teacher.stop) == (0, len(teacher))
    return groups


def test_groups_close_where_both_sides_end() -> None:
    groups = align([b"ab", b"c", b"de"], [b"a", b"bc", b"d", b"e"])
    assert groups == [AlignedGroup(slice(0, 2), slice(0, 2)), AlignedGroup(slice(2, 3), slice(2, 4))]


@pytest.mark.parametrize("number", [*range(10, 1000, 37), 999])
def test_a_number_stands_beside_its_digits(number: int) -> None:
    student, teacher = pieces(numerals(), f"is {number}"), pieces(splitting(), f"is {number}")
    digits: list[Piece] = [digit.encode() for digit in str(number)]
    groups = shown(assert_smallest(student, teacher), student, teacher)
    assert groups == [([b"is"], [b"is"]), ([b" "], [b" "]), ([str(number).encode()], digits)]


def test_the_digits_of_every_number_are_found() -> None:
    text = " ".join(str(number) for number in range(10, 1000))
    groups = assert_smallest(pieces(numerals(), text), pieces(splitting(), text))
    assert sum(group.teacher.stop - group.teacher.start > 1 for group in groups) == 990


@pytest.mark.parametrize(
    "text", ["🙂🙂 ok", "日本語", "a\u0301 naïve é", "👩\u200d🔬 the cat", "  two\n\nlines ", "x\u200by"]
)
def test_a_character_of_many_bytes_stays_together(text: str) -> None:
    student, teacher = pieces(numerals(), text), pieces(splitting(), text)
    for ours, theirs in shown(assert_smallest(student, teacher), student, teacher):
        if ours and ours != theirs:
            b"".join(x or b"" for x in ours).decode()  # never half a character where one side has it whole


def test_byte_tokens_on_both_sides_stand_one_to_one() -> None:
    rare = "𓀀"  # neither has it whole
    student, teacher = pieces(numerals(), rare), pieces(splitting(), rare)
    assert student == teacher and align_ratio(assert_smallest(student, teacher), 4) == 1


def test_the_ends_meet_and_nothing_else() -> None:
    assert align([b"ab", END], [b"a", b"b", END])[-1] == AlignedGroup(slice(1, 2), slice(2, 3))
    assert align([b"ab"], [b"a", b"b", END]) == [
        AlignedGroup(slice(0, 1), slice(0, 2))
    ]  # cut: the student does not end
    assert align([END], [END]) == [AlignedGroup(slice(0, 1), slice(0, 1))]
    assert align([], []) == align([b"a"], []) == []


def test_tokens_that_spell_nothing_are_in_no_group() -> None:
    assert align([b"", b"a", b"", b"b"], [b"a", b"b", b""]) == [
        AlignedGroup(slice(1, 2), slice(0, 1)),
        AlignedGroup(slice(3, 4), slice(1, 2)),
    ]
    # In the middle of a group it would be part of what happened, but not of what is compared.
    assert align([b"a", b"", b"b"], [b"ab"]) == []


def test_a_space_in_front_spoils_one_token_only() -> None:
    student, teacher = [b"the", b" cat", b" sat", END], [b" the", b" cat", b" s", b"at", END]
    assert shown(align(student, teacher), student, teacher) == [
        ([b" cat"], [b" cat"]),
        ([b" sat"], [b" s", b"at"]),
        ([END], [END]),
    ]


def test_a_broken_character_spoils_its_own_place_only() -> None:
    student = [b"cat", b"\xf0\x9f", b" sat"]  # a student may stop in the middle of an emoji
    teacher = pieces(splitting(), b"".join(student).decode(errors="replace"))  # type: ignore[arg-type]
    groups = shown(align(student, teacher), student, teacher)
    assert ([b"cat"], [b"cat"]) in groups and ([b" sat"], [b" sat"]) in groups
    assert all(b"\xf0\x9f" not in ours for ours, _ in groups)


def test_the_ratio_counts_the_student_s_tokens() -> None:
    groups = align([b"ab", b"c", b"d"], [b"a", b"b", b"c", b"d"])
    assert align_ratio(groups, 3) == pytest.approx(2 / 3) and align_ratio([], 0) == 0


@pytest.mark.bundled
@pytest.mark.slow
def test_the_bundled_pair_is_aligned_to_the_last_byte() -> None:
    smol, gemma = bundled()
    numbers = " ".join(str(number) for number in range(10, 1000))
    prose = " Iron is pulled by a magnet, so radiocarbon dating of 1,347 nails needs no photosynthesis."
    for text in (numbers, prose, " 日本語 🙂👩\u200d🔬", "x = [1, 2]\n\n  return x"):
        student, teacher = pieces(smol, text), pieces(gemma, text)
        groups = assert_smallest(student, teacher)
        if text is prose:
            assert align_ratio(groups, len(student)) > 0.8
