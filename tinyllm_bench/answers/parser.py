r"""Reading an answer out of free text: one parser that never guesses.

What a text claims ("the answer is (b)") decides, anywhere before a question that the text invents itself; a claim that
is denied or taken back does not count, and a corrected one gives way to the next (`claims`). Without a claim, rules are
applied in order: each returns the answers that its pattern names, and the first that names any decides. If it names
one, that is the answer; if it names several, they contradict each other and the text is unparsed, as is a text that
denies what it names or repeats the options. Unparsed texts are counted, never scored as an arbitrary choice.

The rules for choices read the first line. A number may come at the end of a chain of thought: a first or last line
that is nothing but a number, else the last number of the last line. A number that is part of something else (a
fraction, a power, a root, a ratio, a time, a date, "5k", "3 million", `0x10`) is read as nothing, never as its part.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tinyllm_bench.answers.claims import (
    DENIES,
    JOIN,
    NEGATION,
    AnswerClaim,
    announces,
    before_further_question,
    claims,
    lines_of,
    resolve_claims,
    straight,
    takes_back,
)
from tinyllm_bench.answers.keys import CLOSED, NORMALISER_VERSION, WRAPPING, normalised, number
from tinyllm_bench.data.prompts import LETTERS

PARSER_VERSION = 2  # part of the protocol: raise it with any change of what is read from choices
NUMBERS_VERSION = 2  # the same for questions that ask for a number


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The answer that was read and the name of the rule: a choice's index or a number's key; all None if unparsed."""

    index: int | None
    rule: str | None
    number: str | None = None

    @property
    def key(self) -> int | str | None:
        """The answer of a prediction: the index, the number's key, or None."""
        return self.number if self.index is None else self.index


def read(text: str, choices: Sequence[str]) -> ParsedAnswer:
    """Read what a text answers: one of the choices, or a number where there are none."""
    return read_answer(text, choices) if choices else read_number(text)


def read_exact_match(text: str, choices: Sequence[str]) -> ParsedAnswer:
    """Read a text by exact match with a choice, surrounding white space apart, as released code of the field does.

    Any other text is unparsed. `choices` are the texts as the student's tokenizer decodes them
    (`models.tokens.respelled`), because it cannot write other spellings.
    """
    same = [index for index, choice in enumerate(choices) if choice.strip() == text.strip()]
    return ParsedAnswer(same[0], "to the letter") if same else ParsedAnswer(None, None)


def reader_version(choices: Sequence[str]) -> str:
    """The version of `read` for such a question, part of protocols; for numbers also the version of their keys."""
    return str(PARSER_VERSION) if choices else f"numbers {NUMBERS_VERSION}, keys {NORMALISER_VERSION}"


def first_line(text: str) -> str:
    """The first line of a text that is not blank; empty if there is none."""
    return next((line.strip() for line in lines_of(text) if line.strip()), "")


# --- choices ----------------------------------------------------------------------------------------------------------


_LETTER = re.compile(r"\(([a-z])\)|([a-z])\)|([a-z])[.:](?=\s|$)|([a-z])[,;!]?\s*$", re.IGNORECASE)
_SECOND = re.compile(r"\s*(?:or\b|and\b|/|,|&)\s*\(?([a-z])(?:\)|[.:]?\s*$)", re.IGNORECASE)

# A marked text has a private-use character for each choice that it names: by its text, by its letter, or by both.
_TEXT, _LABEL, _BOTH = 0xE000, 0xE100, 0xE200
_MARK = "[\ue000-\ue2ff]"
_PRIVATE = re.compile(_MARK)
_END = r"(?=\s*(?:$|[.,;:!?)/|]|(?:is|was|and|or|nor|can|cannot|could|would|does|because|since|as|over|but)\b))"
_LABELS = re.compile(
    r"(?<!\w)\(([a-z])(?:\)|$)|(?<![\w(])([a-z])\)|(?<!\w)\[([a-z])\]"
    rf"|\b(?:option|choice|letter)s?\s+([a-z]){_END}|(?<!\w)([a-z])[.:]\s*(?={_MARK})"
)
_TWO_MARKS = re.compile(rf"({_MARK})[\s\"'*_.:=)\](\[\u2013\u2014-]*({_MARK})[)\]]?")

