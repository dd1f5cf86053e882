"""What a teacher is asked and how its text is read: pure words, the same for every generator.

`forced` is the published template of TinyLLM: the gold letter stands in the prompt and the teacher explains it. In the
other kinds the teacher answers itself. A passage stands inside the question, in front of it, as in the paper's data.
Where a number is asked for, there are no options, and the number stands where the letter would.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from tinyllm_bench.answers import parser
from tinyllm_bench.answers.parser import first_line
from tinyllm_bench.answers.programs import Kind as QuestionKind
from tinyllm_bench.answers.programs import kind_of
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.teachers import own_answers as conclusions
from tinyllm_bench.teachers.filters import body
from tinyllm_bench.teachers.program_examples import ENDS, RULES, SHOWN

Kind = Literal["forced", "free", "rationale_then_answer", "program"]
PROMPTS_VERSION = 3  # raise it with every change of what is asked or of how a reply is read
TRIGGER = "Let's think step by step."

_ANSWER_LINE = re.compile(r"^[^\w\n]*answer[^\w\n]*:", re.IGNORECASE | re.MULTILINE)
_RATIONALE = re.compile(r"^\W*rationale\W*:\W*", re.IGNORECASE)
_ASSIGNED = re.compile(r"^answer\s*=", re.MULTILINE)
_THEN_ANSWER = "Explain each question first. Then name the answer in a last line of its own, such as: Answer: "


class Demonstration(NamedTuple):
    """A question that is shown with its answer, and with a rationale where there is one."""

    record: TaskRecord
    rationale: str | None


class Reply(NamedTuple):
    """What a teacher's text says: the rationale or program, and the choice's text, or the number, that it named."""

    text: str
    answer: str | None


def prompt(record: TaskRecord, shown: Sequence[Demonstration], kind: Kind) -> str:
    """The whole text a teacher is asked with; blocks are separated by a blank line.

    A program is shown by six hand-written examples of the same kind of question (`program_shots`): the demonstrations
    of a data set hold no program and stay out.
    """
    if kind == "program":
        return f"{_programs(kind_of(record.choices))}\n\n{_question(record)}\nProgram:\n```python"
    blocks = [_filled(one.record, one.rationale, kind) for one in shown]
    if kind == "rationale_then_answer":
        blocks.insert(0, _THEN_ANSWER + ("(a)" if record.choices else "12"))
    return "\n\n".join([*blocks, _asked(record, kind)])


def _question(record: TaskRecord) -> str:
    passage = f"{record.context}\n" if record.context else ""
    return _asking(f"{passage}{record.question}", record.choices)


def _asking(question: str, choices: Sequence[str]) -> str:
    options = "\n".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(choices))
    return f"Question:\n{question}\nOptions:\n{options}" if choices else f"Question:\n{question}"


def _programs(kind: QuestionKind) -> str:
    shown = [f"{_asking(one.question, one.options)}\nProgram:\n```python\n{one.program}\n```" for one in SHOWN[kind]]
    return "\n\n".join([RULES + ENDS[kind], *shown])


def _gold(record: TaskRecord) -> str:
    return LETTERS[record.answer] if record.choices else record.gold_text


def _asked(record: TaskRecord, kind: Kind) -> str:
    question = _question(record)
    if kind == "forced":
        return f"{question}\nAnswer:\n{_gold(record)}\nRationale:\n{TRIGGER}"
    return f"{question}\nAnswer:\n{TRIGGER}" if kind == "free" else f"{question}\nRationale:"


def _filled(record: TaskRecord, rationale: str | None, kind: Kind) -> str:
    """The block as a teacher would have ended it; a rationale on one line, since a blank line ends a block."""
    question, gold = _question(record), _gold(record)
    named = f"({gold})" if record.choices else gold
    said = " ".join(_told(rationale or "", record).split())
    if kind == "forced":
        return f"{_asked(record, kind)} {said}" if said else f"{question}\nAnswer:\n{gold}"
    if kind == "free":
        return f"{question}\nAnswer:\n{f'{TRIGGER} {said} ' if said else ''}The answer is {named}."
    return f"{_asked(record, kind)}\n{said}\nAnswer: {named}" if said else f"{question}\nAnswer: {named}"


def _told(rationale: str, record: TaskRecord) -> str:
    """A rationale to show; recorded ones of word problems end in an answer, which the block gives itself."""
    said = body(rationale)
    return said if record.choices else conclusions.take(said, ())[0]


def stops(kind: Kind) -> tuple[str, ...]:
    """Texts at which a base model would go on with an invented question; some servers take four at most.

    The closing fence of a program is none of them: a chat model may put words and a fence of its own in front.
    """
    question = ("\nQuestion:", "\nQ:", "\n### Question")
    return (*question, "\nAnswer:") if kind == "forced" else question


def gold_visible(kind: Kind) -> bool:
    """Whether the right answer of the question itself stands in the prompt."""
    return kind == "forced"


def annotation_kind(kind: Kind) -> Literal["rationale", "program"]:
    """The kind of annotation that comes of it."""
    return "program" if kind == "program" else "rationale"


def read(kind: Kind, text: str, record: TaskRecord) -> Reply:
    """Read a reply: the rationale without trigger and without the words that name the answer, and that answer.

    An answer is read by the rules of `answers.parser`, only where the text names it as its answer, and never guessed:
    two different ones count as none, and then the text stays whole. A forced text is kept as it is, as in the paper. A
    program is only unwrapped: what it answers is known when it has run.
    """
    if kind == "program":
        return Reply(_unwrapped(_before(stops(kind), text)), None)
    said = body(_RATIONALE.sub("", _before(stops(kind), text)))
    if kind == "forced":
        return Reply(said, None)
    rationale, line = _split(said) if kind == "rationale_then_answer" else (said, None)
    of_line = None if line is None else parser.read(line, record.choices).key
    rest, named = conclusions.take(rationale, record.choices)
    if of_line is not None:
        named = named | {of_line}
    if len(named) != 1:
        return Reply(said, None)
    key = next(iter(named))
    return Reply(body(rest), record.choices[key] if isinstance(key, int) else key)


def _before(ends: Sequence[str], text: str) -> str:
    """The text up to the first of the stop texts: an imported or served one may run past it."""
    found = [at for at in (text.find(end) for end in ends) if at >= 0]
    return text[: min(found)] if found else text


def _split(text: str) -> tuple[str, str | None]:
    """What stands before the last line and what its first line says behind `Answer:`; what follows is invented."""
    match = _ANSWER_LINE.search(text)
    return (text, None) if match is None else (text[: match.start()].rstrip(), first_line(text[match.end() :]))


def _unwrapped(text: str) -> str:
    """The code of a reply: what stands before the first fence if that answers, else what stands inside it."""
    before, fence, rest = text.partition("```")
    if not fence or _ASSIGNED.search(before):
        return _trimmed(before)
    _, _, inside = rest.partition("\n")
    return _trimmed(inside.partition("```")[0])


def _trimmed(code: str) -> str:
    """The code without space at the ends of its lines, which end where Python ends them: not at U+2028 in a text."""
    return "\n".join(line.rstrip() for line in re.split(r"\r\n?|\n", code.strip("\r\n").rstrip()))
