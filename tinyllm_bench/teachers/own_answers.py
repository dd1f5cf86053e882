"""Where a teacher's own text names its answer, and the text without it: else the label leaks into the rationale."""

import re
from collections.abc import Sequence

from tinyllm_bench.answers.choices import answer_is, closed_word, exact, first_line, leading, letter, normalised
from tinyllm_bench.answers.numbers import bare_number, number_announced
from tinyllm_bench.data.prompts import LETTERS

_NAMES = re.compile(r"\banswer(?:\s+is\b|\s*:|\s*=)|\\boxed\{", re.IGNORECASE)
_BORDER = re.compile(r"[.!?][\"')\]*_]*\s+|\n")
_REST = r"(?:(?![.!?][\"')\]*_]*(?:\s|$))[^\n])*[.!?]*[\"')\]*_]*[ \t]*"  # to the end of the sentence or line
_GAPS = re.compile(r"\n(?:[ \t]*\n)+")


def take(text: str, choices: Sequence[str]) -> tuple[str, set[int | str]]:
    """The text without the sentences that name an answer, and the choices, or the numbers, they name.

    "So the answer is (b)." counts wherever it stands; the last one where it corrects another, and none that is denied
    (`answers.statements`). Without one: a last or first line that is nothing but a choice or its letter, where no line
    begins with another, or a first word that is yes, no or maybe where these are the choices; of numbers: a last line
    that is nothing but one.
    """
    rest, named = _sentences(text, choices)
    if not named:
        bare, found = _bare_line(text, choices) if choices else _number_line(text)
        rest, named = bare, set(found)
    return _GAPS.sub("\n", rest).strip(), named


def _number_line(text: str) -> tuple[str, set[str]]:
    before, _, last = text.strip().rpartition("\n")
    named = {key for key in bare_number(last) if key is not None}
    return (before, named) if named else (text, named)


def _named(sentence: str, choices: Sequence[str]) -> set[int | str]:
    if choices:
        return set(answer_is(sentence, choices))
    return {key for key in number_announced(sentence) if key is not None}


def _sentences(text: str, choices: Sequence[str]) -> tuple[str, set[int | str]]:
    named = _named(text, choices)
    kept, done = [], 0
    hits = list(_NAMES.finditer(text))
    ends = [*(hit.start() for hit in hits), len(text)][1:]  # each is read up to the next
    before = 0
    for hit, following in zip(hits, ends, strict=True):
        start = _start(text, hit.start())
        said = text[max(start, before) : following]
        line, before = said.lstrip().split("\n", 1)[0], hit.end()
        found = _named(line, choices) or _named(_BORDER.split(line, maxsplit=1)[0], choices)  # "(a). No, ..." names (a)
        if len(found) == 1:
            end = _end(text, hit.end(), next(iter(found)), choices)
            kept.append(text[done : max(start, done)])
            done = max(end, done)
    return ("".join([*kept, text[done:]]) if named else text), named


def _start(text: str, at: int) -> int:
    borders = [match.end() for match in _BORDER.finditer(text, 0, at)]
    return borders[-1] if borders else 0


def _end(text: str, at: int, key: int | str, choices: Sequence[str]) -> int:
    """The end of the sentence; a stop behind the letter or inside the choice's own text does not end it."""
    named = ""
    if isinstance(key, int):
        own = re.escape(choices[key].strip())
        named = rf"[^\w\n]*(?:\(?{LETTERS[key]}\b\)?(?:[.:)]*[^\w\n.]*{own})?|{own})?"
    match = re.compile(named + _REST, re.IGNORECASE).match(text, at)
    return match.end() if match else at


def _bare_line(text: str, choices: Sequence[str]) -> tuple[str, set[int]]:
    lines = text.strip().splitlines()
    if not lines:
        return text, set()
    begun = set().union(*(exact(line, choices) | letter(line, choices) for line in lines))
    if len(begun) > 1:  # option after option is looked at: the first or last of them is not chosen
        return text, set()
    last, first = _bare(lines[-1], choices), _bare(lines[0], choices)
    if last:
        return "\n".join(lines[:-1]), last
    if first:
        return "\n".join(lines[1:]), first
    return _first_word(text, choices)


def _bare(line: str, choices: Sequence[str]) -> set[int]:
    """The choice that a line consists of: its text, its letter, or both; with a colon behind it, it is a heading."""
    if line.rstrip("*_ ").endswith(":"):
        return set()
    found = exact(line, choices)
    if found:
        return found
    found = letter(line, choices)
    if len(found) != 1:
        return set()
    index = next(iter(found))
    behind = re.sub(rf"^\W*{LETTERS[index]}\b\W*", "", line, count=1, flags=re.IGNORECASE)
    return found if normalised(behind) in ("", normalised(choices[index])) else set()


def _first_word(text: str, choices: Sequence[str]) -> tuple[str, set[int]]:
    """Yes, no or maybe in front of the reasons, with a mark behind it ("No, since ..."); any other start is prose."""
    line = first_line(text)
    found = leading(line, choices) if closed_word(line, choices) else set()
    if len(found) != 1:
        return text, set()
    word = re.escape(normalised(choices[next(iter(found))]))
    return re.sub(rf"^\W*{word}\W+", "", text, count=1, flags=re.IGNORECASE), found
