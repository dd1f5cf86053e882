"""Reading an answer out of free text: one anchored parser that never guesses.

The rules are tried in order. Each returns the choices its pattern names; the first rule that names any decides: one
choice is the answer, several are a contradiction and the text stays unread. Unread texts are counted, never scored as
an arbitrary choice.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinyllm_bench.data.prompts import LETTERS

PARSER_VERSION = 1  # part of the protocol: raise it with any change of what is read

_CLOSED = frozenset({"yes", "no", "maybe"})
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot|except|rather than|instead of|wrong|incorrect)\b|n't\b")
_ANSWER_IS = re.compile(r"\banswer(?:\s+is|\s*:|\s*=)\s*:?\s*|\\boxed\{([^{}]*)\}", re.IGNORECASE)
_LETTER = re.compile(r"\(([a-z])\)|([a-z])\)|([a-z])[.:](?=\s|$)|([a-z])[,;!]?\s*$", re.IGNORECASE)
_SECOND = re.compile(r"\s*(?:or|and|/|,|&)\s*\(?([a-z])(?:\)|[.:]?\s*$)", re.IGNORECASE)
_WRAPPING = " \t\"'`*_\u201c\u201d\u2018\u2019"


@dataclass(frozen=True, slots=True)
class Read:
    """What was read: the choice's index and the rule's name, or None and None."""

    index: int | None
    rule: str | None


def normalised(text: str) -> str:
    """The form in which texts are compared: NFKC, lower case, single spaces, no quotes or final stop around it."""
    flat = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return flat.strip(_WRAPPING).rstrip(".,;:!").strip(_WRAPPING)


def first_line(text: str) -> str:
    """The first line of a text that is not blank; empty if there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def exact(line: str, choices: Sequence[str]) -> set[int]:
    """The line is a choice's text, letter for letter; failing that, after normalisation."""
    same = {i for i, choice in enumerate(choices) if choice.strip() == line.strip()}
    if same:
        return same
    wanted = normalised(line)
    return {i for i, choice in enumerate(choices) if wanted and normalised(choice) == wanted}


def letter(line: str, choices: Sequence[str]) -> set[int]:
    """The line starts with a choice's letter: `(b)`, `b)`, `b.`, `b:` or nothing but `b`.

    A second letter ("(b) or (c)") or the text of another choice behind it ("(b) red", where (a) is red) contradicts.
    """
    start = line.lstrip(_WRAPPING)
    match = _LETTER.match(start.rstrip(_WRAPPING))
    if match is None:
        return set()
    found = {_index(match)}
    rest = start[match.end() :].lstrip("*_ ")
    second = _SECOND.match(rest)
    if second:
        found.add(_index(second))
    found |= exact(rest, choices) if rest.strip() else set()
    return found if all(i < len(choices) for i in found) else set()


def _index(match: "re.Match[str]") -> int:
    return LETTERS.index(next(group for group in match.groups() if group).lower())


def answer_is(line: str, choices: Sequence[str]) -> set[int]:
    r"""The line says `answer is …`, `answer: …` or `\boxed{…}`, followed by a letter or a choice's text."""
    found: set[int] = set()
    for match in _ANSWER_IS.finditer(line):
        boxed = match.group(1)
        rest = line[match.end() :] if boxed is None else boxed.strip()
        for rule in (exact, letter, leading):
            named = rule(rest, choices)
            if named:
                found |= named
                break
    return found


def leading(line: str, choices: Sequence[str]) -> set[int]:
    """The line starts with a choice's text and a punctuation mark; the longest choice that fits is meant."""
    text = normalised(line)
    fits = {
        i: normalised(choice)
        for i, choice in enumerate(choices)
        if normalised(choice) and re.match(re.escape(normalised(choice)) + r"[.,;:!?](?:\s|$)", text)
    }
    longest = max((len(choice) for choice in fits.values()), default=0)
    return {i for i, choice in fits.items() if len(choice) == longest}


def closed_word(line: str, choices: Sequence[str]) -> set[int]:
    """Yes, no and maybe as words of their own, where these are the choices; "no idea" is not a no."""
    words = [normalised(choice) for choice in choices]
    if not set(words) <= _CLOSED:
        return set()
    text = normalised(line)
    pattern = {"no": r"\bno\b(?!\s+\w)(?!-)", "yes": r"\byes\b", "maybe": r"\bmaybe\b"}
    return {i for i, word in enumerate(words) if re.search(pattern[word], text)}


def contained(line: str, choices: Sequence[str]) -> set[int]:
    """Choices named somewhere in the line, on word borders, where the rest of the line denies nothing.

    A choice inside a longer one counts only where it also stands alone. Single characters are never searched for (an
    "a" is mostly an article), nor are yes, no and maybe.
    """
    text = normalised(line)
    wanted = sorted(((normalised(choice), i) for i, choice in enumerate(choices)), key=lambda pair: -len(pair[0]))
    found: set[int] = set()
    done = ""
    for choice, i in wanted:
        if len(choice) < 2 or choice in _CLOSED:
            continue
        pattern = _bordered(choice)
        if choice == done or pattern.search(text):
            found.add(i)
            done = choice
            text = pattern.sub("\0", text)
    return set() if _NEGATION.search(text) else found


def _bordered(choice: str) -> "re.Pattern[str]":
    before = r"(?<![\d.,\-])" if choice[0].isdigit() else r"(?<!\w)"
    after = r"(?![.,]?\d)(?![\w%])" if choice[-1].isdigit() else r"(?!\w)" if choice[-1].isalnum() else ""
    return re.compile((before if choice[0].isalnum() else "") + re.escape(choice) + after)


RULES: tuple[tuple[str, Callable[[str, Sequence[str]], set[int]]], ...] = (
    ("exact", exact),
    ("letter", letter),
    ("answer_is", answer_is),
    ("leading", leading),
    ("closed_word", closed_word),
    ("contained", contained),
)


def read_answer(text: str, choices: Sequence[str]) -> Read:
    """Read which choice a text names; only its first line that is not blank counts.

    Returns:
        The choice's index and the name of the rule that read it, or (None, None): nothing named, or a contradiction.
    """
    line = first_line(text)
    for name, rule in RULES:
        named = rule(line, choices) if line else set()
        if len(named) == 1:
            return Read(next(iter(named)), name)
        if named:
            return Read(None, None)
    return Read(None, None)
