"""The prompts of teachers, letter for letter; how replies are read, and where a text names its answer."""

import re
from typing import get_args

import pytest

from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.teachers.few_shot import Demonstration, ShotConfig, ShotSelector
from tinyllm_bench.teachers.program_examples import EXAMPLES
from tinyllm_bench.teachers.prompts import (
    AnnotationPrompts,
    PromptKind,
    Reply,
    annotation_prompt,
    read_reply,
    stop_texts,
    without_answer,
)

KINDS: tuple[PromptKind, ...] = get_args(PromptKind)


def made(question: str, choices: tuple[str, ...], answer: int, context: str = "") -> TaskRecord:
    return TaskRecord(
        id=f"toy/train/{question}",
        task="toy",
        split="train",
        question=question,
        choices=choices,
        answer=answer,
        context=context,
    )


def prompts_of(kind: PromptKind) -> AnnotationPrompts:
    return AnnotationPrompts(prompt_kind=kind, shots=ShotSelector(ShotConfig(shots=0), (), None), max_context_words=160)


BATH = made("What floats in a bath?", ("a stone", "a cork", "a coin", "a key"), 1)
NIGHT = made("When do owls hunt?", ("at noon", "at night"), 1)
STUDY = made("Does rest help?", ("yes", "no", "maybe"), 0, context="Forty people rested.\nThey got well.")

FORCED = """\
Question:
When do owls hunt?
Options:
(a) at noon
(b) at night
Answer:
b
Rationale:
Let's think step by step. Owls see in the dark. They sleep by day.

Question:
Does rest help?
Options:
(a) yes
(b) no
(c) maybe
Answer:
a

Question:
What floats in a bath?
Options:
(a) a stone
(b) a cork
(c) a coin
(d) a key
Answer:
b
Rationale:
Let's think step by step."""

FREE = """\
Question:
When do owls hunt?
Options:
(a) at noon
(b) at night
Answer:
Let's think step by step. Owls see in the dark. They sleep by day. The answer is (b).

Question:
Does rest help?
Options:
(a) yes
(b) no
(c) maybe
Answer:
The answer is (a).

Question:
What floats in a bath?
Options:
(a) a stone
(b) a cork
(c) a coin
(d) a key
Answer:
Let's think step by step."""

THEN_ANSWER = """\
Explain each question first. Then name the answer in a last line of its own, such as: Answer: (a)

Question:
When do owls hunt?
Options:
(a) at noon
(b) at night
Rationale:
Owls see in the dark. They sleep by day.
Answer: (b)

Question:
Does rest help?
Options:
(a) yes
(b) no
(c) maybe
Answer: (a)

Question:
What floats in a bath?
Options:
(a) a stone
(b) a cork
(c) a coin
(d) a key
Rationale:"""


@pytest.mark.parametrize(
    ("kind", "expected"), [("forced", FORCED), ("free", FREE), ("rationale_then_answer", THEN_ANSWER)]
)
def test_the_whole_prompt(kind: PromptKind, expected: str) -> None:
    shown = [
        Demonstration(NIGHT, "Let's think step by step. Owls see in the dark.\n\nThey sleep by day. "),
        Demonstration(made(STUDY.question, STUDY.choices, 0), None),
    ]
    assert annotation_prompt(BATH, shown, kind) == expected


