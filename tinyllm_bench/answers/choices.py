"""Reading which choice a text names: what it claims, or what its first line says (`answers.parser` tells the story)."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinyllm_bench.answers.statements import (
    DENIES,
    JOIN,
    Claim,
    claims,
    decided,
    lines_of,
    own_part,
    straight,
    takes_back,
)
from tinyllm_bench.data.prompts import LETTERS

_CLOSED = frozenset({"yes", "no", "maybe"})
_LETTER = re.compile(r"\(([a-z])\)|([a-z])\)|([a-z])[.:](?=\s|$)|([a-z])[,;!]?\s*$", re.IGNORECASE)
_SECOND = re.compile(r"\s*(?:or\b|and\b|/|,|&)\s*\(?([a-z])(?:\)|[.:]?\s*$)", re.IGNORECASE)
_WRAPPING = " \t\"'`*_\u201c\u201d\u2018\u2019"

# In a marked text a private character stands for each choice that is named: by its text, by its letter, or by both.
_TEXT, _LABEL, _BOTH = 0xE000, 0xE100, 0xE200
_MARK = "[\ue000-\ue2ff]"
_PRIVATE = re.compile(_MARK)
_END = r"(?=\s*(?:$|[.,;:!?)/|]|(?:is|was|and|or|nor|can|cannot|could|would|does|because|since|as|over|but)\b))"
_LABELS = re.compile(
    r"(?<!\w)\(([a-z])(?:\)|$)|(?<![\w(])([a-z])\)|(?<!\w)\[([a-z])\]"
    rf"|\b(?:option|choice|letter)s?\s+([a-z]){_END}|(?<!\w)([a-z])[.:]\s*(?={_MARK})"
)
_BY_BOTH = re.compile(rf"({_MARK})[\s\"'*_.:=)\](\[\u2013\u2014-]*({_MARK})[)\]]?")

_SMALL = (
    r"(?:(?:the|an?|be|being|option|choice|letter|answer|either|both|by|to|really|necessarily|simply|just)\s+"
    r"|[\"'*_(]+)*"
)
_LISTED = rf"{_MARK}[\"'*_)\].!?]*(?:\s*(?:{JOIN}\s*)+{_SMALL}{_MARK}[\"'*_)\]]*)*"
_VERB = (
    r"(?:(?:is|are|was|were|be|been|can|could|will|would|should|must|may|might|do|does|did|has|have|had|seems?|looks?"
    r"|sounds?|to|all|both|which|that|option|choice|answer|one|ones|alone|also|just|simply|of course|therefore|thus"
    r"|\w+ly)"
    r"(?:\s+|(?=n't\b)))*"
)
_DENIED_BEFORE = re.compile(
    r"(?:\b(?:not|never|neither|nor|except|excluding|rather than|instead of|other than|anything but|all but|unlike"
    rf"|as opposed to|cannot be|no)\b|\b\w+n't\b)\s+{_SMALL}{_LISTED}"
)
_DENIED_AFTER = re.compile(
    rf"{_LISTED}\s*(?:[:(\u2013\u2014-]\s*)?{_VERB}(?:{DENIES}|\bno\b(?=\s*(?:$|[.,;!])))"
    r"(?:\s+(?:right|correct|true|be|the|an?|answer|one|option|choice|possible|likely|it|so|best)\b)*"
)
_SUBJECT = re.compile(rf"{_MARK}[\"'*_)\]]*\s+(?!(?:and|but|,|;)\s*$)[^.,;:!?]+$")  # "(a) is", before "not (b)"
_NEGATION = re.compile(DENIES)
_NEGATION_ANYWHERE = re.compile(
    rf"{DENIES}|\bno\b(?!\s+(?:doubt|question|wonder)\b)|\b(?:none|nothing|hardly|unlikely|impossible|unlike)\b"
    r"|\brul(?:e|es|ed|ing)\s+(?:\w+\s+)?out\b|\b(?:exclude|eliminate|reject)[sd]?\b|\brejected\b"
)
_REASON = re.compile(r"[,;.!?]|\b(?:because|since|as|for|so|but|while|whereas|due to|given|when|which|where|and|who)\b")
_CLAIM_HEAD = re.compile(
    r"[\W_]*(?:(?:the|an?|that|option|choice|letter|answer|most|very|likely|therefore|thus|indeed|but|rather|instead"
    rf"|it\s+is|it's|\w+ly)\b[\W_]*)*({_MARK})".replace(r"[\W_]", r"(?:(?![\ue000-\ue2ff])[\W_])")
)
_GOES_ON = re.compile(rf"[\s.!?]*(?:{JOIN}\s*)+{_SMALL}({_MARK})")
_NEXT_TO = re.compile(rf"[\s\"'*_.:)\]\u2013\u2014-]*({_MARK})")
_SENTENCES = re.compile(rf"\s*[.!?:\u2013\u2014-]+\s*({_MARK})(?=\s*(?:$|[.,;:!?/|]|or\b|and\b))")
_OWN_WORD = re.compile(rf"((?:^|[.!?]\s+){_MARK}),[^.!?]*")  # "No, it does not": the sentence explains the word
_LONE_LETTERS = re.compile(r"(?:[\s,;/|.():&+]|\b(?:or|and)\b|\b[a-z]\b)+", re.IGNORECASE)
_BULLET = re.compile(r"^\s*(?:[-*\u2022\u00b7\u25cf]\s+|\d+[.)]\s+)")
_ITEM = re.compile(r"^[\s\"'*_]*[(\[]?([a-z])(?:[)\].:]+[\s*_]*(.*)|[\s*_]*)$", re.IGNORECASE)


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


def normalised(text: str) -> str:
    """The form in which texts are compared: NFKC, lower case, single spaces, no quotes or final stop around it."""
    flat = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return flat.strip(_WRAPPING).rstrip(".,;:!").strip(_WRAPPING)


def first_line(text: str) -> str:
    """The first line of a text that is not blank; empty if there is none."""
    return next((line.strip() for line in lines_of(text) if line.strip()), "")


def exact(line: str, choices: Sequence[str]) -> set[int]:
    """The line is a choice's text, letter for letter; failing that, after normalisation."""
    same = {i for i, choice in enumerate(choices) if choice.strip() == line.strip()}
    if same:
        return same
    wanted = normalised(line)
    return {i for i, choice in enumerate(choices) if wanted and normalised(choice) == wanted}


