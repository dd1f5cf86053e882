"""Reading an answer out of free text: one anchored parser that never guesses.

The rules are tried in order. Each returns the choices, or the numbers, that its pattern names; the first rule that
names any decides: one is the answer, several are a contradiction and the text stays unread. Unread texts are counted,
never scored as an arbitrary choice.

A choice is read from the first line alone. A number may stand at the end of a chain of thought: all lines are searched
for "the answer is", and what nothing announces is read from the last line.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tinyllm_bench.data.prompts import LETTERS

PARSER_VERSION = 1  # part of the protocol: raise it with any change of what is read from choices
NUMBERS_VERSION = 1  # the same for questions that ask for a number

_CLOSED = frozenset({"yes", "no", "maybe"})
_NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot|except|rather than|instead of|wrong|incorrect)\b|n't\b")
_ANSWER_IS = re.compile(r"\banswer(?:\s+is|\s*:|\s*=)\s*:?\s*|\\boxed\{([^{}]*)\}", re.IGNORECASE)
_LETTER = re.compile(r"\(([a-z])\)|([a-z])\)|([a-z])[.:](?=\s|$)|([a-z])[,;!]?\s*$", re.IGNORECASE)
_SECOND = re.compile(r"\s*(?:or|and|/|,|&)\s*\(?([a-z])(?:\)|[.:]?\s*$)", re.IGNORECASE)
_WRAPPING = " \t\"'`*_\u201c\u201d\u2018\u2019"

_SIGN = r"(?:(?<!\d)(?<!\d\s)[-+])?(?:[$\u20ac\u00a3]\s?-?)?"
_NUMBER = re.compile(
    rf"(?<![\w.]){_SIGN}(?:(?:\d{{1,3}}(?:,\d{{3}})+(?![\d,]*\d)|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b", re.IGNORECASE)
# What makes a number a part of something else: a fraction, ratio, time or power, wrong commas, "3 million".
_GOES_ON = re.compile(r"\s?[/:^]\s?\d|[,.]\d|\s(?:hundred|thousand|million|billion|trillion|dozen)s?\b", re.IGNORECASE)
_GOES_BEFORE = re.compile(r"(?:\d\s?[/:^]\s?|\d,)$")
_UNIT = r"(?:\s*(?:%|[^\W\d_]+(?![^\W\d_]))){0,3}"  # whole words, or a long one would be cut in all ways
_OPERATOR = r"[-+*/&,\u00d7\u00f7\u2013]|\b(?:and|or|to|plus|minus|times|x)\b"
_JOINED = re.compile(rf"\s*|{_UNIT}\s*,?\s*(?:{_OPERATOR})\s*", re.IGNORECASE)
_AROUND = r"[\s=\"'`*_()]*"
_BARE = re.compile(rf"{_AROUND}\0{_UNIT}{_AROUND}[.!]?{_AROUND}")
_STOP = re.compile(r"[.!?](?=[\s*_\"')]|$)|\n")
_PLAIN = {"\u2212": "-", "\u2044": "/", "\\$": "$", "\\%": "%"}  # minus, fraction slash, LaTeX


@dataclass(frozen=True, slots=True)
class Read:
    """What was read and the name of the rule: a choice's index or a number's key; all None where nothing was."""

    index: int | None
    rule: str | None
    number: str | None = None

    @property
    def key(self) -> int | str | None:
        """What a prediction answers: the index, the number's key, or None."""
        return self.number if self.index is None else self.index


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
    from tinyllm_bench.answers.programs import NORMALISER_VERSION  # which imports this module

    return str(PARSER_VERSION) if choices else f"numbers {NUMBERS_VERSION}, keys {NORMALISER_VERSION}"


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


class _Found(NamedTuple):
    """A number in a text; its key is None where it is a part of something else, such as a fraction."""

    start: int
    end: int
    key: str | None


def _plain(text: str) -> str:
    flat = unicodedata.normalize("NFKC", text)
    for odd, usual in _PLAIN.items():
        flat = flat.replace(odd, usual)
    return flat


