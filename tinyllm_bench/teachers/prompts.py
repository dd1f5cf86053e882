"""The prompts of live teachers and how their replies are read: pure text, the same for every generator.

`forced` is the published template of TinyLLM: the gold letter is in the prompt and the teacher explains it. With the
other kinds the teacher answers itself. A passage is part of the question, in front of it, as in the paper's data. A
question that asks for a number has no options, and the number takes the letter's place. A teacher may also get the
student's own prompt (`StudentPrompts`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

from tinyllm_bench.answers import parser
from tinyllm_bench.answers.claims import lines_of
from tinyllm_bench.answers.keys import normalised, question_kind
from tinyllm_bench.answers.parser import (
    answer_is,
    bare_number,
    closed_word,
    exact,
    first_line,
    leading,
    letter,
    number_announced,
    reader_version,
)
from tinyllm_bench.data.prompts import LETTERS, Ask
from tinyllm_bench.data.records import TaskRecord, cut_context
from tinyllm_bench.teachers.few_shot import Demonstration, ShotSelector
from tinyllm_bench.teachers.filters import body
from tinyllm_bench.teachers.program_examples import ANSWER_RULES, EXAMPLES, RULES

PromptKind = Literal["forced", "free", "rationale_then_answer", "program"]
PROMPTS_VERSION = 3  # raise it with every change of a prompt or of how a reply is read
TRIGGER = "Let's think step by step."

_ANSWER_LINE = re.compile(r"^[^\w\n]*answer[^\w\n]*:", re.IGNORECASE | re.MULTILINE)
_RATIONALE = re.compile(r"^\W*rationale\W*:\W*", re.IGNORECASE)
_ASSIGNED = re.compile(r"^answer\s*=", re.MULTILINE)
_THEN_ANSWER = "Explain each question first. Then name the answer in a last line of its own, such as: Answer: "

_NAMES_ANSWER = re.compile(r"\banswer(?:\s+is\b|\s*:|\s*=)|\\boxed\{", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?][\"')\]*_]*\s+|\n")
_REST_OF_SENTENCE = r"(?:(?![.!?][\"')\]*_]*(?:\s|$))[^\n])*[.!?]*[\"')\]*_]*[ \t]*"  # or of the line
_BLANK_LINES = re.compile(r"\n(?:[ \t]*\n)+")


class Reply(NamedTuple):
    """A parsed reply: the rationale or program, and the choice's text, or the number, that the teacher named."""

    text: str
    answer: str | None


class PromptSource(Protocol):
    """Makes a live teacher's prompt for a record and reads its reply."""

    @property
    def kind(self) -> Literal["rationale", "program", "response"]:
        """The kind of annotation."""

    @property
    def gold_visible(self) -> bool:
        """Whether the right answer of the question is in the prompt."""

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end a reply."""

    @property
    def facts(self) -> Any:
        """All that decides the prompt besides the record, in JSON."""

    def prompt(self, record: TaskRecord) -> str:
        """The whole prompt."""

    def read(self, text: str, record: TaskRecord) -> Reply:
        """The parsed reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotationPrompts:
    """Prompts for a rationale or a program, with solved questions in front."""

    prompt_kind: PromptKind
    shots: ShotSelector
    max_context_words: int

    @property
    def kind(self) -> Literal["rationale", "program"]:
        """A program, or a rationale."""
        return "program" if self.prompt_kind == "program" else "rationale"

    @property
    def gold_visible(self) -> bool:
        """True for `forced` prompts."""
        return self.prompt_kind == "forced"

    @property
    def stops(self) -> tuple[str, ...]:
        """See `stop_texts`."""
        return stop_texts(self.prompt_kind)

    @property
    def facts(self) -> list[Any]:
        """Kind, versions, demonstrations and the passage's limit."""
        readers = [reader_version(("a", "b")), reader_version(())]  # a reply's answer may be a choice or a number
        return [self.prompt_kind, PROMPTS_VERSION, readers, self.shots.digest, self.max_context_words]

    def prompt(self, record: TaskRecord) -> str:
        """Demonstrations, then the question."""
        shortened = cut_context(record, self.max_context_words)
        return annotation_prompt(shortened, self.shots.select(shortened), self.prompt_kind)

    def read(self, text: str, record: TaskRecord) -> Reply:
        """See `read_reply`."""
        return read_reply(self.prompt_kind, text, record)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentPrompts:
    """The student's own prompts, without demonstrations or the answer; the reply is used as it is."""

    ask: Ask
    max_context_words: int
    kind: Literal["response"] = "response"
    gold_visible: bool = False
    stops: tuple[str, ...] = ()

    @property
    def facts(self) -> Mapping[str, Any]:
        """The wording of the student's prompts, and how the reply is read."""
        return {**asdict(self.ask), "max_context_words": self.max_context_words, "reply": "as written"}

    def prompt(self, record: TaskRecord) -> str:
        """The student's prompt; white space at its end belongs to the reply, as in training."""
        return self.ask.prompt(cut_context(record, self.max_context_words)).rstrip()

    def read(self, text: str, record: TaskRecord) -> Reply:
        """The whole text, without white space around it."""
        return Reply(text.strip(), None)