# Patterns of denials around the marks of choices.
_SMALL = (
    r"(?:(?:the|an?|be|being|option|choice|letter|answer|either|both|by|to|really|necessarily|simply|just)\s+"
    r"|[\"'*_(]+)*"
)
_LIST_OF_MARKS = rf"{_MARK}[\"'*_)\].!?]*(?:\s*(?:{JOIN}\s*)+{_SMALL}{_MARK}[\"'*_)\]]*)*"
_VERB = (
    r"(?:(?:is|are|was|were|be|been|can|could|will|would|should|must|may|might|do|does|did|has|have|had|seems?|looks?"
    r"|sounds?|to|all|both|which|that|option|choice|answer|one|ones|alone|also|just|simply|of course|therefore|thus"
    r"|\w+ly)"
    r"(?:\s+|(?=n't\b)))*"
)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|except|excluding|rather than|instead of|other than|anything but|all but|unlike"
    rf"|as opposed to|cannot be|no)\b|\b\w+n't\b)\s+{_SMALL}{_LIST_OF_MARKS}"
)
_DENIED_AFTER = re.compile(
    rf"{_LIST_OF_MARKS}\s*(?:[:(\u2013\u2014-]\s*)?{_VERB}(?:{DENIES}|\bno\b(?=\s*(?:$|[.,;!])))"
    r"(?:\s+(?:right|correct|true|be|the|an?|answer|one|option|choice|possible|likely|it|so|best)\b)*"
)
_SUBJECT = re.compile(rf"{_MARK}[\"'*_)\]]*\s+(?!(?:and|but|,|;)\s*$)[^.,;:!?]+$")  # "(a) is", before "not (b)"
_NEGATION_ANYWHERE = re.compile(
    rf"{DENIES}|\bno\b(?!\s+(?:doubt|question|wonder)\b)|\b(?:none|nothing|hardly|unlikely|impossible|unlike)\b"
    r"|\brul(?:e|es|ed|ing)\s+(?:\w+\s+)?out\b|\b(?:exclude|eliminate|reject)[sd]?\b|\brejected\b"
)
_REASON = re.compile(r"[,;.!?]|\b(?:because|since|as|for|so|but|while|whereas|due to|given|when|which|where|and|who)\b")

# Where a claim names its first choice, and how others follow it.
_CLAIM_HEAD = re.compile(
    r"[\W_]*(?:(?:the|an?|that|option|choice|letter|answer|most|very|likely|therefore|thus|indeed|but|rather|instead"
    rf"|it\s+is|it's|\w+ly)\b[\W_]*)*({_MARK})".replace(r"[\W_]", r"(?:(?![\ue000-\ue2ff])[\W_])")
)
_ENUMERATES = re.compile(rf"[\s.!?]*(?:{JOIN}\s*)+{_SMALL}({_MARK})")
_NEXT_TO = re.compile(rf"[\s\"'*_.:)\]\u2013\u2014-]*({_MARK})")
_SENTENCES = re.compile(rf"\s*[.!?:\u2013\u2014-]+\s*({_MARK})(?=\s*(?:$|[.,;:!?/|]|or\b|and\b))")
_OWN_WORD = re.compile(rf"((?:^|[.!?]\s+){_MARK}),[^.!?]*")  # "No, it does not": the sentence explains the word

_LONE_LETTERS = re.compile(r"(?:[\s,;/|.():&+]|\b(?:or|and)\b|\b[a-z]\b)+", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*\u2022\u00b7\u25cf]\s+|\d+[.)]\s+)")
_ITEM = re.compile(r"^[\s\"'*_]*[(\[]?([a-z])(?:[)\].:]+[\s*_]*(.*)|[\s*_]*)$", re.IGNORECASE)


