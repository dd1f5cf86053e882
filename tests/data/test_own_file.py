"""A task with a file of its own: found inside the data folder or beside it, checked, and cut into splits."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data import toy_release
from tinyllm_bench.answers.keys import number
from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data import checks
from tinyllm_bench.data.records import Split, TaskRecord
from tinyllm_bench.data.rows import lowest_hashes, number_key, word_problem
from tinyllm_bench.data.sources import (
    Source,
    gold_visible,
    load_rationales,
    load_split,
    program_keys,
    rationale_keys,
    to_records,
)
from tinyllm_bench.data.splits import records_digest, shipped_facts, split_facts

TASK, FILE = "toysums", "sums/toysums.jsonl"
MODULE = """
from tinyllm_bench.data.records import FileSource, TaskInfo
from tinyllm_bench.data.rows import word_problem

def splits_of(rows):
    return [row["split"] for row in rows]

def text_of(row, kind, key):
    return row[key][kind]

TASK = TaskInfo(
    name="toysums", title="Toy", version=1, sizes={"train": 6, "valid": 2, "test": 3},
    to_record=lambda row, split: word_problem(row, task="toysums", split=split), source="invented", licence="none",
    scoring_modes=("generate",), rationale_keys=("one", "two"), program_keys=("one",), blind_keys=("one",),
    file=FileSource(path="sums/toysums.jsonl", splits_of=splits_of, text_of=text_of),
)
"""


def row(split: str, index: int) -> dict[str, Any]:
    texts = {"rationale": f" {split} {index} ", "program": None if index else "answer = 1"}
    return {"id": index, "split": split, "question": f"Sum {index} of {split}? ", "gold": float(index), "one": texts,
            "two": texts}  # fmt: skip


ROWS = [row(split, index) for split, size in toy_release.SIZES.items() for index in range(size)]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    place = tmp_path / "site"
    place.mkdir()
    (place / "toysums_package.py").write_text(MODULE)
    info = place / "toysums_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toysums-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tinyllm_bench.tasks]\ntoysums = toysums_package:TASK\n")
    monkeypatch.syspath_prepend(str(place))
    load_split.cache_clear()
    yield
    load_split.cache_clear()


@pytest.fixture
def source(site: None, tmp_path: Path) -> Source:
    (tmp_path / "data" / "release").mkdir(parents=True)
    (tmp_path / "data" / "sums").mkdir()
    (tmp_path / "data" / FILE).write_text("\n".join(map(json.dumps, random.Random(0).sample(ROWS, len(ROWS)))))
    return Source("release", str(tmp_path / "data" / "release"))


def file_of(source: Source) -> Path:
    return Path(source.folder or "").parent / FILE


def change(source: Source, edit: Callable[[list[dict[str, Any]]], list[Any]]) -> None:
    file = file_of(source)
    file.write_text("\n".join(json.dumps(one) for one in edit([json.loads(s) for s in file.read_text().splitlines()])))
    load_split.cache_clear()


def test_the_file_stands_beside_the_folder_or_inside_it(source: Source, tmp_path: Path) -> None:
    for place in (source, Source("release", str(tmp_path / "data"))):
        for split, size in toy_release.SIZES.items():
            records = load_split(place, TASK, split)  # type: ignore[arg-type]
            assert {record.id for record in records} == {f"{TASK}/{split}/{i}" for i in range(size)}
            assert all(record.number == record.id[-1] and not record.choices for record in records)


def test_texts_belong_to_their_rows_and_a_missing_one_is_empty(source: Source) -> None:
    assert (rationale_keys(source, TASK), program_keys(source, TASK)) == (("one", "two"), ("one",))
    texts = load_rationales(source, TASK, "valid", "two")
    assert texts == {f"{TASK}/valid/{i}": f"valid {i}" for i in range(2)}
    programs = load_rationales(source, TASK, "test", "one", kind="program")
    assert programs == {f"{TASK}/test/{i}": "" if i else "answer = 1" for i in range(3)}
    assert (gold_visible(source, TASK, "one"), gold_visible(source, TASK, "two")) == (False, True)
    with pytest.raises(UserError, match="no programs of teacher 'two' for task 'toysums'.*it has: one"):
        load_rationales(source, TASK, "test", "two", kind="program")


def test_a_missing_file_is_one_clear_line(source: Source) -> None:
    file_of(source).unlink()
    with pytest.raises(UserError) as caught:
        load_split(source, TASK, "test")
    for word in (FILE, "not found", "expected 11 rows", "inside", "beside it", "--data-dir"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda rows: rows[1:], ["10 rows, expected 11", "copy it again"]),
        (lambda rows: [{"question": "?"}, *rows[1:]], ["a row names no id or split", "copy it again"]),
        (lambda rows: ["text", *rows[1:]], ["row 1 of 11 is text, not an object"]),
        (lambda rows: [{**rows[0], "split": "dev"}, *rows[1:]], ["row 1 of 11: split 'dev' is none of train, valid"]),
        (lambda rows: [{**rows[0], "split": None}, *rows[1:]], ["row 1 of 11: split None is none of train, valid"]),
        (lambda rows: [{**one, "id": None} for one in rows], ["row 1 of", "field 'id' is null"]),
        (lambda rows: [{**one, "question": 7} for one in rows], ["row 1 of", "'question' is the number 7, not text"]),
        (lambda rows: [{**one, "gold": None} for one in rows], ["row 1 of", "None, not a finite number"]),
        (lambda rows: [{**one, "gold": 10**400} for one in rows], ["line 1: a number of 401 digits"]),
        (lambda rows: [{**one, "gold": float("nan")} for one in rows], ["row 1 of", "nan, not a finite number"]),
        (lambda rows: [{**one, "gold": "five"} for one in rows], ["row 1 of", "'five', not a finite number"]),
        (lambda rows: [{**one, "gold": True} for one in rows], ["row 1 of", "True, not a finite number"]),
        (lambda rows: [{**one, "question": " "} for one in rows], ["empty question"]),
        (lambda rows: [{**one, "id": 0} for one in rows], ["twice"]),
    ],
)
def test_a_damaged_file_is_refused(source: Source, edit: Callable[..., list[Any]], words: list[str]) -> None:
    change(source, edit)
    with pytest.raises(UserError) as caught:
        for split in toy_release.SIZES:
            load_split(source, TASK, split)  # type: ignore[arg-type]
    assert str(file_of(source)) in str(caught.value) and all(word in str(caught.value) for word in words)


def test_a_truncated_line_is_refused(source: Source) -> None:
    file_of(source).write_text(file_of(source).read_text()[:-20])
    with pytest.raises(
        UserError, match=r"toysums\.jsonl: not valid JSON \(line 11\), expected 11 rows \(truncated\?\)"
    ):
        load_split(source, TASK, "test")


def test_a_row_without_its_teacher_is_refused(source: Source) -> None:
    change(source, lambda rows: [{k: v for k, v in one.items() if k != "two"} for one in rows])
    assert load_split(source, TASK, "test")
    with pytest.raises(UserError, match="holds no rationale of 'two'; copy it again"):
        load_rationales(source, TASK, "test", "two")


@pytest.mark.parametrize("text", [5, ["a", "b"], False, {"text": "a"}])
def test_a_teacher_s_text_of_another_kind_is_refused(source: Source, text: Any) -> None:
    change(source, lambda rows: [{**one, "two": {**one["two"], "rationale": text}} for one in rows])
    with pytest.raises(
        UserError, match=r"toysums/test/\d: the rationale of 'two' is .*, not text or null; copy it again"
    ):
        load_rationales(source, TASK, "test", "two")


def test_a_text_may_hold_what_other_readers_take_for_the_end_of_a_line(source: Source) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive\x0csix\x1cseven\x1deight\x1enine\rten"
    rows = [json.loads(line) for line in file_of(source).read_text().split("\n")]
    for one in rows:
        one["question"] = one["two"]["rationale"] = text
    lines = (json.dumps(one, ensure_ascii=False) for one in rows)
    file_of(source).write_bytes("".join(f"{line}\r\n" for line in lines).encode("utf-8-sig"))
    load_split.cache_clear()
    assert {record.question for record in load_split(source, TASK, "test")} == {text}
    assert set(load_rationales(source, TASK, "test", "two").values()) == {text}


def test_the_check_counts_programs_and_does_not_miss_a_file_that_no_other_task_needs(source: Source) -> None:
    (line,) = checks.check_release(source.folder or "", tasks=[TASK])
    assert line.ok and line.text.endswith("rationales: one 6 / 2 / 3, two 6 / 2 / 3; programs: one 1 / 1 / 1")
    file_of(source).unlink()
    lines = {line.task: line for line in checks.check_release(source.folder or "")}
    assert lines[TASK].ok and lines[TASK].text.startswith("toysums: not present, and no other task needs it")
    (named,) = checks.check_release(source.folder or "", tasks=[TASK])
    assert not named.ok and named.text.count("file not found") == 1


def test_facts_of_numbers(source: Source) -> None:
    facts = checks.task_facts(source, TASK)
    assert (facts.chance, facts.majority_answer, facts.majority) == (0.0, "0", 1 / 3)


def test_changed_text_is_found_by_the_digest(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: dict[Split, Any] = {
        split: split_facts(load_split(source, TASK, split)) for split in ("train", "valid", "test")
    }
    monkeypatch.setitem(shipped_facts(), TASK, facts)
    change(source, lambda rows: [{**one, "gold": one["gold"] + 1} for one in rows])
    with pytest.raises(UserError, match="content digest .* the text was changed; copy it again"):
        load_split(source, TASK, "test")


# --- records of numbers -----------------------------------------------------------------------------------------------


def test_the_key_of_a_number_is_that_of_programs() -> None:
    rng = random.Random(0)
    sampled = [rng.choice([rng.randint(-(10**9), 10**9), round(rng.uniform(-1e4, 1e4), 3)]) for _ in range(2000)]
    for value in (0, -0.0, 51.0, 2.5, 22090603.0, 1e16, 1e-7, 123456.7, -5, *sampled):
        assert number_key(value) == number(value).key
        record = word_problem({"id": "x", "question": "?", "gold": value}, task="t", split="test")
        assert number(record.gold_text).key == record.gold_key == number_key(value)
        assert float(record.gold_text) == value


def test_a_long_number_is_written_in_full_and_compared_by_its_key() -> None:
    record = word_problem({"id": 1, "question": "How many?", "gold": 22090603.0}, task="t", split="test")
    assert (record.gold_key, record.gold_text) == ("22090600", "22090603")
    other = word_problem({"id": 1, "question": "How many?", "gold": 22090604.0}, task="t", split="test")
    assert records_digest([record]) != records_digest([other])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "answer -1 is not one of 0 choices"),
        ({"choices": ("a", "b"), "answer": 2}, "answer 2 is not one of 2 choices"),
        ({"choices": ("a", "b"), "answer": 0, "number": "5"}, "asks for the number 5 and has choices"),
        ({"answer": 0, "number": "5"}, "has choices or answer 0"),
        ({"number": "five"}, "'five' is not the key of a number"),
        ({"number": "1,200"}, "not the key"),
        ({"choices": ("a", "b"), "answer": 0, "full_number": "5"}, "asks for a choice"),
    ],
)
def test_a_record_asks_for_a_choice_or_for_a_number(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskRecord(id="t/test/1", task="t", split="test", question="?", **fields)


def test_a_task_does_not_mix_both_kinds() -> None:
    def to_record(row: dict[str, Any], split: Split) -> TaskRecord:
        answer = {"choices": ("a", "b"), "answer": 0} if row["id"] else {"number": "5"}
        return TaskRecord(id=f"t/test/{row['id']}", task="t", split=split, question="?", **answer)

    info = plugins.load_task("obqa")
    object_info = type(info)(**{name: getattr(info, name) for name in info.__slots__} | {"to_record": to_record})
    with pytest.raises(UserError, match="row 2 of 2: a task asks for choices or for numbers, not both"):
        to_records([{"id": 0}, {"id": 1}], object_info, "test", where="here", size=2, fix="mend it")


def test_the_order_of_hashes_is_fixed() -> None:
    assert lowest_hashes("abcd") == lowest_hashes("dbca") == ["d", "c", "b", "a"]  # SHA-256: 18ac, 2e7d, 3e23, ca97
