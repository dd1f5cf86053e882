"""From a row of a data set to a record: the helpers that every `tasks/<name>.py` uses, and the records' digest."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from decimal import Context, Decimal
from typing import Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import Split, TaskRecord

PASSAGE_BREAK = " \n "  # between the parts of a question that carries its passages in front
DIGITS = 6  # significant ones of a number's key
_ROUND = Context(prec=DIGITS)


def multiple_choice(
    row: Mapping[str, Any], *, task: str, split: Split, question: str | None = None, context: str = ""
) -> TaskRecord:
    """The record of a row `{"id", "question", "choices", "answer"}` whose answer is the text of one choice.

    White space around the question, the choices and the answer is dropped, an integer id becomes text. Two equal
    wrong options are allowed (three rows of one public set have them); two that equal the answer are not.

    Args:
        row: The row as the release has it.
        task: The task's name.
        split: The split that the row belongs to.
        question: The question where it is only a part of `row["question"]`.
        context: The passages before the question.

    Raises:
        UserError: A missing field, an empty question or option, an answer that is no option or is two of them.
    """
    for field in ("id", "question", "choices", "answer"):
        if field not in row:
            raise UserError(f"field {field!r} is missing (allowed: id, question, choices, answer)")
    source_id, answer = str(row["id"]), str(row["answer"]).strip()
    choices = tuple(str(choice).strip() for choice in row["choices"])
    asked = str(row["question"] if question is None else question).strip()
    if not asked:
        raise UserError(f"id {source_id!r} has an empty question")
    if len(choices) < 2 or not all(choices):
        raise UserError(f"id {source_id!r} needs two or more options and none empty, found {list(choices)}")
    if choices.count(answer) != 1:
        found = "not among" if answer not in choices else "more than once among"
        raise UserError(f"id {source_id!r}: answer {answer!r} is {found} the options {list(choices)}")
    return TaskRecord(
        id=f"{task}/{split}/{source_id}",
        task=task,
        split=split,
        question=asked,
        choices=choices,
        answer=choices.index(answer),
        context=context,
    )


def word_problem(row: Mapping[str, Any], *, task: str, split: Split) -> TaskRecord:
    """The record of a row `{"id", "question", "gold"}` whose answer is a number.

    Raises:
        UserError: A missing field, an empty question, or an answer that is no finite number.
    """
    for field in ("id", "question", "gold"):
        if field not in row:
            raise UserError(f"field {field!r} is missing (allowed: id, question, gold)")
    name, asked, gold = str(row["id"]), str(row["question"]).strip(), row["gold"]
    if not asked:
        raise UserError(f"id {name!r} has an empty question")
    if type(gold) not in (int, float) or not math.isfinite(gold):
        raise UserError(f"id {name!r}: answer {gold!r} is not a finite number, such as 51 or 2.5")
    key, full = number_key(gold), format(Decimal(str(gold)).normalize(), "f")
    return TaskRecord(
        id=f"{task}/{split}/{name}",
        task=task,
        split=split,
        question=asked,
        number=key,
        written="" if full == key else full,
    )


def number_key(value: int | float | Decimal) -> str:
    """The canonical text of a finite number, rounded to six significant digits: equal keys are the same answer."""
    exact = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    rounded = _ROUND.plus(exact)
    if not rounded:
        return "0"  # and never -0
    return format(rounded.normalize(_ROUND), "f" if -DIGITS <= rounded.adjusted() < 16 else "e")


def lowest_hashes(ids: Iterable[str]) -> list[str]:
    """Ids by rising SHA-256 of their text: a fixed order that depends on nothing but the ids."""
    return sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def split_passages(text: str) -> tuple[str, str]:
    """`(context, question)` of a text whose last part is the question and whose earlier parts are passages.

    Every run of white space becomes one space, so that a context that is cut to its last words differs from the whole
    one in nothing but the missing words.
    """
    parts = text.strip().split(PASSAGE_BREAK)
    return " ".join(" ".join(parts[:-1]).split()), " ".join(parts[-1].split())


def source_id(record: TaskRecord) -> str:
    """The data set's own id of a record."""
    return record.id.split("/", 2)[2]


def records_digest(records: Iterable[TaskRecord]) -> str:
    """SHA-256 (hex) over the canonical JSON of the records, in order: id, context, question, and choices and answer or
    the number.
    """
    return digest([_content(record) for record in records])


def _content(record: TaskRecord) -> dict[str, Any]:
    content = {"id": record.id, "context": record.context, "question": record.question}
    if record.number is not None:
        return content | {"number": record.gold_text}
    return content | {"choices": list(record.choices), "answer": record.answer}
