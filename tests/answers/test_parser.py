"""The parser reads what is said and nothing else."""

import pytest

from tinyllm_bench.answers.parser import (
    NUMBER_RULES,
    NUMBERS_VERSION,
    PARSER_VERSION,
    RULES,
    Read,
    bare_number,
    first_line,
    normalised,
    numbers_in,
    read,
    read_answer,
    read_number,
    reader_version,
)

COLOURS = ("blue", "red", "dark red", "green")
YES_NO = ("yes", "no", "maybe")
NUMBERS = ("3", "3.5", "35", "12")
LATEX = (r"$\frac{1}{2}$", r"$\frac{1}{4}$", r"$x^2$", r"$x$")
FOODS = ("a banana", "an apple", "a", "b")
PLAIN = ("a magnet", "a battery that is full", "a wire", "wood")


@pytest.mark.parametrize(
    ("text", "choices", "index", "rule"),
    [
        ("red", COLOURS, 1, "exact"),
        (" Dark  Red.\n\nQuestion: more", COLOURS, 2, "exact"),
        ('"green"', COLOURS, 3, "exact"),
        ("\n\n blue\nred", COLOURS, 0, "exact"),
        ("(b)", COLOURS, 1, "letter"),
        ("(B) red", COLOURS, 1, "letter"),
        ("b) red, because it is hot", COLOURS, 1, "letter"),
        ("b. red", COLOURS, 1, "letter"),
        ("D", COLOURS, 3, "letter"),
        ("**(c)** dark red", COLOURS, 2, "letter"),
        ("A: it says so", COLOURS, 0, "letter"),
        ("The answer is (b).", COLOURS, 1, "answer_is"),
        ("the answer is: b", COLOURS, 1, "answer_is"),
        ("Answer: c", COLOURS, 2, "answer_is"),
        ("So the answer is dark red.", COLOURS, 2, "answer_is"),
        ("We get \\boxed{d}", COLOURS, 3, "answer_is"),
        ("red, since the sun is low", COLOURS, 1, "leading"),
        ("dark red: the sun is low", COLOURS, 2, "leading"),
        ("It must be the dark red one", COLOURS, 2, "contained"),
        ("It must be the red one", COLOURS, 1, "contained"),
        ("I choose wood here", PLAIN, 3, "contained"),
        ("one needs a battery that is full", PLAIN, 1, "contained"),
        ("Yes, they do.", YES_NO, 0, "leading"),
        ("no", YES_NO, 1, "exact"),
        ("I would say maybe", YES_NO, 2, "closed_word"),
        ("The conclusion: no", YES_NO, 1, "closed_word"),
        ("3.5", NUMBERS, 1, "exact"),
        ("it is 3.5 metres", NUMBERS, 1, "contained"),
        ("it is 35 metres", NUMBERS, 2, "contained"),
        (r"$\frac{1}{4}$", LATEX, 1, "exact"),
        (r"we find $x^2$ here", LATEX, 2, "contained"),
        ("a", FOODS, 2, "exact"),
        ("b", FOODS, 3, "exact"),
    ],
)
def test_it_reads_what_is_said(text: str, choices: tuple[str, ...], index: int, rule: str) -> None:
    assert read_answer(text, choices) == Read(index, rule)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("", COLOURS),
        (" \n ", COLOURS),
        ("a dog ate it", COLOURS),  # the article is no letter
        ("A dog.", COLOURS),
        ("e.g. something", ("p", "q", "r", "s", "t")),
        ("The answer is a dog", COLOURS),
        ("(e) white", COLOURS),  # no such option
        ("z", COLOURS),
        ("(a) or (b)", COLOURS),
        ("(b) green", COLOURS),  # letter and text disagree
        ("red or green", COLOURS),
        ("red and dark red", COLOURS),
        ("It is not red", COLOURS),
        ("it isn't the green one", COLOURS),
        ("The answer is not (b)", COLOURS),
        ("bluered", COLOURS),
        ("the reddish one", COLOURS),
        ("I think not", YES_NO),
        ("I have no idea", YES_NO),
        ("There is no evidence for it", YES_NO),
        ("yes and no", YES_NO),
        ("nothing known", YES_NO),
        ("it is 3.7 metres", NUMBERS),
        ("it is 1.12 metres", NUMBERS),
        ("about 312 of them", NUMBERS),
        ("I like a thing", FOODS),
        ("green, red", ("green", "green")),
        ("green", ("green", "green")),
        ("The answer is (a), no, the answer is (b)", COLOURS),
    ],
)
def test_it_never_guesses(text: str, choices: tuple[str, ...]) -> None:
    assert read_answer(text, choices) == Read(None, None)


def test_every_choice_of_a_set_reads_as_itself() -> None:
    for choices in (COLOURS, YES_NO, NUMBERS, LATEX, FOODS, PLAIN):
        assert [read_answer(choice, choices).index for choice in choices] == list(range(len(choices)))


