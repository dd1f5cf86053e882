"""Filters: which texts of a teacher are not worth imitating. Small pure tests with a name, counted in the record.

Measured on the release (train splits): empty or "nan" texts in the LLaMA-2 part, texts of fewer than three words, texts
cut at the token limit, and texts that run on into an invented question. The paper and its code train on all of them;
`filters: [empty]` is that form.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tinyllm_bench.answers.keys import normalised
from tinyllm_bench.answers.parser import answer_is, number_announced, read
from tinyllm_bench.base.errors import unknown_name
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.generation.thoughts import marks_thought

FILTERS_VERSION = 4  # raise it with every change of what a filter rejects: cached annotations are then filtered again
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


class FilterInput(NamedTuple):
    """A text and what is known of it.

    `prompt` is the teacher's prompt, `finish` why the text ended ("stop", "length"), `answer` the choice's text or the
    number that the teacher named itself, `duplicate` whether it gave the same text for an earlier record. None: not
    known.
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
    """The part of a text that is about its own question: everything before an invented one."""
    starts = [match.start() for pattern in (_NEXT_QUESTION, _LISTED) if (match := pattern.search(text))]
    return text[: min(starts)] if starts else text


def named_answers(text: str, record: TaskRecord) -> set[int | str]:
    """The choices, or the numbers, that a text claims ("the answer is (b)") before any invented question: one, or
    several that contradict each other."""
    own = before_next_question(text)
    if record.choices:
        return set(answer_is(own, record.choices))
    return {key for key in number_announced(own) if key is not None}


def _unfinished(candidate: FilterInput) -> bool:
    """A substitute for `cut` where the reason of a text's end is not recorded."""
    text = body(candidate.text)
    return bool(text) and _END.search(text) is None


def _prompt_echo(candidate: FilterInput) -> bool:
    """A run of 16 words of the prompt or question, or a text of at least 5 words that is nothing but a piece of it.

    A run out of the passage is evidence, not an echo: only a text that is nothing but passage counts.
    """
    record, passage = candidate.record, list[str]()
    sources = [] if candidate.prompt is None else [_words(candidate.prompt)]
    if record is not None:
        passage = _words(record.context)
        options = (f"({letter}) {choice}" for letter, choice in zip(LETTERS, record.choices, strict=False))
        sources.append(_words(" ".join([record.question, *options])))
    words = _words(body(candidate.text))
    if len(words) >= _ECHO_WHOLE:
        text = f" {' '.join(words)} "
        if any(text in f" {' '.join(source)} " for source in (passage, *sources)):
            return True
    runs = _grams(words, _ECHO_RUN) - _grams(passage, _ECHO_RUN)
    return any(runs & _grams(source, _ECHO_RUN) for source in sources)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _grams(words: Sequence[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}


def _loop(candidate: FilterInput) -> bool:
    """A sentence of 5 words twice, 8 words in the same order three times, or up to 12 words three times in a row."""
    text = body(candidate.text)
    sentences = [s for part in _SENTENCE.split(text) if len(s := tuple(_words(part))) >= _LOOP_SENTENCE]
    words = _words(text)
    return len(set(sentences)) < len(sentences) or _has_gram_thrice(words) or _has_period(words)


def _has_gram_thrice(words: Sequence[str]) -> bool:
    """Whether 8 words occur in the same order three times without overlap."""
    starts: dict[tuple[str, ...], list[int]] = {}
    for start in range(len(words) - _LOOP_GRAM + 1):
        seen = starts.setdefault(tuple(words[start : start + _LOOP_GRAM]), [])
        if not seen or start - seen[-1] >= _LOOP_GRAM:
            seen.append(start)
    return any(len(seen) >= 3 for seen in starts.values())


def _has_period(words: Sequence[str]) -> bool:
    """Whether words repeat with the same period for two more periods; a single word must occur five times."""
    for period in range(1, _LOOP_PERIOD + 1):
        run = 0
        for first, later in zip(words, words[period:], strict=False):
            run = run + 1 if first == later else 0
            if run >= max(2 * period, 4):
                return True
    return False


def _wrong_answer(candidate: FilterInput) -> bool:
    if candidate.record is None or candidate.answer is None:
        return False
    if not candidate.record.choices:
        return read(candidate.answer, ()).key != candidate.record.gold_key
    return normalised(candidate.answer) != normalised(candidate.record.gold_text)


def _contradicts_gold(candidate: FilterInput) -> bool:
    record = candidate.record
    if record is None:
        return False
    golds: set[int | str] = {record.gold_key}
    if record.choices:  # every choice with the gold's text: a few questions of the public sets list an option twice
        gold = normalised(record.gold_text)
        golds = {index for index, choice in enumerate(record.choices) if normalised(choice) == gold}
    return _wrong_answer(candidate) or bool(named_answers(candidate.text, record) - golds)


FILTERS: Mapping[str, Callable[[FilterInput], bool]] = {
    "empty": lambda c: not body(c.text),
    "nan": lambda c: body(c.text).lower() == "nan",
    "short": lambda c: len(body(c.text).split()) < 3,
    "prompt_junk": lambda c: _JUNK.search(c.text) is not None,  # pieces of a web page or of a prompt
    "cut": lambda c: c.finish == "length",
    # reasoning without an end, or with its tags still in the text: not a rationale
    "thought": lambda c: marks_thought(c.text),
    "unfinished": _unfinished,
    "follow_up": lambda c: before_next_question(c.text) != c.text,
    "prompt_echo": _prompt_echo,
    "loop": _loop,
    "mojibake": lambda c: _MOJIBAKE.search(c.text) is not None,
    "contradicts_gold": _contradicts_gold,
    "wrong_answer": _wrong_answer,
    "too_long": lambda c: len(body(c.text).split()) > MAX_WORDS,
    "duplicate": lambda c: c.duplicate,
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


def rejected_by(text: str | FilterInput, filters: Sequence[str]) -> str | None:
    """The first named filter that rejects a text, or None; of a plain string nothing but the text is known.

    Raises:
        UserError: a filter's name is unknown.
    """
    check_names(filters)
    candidate = FilterInput(text) if isinstance(text, str) else text
    return next((name for name in filters if FILTERS[name](candidate)), None)


def filter_inputs(
    annotations: Sequence[Annotation],
    records: Mapping[str, TaskRecord],
    *,
    prompts: Mapping[str, str] | None = None,
) -> list[FilterInput]:
    """The filters' view of annotations, in their order. `records` and `prompts` are by record id."""
    first_uses: dict[tuple[str, str], str] = {}  # the record of a teacher's text, the first time it gives that text
    result = []
    for annotation in annotations:
        text = normalised(body(annotation.text))
        first = annotation.record_id
        if text:
            first = first_uses.setdefault((annotation.teacher, text), annotation.record_id)
        result.append(
            FilterInput(
                text=annotation.text,
                record=records.get(annotation.record_id),
                prompt=(prompts or {}).get(annotation.record_id),
                finish=annotation.finish,
                answer=annotation.answer,
                duplicate=first != annotation.record_id,
            )
        )
    return result


def apply_filters(
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
    judged = filter_inputs(annotations, records, prompts=prompts)
    return [replace(a, rejected=rejected_by(c, filters)) for a, c in zip(annotations, judged, strict=True)]