# --- prompts ---------------------------------------------------------------------------------------------------------


def annotation_prompt(record: TaskRecord, demonstrations: Sequence[Demonstration], kind: PromptKind) -> str:
    """The whole prompt; its blocks are separated by a blank line.

    A program's prompt shows six hand-written examples of the same kind of question (`program_examples`) in place of the
    demonstrations, which hold no programs.
    """
    question = _question(record)
    if kind == "program":
        of_kind = question_kind(record.choices)
        examples = [
            f"{_question_text(example.question, example.options)}\nProgram:\n```python\n{example.program}\n```"
            for example in EXAMPLES[of_kind]
        ]
        return "\n\n".join([RULES + ANSWER_RULES[of_kind], *examples, f"{question}\nProgram:\n```python"])
    blocks = [_solved(demonstration, kind) for demonstration in demonstrations]
    if kind == "rationale_then_answer":
        blocks.insert(0, _THEN_ANSWER + ("(a)" if record.choices else "12"))
    return "\n\n".join([*blocks, _unsolved(record, kind)])


def _question(record: TaskRecord) -> str:
    passage = f"{record.context}\n" if record.context else ""
    return _question_text(f"{passage}{record.question}", record.choices)


def _question_text(question: str, choices: Sequence[str]) -> str:
    options = "\n".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(choices))
    return f"Question:\n{question}\nOptions:\n{options}" if choices else f"Question:\n{question}"


def _gold(record: TaskRecord) -> str:
    return LETTERS[record.answer] if record.choices else record.gold_text


def _unsolved(record: TaskRecord, kind: PromptKind) -> str:
    """The block of a question, up to where the teacher's text begins."""
    question = _question(record)
    if kind == "forced":
        return f"{question}\nAnswer:\n{_gold(record)}\nRationale:\n{TRIGGER}"
    return f"{question}\nAnswer:\n{TRIGGER}" if kind == "free" else f"{question}\nRationale:"


def _solved(demonstration: Demonstration, kind: PromptKind) -> str:
    """The block of a demonstration, as a teacher would complete it."""
    record = demonstration.record
    question, gold = _question(record), _gold(record)
    named = f"({gold})" if record.choices else gold
    rationale = body(demonstration.rationale or "")
    if not record.choices:  # recorded rationales of word problems end in an answer, which the block gives itself
        rationale = without_answer(rationale, ())[0]
    rationale = " ".join(rationale.split())  # on one line, since a blank line ends a block
    if kind == "forced":
        return f"{_unsolved(record, kind)} {rationale}" if rationale else f"{question}\nAnswer:\n{gold}"
    if kind == "free":
        reasons = f"{TRIGGER} {rationale} " if rationale else ""
        return f"{question}\nAnswer:\n{reasons}The answer is {named}."
    return f"{_unsolved(record, kind)}\n{rationale}\nAnswer: {named}" if rationale else f"{question}\nAnswer: {named}"


def stop_texts(kind: PromptKind) -> tuple[str, ...]:
    """Texts at which a base model would continue with an invented question; some servers take four at most.

    The closing fence of a program is none of them: a chat model may put words and a fence of its own in front.
    """
    question = ("\nQuestion:", "\nQ:", "\n### Question")
    return (*question, "\nAnswer:") if kind == "forced" else question


# --- replies ---------------------------------------------------------------------------------------------------------


def read_reply(kind: PromptKind, text: str, record: TaskRecord) -> Reply:
    """The rationale of a reply, without the trigger and the words that name the answer, and that answer.

    An answer is read by the rules of `answers.parser`, only where the text names it as its answer, and never guessed:
    two different ones count as none, and then the text stays whole. A forced text stays as it is, as in the paper. A
    program is only unwrapped: its answer is known once it has run.
    """
    # an imported or served text may run past its stop texts
    starts = [start for start in (text.find(stop) for stop in stop_texts(kind)) if start >= 0]
    text = text[: min(starts)] if starts else text
    if kind == "program":
        return Reply(_code(text), None)
    whole = body(_RATIONALE.sub("", text))
    if kind == "forced":
        return Reply(whole, None)
    rationale, answer_line = whole, None
    if kind == "rationale_then_answer" and (match := _ANSWER_LINE.search(whole)):
        # lines after the answer's own are invented
        rationale, answer_line = whole[: match.start()].rstrip(), first_line(whole[match.end() :])
    rest, named = without_answer(rationale, record.choices)
    line_key = None if answer_line is None else parser.read(answer_line, record.choices).key
    if line_key is not None:
        named = named | {line_key}
    if len(named) != 1:
        return Reply(whole, None)
    key = next(iter(named))
    return Reply(body(rest), record.choices[key] if isinstance(key, int) else key)