def read_answer(text: str, choices: Sequence[str]) -> ParsedAnswer:
    """Read which choice a text names: by its claim, or by its first line that is not blank.

    Returns:
        The choice's index and the name of the rule that read it, or (None, None): nothing named, a denial, or a
        contradiction.
    """
    line = first_line(text)
    if not line:
        return ParsedAnswer(None, None)
    is_choice = bool(exact(line, choices))  # a choice's own text may contain "the answer is" or "Question:"
    first, rest = ("x", text.lstrip()[len(line) :]) if is_choice else ("", text.lstrip())
    own = before_further_question(first + rest).removeprefix(first)
    lines = [line] * is_choice + [other for other in lines_of(own) if other.strip()]
    repeated = _repeated(lines, choices)
    named, refused = _choices_claimed("\n".join(lines[max(repeated, int(is_choice)) :]), choices)
    if named or repeated or (refused and not is_choice):
        return ParsedAnswer(next(iter(named)), "answer_is") if len(named) == 1 else ParsedAnswer(None, None)
    if len(lines) > 1 and takes_back(lines[1].strip()):
        return ParsedAnswer(None, None)
    for name, rule in RULES:
        matched = rule(lines[0], choices)
        if len(matched) == 1:
            return ParsedAnswer(next(iter(matched)), name)
        if matched or (rule is letter and _starts_with_letter(lines[0], choices)):  # `letter` read nothing: denied
            return ParsedAnswer(None, None)
    return ParsedAnswer(None, None)


def _starts_with_letter(line: str, choices: Sequence[str]) -> bool:
    """Whether a line starts with the letter of a choice."""
    match = _LETTER.match(line.lstrip(WRAPPING).rstrip(WRAPPING))
    return match is not None and LETTERS.index(next(group for group in match.groups() if group).lower()) < len(choices)


def exact(line: str, choices: Sequence[str]) -> set[int]:
    """The line is a choice's text, exactly; failing that, after normalisation."""
    same = {i for i, choice in enumerate(choices) if choice.strip() == line.strip()}
    if same:
        return same
    text = normalised(line)
    return {i for i, choice in enumerate(choices) if text and normalised(choice) == text}


def letter(line: str, choices: Sequence[str]) -> set[int]:
    """The line starts with a choice's letter: `(b)`, `b)`, `b.`, `b:` or nothing but `b`, and does not deny it.

    A second letter ("(b) or (c)", "(a) red (b) blue") or the text of another choice after it ("(b) red", where (a) is
    red) contradicts, unless it is denied ("(b), not (a)").
    """
    start = line.lstrip(WRAPPING)
    match = _LETTER.match(start.rstrip(WRAPPING))
    if match is None:
        return set()
    index = LETTERS.index(next(group for group in match.groups() if group).lower())
    rest = start[match.end() :].lstrip("*_ ")
    named = {index}
    second = _SECOND.match(rest)
    if second:
        named.add(LETTERS.index(second[1].lower()))
    same = exact(rest, choices) if rest.strip() else set()
    if same:
        named |= same
    elif _LONE_LETTERS.fullmatch(rest):
        letters = re.findall(r"[a-z]", re.sub(r"\b(?:or|and)\b", "", rest.lower()))
        named |= {LETTERS.index(other) for other in letters if other in LETTERS[: len(choices)]}
    elif index < len(choices):
        named = _with_the_rest(chr(_LABEL + index) + " " + _mark_choices(rest, choices), index, closed=False)
        if second and named and not _denied(marked := _mark_choices(rest, choices), _without_denied(marked)):
            named.add(LETTERS.index(second[1].lower()))
    return named if all(i < len(choices) for i in named) else set()


