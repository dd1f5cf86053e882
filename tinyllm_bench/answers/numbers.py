r"""ScoringMode a number out of free text: the number that is written, or none.

A number may stand at the end of a chain of thought: what the text claims ("the answer is 5") decides; else a first or
last line that is nothing but a number; else the last number of the last line. A number that is a part of something else
(a fraction, a power, a root, a ratio, a time, a date, "5k", "3 million", `0x10`) is read as nothing, never as its part.
"""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from tinyllm_bench.answers.choices import Read
from tinyllm_bench.answers.programs import number
from tinyllm_bench.answers.statements import DENIES, Claim, announces, claims, decided, lines_of, own_part, takes_back

_NEGATION = re.compile(DENIES)
_SIGN = r"(?:(?<!\d)(?<!\d\s)[-+])?(?:[$\u20ac\u00a3\u00a5\u20b9]\s?-?)?"
_NUMBER = re.compile(
    rf"(?<![\w.]){_SIGN}(?:(?:\d{{1,3}}(?:,\d{{3}})+(?![\d,]*\d)|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE
)
_ORDINAL = re.compile(r"-?(?:st|nd|rd|th)\b", re.IGNORECASE)
_MONTH = (
    r"(?:(?:jan(?:uary)?|feb(?:ruary)?|mar|apr(?:il)?|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\b|(?-i:March|May)\b)\.?"
)
# What makes a number a part of something else: a fraction, ratio, time, power, root or date, wrong separators,
# "3 million", "5k", a variable.
_CONTINUED = re.compile(
    r"\s?[/:]\s?[\d(\u221a\u03c0]|\s?\^|\s?\*\*\s?\d|[,.]\d|\.{2,}\s?\d|_|'\d|\(\d|[^\W\d_]+\d|[\u2030\u221a\u03c0]|\s\u221a"
    r"|\s?[-\u2010]?(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore|mn|mio|mln|bn|bln|tn)s?\b"
    r"|\s?k\b|(?-i:MM?|B|T)\b|[xyzni]\b|\s?(?:pi|sqrt|squared|cubed|factorial)\b|\s+to\s+the\s+(?:power|second|third|\w+th)\b"
    r"|\s+and\s+(?:an?|one|two|three)[\s-](?:half|halves|third|quarter|fourth|fifth|sixth|eighth|tenth)s?\b"
    r"|\s+(?:over|out\s+of)\s+\d|(?:\s+\w+)?\s+below\s+(?:zero|freezing)\b"
    rf"|(?<=\d\d\d\d)s\b|\s+(?:of\s+)?{_MONTH}",
    re.IGNORECASE,
)
_BEGUN = re.compile(
    r"(?:\d\s?[/:^]\s?|\d,|\^[-+({\s]*|\d\s?\*\*\s?|[^\W\d_]-|[\u221a\u00b1\u2213<>\u2264\u2265]=?\s?"
    rf"|\b(?:sqrt|log|ln|root\s+of)\s*[({{]?\s*|\d\s+(?:over|out\s+of)\s+|\d'|\bpower\s+of\s+"
    rf"|\b{_MONTH}\s+)$",
    re.IGNORECASE,
)
_MINUS = re.compile(r"\b(?:minus|negative)\s+$", re.IGNORECASE)
_SIGNED = re.compile(  # what a minus in words is a sign behind; behind a noun it subtracts
    r"(?:^\W*|[=:(,]\s*|\b(?:is|was|are|were|be|of|to|at|by|from|than|equals?|exactly|about|only|reads?|gives?|get|got"
    r"|answer)\s+)$",
    re.IGNORECASE,
)
_UNIT = r"(?:\s*(?:%|[^\W\d_]+(?![^\W\d_]))){0,3}"  # whole words, or a long one would be cut in all ways
_OPERATOR = r"\*\*|[-+*/&,\u00d7\u00f7\u2013\u00b7\u22c5\u2219\u00b1]|\b(?:and|or|to|plus|minus|times|x)\b"
_JOINED = re.compile(rf"\s*|{_UNIT}\s*,?\s*(?:{_OPERATOR})\s*", re.IGNORECASE)
_AROUND = r"[\s=\"'`*_()$]*"
_BARE = re.compile(rf"{_AROUND}\0{_UNIT}{_AROUND}[.!]?{_AROUND}")
_STOP = re.compile(r"[.!?](?=[\s*_\"')]|$)|\n")

