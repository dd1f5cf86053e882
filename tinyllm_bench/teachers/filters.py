"""Which texts of a teacher are not worth imitating: small pure tests with a name, counted in the record.

Measured on the release (train splits): empty or "nan" texts in the LLaMA-2 part, texts of fewer than three words, texts
cut at the token limit, and texts that run on into an invented question. The paper and its code train on all of them;
`filters: [empty]` is that form.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tinyllm_bench.answers.numbers import number_announced
from tinyllm_bench.answers.parser import answer_is, normalised, read
from tinyllm_bench.base.errors import unknown_name
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.generation.thoughts import marks_thought

FILTERS_VERSION = 4  # raise it with every change of what a filter rejects: kept annotations are then made again
MAX_WORDS = 200
_ECHO_RUN, _ECHO_WHOLE = 16, 5
_LOOP_SENTENCE, _LOOP_GRAM, _LOOP_PERIOD = 5, 8, 12

_TRIGGER = re.compile(r"^\s*let'?s think step by step[.:]?\s*", re.IGNORECASE)
_JUNK = re.compile(r"\bquestion\s*:|^\s*q:|answer choices|#\s*\d+\.|https?://|www\.", re.IGNORECASE | re.MULTILINE)
_NEXT_QUESTION = re.compile(
    r"\bquestion\s*\d*\s*[:#]|^[\s#*]*question\s*\d*\s*$|^[\s#*]*q\s*\.?\s*\d*\s*[:.)]\s|^\s*#\s*\d+|^\s*##"
    r"|answer choices|^\s*options?\s*:|\bfollow-?\s?up question",
    re.IGNORECASE | re.MULTILINE,
)
_LISTED = re.compile(r"^.*\?\s*\n\s*\(?a[).].*\n\s*\(?b[).]", re.IGNORECASE | re.MULTILINE)
_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"')\]}*_`\u2019\u201d\u00bb]*$")
_SENTENCE = re.compile(r"[.!?]+(?:\s|$)|\n+")

_TAIL = "\u0080-\u00bf"  # what the later bytes of UTF-8 become as Latin-1; as Windows-1252, some are signs:
_SIGNS = "\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018\u2019\u201c\u201d\u2022"
_SIGNS += "\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178"
_MOJIBAKE = re.compile(
    f"\ufffd|[\u00c2\u00c3][{_TAIL}{_SIGNS}]|[\u00c4\u00c5\u00ce-\u00d1][\u0080-\u00ba\u00bc-\u00bf]"
    f"|\u00e2[\u0080-\u00bf\u20ac\u2020\u2030\u0153\u02c6\u201e][{_TAIL}{_SIGNS}]|[\u00e3-\u00ef][{_TAIL}]{{2}}"
)


class Candidate(NamedTuple):
    """A text and what is known of it.

    `prompt` is what the teacher read, `finish` why it stopped ("stop", "length"), `answer` the choice's text or the
    number that it named itself, `duplicate` whether it gave the same text for an earlier record. None: not known.
    """

    text: str
    record: TaskRecord | None = None
    prompt: str | None = None
    finish: str | None = None
    answer: str | None = None
    duplicate: bool = False


def body(text: str) -> str:
    """The rationale without the trigger sentence that the teacher's prompt ended with."""
    return _TRIGGER.sub("", text).strip()


def before_next_question(text: str) -> str:
    """The part of a text that is about its own question: what comes before an invented one."""
    starts = [found.start() for pattern in (_NEXT_QUESTION, _LISTED) if (found := pattern.search(text))]
    return text[: min(starts)] if starts else text


def named_answers(text: str, record: TaskRecord) -> set[int | str]:
    """The choices, or the numbers, that a text claims ("the answer is (b)") before any invented question: one, or
    several that contradict each other."""
    own = before_next_question(text)
    if record.choices:
        return set(answer_is(own, record.choices))
    return {key for key in number_announced(own) if key is not None}


def _empty(candidate: Candidate) -> bool:
    return not body(candidate.text)


def _nan(candidate: Candidate) -> bool:
    return body(candidate.text).lower() == "nan"


def _short(candidate: Candidate) -> bool:
    return len(body(candidate.text).split()) < 3


def _prompt_junk(candidate: Candidate) -> bool:
    """Pieces of a web page or of a prompt."""
    return _JUNK.search(candidate.text) is not None


def _cut(candidate: Candidate) -> bool:
    return candidate.finish == "length"


def _thought(candidate: Candidate) -> bool:
    """A thought that has no end, or whose marks were left in the text: what a model only thinks is no rationale."""
    return marks_thought(candidate.text)


def _unfinished(candidate: Candidate) -> bool:
    """What stands in for `cut` where nobody recorded why a text ended."""
    text = body(candidate.text)
    return bool(text) and _END.search(text) is None


def _follow_up(candidate: Candidate) -> bool:
    return before_next_question(candidate.text) != candidate.text


def _prompt_echo(candidate: Candidate) -> bool:
    """A run of 16 words of what was asked, or a text of at least 5 words that is nothing but a piece of it.

    A run out of the passage is evidence, not an echo: only a text that is nothing but passage counts.
    """
    said = _words(body(candidate.text))
    passage, asked = _asked(candidate)
    if len(said) >= _ECHO_WHOLE and any(f" {' '.join(said)} " in f" {' '.join(part)} " for part in (passage, *asked)):
        return True
    runs = _grams(said, _ECHO_RUN) - _grams(passage, _ECHO_RUN)
    return any(runs & _grams(part, _ECHO_RUN) for part in asked)