def leading(line: str, choices: Sequence[str]) -> set[int]:
    """The line starts with a choice's text and a punctuation mark; the longest choice that fits counts.

    Another choice after it contradicts it ("red, blue or green"); a denied one does not count ("red: wrong").
    """
    text = normalised(line)
    fits = {
        i: normalised(choice)
        for i, choice in enumerate(choices)
        if normalised(choice) and re.match(re.escape(normalised(choice)) + r"[.,;:!?](?:\s|$)", text)
    }
    longest = max((len(choice) for choice in fits.values()), default=0)
    named = {i for i, choice in fits.items() if len(choice) == longest}
    if len(named) != 1:
        return named
    index = next(iter(named))
    closed = _is_closed(choices[index])
    rest = _mark_choices(text[longest:], choices)
    if closed and fits[index] == "no":  # "no, that is incorrect" takes nothing back
        return {index} | ({_named(other[1])} if (other := _ENUMERATES.match(_without_denied(rest))) else set())
    return _with_the_rest(chr(_TEXT + index) + rest, index, closed=closed)


def closed_word(line: str, choices: Sequence[str]) -> set[int]:
    """Yes, no or maybe as a word of its own, if these are the choices and nothing is denied; "no idea" is not a no."""
    if not {normalised(choice) for choice in choices} <= CLOSED:
        return set()
    marked = _mark_choices(line, choices)
    return set() if NEGATION.search(_OWN_WORD.sub(r"\1", marked)) else _named_by_text(marked)


def contained(line: str, choices: Sequence[str]) -> set[int]:
    """Choices named anywhere in the line, on word borders, if the rest of the line denies nothing.

    A choice inside a longer one counts only if it also occurs alone. Single characters are never searched for ("a" is
    mostly an article), nor are yes, no and maybe.
    """
    if {normalised(choice) for choice in choices} <= CLOSED:
        return set()
    marked = _mark_choices(line, choices, closed=False)
    affirmed = _without_denied(marked)
    named = _named_by_text(affirmed)
    refused = _NEGATION_ANYWHERE.search(affirmed) or takes_back(affirmed) or named & _denied(marked, affirmed)
    return set() if refused else named


def answer_is(text: str, choices: Sequence[str]) -> set[int]:
    r"""The choices that a text claims with `answer is …`, `answer: …` or `\boxed{…}`, by letter or by text."""
    return _choices_claimed(text, choices)[0]


def _choices_claimed(text: str, choices: Sequence[str]) -> tuple[set[int], bool]:
    """The choices that a text claims, and whether something is denied or taken back."""

    def masked(part: str) -> str:
        return "\n".join(_mark_choices(line, choices) for line in part.split("\n"))

    read_claims = [(claim, *_choices_in_claim(claim, choices)) for claim in claims(text, masked)]
    named, refused = resolve_claims((named, claim) for claim, named, _ in read_claims)
    return named, refused or any(denied for _, _, denied in read_claims)


def _choices_in_claim(claim: AnswerClaim, choices: Sequence[str]) -> tuple[set[int], bool]:
    """The choices that one claim names, and whether it denies instead."""
    if claim.below:
        item, *others = [_item(line, choices) for line in lines_of(claim.rest) if line.strip()] or [None]
        return (set() if item is None else {item[0], *(other[0] for other in others if other and other[1])}), False
    for text in (claim.line, claim.phrase):
        if named := exact(text, choices):
            return named, False
    for rule in (letter, leading):
        if named := rule(claim.phrase, choices):
            return named, False
    marked = _without_denied(_mark_choices(claim.phrase, choices))
    head = _CLAIM_HEAD.match(marked)
    named = set()
    if head:
        index = _named(head[1])
        named = _with_the_rest(marked[head.start(1) :], index, closed=_is_closed(choices[index]))
    elif (either := re.match(r"\W*(?:either|both|between|among)\b", marked)) is not None:
        named = {_named(mark) for mark in _PRIVATE.findall(_first_sentence(marked[either.end() :]))}
    sentence = _first_sentence(_mark_choices(claim.phrase, choices))
    return named, not named and NEGATION.search(sentence) is not None