_THIN = "\u00a0\u2007\u2009\u202f"
_GROUPED = re.compile(rf"(?<![\d.,'])(\d{{1,3}})((?:['{_THIN}]\d{{3}})+)(?!['{_THIN}]?\d)")
_LATEX_GROUPED = re.compile(r"(?<=\d)(?:\{\\?,\}|\\[,!;: ])(?=\d{3}(?!\d))")
_SPACED_MINUS = re.compile(r"(?<![\d\w)%])(?<![\d)%]\s)\u2212\s(?=[$\u20ac\u00a3]?\d)")
_DEGREES = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|(\d)\s*(\d))")
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mathit|operatorname)\s*\{([^{}]*)\}")
_PLAIN = (
    *((dash, "-") for dash in "\u2212\u2010\u2011\ufe63\uff0d"),
    *((sign, "'") for sign in "\u2018\u2019\u02bc\uff07"),
    ("\u066b", "."),
    ("\u066c", ","),
    ("\u2215", "/"),
    ("\\$", "$"),
    ("\\%", "%"),
    ("\\times", "\u00d7"),
    ("\\cdot", "\u00b7"),
    ("\\div", "\u00f7"),
    ("\\pm", "\u00b1"),
    ("\\sqrt", "\u221a"),
    ("\\pi", "\u03c0"),
    ("\\left", ""),
    ("\\right", ""),
    ("\\(", " "),
    ("\\)", " "),
    ("\\[", " "),
    ("\\]", " "),
    ("^{", "^"),
    ("\u221a{", "\u221a"),
)


class _Found(NamedTuple):
    """A number in a text; its key is None where it is a part of something else, such as a fraction."""

    start: int
    end: int
    key: str | None


def plain(text: str) -> str:
    r"""The text with digits, signs and separators in their usual form: `10\u00b2` is 10^2, `1{,}000` 1,000."""
    text = _DEGREES.sub("\u00b0", _WORDS.sub(r" \1", text))
    text = "".join(_usual(char, text[at - 1] if at else "") for at, char in enumerate(text))
    text = _SPACED_MINUS.sub("-", text)
    for odd, usual in _PLAIN:
        text = text.replace(odd, usual)
    text = _LATEX_GROUPED.sub(",", _GROUPED.sub(_closed_up, text))
    text = re.sub(r"(?<![\w)}\]])\u2013(?=[$\u20ac\u00a3]?\d)", "-", text)  # an en dash for a minus, but not in a range
    text = _FRACTION.sub(lambda found: f" {found[1] or found[3]}/{found[2] or found[4]} ", text)
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/")


def _usual(char: str, before: str) -> str:
    """A character of another script or height in its usual form: digits, powers and indices, fractions."""
    if char.isascii():
        return char
    value = unicodedata.decimal(char, None)
    if value is not None:
        return str(value)
    form = unicodedata.decomposition(char)
    if form.startswith(("<super>", "<sub>")) and unicodedata.category(char) in ("No", "Sm"):
        raised = before and unicodedata.decomposition(before).startswith(("<super>", "<sub>"))
        return ("" if raised else "^") + unicodedata.normalize("NFKC", char).replace("\u2212", "-")
    if form.startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", char)
    if unicodedata.digit(char, None) is not None:  # in a circle or with a stop: a mark of a list
        return "^" + unicodedata.normalize("NFKC", char)
    return char


def _closed_up(found: "re.Match[str]") -> str:
    return found[1] + re.sub(r"\D", "", found[2])


def _numbers(text: str) -> list[_Found]:
    found = []
    for match in _NUMBER.finditer(text):
        if _ORDINAL.match(text, match.end()):
            continue
        before = text[max(0, match.start() - 24) : match.start()]
        part = _CONTINUED.match(text, match.end()) or _BEGUN.search(before)
        key = None if part else number(match[0]).key
        if key is not None and (minus := _MINUS.search(before)):
            begun = _STOP.split(text[: match.start()])[-1]
            if _SIGNED.search(begun[: -len(minus[0])]) and not re.search(r"\d", begun):
                key = None if key.startswith("-") else number(f"-{key}").key
            elif not re.search(rf"\d{_UNIT}\s*$", begun.rstrip()[: -len(minus[0].rstrip())]):
                key = None  # "from 3 to minus 5"
        found.append(_Found(match.start(), match.end(), key))
    return found


