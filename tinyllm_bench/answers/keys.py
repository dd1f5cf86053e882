"""Answer keys: the form in which answers are compared and voted on, from a program's value or a gold answer.

Pure functions on plain data; a value that means nothing has a named reason. Three kinds of question: number, one of
several options, or yes / no / maybe. A program is given `choices` (letter to text) for options only, and sets `answer`
to a letter; to "yes", "no" or "maybe"; or to a number (arXiv 2312.10730; the contract is this project's).
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from tinyllm_bench.answers.sandbox.runner import ExecResult
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.rows import number_key

NORMALISER_VERSION = 1  # part of the protocol: raise it with any change of what a value means
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
QuestionKind = Literal["number", "options", "yes_no"]

CLOSED = frozenset({"yes", "no", "maybe"})
WRAPPING = " \t\"'`*_\u201c\u201d\u2018\u2019"  # characters around an answer that are not part of it
_NUMBER = re.compile(
    r"([+-]?)\s*[$€£]?\s*([+-]?)((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(e[+-]?\d{1,3})?\s*%?", re.I
)
_LETTER = re.compile(r"\(?([a-z])[).:]?")


class Key(NamedTuple):
    """An answer key, or the reason why there is none."""

    key: str | None
    reason: str | None = None


def normalised(text: str) -> str:
    """The form in which texts are compared: NFKC, lower case, single spaces, no quotes or final stop around it."""
    flat = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return flat.strip(WRAPPING).rstrip(".,;:!").strip(WRAPPING)


def question_kind(choices: Sequence[str]) -> QuestionKind:
    """The kind of a question with these choices; without choices it asks for a number."""
    if not choices:
        return "number"
    return "yes_no" if {normalised(choice) for choice in choices} <= CLOSED else "options"


def inputs_for(choices: Sequence[str]) -> dict[str, Any]:
    """The input variables of a program: `choices`, where it must choose among options."""
    if question_kind(choices) != "options":
        return {}
    return {"choices": dict(zip(LETTERS, choices, strict=False))}


def answer_of(result: ExecResult, choices: Sequence[str]) -> Key:
    """The answer key of a program that was run, or the reason why it failed."""
    return normalise(result.value, choices) if result.ok else Key(None, result.error)


def normalise(value: Any, choices: Sequence[str]) -> Key:
    """The answer key of a value (or a gold answer) to a question with these choices, or the reason why it has none."""
    kind = question_kind(choices)
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
    """The letter of an option that is named by its letter, its exact text, or an unambiguous beginning of its text.

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
    exact = [i for i, option in enumerate(texts) if option == text]
    if exact or len(text) == 1:
        return _only(exact)
    return _only([i for i, option in enumerate(texts) if option.startswith(text)])


def _only(indices: list[int]) -> Key:
    return Key(LETTERS[indices[0]]) if len(indices) == 1 else Key(None, "not_an_option")


def yes_no(value: Any, choices: Sequence[str]) -> Key:
    """Yes, no or maybe, in lower case, if it is among the choices; only here are True and False answers."""
    if type(value) is bool:
        value = "yes" if value else "no"
    text = normalised(value) if type(value) is str else ""
    return Key(text) if text and text in map(normalised, choices) else Key(None, "not_an_option")


def index_of(key: str, choices: Sequence[str]) -> int | None:
    """The index of the choice that a key names; None for a number."""
    kind = question_kind(choices)
    if kind == "number":
        return None
    return LETTERS.index(key) if kind == "options" else [normalised(choice) for choice in choices].index(key)


def key_of(index: int, choices: Sequence[str]) -> str:
    """The key of the choice at an index: what a right program gives for a record with that answer."""
    return normalised(choices[index]) if question_kind(choices) == "yes_no" else LETTERS[index]