def _first_sentence(text: str) -> str:
    return re.split(r"[.!?](?=\s|$)", text, maxsplit=1)[0]


def _with_the_rest(marked: str, index: int, *, closed: bool) -> set[int]:
    """The choice that a marked text starts with, and those that contradict it; empty if it is denied.

    `closed`: the choice is a yes, no or maybe; the rest of its sentence may deny something ("no, it does not").
    """
    marked = _join_marks(marked)
    affirmed = _without_denied(marked)
    if not _PRIVATE.match(affirmed) or index in _denied(marked, affirmed):
        return set()
    rest = affirmed[1:]
    clause = _REASON.split(rest.lstrip(" \"'*_)]:\u2013\u2014-"), maxsplit=1)[0]
    if takes_back(rest) or (NEGATION.search(clause) and not (closed and _REASON.match(rest))):
        return set()
    named = {index} | {i for i in map(_labelled, rest) if i is not None}
    for pattern in (_ENUMERATES, _NEXT_TO, _SENTENCES):
        if pattern is _NEXT_TO and closed:
            continue
        if other := pattern.match(rest):
            named.add(_named(other[1]))
    return named


def _item(line: str, choices: Sequence[str]) -> tuple[int, bool] | None:
    """The choice that a line of a list holds, and whether it is labelled: `(a) red`, `- red`, `1. red`; not `red`."""
    for bare in (line, _BULLET.sub("", line)):
        if len(same := exact(bare, choices)) == 1:
            return next(iter(same)), bare != line
    match = _ITEM.match(line)
    index = LETTERS.index(match[1].lower()) if match else len(choices)
    if match is None or index >= len(choices):
        return None
    text = normalised(match[2] or "")
    return (index, True) if normalised(choices[index]).startswith(text) else None


def _repeated(lines: Sequence[str], choices: Sequence[str]) -> int:
    """The number of lines at the start of a text that repeat the options: two labelled ones, or all options."""
    items, heading = [], 0
    for place, line in enumerate(lines):
        item = _item(line, choices)
        if item is None and place == 0:
            item = _item(line.rpartition(":")[2], choices)
            if item is None and line.rstrip().endswith(":"):
                heading = 1
                continue
        if item is None:
            break
        items.append(item)
    repeats = len({i for i, labelled in items if labelled}) > 1 or len({i for i, _ in items}) == len(choices) > 1
    return heading + len(items) if repeats else 0


def _mark_choices(text: str, choices: Sequence[str], *, closed: bool = True) -> str:
    """The normalised text with a mark in place of every choice that it names; the longest texts are replaced first."""
    flat = " ".join(unicodedata.normalize("NFKC", straight(_PRIVATE.sub(" ", text))).casefold().split())
    by_text: dict[str, str] = {}
    for index, choice in enumerate(choices):
        name = normalised(straight(choice))
        by_text[name] = by_text.get(name, "") + chr(_TEXT + index)
    for name in sorted(by_text, key=len, reverse=True):
        if len(name) > 1 and (closed or name not in CLOSED):
            flat = _on_word_borders(name).sub(by_text[name], flat)
        elif len(name) == 1:  # mostly an article: it counts only in a list with other choices
            flat = _single_character(name).sub(rf"\1{chr(ord(by_text[name][0]) + 0x100)}", flat)

    def label(match: "re.Match[str]") -> str:
        index = LETTERS.index(next(group for group in match.groups() if group))
        return chr(_LABEL + index) if index < len(choices) else match[0]

    return _join_marks(_LABELS.sub(label, flat))


def _on_word_borders(choice: str) -> "re.Pattern[str]":
    if choice == "no":  # "no idea" is not a no
        return re.compile(r"\bno\b(?!-)(?!\s+(?!(?:(?:or|and|but|nor|is|was|cannot|isn't)\b|[a-z][.):]))\w)")
    before = r"(?<![\d.,\-])" if choice[0].isdigit() else r"(?<!\w)"
    after = r"(?![.,]?\d)(?![\w%])" if choice[-1].isdigit() else r"(?!\w)" if choice[-1].isalnum() else ""
    return re.compile((before if choice[0].isalnum() else "") + re.escape(choice) + after)