def letter(line: str, choices: Sequence[str]) -> set[int]:
    """The line starts with a choice's letter: `(b)`, `b)`, `b.`, `b:` or nothing but `b`, and does not deny it.

    A second letter ("(b) or (c)", "(a) red (b) blue") or the text of another choice behind it ("(b) red", where (a) is
    red) contradicts, unless it is denied ("(b), not (a)").
    """
    start = line.lstrip(_WRAPPING)
    match = _LETTER.match(start.rstrip(_WRAPPING))
    if match is None:
        return set()
    index = LETTERS.index(next(group for group in match.groups() if group).lower())
    rest = start[match.end() :].lstrip("*_ ")
    found = {index}
    second = _SECOND.match(rest)
    if second:
        found.add(LETTERS.index(second[1].lower()))
    same = exact(rest, choices) if rest.strip() else set()
    if same:
        found |= same
    elif _LONE_LETTERS.fullmatch(rest):
        named = re.sub(r"\b(?:or|and)\b", "", rest.lower())
        found |= {LETTERS.index(one) for one in re.findall(r"[a-z]", named) if one in LETTERS[: len(choices)]}
    elif index < len(choices):
        found = _with_the_rest(chr(_LABEL + index) + " " + _marked(rest, choices), index, closed=False)
        if second and found and not _denied(marked := _marked(rest, choices), _scrubbed(marked)):
            found.add(LETTERS.index(second[1].lower()))
    return found if all(i < len(choices) for i in found) else set()


