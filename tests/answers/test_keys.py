"""Answer keys: what a program's value means, for each kind of question."""

import math
from typing import Any

import pytest

from tests.answers.conftest import MELTS, TRIAL
from tinyllm_bench.answers.keys import (
    Key,
    answer_of,
    index_of,
    inputs_for,
    key_of,
    normalise,
    question_kind,
)
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.answers.sandbox.runner import ExecResult

COLOURS = ("red", "dark red", "green", "3")
YES_NO = ("yes", "no")


@pytest.mark.parametrize(
    ("value", "key", "reason"),
    [
        (2, "2", None),
        (2.0, "2", None),
        ("2", "2", None),
        ("2.00", "2", None),
        ("$2", "2", None),
        ("$1,200", "1200", None),
        (" 1,200.50 ", "1200.5", None),
        ("-$3", "-3", None),
        ("€3", "3", None),
        ("50%", "50", None),
        (-0.0, "0", None),
        (0.1 + 0.2, "0.3", None),
        ("0.3", "0.3", None),
        (1 / 3, "0.333333", None),
        (1234567, "1234570", None),
        (1234568.0, "1234570", None),
        (1e-9, "1e-9", None),
        (10**20, "1e+20", None),
        (2**1024 - 1, "1.79769e+308", None),
        (math.nan, None, "not_finite"),
        (math.inf, None, "not_finite"),
        (-math.inf, None, "not_finite"),
        (None, None, "non_numeric"),
        (True, None, "non_numeric"),
        ((1, 2), None, "non_numeric"),
        ([1, 2], None, "non_numeric"),
        ({}, None, "non_numeric"),
        ("12 apples", None, "non_numeric"),
        ("1,20", None, "non_numeric"),
        ("nan", None, "non_numeric"),
        ("", None, "non_numeric"),
        ("--2", None, "non_numeric"),
        ("1e99999", None, "non_numeric"),
    ],
)
def test_numbers(value: Any, key: str | None, reason: str | None) -> None:
    assert normalise(value, ()) == Key(key, reason)
    assert key is None or normalise(key, ()) == Key(key), "a key is its own key"


@pytest.mark.parametrize(
    ("value", "letter"),
    [
        ("b", "b"),
        ("(B)", "b"),
        ("b.", "b"),
        ("Dark red", "b"),
        ('"green"', "c"),
        ("gre", "c"),
        ("dark", "b"),
        (3, "d"),
        (3.0, "d"),
        ("3", "d"),
        ("re", "a"),
        ("e", None),  # no such letter, and one character is no beginning
        ("blue", None),
        ("reddish", None),
        (2, None),
        (True, None),
        (None, None),
        ("", None),
        (["a"], None),
        (math.nan, None),
    ],
)
def test_options(value: Any, letter: str | None) -> None:
    assert normalise(value, COLOURS) == Key(letter, None if letter else "not_an_option")


def test_an_ambiguous_beginning_or_text_is_no_option() -> None:
    assert normalise("a wo", ("a wolf", "a wombat", "a cat")).reason == "not_an_option"
    assert normalise("same", ("same", "same", "other")).reason == "not_an_option"
    assert normalise("a", ("b", "a")) == Key("a"), "a letter before a text"


@pytest.mark.parametrize(
    ("value", "choices", "key"),
    [
        ("yes", YES_NO, "yes"),
        ("No.", YES_NO, "no"),
        (True, YES_NO, "yes"),
        (False, YES_NO, "no"),
        ("maybe", YES_NO, None),
        ("maybe", ("yes", "no", "maybe"), "maybe"),
        (1, YES_NO, None),
        ("a", YES_NO, None),
        ("", YES_NO, None),
        ("unclear", YES_NO, None),
        (None, YES_NO, None),
    ],
)
def test_yes_and_no(value: Any, choices: tuple[str, ...], key: str | None) -> None:
    assert normalise(value, choices) == Key(key, None if key else "not_an_option")


def test_kinds_inputs_and_keys() -> None:
    assert [question_kind(c) for c in ((), COLOURS, YES_NO, ("Yes", "no", "maybe"))] == [
        "number",
        "options",
        "yes_no",
        "yes_no",
    ]
    assert inputs_for(COLOURS) == {"choices": {"a": "red", "b": "dark red", "c": "green", "d": "3"}}
    assert inputs_for(YES_NO) == inputs_for(()) == {}
    for choices in (COLOURS, YES_NO, ("no", "Yes")):
        assert [index_of(key_of(i, choices), choices) for i in range(len(choices))] == list(range(len(choices)))
    assert index_of("12", ()) is None
    assert answer_of(ExecResult(False, error="timeout"), COLOURS) == Key(None, "timeout")
    assert answer_of(ExecResult(True, "b"), COLOURS) == Key("b")


def test_the_contract_of_multiple_choice(box: Sandbox) -> None:
    by_length = (
        "longest = max(map(len, choices.values()))\nanswer = [k for k in choices if len(choices[k]) == longest][0]"
    )
    result = box.run(by_length, inputs=inputs_for(COLOURS))
    assert answer_of(result, COLOURS) == Key("b")
    assert answer_of(box.run(MELTS, inputs=inputs_for(("it melts", "it stays"))), ("it melts", "it stays")) == Key("a")
    assert answer_of(box.run(TRIAL, inputs=inputs_for(YES_NO)), YES_NO) == Key("yes")
    assert box.run("answer = choices['a']", inputs=inputs_for(YES_NO)).error == "exec_error:NameError"


def test_failed_paths_keep_their_reason(box: Sandbox) -> None:
    result = {
        code: answer_of(box.run(code), ()).reason
        for code in (
            "answer = float('nan')",
            "answer = 1e999",
            "answer = (1, 2)",
            "answer = None",
            "answer = 1 > 0",
            "1/0",
        )
    }
    assert list(result.values()) == ["not_finite"] * 2 + ["non_numeric"] * 3 + ["exec_error:ZeroDivisionError"]