def _single_character(character: str) -> "re.Pattern[str]":
    mark = rf"{JOIN}|{_MARK}|(?<!\w)[a-z][.):]"
    return re.compile(rf"(^\s*|(?:{mark})\s*){re.escape(character)}(?=\s*(?:$|[.]|{mark}))")


def _join_marks(marked: str) -> str:
    """Replace a letter and the text of the same choice beside it by one mark."""

    def both(match: "re.Match[str]") -> str:
        same = _named(match[1]) == _named(match[2]) and (_labelled(match[1]) is None) != (_labelled(match[2]) is None)
        return chr(_BOTH + _named(match[1])) if same else match[0]

    return _TWO_MARKS.sub(both, marked)


def _without_denied(marked: str) -> str:
    """A marked text without the choices that it denies by name: "not (a)", "(a) and (b) are wrong"."""

    def unless_of_another_subject(match: "re.Match[str]") -> str:
        return match[0] if _SUBJECT.search(match.string[: match.start()]) else " "

    return _DENIED_AFTER.sub(" ", _DENIED_BEFORE.sub(unless_of_another_subject, marked))


def _denied(marked: str, affirmed: str) -> set[int]:
    """The choices that a marked text denies, given the text without them."""
    return set(Counter(map(_named, _PRIVATE.findall(marked))) - Counter(map(_named, _PRIVATE.findall(affirmed))))


def _named(mark: str) -> int:
    return (ord(mark) - _TEXT) % 0x100


def _labelled(mark: str) -> int | None:
    """The choice that a character of a marked text names by its letter; None for any other character."""
    return _named(mark) if _LABEL <= ord(mark) <= 0xE2FF else None


def _named_by_text(marked: str) -> set[int]:
    """The choices that are named by text or letter; empty if there are letters alone, which state nothing."""
    marks = _PRIVATE.findall(marked)
    if all(_LABEL <= ord(mark) < _BOTH for mark in marks):
        return set()
    return {_named(mark) for mark in marks}


def _is_closed(choice: str) -> bool:
    return normalised(choice) in CLOSED


RULES: tuple[tuple[str, Callable[[str, Sequence[str]], set[int]]], ...] = (
    ("exact", exact),
    ("letter", letter),
    ("leading", leading),
    ("closed_word", closed_word),
    ("contained", contained),
)


# --- numbers ----------------------------------------------------------------------------------------------------------


