"""The parser reads what is said and nothing else."""

import pytest

from tinyllm_bench.answers.parser import PARSER_VERSION, RULES, Read, first_line, normalised, read_answer

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
