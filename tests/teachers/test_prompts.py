"""What a teacher is asked, letter for letter, and what its text is read as."""

import re
from typing import get_args

import pytest

from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.teachers import prompts as elicit
from tinyllm_bench.teachers.program_examples import SHOWN
from tinyllm_bench.teachers.prompts import Demonstration, Kind, Reply

KINDS: tuple[Kind, ...] = get_args(Kind)


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
def test_the_whole_prompt(kind: Kind, expected: str) -> None:
    shown = [
        Demonstration(NIGHT, "Let's think step by step. Owls see in the dark.\n\nThey sleep by day. "),
        Demonstration(made(STUDY.question, STUDY.choices, 0), None),
    ]
    assert elicit.prompt(BATH, shown, kind) == expected


def test_without_demonstrations_the_forced_prompt_is_the_published_template() -> None:
    assert elicit.prompt(BATH, (), "forced") == FORCED.rpartition("\n\n")[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_passage_stands_inside_the_question_in_front_of_it(kind: Kind) -> None:
    prompt = elicit.prompt(STUDY, (), kind)
    assert "Question:\nForty people rested.\nThey got well.\nDoes rest help?\nOptions:\n(a) yes\n" in prompt


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_forced_teacher_sees_the_gold(kind: Kind) -> None:
    prompts = {elicit.prompt(made("Which?", ("one", "two", "three"), gold), (), kind) for gold in range(3)}
    assert elicit.gold_visible(kind) is (len(prompts) > 1)
    assert elicit.gold_visible(kind) is (kind == "forced")


def test_a_program_is_asked_for_with_six_examples_whatever_is_shown() -> None:
    prompt = elicit.prompt(BATH, [Demonstration(NIGHT, "Owls see in the dark.")], "program")
    assert prompt == elicit.prompt(BATH, (), "program") and prompt.count("Question:\n") == 7
    assert prompt.endswith("(d) a key\nProgram:\n```python")
    assert "`choices`" in prompt and "`answer = ...`" in prompt


def test_each_kind_of_question_has_its_own_examples() -> None:
    asked = [elicit.prompt(one, (), "program") for one in (BATH, STUDY)]
    shown = [[one.program for one in SHOWN[kind]] for kind in ("options", "yes_no")]
    for text, own, others in zip(asked, shown, reversed(shown), strict=True):
        assert all(program in text for program in own) and not any(program in text for program in others)
        assert not re.search(r"^(?:for|while|def|import)\b", text, re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_annotation(kind: Kind) -> None:
    assert elicit.annotation_kind(kind) == ("program" if kind == "program" else "rationale")


@pytest.mark.parametrize("kind", KINDS)
def test_an_invented_question_is_stopped_at_and_not_read(kind: Kind) -> None:
    said = {"program": "answer = 'b'", "rationale_then_answer": "Cork is light.\nAnswer: (b)"}.get(
        kind, "Cork is light."
    )
    for more in ("\n\nQuestion:\nWhat sinks?\nAnswer: (a)", "\nQ: What sinks?\nA: (a)", "\n### Question\nWhat?"):
        assert any(stop in more for stop in elicit.stops(kind))
        assert elicit.read(kind, said + more, BATH) == elicit.read(kind, said, BATH)


@pytest.mark.parametrize("kind", KINDS)
def test_no_stop_text_ends_a_reply_of_the_wanted_form(kind: Kind) -> None:
    reply = {
        "forced": " Cork is light.\nIt floats.",
        "free": " Cork is light.\n\nThe answer is (b).",
        "rationale_then_answer": "\nCork is light.\nAnswer: (b)",
        "program": "Here it is:\n```python\nlight = True\nanswer = 'b' if light else 'a'\n```",
    }[kind]
    assert not any(stop in reply for stop in elicit.stops(kind))
    assert len(elicit.stops(kind)) <= 4, "the most that common servers take"


def test_a_program_s_lines_end_where_python_ends_them() -> None:
    said = "a = 'x\u2028y\x85z\x0b'  \r\nb = 1\t\ranswer = a\n"
    assert elicit.read("program", said, BATH).text == "a = 'x\u2028y\x85z\x0b'\nb = 1\nanswer = a"


def test_a_forced_text_loses_its_trigger_alone() -> None:
    said = "Let's think step by step. Cork is light. So the answer is (b)."
    assert elicit.read("forced", said, BATH) == Reply("Cork is light. So the answer is (b).", None)
    assert elicit.read("forced", " Rationale: Cork is light.\nAnswer: b", BATH) == Reply("Cork is light.", None)
    assert elicit.read("forced", "  \n", BATH) == Reply("", None)


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
    assert elicit.read("free", text, BATH) == Reply(rationale, answer)


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
    assert elicit.read("rationale_then_answer", text, BATH) == Reply(rationale, answer)


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
    assert elicit.read("program", text, BATH) == Reply(CODE, None)