_SIGN = r"(?:(?<!\d)(?<!\d\s)[-+])?(?:[$\u20ac\u00a3\u00a5\u20b9]\s?-?)?"
_NUMERAL = re.compile(
    rf"(?<![\w.]){_SIGN}(?:(?:\d{{1,3}}(?:,\d{{3}})+(?![\d,]*\d)|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE
)
_ORDINAL = re.compile(r"-?(?:st|nd|rd|th)\b", re.IGNORECASE)
_MONTH = (
    r"(?:(?:jan(?:uary)?|feb(?:ruary)?|mar|apr(?:il)?|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)\b|(?-i:March|May)\b)\.?"
)
# What follows a number that is part of something else: a fraction, ratio, time, power, root or date, wrong separators,
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
_BEGUN = re.compile(  # what precedes such a number
    r"(?:\d\s?[/:^]\s?|\d,|\^[-+({\s]*|\d\s?\*\*\s?|[^\W\d_]-|[\u221a\u00b1\u2213<>\u2264\u2265]=?\s?"
    rf"|\b(?:sqrt|log|ln|root\s+of)\s*[({{]?\s*|\d\s+(?:over|out\s+of)\s+|\d'|\bpower\s+of\s+"
    rf"|\b{_MONTH}\s+)$",
    re.IGNORECASE,
)
_MINUS = re.compile(r"\b(?:minus|negative)\s+$", re.IGNORECASE)
_SIGNED = re.compile(  # after these a minus in words is a sign; after a noun it subtracts
    r"(?:^\W*|[=:(,]\s*|\b(?:is|was|are|were|be|of|to|at|by|from|than|equals?|exactly|about|only|reads?|gives?|get|got"
    r"|answer)\s+)$",
    re.IGNORECASE,
)
_UNIT = r"(?:\s*(?:%|[^\W\d_]+(?![^\W\d_]))){0,3}"  # whole words, which avoids catastrophic backtracking
_OPERATOR = r"\*\*|[-+*/&,\u00d7\u00f7\u2013\u00b7\u22c5\u2219\u00b1]|\b(?:and|or|to|plus|minus|times|x)\b"
_JOINING = re.compile(rf"\s*|{_UNIT}\s*,?\s*(?:{_OPERATOR})\s*", re.IGNORECASE)
_AROUND = r"[\s=\"'`*_()$]*"
_BARE = re.compile(rf"{_AROUND}\0{_UNIT}{_AROUND}[.!]?{_AROUND}")
_STOP = re.compile(r"[.!?](?=[\s*_\"')]|$)|\n")


class _Numeral(NamedTuple):
    """A number in a text; its key is None if it is part of something else, such as a fraction."""

    start: int
    end: int
    key: str | None


def read_number(text: str) -> ParsedAnswer:
    """Read which number a text answers; all of the text counts, up to a question that it invents.

    Returns:
        The number's key and the name of the rule that read it, or nothing: none named, a denial, or a contradiction.
    """
    own = before_further_question(text)
    for name, rule in NUMBER_RULES:
        named = rule(own)
        if named:
            key = next(iter(named)) if len(named) == 1 else None
            return ParsedAnswer(None, None) if key is None else ParsedAnswer(None, name, key)
    return ParsedAnswer(None, None)


def number_announced(text: str) -> set[str | None]:
    r"""The numbers that a text claims with `answer is ...`, `answer: ...` or `\boxed{...}`; None: one cannot be read.

    The number right after it counts ("$51 for the 3 books"), unless another is joined to it; after other words the
    sentence must name one number only. A line that ends with "the answer is" announces the next line.
    """
    text = plain(text)
    keys_of: list[tuple[set[str | None] | None, AnswerClaim]] = [
        (bare_number(claim.line) if claim.below else _claimed_number(_STOP.split(claim.phrase, maxsplit=1)[0]), claim)
        for claim in claims(before_further_question(text))
    ]
    named, refused = resolve_claims((set() if keys is None else keys, claim) for keys, claim in keys_of)
    return named or ({None} if refused or any(keys is None for keys, _ in keys_of) else set())


def _claimed_number(sentence: str) -> set[str | None] | None:
    """The numbers in a claim's sentence, None among them if they cannot be read; None alone if it denies them."""
    result = _after_equals(sentence)
    numerals = _numerals(result)
    if not numerals:
        return set()
    before = result[: numerals[0].start].casefold()
    if before.strip() == "-":  # a dash, a bullet or a minus
        return {None}
    clause = re.split(r"[,;:(]", result[numerals[0].end :].casefold(), maxsplit=1)[0]
    if NEGATION.search(before) or NEGATION.search(clause.split(" because ")[0]):
        return None
    if re.search(r"[^\W\d_]", _MINUS.sub("", before)):
        return {numeral.key for numeral in numerals}
    return {None} if len(numerals) > 1 and _are_joined(result, *numerals[:2]) else {numerals[0].key}


def number_alone(text: str) -> set[str | None]:
    """The first line or the last one is a bare number."""
    lines = _nonblank_lines(text)
    return set().union(*(bare_number(line) for line in (lines[0], lines[-1]))) if lines else set()


