"""From a row of a data set to a record: the helpers that every `tasks/<name>.py` uses."""

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Context, Decimal
from typing import Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Split, TaskRecord

PASSAGE_BREAK = " \n "  # between the parts of a question that carries its passages in front
DIGITS = 6  # significant digits of a number's key
_ROUND = Context(prec=DIGITS)


def multiple_choice(
    row: Mapping[str, Any], *, task: str, split: Split, question: str | None = None, context: str = ""
) -> TaskRecord:
    """The record of a row `{"id", "question", "choices", "answer"}` whose answer is the text of one choice.

    White space around the question, the choices and the answer is removed, and an integer id becomes text. Nothing else
    is converted to text: null, true, a number or a list in place of a text is refused, and so is a text in place of the
    list of choices. Two equal wrong options are allowed (three rows of one public set have them); two that equal the
    answer are not.

    Args:
        row: The row as the release has it.
        task: The task's name.
        split: The split that the row belongs to.
        question: The question if it is only a part of `row["question"]`.
        context: The passages before the question.

    Raises:
        UserError: A missing field or one of another type, an empty question or option, an answer that is not exactly
            one of the options.
    """
    check_fields(row, ("id", "question", "choices", "answer"))
    source_id = _id(row)
    question = text_field(row, "question") if question is None else question.strip()
    if _is_blank(question):
        raise UserError(f"id {source_id!r} has an empty question")
    if not isinstance(row["choices"], list | tuple):
        raise UserError(f"id {source_id!r}: field 'choices' is {kind_of(row['choices'])}, not a list of texts")
    for number, choice in enumerate(row["choices"], start=1):
        if not isinstance(choice, str):
            raise UserError(f"id {source_id!r}: option {number} of field 'choices' is {kind_of(choice)}, not text")
    choices, answer = tuple(choice.strip() for choice in row["choices"]), text_field(row, "answer")
    if len(choices) < 2 or any(map(_is_blank, choices)):
        raise UserError(f"id {source_id!r} needs two or more options and none empty, got {list(choices)}")
    if choices.count(answer) != 1:
        where = "not among" if answer not in choices else "more than once among"
        raise UserError(
            f"id {source_id!r}: answer {answer!r} is {where} the options {list(choices)}; the answer is the text of one"
            " option, not its letter or number"
        )
    return TaskRecord(
        id=f"{task}/{split}/{source_id}",
        task=task,
        split=split,
        question=question,
        choices=choices,
        answer=choices.index(answer),
        context=context,
    )


def word_problem(row: Mapping[str, Any], *, task: str, split: Split) -> TaskRecord:
    """The record of a row `{"id", "question", "gold"}` whose answer is a number.

    Raises:
        UserError: A missing field or one of another type, an empty question, or an answer that is not a finite number.
    """
    check_fields(row, ("id", "question", "gold"))
    name, question, gold = _id(row), text_field(row, "question"), row["gold"]
    if _is_blank(question):
        raise UserError(f"id {name!r} has an empty question")
    if type(gold) not in (int, float) or not abs(gold) <= sys.float_info.max:  # not nan either
        shown = repr(gold) if len(repr(gold)) < 40 else f"{repr(gold)[:30]}..."
        raise UserError(f"id {name!r}: field 'gold' is {shown}, not a finite number, such as 51 or 2.5")
    key, full = number_key(gold), format(Decimal(str(gold)).normalize(), "f")
    return TaskRecord(
        id=f"{task}/{split}/{name}",
        task=task,
        split=split,
        question=question,
        number=key,
        full_number="" if full == key else full,
    )


def check_fields(row: Any, fields: Sequence[str]) -> None:
    """Check that a row is an object with all the fields.

    Raises:
        UserError: it is not an object, or a field is missing.
    """
    if not isinstance(row, Mapping):
        raise UserError(f"it is {kind_of(row)}, not an object with {', '.join(fields)}")
    for field in fields:
        if field not in row:
            raise UserError(f"field {field!r} is missing (allowed: {', '.join(fields)})")


def text_field(row: Mapping[str, Any], field: str) -> str:
    """A field's text without surrounding white space.

    Raises:
        UserError: it is missing or not a text: null does not become "None", nor 1 become "1".
    """
    check_fields(row, (field,))
    if not isinstance(row[field], str):
        raise UserError(f"id {row.get('id')!r}: field {field!r} is {kind_of(row[field])}, not text")
    return row[field].strip()


def _id(row: Mapping[str, Any]) -> str:
    name = row["id"]
    if type(name) not in (str, int):
        raise UserError(f"field 'id' is {kind_of(name)}, not text or a whole number")
    if _is_blank(str(name)):
        raise UserError("field 'id' is empty")
    return str(name)


def kind_of(value: Any) -> str:
    """The type of a JSON value in the words of errors: "null", "text", "an object"."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {value}" if abs(value) < 10**20 else "a number"
    kinds = ((str, "text"), (Mapping, "an object"), (list | tuple, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), f"of type {type(value).__name__}")


def _is_blank(text: str) -> bool:
    """Whether a text has no visible character."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def number_key(value: int | float | Decimal) -> str:
    """The canonical text of a finite number, rounded to six significant digits: equal keys are equal answers."""
    exact = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    rounded = _ROUND.plus(exact)
    if not rounded:
        return "0"  # never -0
    return format(rounded.normalize(_ROUND), "f" if -DIGITS <= rounded.adjusted() < 16 else "e")


def lowest_hashes(ids: Iterable[str]) -> list[str]:
    """Ids by increasing SHA-256 of their text: a fixed order that depends on the ids alone.

    Raises:
        UserError: an id that is not a text.
    """
    ids = list(ids)
    for number, name in enumerate(ids, start=1):
        if not isinstance(name, str):
            raise UserError(f"id {number} is {kind_of(name)}, not text")
    return sorted(ids, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def split_passages(text: str) -> tuple[str, str]:
    """`(context, question)` of a text whose last part is the question and whose earlier parts are passages.

    White space is collapsed, so that a context cut to its last words differs from the whole one only by the missing
    words.
    """
    parts = text.strip().split(PASSAGE_BREAK)
    return " ".join(" ".join(parts[:-1]).split()), " ".join(parts[-1].split())


def source_id(record: TaskRecord) -> str:
    """The data set's own id of a record."""
    return record.id.split("/", 2)[2]
