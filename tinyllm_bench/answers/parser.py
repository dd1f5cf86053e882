"""Reading an answer out of free text: one anchored parser that never guesses.

What a text claims ("the answer is (b)") decides, wherever it stands before an invented question; a claim that is
denied or taken back is none, and a corrected one gives way to the next (`answers.statements`). Without a claim the
first line is read by rules in order: each returns the choices that its pattern names, and the first that names any
decides. One is the answer; several are a contradiction and the text stays unread, as does one that denies what it
names, or that repeats the options. Unread texts are counted, never scored as an arbitrary choice.

`answers.choices` reads choices, `answers.numbers` numbers; this is the door to both.
"""

from collections.abc import Sequence

from tinyllm_bench.answers.choices import Read, answer_is, closed_word, exact, first_line, normalised, read_answer
from tinyllm_bench.answers.numbers import bare_number, number_announced, numbers_in, read_number
from tinyllm_bench.answers.programs import NORMALISER_VERSION

__all__ = [
    "NUMBERS_VERSION",
    "PARSER_VERSION",
    "Read",
    "answer_is",
    "bare_number",
    "closed_word",
    "exact",
    "first_line",
    "normalised",
    "number_announced",
    "numbers_in",
    "read",
    "read_answer",
    "read_number",
    "reader_version",
    "to_the_letter",
]

PARSER_VERSION = 2  # part of the protocol: raise it with any change of what is read from choices
NUMBERS_VERSION = 2  # the same for questions that ask for a number


def read(text: str, choices: Sequence[str]) -> Read:
    """Read what a text answers: one of the choices, or a number where there are none."""
    return read_answer(text, choices) if choices else read_number(text)


def to_the_letter(text: str, choices: Sequence[str]) -> Read:
    """Read a text that is a choice's text, white space around it apart, and nothing else: exact match, as released code
    of the field scores. A text that is no choice's is unparsed.

    `choices` are the texts as the student's tokenizer gives them back (`models.tokens.respelled`): other spellings it
    cannot write.
    """
    found = [index for index, choice in enumerate(choices) if choice.strip() == text.strip()]
    return Read(found[0], "to the letter") if found else Read(None, None)


def reader_version(choices: Sequence[str]) -> str:
    """The version of what `read` does for such a question, for protocols; a number's also names that of its key."""
    return str(PARSER_VERSION) if choices else f"numbers {NUMBERS_VERSION}, keys {NORMALISER_VERSION}"
