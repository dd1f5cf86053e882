"""The layout of the data folder: rows of a split, and the teachers' texts. First that of the public release:

    <set>/<set>_{train,valid,test}.json     a JSON array, or one JSON object a line
    <set>/llm/{split}_CoT_<k>.json          JSON arrays of 500 strings; in the order of k they line up with the rows

A rationale string holds the first teacher's text, the answer, the question again, and the second teacher's text:

  <first> Thus, the answer is (b) <text>\\n\\nQ: <question>\\nAnswer Choices:\\n(a) ...\\n(b) ... llama rationale: <2nd>

A task with a file of its own (`TaskInfo.file`) has all splits and texts in one file of JSON lines, inside the release's
folder or beside it:

    mixed_distillation/<name>.jsonl         one JSON object a line
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import json_lines, parse_json, read_text
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.records import SPLITS, Recorded, Split, TaskInfo, TaskRecord
from tinyllm_bench.data.rows import kind_of

COPY_AGAIN = "copy it again from the release"
ROWS_PER_FILE = 500
ANSWER_MARK = "Thus, the answer is"
SECOND_MARK = "llama rationale: "
_QUESTION_MARK = "\n\nQ: "
_GOLD = re.compile(re.escape(ANSWER_MARK) + r" \((\w)\)")


def repair_advice(info: TaskInfo) -> str:
    """How to repair a damaged file of a task, for errors."""
    return COPY_AGAIN if info.file is None else "copy it again"


def split_file(folder: Path, task: str, split: Split) -> Path:
    """The file of a split's rows in the release."""
    return folder / task / f"{task}_{split}.json"


def is_rebuilt(folder: Path, info: TaskInfo, split: Split) -> bool:
    """Whether a split's rows come from its rationale files, because its own file is missing."""
    return info.rebuild_train and split == "train" and not split_file(folder, info.name, split).exists()


def own_file(folder: Path, info: TaskInfo) -> Path | None:
    """A task's own file inside the folder or beside it; None if it is in neither, or if the task has none."""
    if info.file is None:
        return None
    places = (folder / info.file.path, folder.resolve().parent / info.file.path)
    return next((place for place in places if place.is_file()), None)


def has_task(folder: Path, info: TaskInfo) -> bool:
    """Whether a folder holds anything of a task."""
    return own_file(folder, info) is not None if info.file is not None else (folder / info.name).is_dir()


def origin(folder: Path, info: TaskInfo, split: Split) -> Path:
    """The file, or the pattern of the files, that a split's rows come from."""
    if info.file is not None:
        return own_file(folder, info) or folder / info.file.path
    if is_rebuilt(folder, info, split):
        return _rationale_pattern(folder, info.name, split)
    return split_file(folder, info.name, split)


def read_rows(folder: Path, info: TaskInfo, split: Split) -> tuple[Path, list[Any]]:
    """`(origin, rows)` of a split, rebuilt from the rationale files where the task allows it and the file is missing.

    Raises:
        UserError: A missing, truncated or unreadable file; the message names it and the expected number of rows.
    """
    if info.file is not None:
        path, rows = _read_own(folder, info)
        return path, [row for row, split_of_row in rows if split_of_row == split]
    path = origin(folder, info, split)
    if is_rebuilt(folder, info, split):
        strings = _read_rationale_strings(folder, info, split)
        return path, [_rebuild(path, number, text) for number, text in enumerate(strings)]
    return path, _read_array(path, f"{info.sizes[split]} rows")


def _read_own(folder: Path, info: TaskInfo) -> tuple[Path, list[tuple[Any, Split]]]:
    """`(file, rows with their splits)` of a task with a file of its own."""
    assert info.file is not None
    path, size = own_file(folder, info), sum(info.sizes.values())
    if path is None:
        raise UserError(
            f"{info.file.path}: file not found, expected {size} rows ({info.name}) inside {folder} or beside it;"
            " copy it there, or name another --data-dir"
        )
    rows = _read_array(path, f"{size} rows", repair_advice(info))
    if len(rows) != size:
        raise UserError(f"{path}: {len(rows)} rows, expected {size} ({info.name}); {repair_advice(info)}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise UserError(
                f"{path}: row {number} of {size} is {kind_of(row)}, not an object of fields; {repair_advice(info)}"
            )
    try:
        splits = list(info.file.splits_of(rows))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: a row names no id or split ({error}), expected {size} rows; {repair_advice(info)}"
        ) from None
    for number, split in enumerate(splits, start=1):
        if split not in SPLITS:
            raise UserError(
                f"{path}: row {number} of {size}: split {split!r} is none of {', '.join(SPLITS)}; {repair_advice(info)}"
            )
    return path, list(zip(rows, splits, strict=True))


def _read_array(path: Path, expected: str, advice: str = COPY_AGAIN) -> list[Any]:
    """The values of a JSON array or of JSON lines."""
    if not path.exists():
        raise UserError(f"{path}: file not found, expected {expected}; {advice}, or name another --data-dir")
    try:
        text = read_text(path)
    except UserError as error:
        raise UserError(f"{error}; expected {expected}; {advice}") from None
    try:
        return list(parse_json(text) if text.lstrip().startswith("[") else json_lines(text))
    except ValueError as error:
        raise UserError(f"{path}: {error}, expected {expected} (truncated?); {advice}") from None


