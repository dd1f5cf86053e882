"""What a program's value means as an answer: keys that can be compared and voted on, or a named reason for none.

Pure functions on plain data; programs are read and run by `sandbox.Sandbox`. Three kinds of question: a number is asked
for, one of several options, or yes / no / maybe. A program is given `choices` (letter to text) for options only, and
sets `answer` to a letter; to "yes", "no" or "maybe"; or to a number (arXiv 2312.10730; the contract is ours).
"""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from tinyllm_bench.answers.choices import normalised
from tinyllm_bench.answers.sandbox_runner import ExecResult
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.rows import number_key

NORMALISER_VERSION = 1  # raise it with any change of what a value means
REASONS = (
    "empty",
    "no_answer",
    "wrong_answer",
    "syntax",
    "rejected_by_gate",
    "exec_error",  # followed by `:<type>`
    "timeout",
    "memory",
    "forbidden",
    "non_numeric",
    "not_finite",
    "not_an_option",
    "degenerate",
    "too_long",
    "not_encodable",  # the student's tokenizer loses a character of it
)
Kind = Literal["number", "options", "yes_no"]

_CLOSED = frozenset({"yes", "no", "maybe"})
_NUMBER = re.compile(
    r"([+-]?)\s*[$€£]?\s*([+-]?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(e[+-]?\d{1,3})?\s*%?", re.I
)
_LETTER = re.compile(r"\(?([a-z])[).:]?")


class Key(NamedTuple):
    """An answer key, or the reason why a path has none."""

    key: str | None
    reason: str | None = None


def kind_of(choices: Sequence[str]) -> Kind:
    """The kind of question that these choices make; no choices ask for a number."""
    if not choices:
        return "number"
    return "yes_no" if {normalised(choice) for choice in choices} <= _CLOSED else "options"


def inputs_for(choices: Sequence[str]) -> dict[str, Any]:
    """The variables a program is given: `choices`, where it must choose among options."""
    if kind_of(choices) != "options":
        return {}
    return {"choices": dict(zip(LETTERS, choices, strict=False))}


def answer_of(result: ExecResult, choices: Sequence[str]) -> Key:
    """The key of a program that was run: the reason why it failed, or what its value means."""
    return normalise(result.value, choices) if result.ok else Key(None, result.error)


def normalise(value: Any, choices: Sequence[str]) -> Key:
    """What a value (or a gold answer) means where these choices stand: a key, or why it means nothing."""
    kind = kind_of(choices)
    if kind == "number":
        return number(value)
    return yes_no(value, choices) if kind == "yes_no" else option(value, choices)


def number(value: Any) -> Key:
    """The key of a number, rounded to six significant digits: `2`, `2.0`, `"$2"` and `"2.00"` are one.

    None, True, lists and words are `non_numeric`; NaN and the infinities are `not_finite`. A per cent sign is dropped.
    """
    if type(value) is float and not math.isfinite(value):
        return Key(None, "not_finite")
    if type(value) in (int, float):
        return Key(number_key(value))
    if type(value) is str and (match := _NUMBER.fullmatch(value.strip())):
        outer, inner, digits, exponent = match.groups()
        if outer and inner:
            return Key(None, "non_numeric")
        return Key(number_key(Decimal(outer + inner + digits.replace(",", "") + (exponent or ""))))
    return Key(None, "non_numeric")


def option(value: Any, choices: Sequence[str]) -> Key:
    """The letter of an option: named by its letter, its exact text, or a beginning that no other option has.

    A number means the option with that number. Everything else, and everything ambiguous, is `not_an_option`: the
    closest option is never guessed.
    """
    if type(value) in (int, float):
        key = number(value).key
        return _only([i for i, text in enumerate(choices) if key is not None and number(text).key == key])
    if type(value) is not str or not (text := normalised(value)):
        return Key(None, "not_an_option")
    letter = _LETTER.fullmatch(text)
    if letter and letter[1] in LETTERS[: len(choices)]:
        return Key(letter[1])
    texts = [normalised(choice) for choice in choices]
    exact = [i for i, one in enumerate(texts) if one == text]
    if exact or len(text) == 1:
        return _only(exact)
    return _only([i for i, one in enumerate(texts) if one.startswith(text)])


def _only(found: list[int]) -> Key:
    return Key(LETTERS[found[0]]) if len(found) == 1 else Key(None, "not_an_option")


def yes_no(value: Any, choices: Sequence[str]) -> Key:
    """Yes, no or maybe, in lower case, where it is among the choices; here alone True and False are answers."""
    if type(value) is bool:
        value = "yes" if value else "no"
    text = normalised(value) if type(value) is str else ""
    return Key(text) if text and text in map(normalised, choices) else Key(None, "not_an_option")


def index_of(key: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a key names; None for a number."""
    kind = kind_of(choices)
    if kind == "number":
        return None
    return LETTERS.index(key) if kind == "options" else [normalised(choice) for choice in choices].index(key)


def key_of(index: int, choices: Sequence[str]) -> str:
    """The key of the choice at an index: what a right program gives for a record with that answer."""
    return normalised(choices[index]) if kind_of(choices) == "yes_no" else LETTERS[index]