def test_reading_does_not_depend_on_case_or_on_what_follows_the_line() -> None:
    for text in ("(B)", "RED", "The Answer Is (b)"):
        assert read_answer(text, COLOURS).index == read_answer(text.lower() + "\nblue", COLOURS).index == 1


def test_helpers_and_names() -> None:
    assert first_line("\n  one \ntwo") == "one"
    assert normalised(" \u201cDark\u00a0Red.\u201d ") == "dark red"
    assert [name for name, _ in RULES] == ["exact", "letter", "answer_is", "leading", "closed_word", "contained"]
    assert PARSER_VERSION == 1


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "rule"),
    [
        ("51", "51", "alone"),
        (" 51.\n", "51", "alone"),
        ("$51", "51", "alone"),
        ("51 dollars", "51", "alone"),
        ("51%", "51", "alone"),
        ("$1,200", "1200", "alone"),
        ("1,234,567 people", "1234570", "alone"),  # six significant digits, as all keys
        ("-5", "-5", "alone"),
        ("\u22125 degrees", "-5", "alone"),
        ("-$5.50", "-5.5", "alone"),
        ("$-5.50", "-5.5", "alone"),
        ("\u20ac 3.20", "3.2", "alone"),
        ("2.0", "2", "alone"),
        (".5", "0.5", "alone"),
        ("0.50 litres", "0.5", "alone"),
        ("1e3", "1000", "alone"),
        ("**51**", "51", "alone"),
        ("= 51 apples", "51", "alone"),
        ("5kg", "5", "alone"),
        ("51\nQuestion: What now?", "51", "alone"),
        ("9 - 4 = 5 pens\n5", "5", "alone"),
        ("The answer is 51.", "51", "answer_is"),
        ("the answer is: $51", "51", "answer_is"),
        ("Answer: 51 dollars", "51", "answer_is"),
        ("So the answer is **7**.", "7", "answer_is"),
        ("The answer is 76 - 25 = 51.", "51", "answer_is"),
        ("The answer is $51 for each of the 3 packs.", "51", "answer_is"),
        ("The answer is that she has 51 of them.", "51", "answer_is"),
        ("She had 9.\nThe answer is 5.\n\nShe is 40 years old.", "5", "answer_is"),
        ("The answer is:\n\n5 apples", "5", "answer_is"),
        ("The answer is 5. So the answer is 5.0.", "5", "answer_is"),
        (r"We get \boxed{\$1,200}.", "1200", "answer_is"),
        ("She gives 4 away, so 9 - 4 = 5 are left.", "5", "last_number"),
        ("He had 9 pens.\nNow he has 5 pens.", "5", "last_number"),
        ("Each of the 3 gets 12 / 3 = 4 for the 2 days.", "4", "last_number"),
        ("He has 5 pens and a cap. It is the 2nd.", "5", "last_number"),
        ("There are 4 cats, so that makes 16 legs in all", "16", "last_number"),
    ],
)
def test_it_reads_a_number_that_is_said(text: str, key: str, rule: str) -> None:
    assert read_number(text) == Read(None, rule, key) == read(text, ())
    assert read(text, ()).key == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n ",
        "$",
        "%",
        "five",
        "no idea",
        "2 and 3",
        "2 or 3",
        "2, 3",
        "5 to 6 days",
        "5 dollars and 6 cents",
        "4 red and 5 blue",
        "7 - 2",
        "7 x 2",
        "1/2",
        "3 1/2",
        "a ratio of 3:4",
        "at 12:30",
        "2^10",
        "3 million",
        "2 dozen",
        "1,20",
        "1.2.3",
        "the 5th",
        "room B12",
        "The answer is 1/2.",
        "The answer is 2 and 3.",
        "The answer is 5 apples, 6 pears.",
        "The answer is between 5 and 6.",
        "The answer is not 5.",
        "The answer is 5. No, the answer is 6.",
        "There are 5 of them, but the answer is unknown.",
        "The answer is 5.\n\\boxed{6}",
        "You cannot watch 56 of them.",
        "It isn't 5",
        "5\n6",
    ],
)
def test_it_never_guesses_a_number(text: str) -> None:
    assert read_number(text) == Read(None, None) and read(text, ()).key is None


def test_one_door_for_both_kinds_of_question() -> None:
    assert read("(b)", COLOURS) == Read(1, "letter") and read("(b)", COLOURS).key == 1
    assert read("a", COLOURS).key == 0, "index 0 is an answer"
    assert read("purple", COLOURS).key is None


def test_numbers_have_a_version_of_their_own() -> None:
    assert [name for name, _ in NUMBER_RULES] == ["answer_is", "alone", "last_number"]
    assert NUMBERS_VERSION == 1
    assert reader_version(COLOURS) == "1" and reader_version(()) == "numbers 1, keys 1"


def test_numbers_in_a_text_stand_for_themselves() -> None:
    assert numbers_in("5 of 51 on the 3rd, 1/7 or $1,200") == {"5", "51", "1200"}
    assert bare_number("51 more apples") == {"51"} and bare_number("51 is wrong") == set()