def _with_the_rest(marked: str, index: int, *, closed: bool) -> set[int]:
    """The choice that a marked text starts with, and those that contradict it; none where it is denied.

    `closed`: the choice is a yes, no or maybe, behind which a sentence may deny something ("no, it does not").
    """
    marked = _joined(marked)
    said = _scrubbed(marked)
    if not _PRIVATE.match(said) or index in _denied(marked, said):
        return set()
    behind = said[1:]
    clause = _REASON.split(behind.lstrip(" \"'*_)]:\u2013\u2014-"), maxsplit=1)[0]
    if takes_back(behind) or (_NEGATION.search(clause) and not (closed and _REASON.match(behind))):
        return set()
    found = {index} | {i for i in map(_labelled, behind) if i is not None}
    for pattern in (_GOES_ON, _NEXT_TO, _SENTENCES):
        if pattern is _NEXT_TO and closed:
            continue
        if other := pattern.match(behind):
            found.add(_named(other[1]))
    return found


def answer_is(text: str, choices: Sequence[str]) -> set[int]:
    r"""What a text claims with `answer is …`, `answer: …` or `\boxed{…}`, by a letter or a choice's text."""
    return _claimed(text, choices)[0]


def _claimed(text: str, choices: Sequence[str]) -> tuple[set[int], bool]:
    """Also whether something is denied or taken back."""

    def masked(part: str) -> str:
        return "\n".join(_marked(line, choices) for line in part.split("\n"))

    found = [(claim, *_claim(claim, choices)) for claim in claims(text, masked)]
    named, refused = decided((named, claim) for claim, named, _ in found)
    return named, refused or any(denied for _, _, denied in found)


def _claim(claim: Claim, choices: Sequence[str]) -> tuple[set[int], bool]:
    """What one claim names, and whether it denies instead."""
    if claim.below:
        item, *others = [_item(line, choices) for line in lines_of(claim.rest) if line.strip()] or [None]
        return (set() if item is None else {item[0], *(one[0] for one in others if one and one[1])}), False
    for said in (claim.line, claim.said):
        if named := exact(said, choices):
            return named, False
    for rule in (letter, leading):
        if named := rule(claim.said, choices):
            return named, False
    marked = _scrubbed(_marked(claim.said, choices))
    head = _CLAIM_HEAD.match(marked)
    named = set()
    if head:
        index = _named(head[1])
        named = _with_the_rest(marked[head.start(1) :], index, closed=_is_closed(choices[index]))
    elif (either := re.match(r"\W*(?:either|both|between|among)\b", marked)) is not None:
        named = {_named(mark) for mark in _PRIVATE.findall(_first_sentence(marked[either.end() :]))}
    said = _first_sentence(_marked(claim.said, choices))
    return named, not named and _NEGATION.search(said) is not None


def _first_sentence(text: str) -> str:
    return re.split(r"[.!?](?=\s|$)", text, maxsplit=1)[0]


def leading(line: str, choices: Sequence[str]) -> set[int]:
    """The line starts with a choice's text and a punctuation mark; the longest choice that fits is meant.

    Another choice behind it contradicts ("red, blue or green"); a denial leaves nothing ("red: wrong").
    """
    text = normalised(line)
    fits = {
        i: normalised(choice)
        for i, choice in enumerate(choices)
        if normalised(choice) and re.match(re.escape(normalised(choice)) + r"[.,;:!?](?:\s|$)", text)
    }
    longest = max((len(choice) for choice in fits.values()), default=0)
    found = {i for i, choice in fits.items() if len(choice) == longest}
    if len(found) != 1:
        return found
    index = next(iter(found))
    closed = _is_closed(choices[index])
    behind = _marked(text[longest:], choices)
    if closed and fits[index] == "no":  # "no, that is incorrect" takes nothing back
        return {index} | ({_named(other[1])} if (other := _GOES_ON.match(_scrubbed(behind))) else set())
    return _with_the_rest(chr(_TEXT + index) + behind, index, closed=closed)