def _asked(candidate: Candidate) -> tuple[list[str], list[list[str]]]:
    """The words of the passage; those of the question with its options, and of the prompt."""
    asked = [] if candidate.prompt is None else [_words(candidate.prompt)]
    if candidate.record is None:
        return [], asked
    record = candidate.record
    options = (f"({letter}) {choice}" for letter, choice in zip(LETTERS, record.choices, strict=False))
    return _words(record.context), [*asked, _words(" ".join([record.question, *options]))]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _grams(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def _loop(candidate: Candidate) -> bool:
    """A sentence of 5 words twice, 8 words in the same order three times, or up to 12 words three times in a row."""
    text = body(candidate.text)
    sentences = [found for part in _SENTENCE.split(text) if len(found := tuple(_words(part))) >= _LOOP_SENTENCE]
    words = _words(text)
    return len(set(sentences)) < len(sentences) or _thrice(words) or _circles(words)


def _thrice(words: Sequence[str]) -> bool:
    starts: dict[tuple[str, ...], list[int]] = {}
    for start in range(len(words) - _LOOP_GRAM + 1):
        seen = starts.setdefault(tuple(words[start : start + _LOOP_GRAM]), [])
        if not seen or start - seen[-1] >= _LOOP_GRAM:
            seen.append(start)
    return any(len(seen) >= 3 for seen in starts.values())


def _circles(words: Sequence[str]) -> bool:
    """Whether words come again after the same distance for two whole turns; one word alone must stand five times."""
    for period in range(1, _LOOP_PERIOD + 1):
        run = 0
        for first, later in zip(words, words[period:], strict=False):
            run = run + 1 if first == later else 0
            if run >= max(2 * period, 4):
                return True
    return False


def _mojibake(candidate: Candidate) -> bool:
    return _MOJIBAKE.search(candidate.text) is not None


def _contradicts_gold(candidate: Candidate) -> bool:
    if candidate.record is None:
        return False
    return _wrong_answer(candidate) or bool(named_answers(candidate.text, candidate.record) - _golds(candidate.record))


def _wrong_answer(candidate: Candidate) -> bool:
    if candidate.record is None or candidate.answer is None:
        return False
    if not candidate.record.choices:
        return read(candidate.answer, ()).key != candidate.record.gold_key
    return normalised(candidate.answer) != normalised(candidate.record.gold_text)


def _golds(record: TaskRecord) -> set[int | str]:
    """Every choice with the gold's text: a few questions of the public sets hold an option twice; or the number."""
    if not record.choices:
        return {record.gold_key}
    gold = normalised(record.gold_text)
    return {index for index, choice in enumerate(record.choices) if normalised(choice) == gold}


def _too_long(candidate: Candidate) -> bool:
    return len(body(candidate.text).split()) > MAX_WORDS


def _duplicate(candidate: Candidate) -> bool:
    return candidate.duplicate


FILTERS: Mapping[str, Callable[[Candidate], bool]] = {
    "empty": _empty,
    "nan": _nan,
    "short": _short,
    "prompt_junk": _prompt_junk,
    "cut": _cut,
    "thought": _thought,
    "unfinished": _unfinished,
    "follow_up": _follow_up,
    "prompt_echo": _prompt_echo,
    "loop": _loop,
    "mojibake": _mojibake,
    "contradicts_gold": _contradicts_gold,
    "wrong_answer": _wrong_answer,
    "too_long": _too_long,
    "duplicate": _duplicate,
}
NEEDS: Mapping[str, str] = {"cut": "finish", "wrong_answer": "answer"}  # the field without which they cannot judge


def check_names(filters: Sequence[str]) -> None:
    """Refuse names that are not filters.

    Raises:
        UserError: a filter's name is unknown.
    """
    for name in filters:
        if name not in FILTERS:
            raise unknown_name("annotations.filters entry", name, FILTERS)


def rejected_by(text: str | Candidate, filters: Sequence[str]) -> str | None:
    """The first named filter that rejects a text, or None; a bare text is one of which nothing else is known.

    Raises:
        UserError: a filter's name is unknown.
    """
    check_names(filters)
    candidate = Candidate(text) if isinstance(text, str) else text
    return next((name for name in filters if FILTERS[name](candidate)), None)


def candidates(
    annotations: Sequence[Annotation],
    records: Mapping[str, TaskRecord],
    *,
    prompts: Mapping[str, str] | None = None,
) -> list[Candidate]:
    """What filters look at, in the annotations' order. `prompts`: by record id."""
    owners: dict[tuple[str, str], str] = {}
    found = []
    for said in annotations:
        words = normalised(body(said.text))
        owner = owners.setdefault((said.teacher, words), said.record_id) if words else said.record_id
        found.append(
            Candidate(
                text=said.text,
                record=records.get(said.record_id),
                prompt=(prompts or {}).get(said.record_id),
                finish=said.finish,
                answer=said.answer,
                duplicate=owner != said.record_id,
            )
        )
    return found


def rejections(
    annotations: Sequence[Annotation],
    records: Mapping[str, TaskRecord],
    filters: Sequence[str],
    *,
    prompts: Mapping[str, str] | None = None,
) -> list[Annotation]:
    """The annotations with `rejected` set to the first filter that rejects them, or to None.

    A text is a duplicate when its teacher gave it for an earlier record of the list.

    Raises:
        UserError: a filter's name is unknown.
    """
    check_names(filters)
    seen = candidates(annotations, records, prompts=prompts)
    return [replace(a, rejected=rejected_by(c, filters)) for a, c in zip(annotations, seen, strict=True)]