def _numbers(text: str) -> list[_Found]:
    from tinyllm_bench.answers.programs import number  # which imports this module

    found = []
    for match in _NUMBER.finditer(text):
        if _ORDINAL.match(text, match.end()):
            continue
        part = _GOES_ON.match(text, match.end()) or _GOES_BEFORE.search(text[max(0, match.start() - 4) : match.start()])
        found.append(_Found(match.start(), match.end(), None if part else number(match[0]).key))
    return found


def numbers_in(text: str) -> set[str]:
    """The keys of all numbers in a text that stand for themselves."""
    return {found.key for found in _numbers(_plain(text)) if found.key is not None}


def _joined(text: str, one: _Found, other: _Found) -> bool:
    """Whether two numbers make one statement: "2 and 3", "5 dollars and 6 cents", "7 - 2"."""
    return _JOINED.fullmatch(text[one.end : other.start]) is not None


def _result(sentence: str) -> str:
    """What stands behind the last equals sign, where a number does."""
    _, _, behind = sentence.rpartition("=")
    return behind if _numbers(behind) else sentence


def number_announced(text: str) -> set[str | None]:
    r"""What follows `answer is …`, `answer: …` or stands in `\boxed{…}`, anywhere in the text.

    The number that follows at once counts ("$51 for the 3 books"), unless another is joined to it; behind other words
    the sentence must name one number only. A line that ends with "the answer is" announces the next one.
    """
    found: set[str | None] = set()
    for match in _ANSWER_IS.finditer(text):
        if match[1] is not None:
            found |= _announced(match[1])
            continue
        sentence = _STOP.split(text[match.end() :], maxsplit=1)[0]
        found |= _announced(sentence) if sentence.strip(_WRAPPING) else bare_number(first_line(text[match.end() :]))
    return found


def _announced(sentence: str) -> set[str | None]:
    said = _result(sentence)
    found = _numbers(said)
    if not found:
        return set()
    before = said[: found[0].start]
    if _NEGATION.search(before.casefold()):
        return {None}
    if re.search(r"[^\W\d_]", before):
        return {one.key for one in found}
    return {None} if len(found) > 1 and _joined(said, *found[:2]) else {found[0].key}


def bare_number(line: str) -> set[str | None]:
    """The line is nothing but a number, with its sign, currency and unit ("$51", "= 51 dollars")."""
    found = _numbers(line)
    if len(found) != 1 or _NEGATION.search(line.casefold()):
        return set()
    around = f"{line[: found[0].start]}\0{line[found[0].end :]}"
    return {found[0].key} if _BARE.fullmatch(around) else set()


def number_alone(text: str) -> set[str | None]:
    """The first line or the last one is a bare number."""
    lines = _filled(text)
    return set().union(*(bare_number(line) for line in (lines[0], lines[-1]))) if lines else set()


def last_number(text: str) -> set[str | None]:
    """The last number of the last line, in a sentence that denies nothing; behind an equals sign the first one there.

    A number that is joined to the one before it is no answer ("4 red and 5 blue"), nor is one in a line that announces
    an answer and gives none.
    """
    line = _filled(text)[-1] if _filled(text) else ""
    sentences = [part for part in _STOP.split(line) if _numbers(part)]
    if not sentences or _ANSWER_IS.search(line):
        return set()
    said = _result(sentences[-1])
    if _NEGATION.search(said.casefold()):
        return {None}
    if said != sentences[-1]:
        return _announced(said)
    found = _numbers(said)
    return {None} if len(found) > 1 and _joined(said, *found[-2:]) else {found[-1].key}


def _filled(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


NUMBER_RULES: tuple[tuple[str, Callable[[str], set[str | None]]], ...] = (
    ("answer_is", number_announced),
    ("alone", number_alone),
    ("last_number", last_number),
)


def read_number(text: str) -> Read:
    """Read which number a text answers; all of it counts.

    Returns:
        The number's key and the name of the rule that read it, or nothing: none named, or a contradiction.
    """
    flat = _plain(text)
    for name, rule in NUMBER_RULES:
        named = rule(flat)
        if named:
            key = next(iter(named)) if len(named) == 1 else None
            return Read(None, None) if key is None else Read(None, name, key)
    return Read(None, None)
