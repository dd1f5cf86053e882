"""What a teacher is asked and how its text is read: pure words, the same for every writer.

`forced` is the published template of TinyLLM: the gold letter stands in the prompt and the teacher explains it. In the
other kinds the teacher answers itself. A passage stands inside the question, in front of it, as in the paper's data.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from tinyllm_bench.answers.parser import first_line, read_answer
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.teach import conclusions
from tinyllm_bench.teach.filters import body

Kind = Literal["forced", "free", "rationale_then_answer", "program"]
PROMPTS_VERSION = 1  # raise it with every change of what is asked or of how a reply is read
TRIGGER = "Let's think step by step."

_ANSWER_LINE = re.compile(r"^[^\w\n]*answer[^\w\n]*:", re.IGNORECASE | re.MULTILINE)
_RATIONALE = re.compile(r"^\W*rationale\W*:\W*", re.IGNORECASE)
_ASSIGNED = re.compile(r"^answer\s*=", re.MULTILINE)
_THEN_ANSWER = "Explain each question first. Then name the answer in a last line of its own, such as: Answer: (a)"
_PROGRAM = """\
Write a short Python program that works out the answer to the last question. One statement in each line: no loops, no \
functions, no imports. `choices` holds the options by their letters. Put what you know into variables, compute from \
them which option it supports, and end with `answer = ...`: a letter, or yes, no or maybe where these are the options.

Question:
Which of these sinks in a glass of water?
Options:
(a) an ice cube
(b) a dry cork
(c) a steel nut
Program:
```python
water = 1.0
ice_cube = 0.92
dry_cork = 0.24
steel_nut = 7.85
sinks = {"a": ice_cube > water, "b": dry_cork > water, "c": steel_nut > water}
answer = max(choices, key=sinks.get)
```

Question:
A train leaves at 9:40 and needs 75 minutes. Is it there before 11 o'clock?
Options:
(a) yes
(b) no
Program:
```python
leaves = 9 * 60 + 40
arrives = leaves + 75
eleven = 11 * 60
answer = "yes" if arrives < eleven else "no"
```"""


class Demonstration(NamedTuple):
    """A question that is shown with its answer, and with a rationale where there is one."""

    record: TaskRecord
    rationale: str | None


class Reply(NamedTuple):
    """What a teacher's text says: the rationale or program, and the choice's text that the teacher named itself."""

    text: str
    answer: str | None


def prompt(record: TaskRecord, shown: Sequence[Demonstration], kind: Kind) -> str:
    """The whole text a teacher is asked with; blocks are separated by a blank line.

    A program is shown by two hand-written examples: the demonstrations of a data set hold no program and stay out.
    """
    if kind == "program":
        return f"{_PROGRAM}\n\n{_question(record)}\nProgram:\n```python"
    blocks = [_filled(one.record, one.rationale, kind) for one in shown]
    if kind == "rationale_then_answer":
        blocks.insert(0, _THEN_ANSWER)
    return "\n\n".join([*blocks, _asked(record, kind)])


def _question(record: TaskRecord) -> str:
    passage = f"{record.context}\n" if record.context else ""
    options = "\n".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(record.choices))
    return f"Question:\n{passage}{record.question}\nOptions:\n{options}"


def _asked(record: TaskRecord, kind: Kind) -> str:
    question = _question(record)
    if kind == "forced":
        return f"{question}\nAnswer:\n{LETTERS[record.answer]}\nRationale:\n{TRIGGER}"
    return f"{question}\nAnswer:\n{TRIGGER}" if kind == "free" else f"{question}\nRationale:"


def _filled(record: TaskRecord, rationale: str | None, kind: Kind) -> str:
    """The block as a teacher would have ended it; a rationale on one line, since a blank line ends a block."""
    question, letter = _question(record), LETTERS[record.answer]
    said = " ".join(body(rationale or "").split())
    if kind == "forced":
        return f"{_asked(record, kind)} {said}" if said else f"{question}\nAnswer:\n{letter}"
    if kind == "free":
        return f"{question}\nAnswer:\n{f'{TRIGGER} {said} ' if said else ''}The answer is ({letter})."
    return f"{_asked(record, kind)}\n{said}\nAnswer: ({letter})" if said else f"{question}\nAnswer: ({letter})"


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
    of_line = None if line is None else read_answer(line, record.choices).index
    rest, named = conclusions.take(rationale, record.choices)
    if of_line is not None:
        named = named | {of_line}
    if len(named) != 1:
        return Reply(said, None)
    return Reply(body(rest), record.choices[next(iter(named))])


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
    return "\n".join(line.rstrip() for line in code.strip("\r\n").rstrip().splitlines())
