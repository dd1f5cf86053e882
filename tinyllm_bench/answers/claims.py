"""How a text announces an answer, denies one and takes one back; choices and numbers (`parser`) share it.

A claim is what follows "the answer is". A text may make several: a claim that is corrected gives way to the next one
("The answer is (a). Wait, no, the answer is (c)."), a claim that is taken back does not count, and claims that merely
differ contradict each other.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import NamedTuple, TypeVar

Answer = TypeVar("Answer", bound=Hashable)

DENIES = (
    r"\b(?:not|never|neither|nor|cannot|except|excluding|rather than|instead of|other than|anything but|all but"
    r"|far from|no longer|wrong|incorrect(?:ly)?|(?<!/)\bfalse|untrue|mistaken"
    r"|(?:is|are|was|were|do|does|did|ca|wo|could|should|would|ai)nt)\b|n't\b"
)
NEGATION = re.compile(DENIES)
JOIN = (
    r"(?:,|;|/|\||&|\+|\band/or\b|\band\b|\bor\b|\bnor\b|\bversus\b|\bvs\.?"
    r"|\bplus\b|\bas well as\b|\balong with\b|\btogether with\b)"
)

_FILL = r"(?:(?:\w+ly|most|very|quite|simply|just|really|also|indeed|therefore|thus|then|still|now)\s+)*"
_LEAD = re.compile(
    # "the answer is", "answer: ", "the answer would be"; the negation of "isn't" and "cannot be" stays after it
    r"\banswer\b(?:\s+(?:choice|option|letter|key)\b)?[\"'*_]*\s*(?:"
    r"(?:is|(?:would|should|must|will|has\s+to|ought\s+to)\s+be)\b|['\u2019]s\b|[:=\uff1a]"
    r"|(?:is|was|would|should|could|can|must|will|does|did|might|may|ca|wo|ai)(?=n['\u2019]t\b|\s+not\b|\s+never\b|nt\b)"
    r"|(?=cannot\b)|\b(?=never\b))\s*[:=]?"
    r"|\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.!?;:,\n]|\b(?:but|so|therefore|thus|hence|however|then|and|because)\b")
_CONDITION = re.compile(r"\b(?:if|whether|unless|suppose|supposing|assume|assuming|imagine|provided)\b")
_DENIED_LEAD = re.compile(rf"{DENIES}|\bno$")
_FIRST_WORD = re.compile(r"^[\s\"'*_(:=]*(?:[\ue000-\ue2ff]|\w+)?")  # of a claim: "no" may be the answer
_LINE_END = re.compile(r"\r\n?|\n")
_ANOTHER_LINE = re.compile(r"\s*[^\n]*(?:\n\s*[^\n]*)?")  # what takes an answer back follows it closely
_QUESTION = re.compile(
    r"(?<=\S)(?:(?:\s*\n[\W_]*|\s+)(?:(?:next|new|another)\s+)?question\s*\d*\s*:"
    r"|\s*\n[\s*]*(?:#+\s*)?(?:q(?:uestion)?\s*\.?\s*\d*\s*[:.)#](?!\w)|#\s*\d+\b))",
    re.IGNORECASE,
)

# What takes an answer back: a judgement on what was said ("that is wrong"), or "no" or "wait" as a word of its own.
_JUDGED = (
    r"(?:that|this|it|which|the (?:above|former|first) (?:one|answer))"
    rf"(?:\s+(?:is|was|seems|looks|must be|cannot be)|'s"
    rf"|\s+(?:is|was|ca)(?=n't))?\s*{_FILL}(?:(?:not|n't)\s+(?:be\s+)?{_FILL}(?:right|correct|true|the\s+(?:\w+\s+)?answer"
    r"|(?:it|so|possible)(?=\s*(?:$|[.!?;:,])))|(?:(?:the|an?)\s+)?(?:wrong|incorrect|false|untrue|mistaken)"
    r"|a mistake|an error"
    r"|impossible(?=\s*(?:$|[.!?;:,])))\b"
)
_OWN_WORD = r"(?:no(?:,?\s+wait)?|nope|wait|wrong|incorrect|not really|not quite|scratch that|hold on|hmm+,? no|oops)"
_BACK = re.compile(
    rf"(?:^|[.!?;:,\n\u2014\u2013(-])[\s\"'*_)]*(?:(?:oh|hmm+|but|and|well|ah|sorry|actually|or)\W+)*"
    rf"(?:{_JUDGED}|{_OWN_WORD}\b(?=\s*(?:$|[.!?;:,\u2014\u2013-])))"
    r"|\bscratch that\b|\bon second thought|\bi (?:was|am) (?:wrong|mistaken)\b|\bi made an? (?:mistake|error)\b"
    r"|\bmy mistake\b|\blet me correct\b",
)
_CORRECTS = re.compile(
    r"\b(?:wait|however|but|actually|rather|instead|correction|corrected|sorry|i mean|in fact|finally|yet)\b"
)
_FINAL = re.compile(r"\b(?:final|finally|corrected|revised|real|actual)\W+(?:\w+\W+)?$")


class AnswerClaim(NamedTuple):
    """One "the answer is": the text after it up to the end of the line (`line`), up to the next claim if that comes
    first (`phrase`), and everything up to the next claim (`rest`).

    `below`: the line has no more text, and `line` and `phrase` are the next line. `denied`: the words before deny it
    ("I do not think that the answer is"). `corrects`: it corrects the claim before. `taken_back`: what follows takes it
    back.
    """

    line: str
    phrase: str
    rest: str
    below: bool
    denied: bool
    corrects: bool
    taken_back: bool


def straight(text: str) -> str:
    """The text with straight apostrophes."""
    return text.translate(_APOSTROPHES)


_APOSTROPHES = dict.fromkeys((0x2018, 0x2019, 0x02BC, 0x0060, 0x00B4, 0xFF07), "'")


def lines_of(text: str) -> list[str]:
    """The lines of a generated text, which only a newline (or CR) ends.

    `str.splitlines` also splits at U+2028, U+0085 and form feeds, which occur inside what models write.
    """
    return _LINE_END.split(text)


def before_further_question(text: str) -> str:
    """The part of a text before a further question that it invents, and may answer as well."""
    match = _QUESTION.search(text)
    return text[: match.start()] if match else text


def announces(text: str) -> bool:
    """Whether a text contains "the answer is", with or without an answer."""
    return _LEAD.search(straight(text)) is not None


def takes_back(text: str) -> bool:
    """Whether a text after an answer takes it back ("No, wait", "That is wrong")."""
    return _BACK.search(straight(text).casefold()) is not None


def claims(text: str, masked: Callable[[str], str] = str.casefold) -> Iterator[AnswerClaim]:
    """The claims of a text, in order, without those under a condition ("if the answer is").

    `masked` brings the text around a claim into lower case and hides the answers in it, which may be "no" or "wrong".
    """
    text = straight(text)
    leads, clauses = [], []
    for lead in _LEAD.finditer(text):
        clause = _CLAUSE.split(masked(text[: lead.start()]))[-1].strip()
        if not _CONDITION.search(clause):
            leads.append(lead)
            clauses.append(clause)
    for number, lead in enumerate(leads):
        stop = leads[number + 1].start() if number + 1 < len(leads) else len(text)
        line = text[lead.end() :].split("\n", 1)[0]
        phrase = text[lead.end() : stop].split("\n", 1)[0]
        below = False
        if lead[1] is not None:
            line = phrase = lead[1]
        elif not line.strip(" \t\"'`*_.:"):
            line = phrase = next((after for after in text[lead.end() : stop].split("\n")[1:] if after.strip()), "")
            below = True
        between = masked(text[leads[number - 1].end() : lead.start()]) if number else ""
        yield AnswerClaim(
            line=line,
            phrase=phrase,
            rest=text[lead.end() : stop],
            below=below,
            denied=_DENIED_LEAD.search(clauses[number]) is not None,
            corrects=any(pattern.search(between) for pattern in (_CORRECTS, _BACK, _FINAL)),
            taken_back=takes_back(
                _FIRST_WORD.sub("", masked(_ANOTHER_LINE.findall(text, lead.end(), stop)[0]), count=1)
            ),
        )


def resolve_claims(answered: Iterable[tuple[set[Answer], AnswerClaim]]) -> tuple[set[Answer], bool]:
    """The answers of a text whose claims name these: one, several that contradict each other, or none.

    A claim that names several is settled by a later one that names one; one that differs from those before it must
    correct them. The second value is whether something was denied or taken back.
    """
    current: set[Answer] = set()
    conflict = refused = False
    for named, claim in answered:
        if claim.denied or claim.taken_back:
            refused = True
            current = set() if claim.taken_back or named == current else current
        elif named and (claim.corrects or not conflict) and (claim.corrects or len(current) != 1):
            current, conflict = named, False
        elif named and named != current:
            current, conflict = current | named, True
    return current, refused