def numbers_in(text: str) -> set[str]:
    """The keys of all numbers in a text that stand for themselves."""
    return {found.key for found in _numbers(plain(text)) if found.key is not None}


def _joined(text: str, one: _Found, other: _Found) -> bool:
    """Whether two numbers make one statement: "2 and 3", "5 dollars and 6 cents", "7 - 2"."""
    return _JOINED.fullmatch(text[one.end : other.start]) is not None


def _result(sentence: str) -> str:
    """What stands behind the last equals sign, where a number does."""
    before, sign, behind = sentence.rpartition("=")
    if not _numbers(behind):
        return sentence
    return f"{sign}{behind}" if before.strip() else behind


def number_announced(text: str) -> set[str | None]:
    r"""What a text claims with `answer is ...`, `answer: ...` or `\boxed{...}`; None among them: it cannot be read.

    The number that follows at once counts ("$51 for the 3 books"), unless another is joined to it; behind other words
    the sentence must name one number only. A line that ends with "the answer is" announces the next one.
    """
    text = plain(text)
    found = [(_claimed(claim), claim) for claim in claims(own_part(text))]
    named, refused = decided((set() if keys is None else keys, claim) for keys, claim in found)
    return named or ({None} if refused or any(keys is None for keys, _ in found) else set())


def _claimed(claim: Claim) -> set[str | None] | None:
    """The numbers of a claim, None among them where they cannot be read; nothing where it denies instead."""
    if claim.below:
        return bare_number(claim.line)
    return _announced(_STOP.split(claim.said, maxsplit=1)[0])


def _announced(sentence: str) -> set[str | None] | None:
    said = _result(sentence)
    found = _numbers(said)
    if not found:
        return set()
    before = said[: found[0].start].casefold()
    if before.strip() == "-":  # a dash, a bullet or a minus
        return {None}
    clause = re.split(r"[,;:(]", said[found[0].end :].casefold(), maxsplit=1)[0]
    if _NEGATION.search(before) or _NEGATION.search(clause.split(" because ")[0]):
        return None
    if re.search(r"[^\W\d_]", _MINUS.sub("", before)):
        return {one.key for one in found}
    return {None} if len(found) > 1 and _joined(said, *found[:2]) else {found[0].key}


def bare_number(line: str) -> set[str | None]:
    """The line is nothing but a number, with its sign, currency and unit ("$51", "= 51 dollars")."""
    line = plain(line)
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
    an answer and gives none, or one that is taken back.
    """
    line = plain(_filled(text)[-1]) if _filled(text) else ""
    sentences = [part for part in _STOP.split(line) if _numbers(part)]
    if not sentences or announces(line):
        return set()
    said = _result(sentences[-1])
    if _NEGATION.search(said.casefold()) or takes_back(line[_numbers(line)[-1].end :]):
        return {None}
    if said != sentences[-1]:
        return _announced(said) or {None}
    found = _numbers(said)
    return {None} if len(found) > 1 and _joined(said, *found[-2:]) else {found[-1].key}


def _filled(text: str) -> list[str]:
    return [line for line in lines_of(text) if line.strip()]


NUMBER_RULES: tuple[tuple[str, Callable[[str], set[str | None]]], ...] = (
    ("answer_is", number_announced),
    ("alone", number_alone),
    ("last_number", last_number),
)


def read_number(text: str) -> Read:
    """Read which number a text answers; all of it counts, up to a question that it invents.

    Returns:
        The number's key and the name of the rule that read it, or nothing: none named, a denial, or a contradiction.
    """
    own = own_part(text)
    for name, rule in NUMBER_RULES:
        named = rule(own)
        if named:
            key = next(iter(named)) if len(named) == 1 else None
            return Read(None, None) if key is None else Read(None, name, key)
    return Read(None, None)