def _rationale_pattern(folder: Path, task: str, split: Split) -> Path:
    return folder / task / "llm" / f"{split}_CoT_*.json"


def _read_rationale_strings(folder: Path, info: TaskInfo, split: Split) -> list[str]:
    """Every rationale string of a split, in the order of its rows."""
    rows = info.sizes[split]
    strings: list[str] = []
    for number in range(math.ceil(rows / ROWS_PER_FILE)):
        path = folder / info.name / "llm" / f"{split}_CoT_{number}.json"
        expected = min(ROWS_PER_FILE, rows - number * ROWS_PER_FILE)
        texts = _read_array(path, f"{expected} rationales")
        if len(texts) != expected:
            raise UserError(f"{path}: {len(texts)} rationales, expected {expected}; {COPY_AGAIN}")
        for at, text in enumerate(texts):
            if not isinstance(text, str):
                raise UserError(f"{path}: rationale {at} is {kind_of(text)}, not text; {COPY_AGAIN}")
        strings += texts
    return strings


def _rebuild(path: Path, number: int, text: str) -> dict[str, Any]:
    """The row that a rationale string embeds; its id is its position, which is the public set's own order."""
    head, _, tail = text.partition(_QUESTION_MARK)
    gold = _GOLD.search(head)
    question, mark, options = tail.partition(f" {SECOND_MARK}")[0].partition("\nAnswer Choices:\n(a) ")
    if gold is None or not mark:
        raise UserError(f"{path}: rationale {number} does not embed its question and answer; {COPY_AGAIN}")
    choices = []
    for letter in LETTERS[1:]:
        choice, more, rest = options.partition(f"\n({letter}) ")
        choices.append(choice)
        if not more:
            break
        options = rest
    index = LETTERS.index(gold.group(1))
    if index >= len(choices):
        raise UserError(
            f"{path}: rationale {number} names answer ({gold.group(1)}) of {len(choices)} options; {COPY_AGAIN}"
        )
    return {"id": number, "question": question, "choices": choices, "answer": choices[index]}


def read_rationales(folder: Path, info: TaskInfo, records: Sequence[TaskRecord], *, key: str) -> dict[str, str]:
    """Record id to the text of one teacher (empty if missing), checked to match the rows.

    Args:
        folder: The release.
        info: The task; its `rationale_keys` say which part of a string belongs to which teacher.
        records: All records of one split, in the release's order.
        key: One of `info.rationale_keys`.

    Raises:
        UserError: Missing or truncated files, a wrong number, or a string that does not hold its row's question.
    """
    split = records[0].split
    strings = _read_rationale_strings(folder, info, split)
    pattern = _rationale_pattern(folder, info.name, split)
    if len(strings) != len(records):
        raise UserError(f"{pattern}: {len(strings)} rationales, expected {len(records)}, one a row; {COPY_AGAIN}")
    part = info.rationale_keys.index(key)
    texts = {}
    for number, (record, text) in enumerate(zip(records, strings, strict=True)):
        if ANSWER_MARK not in text:
            raise UserError(f"{pattern}: rationale {number} has no {ANSWER_MARK!r}; {COPY_AGAIN}")
        if _without_space(record.question) not in _without_space(text):
            raise UserError(
                f"{pattern}: rationale {number} is not about the question of {record.id}: "
                f"the files do not line up with the rows; {COPY_AGAIN}"
            )
        own = text.partition(ANSWER_MARK)[0] if part == 0 else text.partition(SECOND_MARK)[2]
        texts[record.id] = own.strip()
    return texts


def _without_space(text: str) -> str:
    """The files differ from the rows in white space."""
    return "".join(text.split())


def read_own_texts(
    folder: Path, info: TaskInfo, records: Sequence[TaskRecord], *, key: str, kind: Recorded
) -> dict[str, str]:
    """Record id to a teacher's text in a task's own file, empty if missing; `records` are a whole split.

    Raises:
        UserError: As `read_rows`, or a row without that teacher.
    """
    assert info.file is not None
    path, rows = read_rows(folder, info, records[0].split)
    texts = {}
    for record, row in zip(records, rows, strict=True):
        try:
            text = info.file.text_of(row, kind, key)
        except (LookupError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path}: {record.id} holds no {kind} of {key!r}; {repair_advice(info)}") from None
        texts[record.id] = recorded_text(text, f"{path}: {record.id}: the {kind} of {key!r}", repair_advice(info))
    return texts


def recorded_text(text: Any, what: str, fix: str) -> str:
    """A teacher's text as a row holds it; null, and a missing one, are empty.

    Raises:
        UserError: it is of another kind.
    """
    if text is not None and not isinstance(text, str):
        raise UserError(f"{what} is {kind_of(text)}, not text or null; {fix}")
    return (text or "").strip()