def _code(text: str) -> str:
    """The code of a reply: the text before the first fence if that assigns an answer, else the text inside it."""
    code, fence, rest = text.partition("```")
    if fence and not _ASSIGNED.search(code):
        code = rest.partition("\n")[2].partition("```")[0]
    # lines end where Python ends them: not at a U+2028 inside a text
    return "\n".join(line.rstrip() for line in re.split(r"\r\n?|\n", code.strip("\r\n").rstrip()))


def without_answer(text: str, choices: Sequence[str]) -> tuple[str, set[int | str]]:
    """The text without the sentences that name an answer, else the label leaks into the rationale; and the choices, or
    the numbers, that they name.

    "So the answer is (b)." counts anywhere in the text; where one corrects another, the last one counts, and none that
    is denied (`answers.claims`). Without one: a last or first line that is nothing but a choice or its letter,
    where no line begins with another, or a first word that is yes, no or maybe where these are the choices; of numbers:
    a last line that is nothing but one.
    """
    named = _named(text, choices)
    if named:
        rest = _without_naming_sentences(text, choices)
    elif choices:
        rest, bare = _without_bare_choice(text, choices)
        named = set(bare)
    else:
        before, _, last = text.strip().rpartition("\n")
        named = {key for key in bare_number(last) if key is not None}
        rest = before if named else text
    return _BLANK_LINES.sub("\n", rest).strip(), named


def _named(text: str, choices: Sequence[str]) -> set[int | str]:
    if choices:
        return set(answer_is(text, choices))
    return {key for key in number_announced(text) if key is not None}


def _without_naming_sentences(text: str, choices: Sequence[str]) -> str:
    """The text without each sentence that names exactly one answer."""
    pieces, done, searched = [], 0, 0
    matches = list(_NAMES_ANSWER.finditer(text))
    ends = [*(match.start() for match in matches), len(text)][1:]  # each is read up to the next
    for match, following in zip(matches, ends, strict=True):
        borders = [border.end() for border in _SENTENCE_END.finditer(text, 0, match.start())]
        start = borders[-1] if borders else 0
        line = text[max(start, searched) : following].lstrip().split("\n", 1)[0]
        searched = match.end()
        # "(a). No, ..." names (a)
        named = _named(line, choices) or _named(_SENTENCE_END.split(line, maxsplit=1)[0], choices)
        if len(named) == 1:
            end = _sentence_end(text, match.end(), next(iter(named)), choices)
            pieces.append(text[done : max(start, done)])
            done = max(end, done)
    return "".join([*pieces, text[done:]])


def _sentence_end(text: str, start: int, key: int | str, choices: Sequence[str]) -> int:
    """The end of a naming sentence; a stop after the letter or inside the choice's own text does not end it."""
    named = ""
    if isinstance(key, int):
        own = re.escape(choices[key].strip())
        named = rf"[^\w\n]*(?:\(?{LETTERS[key]}\b\)?(?:[.:)]*[^\w\n.]*{own})?|{own})?"
    match = re.compile(named + _REST_OF_SENTENCE, re.IGNORECASE).match(text, start)
    return match.end() if match else start


def _without_bare_choice(text: str, choices: Sequence[str]) -> tuple[str, set[int]]:
    """The text without a last or first line, or a first word, that is nothing but a choice; and that choice."""
    lines = lines_of(text.strip())
    if lines == [""]:
        return text, set()
    options_named = set().union(*(exact(line, choices) | letter(line, choices) for line in lines))
    if len(options_named) > 1:  # the text discusses option after option: neither the first nor the last is chosen
        return text, set()
    last, first = _bare_choice(lines[-1], choices), _bare_choice(lines[0], choices)
    if last:
        return "\n".join(lines[:-1]), last
    if first:
        return "\n".join(lines[1:]), first
    # yes, no or maybe in front of the reasons, with a mark after it ("No, since ..."); any other start is prose
    line = first_line(text)
    word = leading(line, choices) if closed_word(line, choices) else set()
    if len(word) != 1:
        return text, set()
    pattern = re.escape(normalised(choices[next(iter(word))]))
    return re.sub(rf"^\W*{pattern}\W+", "", text, count=1, flags=re.IGNORECASE), word


def _bare_choice(line: str, choices: Sequence[str]) -> set[int]:
    """The choice that a line consists of: its text, its letter, or both; a line that ends in a colon is a heading."""
    if line.rstrip("*_ ").endswith(":"):
        return set()
    chosen = exact(line, choices)
    if chosen:
        return chosen
    chosen = letter(line, choices)
    if len(chosen) != 1:
        return set()
    index = next(iter(chosen))
    rest = re.sub(rf"^\W*{LETTERS[index]}\b\W*", "", line, count=1, flags=re.IGNORECASE)
    return chosen if normalised(rest) in ("", normalised(choices[index])) else set()
