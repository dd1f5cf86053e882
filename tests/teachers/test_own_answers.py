"""Where a free text names its answer, and what is left of it without."""

import pytest

from tinyllm_bench.teachers.own_answers import take

BATH = ("a stone", "a cork", "3.5 coins", "stone. wood. cork")
CLOSED = ("yes", "no", "maybe")


@pytest.mark.parametrize(
    ("text", "rest", "named"),
    [
        ("Cork is light. So the answer is (b).", "Cork is light.", {1}),
        (
            "Cork is light, 0.2 g per ml. Therefore, the answer is (b). It floats.",
            "Cork is light, 0.2 g per ml. It floats.",
            {1},
        ),
        ("It holds 0.2 g so the correct answer is B.", "", {1}),
        ("Cork is light. The answer is b. Cork floats.", "Cork is light. Cork floats.", {1}),
        ("Cork is light. The answer is (b) a cork. It floats.", "Cork is light. It floats.", {1}),
        ("Cork is light. The answer is: a cork.", "Cork is light.", {1}),
        ("They add up. The answer is (c) 3.5 coins. Done.", "They add up. Done.", {2}),
        ("They add up. The answer is 3.5 coins. Done.", "They add up. Done.", {2}),
        ("All of them. The answer is (d) stone. wood. cork. Done.", "All of them. Done.", {3}),
        ("Cork is light.\n\n**Answer:** (b)\n\nIt floats.", "Cork is light.\nIt floats.", {1}),
        ("Cork is light.\n**The answer is (b).**", "Cork is light.", {1}),
        (r"Cork is light. So it is \boxed{b}. It floats.", "Cork is light. It floats.", {1}),
        (r"Cork is light. The answer is \boxed{(b)}.", "Cork is light.", {1}),
        ('"Cork is light." So the answer is (b).', '"Cork is light."', {1}),
        ("The answer is (b). Cork is light. So the answer is (b).", "Cork is light.", {1}),
        ("Cork is light.\n(b)", "Cork is light.", {1}),
        ("Cork is light.\n\n(b) a cork.", "Cork is light.", {1}),
        ("A cork.\nIt is light.", "It is light.", {1}),
        ("a cork", "", {1}),
    ],
)
def test_what_is_named_is_taken_out(text: str, rest: str, named: set[int]) -> None:
    assert take(text, BATH) == (rest, named)


@pytest.mark.parametrize(
    "text",
    [
        "A cork is light, which a stone is not.",
        "The answer is not (b).",
        "The answer is not a stone.",
        "The answer is clear to see. A cork floats.",
        "The answer is (z).",
        "A. Smith says that it floats.",
        "(b) is light and floats.",
        "A cork, being light, floats.\nSo it goes.",
        "The answers are (a) and (b).",
        "(a) a stone\nIt is heavy.\n(b) a cork\nIt is",
        "(a) A stone sinks.\n(b) a cork",
        "A stone.\nA cork.\nThey differ.",
        "(a) a stone:\nIt is heavy.",
        "It is heavy.\n**(a) a stone:**",
        "",
    ],
)
def test_nothing_is_guessed(text: str) -> None:
    assert take(text, BATH) == (text, set())


def test_of_an_answer_that_is_corrected_the_last_one_counts_and_both_are_taken_out() -> None:
    assert take("A stone? The answer is (a). No: the answer is (b).", BATH) == ("A stone?", {1})
    assert take("The answer is not (a). The answer is (b).", BATH) == ("The answer is not (a).", {1})
    assert take("I do not think that the answer is (a).", BATH)[1] == set()


@pytest.mark.parametrize("text", ["The answer is (a) or (b).", "Answer: (a)\nAnswer: (b)"])
def test_two_answers_are_both_told(text: str) -> None:
    assert take(text, BATH)[1] == {0, 1}


@pytest.mark.parametrize(
    ("text", "rest", "named"),
    [
        ("Yes, rest helps.", "rest helps.", {0}),
        ("No. Rest does nothing.", "Rest does nothing.", {1}),
        ("Rest helps. The answer is yes.", "Rest helps.", {0}),
        ("Rest helps. The answer is (a) yes.", "Rest helps.", {0}),
        ("Rest helps.\nMaybe", "Rest helps.", {2}),
        ("No study shows that rest helps.", "No study shows that rest helps.", set()),
        ("The answer is not yes.", "The answer is not yes.", set()),
        ("Rest helps, and yes, it is cheap.", "Rest helps, and yes, it is cheap.", set()),
    ],
)
def test_closed_answers(text: str, rest: str, named: set[int]) -> None:
    assert take(text, CLOSED) == (rest, named)