def bare_number(line: str) -> set[str | None]:
    """The line is nothing but a number, with its sign, currency and unit ("$51", "= 51 dollars")."""
    line = plain(line)
    numerals = _numerals(line)
    if len(numerals) != 1 or NEGATION.search(line.casefold()):
        return set()
    around = f"{line[: numerals[0].start]}\0{line[numerals[0].end :]}"
    return {numerals[0].key} if _BARE.fullmatch(around) else set()


def last_number(text: str) -> set[str | None]:
    """The last number of the last line, in a sentence that denies nothing; after an equals sign the first one there.

    A number that is joined to the one before it is not an answer ("4 red and 5 blue"), nor is one in a line that
    announces an answer and gives none, or one that is taken back.
    """
    line = plain(_nonblank_lines(text)[-1]) if _nonblank_lines(text) else ""
    sentences = [part for part in _STOP.split(line) if _numerals(part)]
    if not sentences or announces(line):
        return set()
    result = _after_equals(sentences[-1])
    if NEGATION.search(result.casefold()) or takes_back(line[_numerals(line)[-1].end :]):
        return {None}
    if result != sentences[-1]:
        return _claimed_number(result) or {None}
    numerals = _numerals(result)
    return {None} if len(numerals) > 1 and _are_joined(result, *numerals[-2:]) else {numerals[-1].key}


def numbers_in(text: str) -> set[str]:
    """The keys of all numbers in a text that are not part of something else."""
    return {numeral.key for numeral in _numerals(plain(text)) if numeral.key is not None}


def _numerals(text: str) -> list[_Numeral]:
    numerals = []
    for match in _NUMERAL.finditer(text):
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
        numerals.append(_Numeral(match.start(), match.end(), key))
    return numerals


def _are_joined(text: str, first: _Numeral, second: _Numeral) -> bool:
    """Whether two numbers make one statement: "2 and 3", "5 dollars and 6 cents", "7 - 2"."""
    return _JOINING.fullmatch(text[first.end : second.start]) is not None


def _after_equals(sentence: str) -> str:
    """The part after the last equals sign if there is a number in it, else the whole sentence."""
    before, sign, rest = sentence.rpartition("=")
    if not _numerals(rest):
        return sentence
    return f"{sign}{rest}" if before.strip() else rest


def _nonblank_lines(text: str) -> list[str]:
    return [line for line in lines_of(text) if line.strip()]


# Digits, signs and separators of other scripts, of LaTeX and of typesetting.
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


def plain(text: str) -> str:
    r"""The text with digits, signs and separators in ASCII form: `10\u00b2` becomes 10^2, `1{,}000` becomes 1,000."""
    text = _DEGREES.sub("\u00b0", _WORDS.sub(r" \1", text))
    text = "".join(_usual(char, text[at - 1] if at else "") for at, char in enumerate(text))
    text = _SPACED_MINUS.sub("-", text)
    for odd, usual in _PLAIN:
        text = text.replace(odd, usual)
    text = _GROUPED.sub(lambda match: match[1] + re.sub(r"\D", "", match[2]), text)
    text = _LATEX_GROUPED.sub(",", text)
    text = re.sub(r"(?<![\w)}\]])\u2013(?=[$\u20ac\u00a3]?\d)", "-", text)  # an en dash for a minus, but not in a range
    text = _FRACTION.sub(lambda match: f" {match[1] or match[3]}/{match[2] or match[4]} ", text)
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/")


def _usual(char: str, before: str) -> str:
    """A character of another script or height in its ASCII form: digits, powers and indices, fractions."""
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
    if unicodedata.digit(char, None) is not None:  # circled or with a full stop: a list marker
        return "^" + unicodedata.normalize("NFKC", char)
    return char


NUMBER_RULES: tuple[tuple[str, Callable[[str], set[str | None]]], ...] = (
    ("answer_is", number_announced),
    ("alone", number_alone),
    ("last_number", last_number),
)