def test_without_demonstrations_the_forced_prompt_is_the_published_template() -> None:
    assert annotation_prompt(BATH, (), "forced") == FORCED.rpartition("\n\n")[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_passage_is_part_of_the_question(kind: PromptKind) -> None:
    prompt = annotation_prompt(STUDY, (), kind)
    assert "Question:\nForty people rested.\nThey got well.\nDoes rest help?\nOptions:\n(a) yes\n" in prompt


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_forced_teacher_sees_the_gold(kind: PromptKind) -> None:
    prompts = {annotation_prompt(made("Which?", ("one", "two", "three"), gold), (), kind) for gold in range(3)}
    assert prompts_of(kind).gold_visible is (len(prompts) > 1)
    assert prompts_of(kind).gold_visible is (kind == "forced")


def test_a_program_prompt_has_six_examples_whatever_the_demonstrations() -> None:
    prompt = annotation_prompt(BATH, [Demonstration(NIGHT, "Owls see in the dark.")], "program")
    assert prompt == annotation_prompt(BATH, (), "program") and prompt.count("Question:\n") == 7
    assert prompt.endswith("(d) a key\nProgram:\n```python")
    assert "`choices`" in prompt and "`answer = ...`" in prompt


def test_each_kind_of_question_has_its_own_examples() -> None:
    texts = [annotation_prompt(record, (), "program") for record in (BATH, STUDY)]
    shown = [[example.program for example in EXAMPLES[kind]] for kind in ("options", "yes_no")]
    for text, own, others in zip(texts, shown, reversed(shown), strict=True):
        assert all(program in text for program in own) and not any(program in text for program in others)
        assert not re.search(r"^(?:for|while|def|import)\b", text, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_annotation(kind: PromptKind) -> None:
    assert prompts_of(kind).kind == ("program" if kind == "program" else "rationale")


@pytest.mark.parametrize("kind", KINDS)
def test_an_invented_question_ends_the_text_and_is_not_read(kind: PromptKind) -> None:
    reply = {"program": "answer = 'b'", "rationale_then_answer": "Cork is light.\nAnswer: (b)"}.get(
        kind, "Cork is light."
    )
    for more in ("\n\nQuestion:\nWhat sinks?\nAnswer: (a)", "\nQ: What sinks?\nA: (a)", "\n### Question\nWhat?"):
        assert any(stop in more for stop in stop_texts(kind))
        assert read_reply(kind, reply + more, BATH) == read_reply(kind, reply, BATH)


@pytest.mark.parametrize("kind", KINDS)
def test_no_stop_text_ends_a_reply_of_the_expected_form(kind: PromptKind) -> None:
    reply = {
        "forced": " Cork is light.\nIt floats.",
        "free": " Cork is light.\n\nThe answer is (b).",
        "rationale_then_answer": "\nCork is light.\nAnswer: (b)",
        "program": "Here it is:\n```python\nlight = True\nanswer = 'b' if light else 'a'\n```",
    }[kind]
    assert not any(stop in reply for stop in stop_texts(kind))
    assert len(stop_texts(kind)) <= 4, "the most that common servers take"


def test_a_program_s_lines_end_where_python_ends_them() -> None:
    reply = "a = 'x\u2028y\x85z\x0b'  \r\nb = 1\t\ranswer = a\n"
    assert read_reply("program", reply, BATH).text == "a = 'x\u2028y\x85z\x0b'\nb = 1\nanswer = a"


def test_a_forced_text_loses_its_trigger_alone() -> None:
    reply = "Let's think step by step. Cork is light. So the answer is (b)."
    assert read_reply("forced", reply, BATH) == Reply("Cork is light. So the answer is (b).", None)
    assert read_reply("forced", " Rationale: Cork is light.\nAnswer: b", BATH) == Reply("Cork is light.", None)
    assert read_reply("forced", "  \n", BATH) == Reply("", None)


@pytest.mark.parametrize(
    ("text", "rationale", "answer"),
    [
        (" Let's think step by step. Cork is light. So the answer is (b).", "Cork is light.", "a cork"),
        ("Cork is light.\nThe answer is (c).", "Cork is light.", "a coin"),
        ("The answer is (b).", "", "a cork"),
        ("Cork is light and floats.", "Cork is light and floats.", None),
        ("The answer is (a). Or else the answer is (b).", "The answer is (a). Or else the answer is (b).", None),
        ("", "", None),
    ],
)
def test_a_free_text(text: str, rationale: str, answer: str | None) -> None:
    assert read_reply("free", text, BATH) == Reply(rationale, answer)


@pytest.mark.parametrize(
    ("text", "rationale", "answer"),
    [
        ("Cork is light.\nAnswer: (b)", "Cork is light.", "a cork"),
        ("Rationale: Cork is light.\n**Answer:** (b) a cork\n\nI hope this helps.", "Cork is light.", "a cork"),
        ("Cork is light.\nAnswer:\n\nb", "Cork is light.", "a cork"),
        ("Cork is light. So the answer is (b).\nAnswer: (b)", "Cork is light.", "a cork"),
        ("Cork is light. So the answer is (b).", "Cork is light.", "a cork"),
        ("Cork is light.\nAnswer: the lightest", "Cork is light.\nAnswer: the lightest", None),
        ("The answer is (a).\nAnswer: (b)", "The answer is (a).\nAnswer: (b)", None),
        ("Cork is light.\nAnswer: (b)\nAnswer: (c)", "Cork is light.", "a cork"),
        ("Answer: (b)", "", "a cork"),
    ],
)
def test_a_rationale_then_answer(text: str, rationale: str, answer: str | None) -> None:
    assert read_reply("rationale_then_answer", text, BATH) == Reply(rationale, answer)


CODE = 'light = True\nanswer = "b" if light else "a"'


@pytest.mark.parametrize(
    "text",
    [
        f"\n{CODE}\n```",
        CODE,
        f"\n{CODE}\n```\n\nAnother one:\n```python\nanswer = 'c'\n```",
        f"```python\n{CODE}\n```",
        f"```\n{CODE}\n```\nIt answers (b).",
        f"Here is the program:\n\n```py\n{CODE}\n```\nThe answer = b.",
        f"```python\n{CODE}",
        "\nlight = True  \r\n" + CODE.splitlines()[1] + "\r\n```",
    ],
)
def test_a_program_is_unwrapped(text: str) -> None:
    assert read_reply("program", text, BATH) == Reply(CODE, None)


# --- where a text names its answer ---

OPTIONS = ("a stone", "a cork", "3.5 coins", "stone. wood. cork")
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
def test_a_named_answer_is_taken_out(text: str, rest: str, named: set[int]) -> None:
    assert without_answer(text, OPTIONS) == (rest, named)


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
    assert without_answer(text, OPTIONS) == (text, set())


def test_of_an_answer_that_is_corrected_the_last_one_counts_and_both_are_taken_out() -> None:
    assert without_answer("A stone? The answer is (a). No: the answer is (b).", OPTIONS) == ("A stone?", {1})
    assert without_answer("The answer is not (a). The answer is (b).", OPTIONS) == ("The answer is not (a).", {1})
    assert without_answer("I do not think that the answer is (a).", OPTIONS)[1] == set()


@pytest.mark.parametrize("text", ["The answer is (a) or (b).", "Answer: (a)\nAnswer: (b)"])
def test_two_answers_are_both_returned(text: str) -> None:
    assert without_answer(text, OPTIONS)[1] == {0, 1}


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
    assert without_answer(text, CLOSED) == (rest, named)