def closed_word(line: str, choices: Sequence[str]) -> set[int]:
    """Yes, no and maybe as words of their own, where these are the choices and nothing is denied; "no idea" is not a
    no."""
    if not {normalised(choice) for choice in choices} <= _CLOSED:
        return set()
    marked = _marked(line, choices)
    return set() if _NEGATION.search(_OWN_WORD.sub(r"\1", marked)) else _named_by_text(marked)


def contained(line: str, choices: Sequence[str]) -> set[int]:
    """Choices named somewhere in the line, on word borders, where the rest of the line denies nothing.

    A choice inside a longer one counts only where it also stands alone. Single characters are never searched for (an
    "a" is mostly an article), nor are yes, no and maybe.
    """
    if {normalised(choice) for choice in choices} <= _CLOSED:
        return set()
    marked = _marked(line, choices, closed=False)
    said = _scrubbed(marked)
    named = _named_by_text(said)
    refused = _NEGATION_ANYWHERE.search(said) or takes_back(said) or named & _denied(marked, said)
    return set() if refused else named


def _is_closed(choice: str) -> bool:
    return normalised(choice) in _CLOSED


def _named(mark: str) -> int:
    return (ord(mark) - _TEXT) % 0x100


def _labelled(mark: str) -> int | None:
    """The choice that a character of a marked text names by its letter; None: it is no such mark."""
    return _named(mark) if _LABEL <= ord(mark) <= 0xE2FF else None


def _named_by_text(marked: str) -> set[int]:
    """The choices whose text is named, with those of other letters beside them; letters alone are no statement."""
    marks = _PRIVATE.findall(marked)
    if all(_LABEL <= ord(mark) < _BOTH for mark in marks):
        return set()
    return {_named(mark) for mark in marks}


def _marked(text: str, choices: Sequence[str], *, closed: bool = True) -> str:
    """The text in the form of comparisons, with a mark for every choice that is named, the longest texts first."""
    flat = " ".join(unicodedata.normalize("NFKC", straight(_PRIVATE.sub(" ", text))).casefold().split())
    by_text: dict[str, str] = {}
    for index, choice in enumerate(choices):
        name = normalised(straight(choice))
        by_text[name] = by_text.get(name, "") + chr(_TEXT + index)
    for name in sorted(by_text, key=len, reverse=True):
        if len(name) > 1 and (closed or name not in _CLOSED):
            flat = _bordered(name).sub(by_text[name], flat)
        elif len(name) == 1:  # mostly an article: it counts beside others of a list, and never alone
            flat = _listed(name).sub(rf"\1{chr(ord(by_text[name][0]) + 0x100)}", flat)

    def label(match: "re.Match[str]") -> str:
        index = LETTERS.index(next(group for group in match.groups() if group))
        return chr(_LABEL + index) if index < len(choices) else match[0]

    return _joined(_LABELS.sub(label, flat))


def _joined(marked: str) -> str:
    """A letter and the text of the same choice beside it become one mark."""

    def one(match: "re.Match[str]") -> str:
        same = _named(match[1]) == _named(match[2]) and (_labelled(match[1]) is None) != (_labelled(match[2]) is None)
        return chr(_BOTH + _named(match[1])) if same else match[0]

    return _BY_BOTH.sub(one, marked)


def _scrubbed(marked: str) -> str:
    """A marked text without the choices that it denies one by one: "not (a)", "(a) and (b) are wrong"."""

    def unless_it_is_said_of_another(match: "re.Match[str]") -> str:
        return match[0] if _SUBJECT.search(match.string[: match.start()]) else " "

    return _DENIED_AFTER.sub(" ", _DENIED_BEFORE.sub(unless_it_is_said_of_another, marked))


def _denied(marked: str, scrubbed: str) -> set[int]:
    """The choices that a marked text denies."""
    gone = Counter(map(_named, _PRIVATE.findall(marked))) - Counter(map(_named, _PRIVATE.findall(scrubbed)))
    return set(gone)


