"""Two tokenizations of one text are aligned by bytes, and a batch is converted for a teacher with another tokenizer."""

from itertools import pairwise
from typing import Any

import pytest

from tests.tokenizer_pair import bundled, numerals, splitting
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.models.vocabulary import vocabulary
from tinyllm_bench.training.cross_losses import (
    Prefix,
)
from tinyllm_bench.training.cross_tokenizer import END, AlignedGroup, Piece, align, align_ratio, make_view

# --- Alignment -------------------------------------------------------------------------------------------------------


def pieces(tokenizer: Any, text: str) -> list[Piece]:
    actual = vocabulary(tokenizer).pieces
    return [actual[token] for token in tokenizer(text, add_special_tokens=False)["input_ids"]]


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
    for group, next_group in pairwise(groups):
        assert (group.student.stop, group.teacher.stop) == (next_group.student.start, next_group.teacher.start)
    assert (groups[0].student.start, groups[-1].student.stop) == (0, len(student))
    assert (groups[0].teacher.start, groups[-1].teacher.stop) == (0, len(teacher))
    return groups


def test_groups_close_where_both_sides_end() -> None:
    groups = align([b"ab", b"c", b"de"], [b"a", b"bc", b"d", b"e"])
    assert groups == [AlignedGroup(slice(0, 2), slice(0, 2)), AlignedGroup(slice(2, 3), slice(2, 4))]


@pytest.mark.parametrize("number", [*range(10, 1000, 37), 999])
def test_a_number_is_aligned_with_its_digits(number: int) -> None:
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


def test_byte_tokens_on_both_sides_are_aligned_one_to_one() -> None:
    rare = "𓀀"  # neither has it whole
    student, teacher = pieces(numerals(), rare), pieces(splitting(), rare)
    assert student == teacher and align_ratio(assert_smallest(student, teacher), 4) == 1


def test_end_tokens_are_aligned_with_end_tokens_only() -> None:
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


def test_a_leading_space_leaves_only_one_token_unaligned() -> None:
    student, teacher = [b"the", b" cat", b" sat", END], [b" the", b" cat", b" s", b"at", END]
    assert shown(align(student, teacher), student, teacher) == [
        ([b" cat"], [b" cat"]),
        ([b" sat"], [b" s", b"at"]),
        ([END], [END]),
    ]


def test_a_broken_character_leaves_only_its_own_tokens_unaligned() -> None:
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


# --- View ------------------------------------------------------------------------------------------------------------

STUDENT, TEACHER = numerals(), splitting()


def encoded(text: str, *, tokenizer: Any = STUDENT, ended: bool = True) -> Encoded:
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Encoded("r", "label", (5, 6), (*ids, tokenizer.eos_token_id) if ended else ids, not ended)


def token(tokenizer: Any, entry: str) -> int:
    return int(tokenizer.get_vocab()[entry])


def test_the_teacher_gets_its_own_prompt_and_the_student_s_response() -> None:
    items = [encoded(" the cat"), encoded(" 347", ended=False)]
    aligned = make_view(items, STUDENT, TEACHER, ["Q: which?", "<turn>\nQ: how many?"], add_bos=True)
    read = [TEACHER.decode(item.prompt) for item in aligned.teacher.items]
    assert read == ["<bos>Q: which?", "<bos><turn>\nQ: how many?"]
    assert [TEACHER.decode(item.target) for item in aligned.teacher.items] == [" the cat<eos>", " 347"]
    assert aligned.teacher.target_ids_N.tolist() == aligned.spans.teacher_ids_M.tolist()
    for row, place in zip(aligned.teacher.target_row_N, aligned.teacher.target_position_N, strict=True):
        assert aligned.teacher.attention_mask_BT[row, place] == 1
    assert (aligned.tokens, aligned.single, aligned.grouped) == (3 + 2, 3 + 1, 5)
    # " the"=0, " cat"=1, end=2; " "=3 and "347"=4 beside "3", "4", "7"
    assert aligned.spans.student_G2.tolist() == [[n, n] for n in range(5)]
    assert aligned.spans.teacher_G2.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3], [4, 6]]
    assert aligned.spans.prefixes == (None, None, None, None, Prefix("teacher", b"34"))


def test_a_response_that_merges_with_the_prompt_is_tokenised_separately() -> None:
    (item,) = make_view([encoded("at")], STUDENT, TEACHER, ["the c"]).teacher.items
    assert TEACHER.decode(item.prompt) == "the c" and TEACHER.decode(item.target) == "at<eos>"


def test_sampled_ids_are_aligned_as_they_are() -> None:
    ids = [token(STUDENT, entry) for entry in ("c", "a", "t", "3", "47")]  # the tokenizer would write " cat", "347"
    item = Encoded("r", "label", (5,), (*ids, STUDENT.eos_token_id), False)
    aligned = make_view([item], STUDENT, TEACHER, ["Q:"])
    assert aligned.spans.student_ids_N.tolist() == list(item.target)
    assert aligned.spans.student_G2.tolist() == [[0, 2], [3, 3], [4, 4], [5, 5]]
    assert aligned.spans.prefixes == (Prefix("student", b"ca"), None, Prefix("teacher", b"4"), None)


def test_a_teacher_without_an_end_is_refused() -> None:
    endless = splitting()
    endless.eos_token = None
    with pytest.raises(UserError, match="end-of-text token; set eos_token"):
        make_view([encoded("cat")], STUDENT, endless, ["Q:"])