def _bordered(choice: str) -> "re.Pattern[str]":
    if choice == "no":  # "no idea" is not a no
        return re.compile(r"\bno\b(?!-)(?!\s+(?!(?:(?:or|and|but|nor|is|was|cannot|isn't)\b|[a-z][.):]))\w)")
    before = r"(?<![\d.,\-])" if choice[0].isdigit() else r"(?<!\w)"
    after = r"(?![.,]?\d)(?![\w%])" if choice[-1].isdigit() else r"(?!\w)" if choice[-1].isalnum() else ""
    return re.compile((before if choice[0].isalnum() else "") + re.escape(choice) + after)


def _listed(character: str) -> "re.Pattern[str]":
    mark = rf"{JOIN}|{_MARK}|(?<!\w)[a-z][.):]"
    return re.compile(rf"(^\s*|(?:{mark})\s*){re.escape(character)}(?=\s*(?:$|[.]|{mark}))")


def _item(line: str, choices: Sequence[str]) -> tuple[int, bool] | None:
    """The choice that a line of a list consists of, and whether it is labelled: `(a) red`, `- red`, `1. red`, `red`."""
    for bare in (line, _BULLET.sub("", line)):
        if len(same := exact(bare, choices)) == 1:
            return next(iter(same)), bare != line
    match = _ITEM.match(line)
    index = LETTERS.index(match[1].lower()) if match else len(choices)
    if match is None or index >= len(choices):
        return None
    said = normalised(match[2] or "")
    return (index, True) if normalised(choices[index]).startswith(said) else None


def _repeated(lines: Sequence[str], choices: Sequence[str]) -> int:
    """With how many lines a text begins that repeat the options, one a line: two labelled ones, or all there are."""
    items, heading = [], 0
    for number, line in enumerate(lines):
        item = _item(line, choices)
        if item is None and number == 0:
            item = _item(line.rpartition(":")[2], choices)
            if item is None and line.rstrip().endswith(":"):
                heading = 1
                continue
        if item is None:
            break
        items.append(item)
    repeats = len({i for i, labelled in items if labelled}) > 1 or len({i for i, _ in items}) == len(choices) > 1
    return heading + len(items) if repeats else 0


RULES: tuple[tuple[str, Callable[[str, Sequence[str]], set[int]]], ...] = (
    ("exact", exact),
    ("letter", letter),
    ("leading", leading),
    ("closed_word", closed_word),
    ("contained", contained),
)


def read_answer(text: str, choices: Sequence[str]) -> Read:
    """Read which choice a text names: by what it claims, or by its first line that is not blank.

    Returns:
        The choice's index and the name of the rule that read it, or (None, None): nothing named, a denial, or a
        contradiction.
    """
    line = first_line(text)
    if not line:
        return Read(None, None)
    is_choice = bool(exact(line, choices))  # its own text may hold "the answer is" or "Question:"
    first, behind = ("x", text.lstrip()[len(line) :]) if is_choice else ("", text.lstrip())
    own = own_part(first + behind).removeprefix(first)
    lines = [line] * is_choice + [one for one in lines_of(own) if one.strip()]
    repeated = _repeated(lines, choices)
    named, refused = _claimed("\n".join(lines[max(repeated, int(is_choice)) :]), choices)
    if named or repeated or (refused and not is_choice):
        return Read(next(iter(named)), "answer_is") if len(named) == 1 else Read(None, None)
    if len(lines) > 1 and takes_back(lines[1].strip()):
        return Read(None, None)
    for name, rule in RULES:
        found = rule(lines[0], choices)
        if len(found) == 1:
            return Read(next(iter(found)), name)
        if found or (rule is letter and _starts_with_letter(lines[0], choices)):
            return Read(None, None)
    return Read(None, None)


def _starts_with_letter(line: str, choices: Sequence[str]) -> bool:
    """Whether a line of which `letter` reads nothing starts with one: it denies it."""
    match = _LETTER.match(line.lstrip(_WRAPPING).rstrip(_WRAPPING))
    return match is not None and LETTERS.index(next(group for group in match.groups() if group).lower()) < len(choices)
