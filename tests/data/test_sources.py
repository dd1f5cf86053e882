"""The release folder: what it gives, and each way in which it can be broken, refused in one line with the fix."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data import toy_release
from tests.data.toy_release import TASK
from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data import hub, release, sources
from tinyllm_bench.data.records import SPLITS
from tinyllm_bench.data.rows import multiple_choice, split_passages
from tinyllm_bench.data.sources import Source, find_source, load_rationales, load_split, manifest, rationale_keys
from tinyllm_bench.data.splits import shipped_facts, split_facts


@pytest.fixture(autouse=True)
def _toy_task(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    site = tmp_path_factory.mktemp("site")
    toy_release.install(site)
    monkeypatch.syspath_prepend(str(site))
    load_split.cache_clear()
    yield
    sys.modules.pop("toyquiz_package", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy_release.write(tmp_path / "release")


def at(folder: Path) -> Source:
    return Source("release", str(folder))


def edit(path: Path, change: Any) -> None:
    """Replace a JSON file's value by `change(value)`."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def assert_refused(folder: Path, *words: str, split: Any = "test") -> None:
    """Loading is refused in one line that holds every word."""
    with pytest.raises(UserError) as caught:
        load_split(at(folder), TASK, split)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, (word, message)


def test_rows_become_records_without_stray_space(folder: Path) -> None:
    records = load_split(at(folder), TASK, "valid")
    assert [record.id for record in records] == ["toyquiz/valid/0", "toyquiz/valid/1"]
    assert records[1].question == "What is number 1 of valid?"
    assert records[1].choices == ("valid thing 1x", "valid thing 1y", "valid thing 1z")
    assert records[1].answer == 1


def test_json_lines_and_arrays_give_the_same(folder: Path, tmp_path: Path) -> None:
    lines = toy_release.write(tmp_path / "lines", lines=True)
    assert manifest(at(lines), TASK) == manifest(at(folder), TASK)
    assert manifest(at(folder), TASK)["train"]["rows"] == 6


def test_train_is_rebuilt_from_the_rationale_files(folder: Path) -> None:
    expected = manifest(at(folder), TASK)
    (folder / TASK / f"{TASK}_train.json").unlink()
    load_split.cache_clear()
    info = plugins.load_task(TASK)
    assert release.is_rebuilt(folder, info, "train") and not release.is_rebuilt(folder, info, "test")
    assert manifest(at(folder), TASK) == expected


@pytest.mark.parametrize(
    ("old", "new"), [("Answer Choices", "Choices"), ("the answer is (", "the answer is ["), ("is (c)", "is (d)")]
)
def test_a_rationale_that_does_not_rebuild_is_refused(folder: Path, old: str, new: str) -> None:
    (folder / TASK / f"{TASK}_train.json").unlink()
    path = folder / TASK / "llm" / "train_CoT_0.json"
    edit(path, lambda strings: [*strings[:2], strings[2].replace(old, new), *strings[3:]])
    assert_refused(folder, "train_CoT_*.json", "rationale 2", "copy it again", split="train")


def test_a_missing_file_is_named_with_count_and_fix(folder: Path) -> None:
    (folder / TASK / f"{TASK}_test.json").unlink()
    assert_refused(folder, "toyquiz_test.json", "not found", "3 rows", "release")


def test_only_train_is_rebuilt(folder: Path) -> None:
    (folder / TASK / f"{TASK}_valid.json").unlink()
    assert_refused(folder, "toyquiz_valid.json", "not found", split="valid")


@pytest.mark.parametrize("lines", [False, True])
def test_a_truncated_file_is_refused(tmp_path: Path, lines: bool) -> None:
    folder = toy_release.write(tmp_path / "cut", lines=lines)
    path = folder / TASK / f"{TASK}_test.json"
    path.write_text(path.read_text()[:-20])
    assert_refused(folder, "toyquiz_test.json", "truncated", "expected 3 rows", "copy it again")


def test_a_file_cut_inside_a_character_is_refused(folder: Path) -> None:
    (folder / TASK / f"{TASK}_test.json").write_bytes('[{"question": "é'.encode()[:-1])
    assert_refused(folder, "toyquiz_test.json, line 1: byte 0xc3 is not UTF-8", "truncated", "expected 3 rows")


@pytest.mark.parametrize("lines", [False, True])
def test_a_byte_order_mark_is_no_damage(tmp_path: Path, lines: bool) -> None:
    plain, marked = (toy_release.write(tmp_path / name, lines=lines) for name in ("plain", "marked"))
    for path in marked.rglob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert manifest(at(marked), TASK) == manifest(at(plain), TASK)
    texts = [load_rationales(at(folder), TASK, "train", "first") for folder in (plain, marked)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
def test_another_encoding_is_named(folder: Path, encoding: str) -> None:
    path = folder / TASK / f"{TASK}_test.json"
    path.write_bytes(path.read_text().replace("thing", "thé").encode(encoding))
    named = "Latin-1" if encoding == "latin-1" else encoding[:6].upper()
    assert_refused(folder, "toyquiz_test.json", named, "UTF-8", "expected 3 rows")


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / TASK / f"{TASK}_test.json").unlink()
    (folder / TASK / f"{TASK}_test.json").mkdir()
    assert_refused(folder, "toyquiz_test.json is a folder", "expected 3 rows")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deep"),
        (f"[{'9' * 5000}]", "a number of 5000 digits"),
        ('[{"id": 1, "id": 2}]', "the key 'id' appears twice"),
        ('{"id": 1}\n{"id": 2, "question": "a", "question": "b"}', "line 2: the key 'question' appears twice"),
        ('["\\ud800"]', "lone surrogate"),
        ("", "0 rows"),
        ('{"id": 1}', "1 rows"),
        ("null", "1 rows"),
    ],
)
def test_json_that_nobody_can_use_is_refused(folder: Path, text: str, words: str) -> None:
    (folder / TASK / f"{TASK}_test.json").write_text(text)
    assert_refused(folder, "toyquiz_test.json", words, "expected 3")


def test_a_rationale_that_is_no_text_is_refused(folder: Path) -> None:
    edit(folder / TASK / "llm" / "train_CoT_0.json", lambda strings: [strings[0], None, *strings[2:]])
    with pytest.raises(UserError, match=r"train_CoT_0\.json: rationale 1 is null, not text; copy it again"):
        load_rationales(at(folder), TASK, "train", "first")


def test_a_deleted_row_names_file_and_both_counts(folder: Path) -> None:
    edit(folder / TASK / f"{TASK}_test.json", lambda rows: rows[1:])
    assert_refused(folder, "toyquiz_test.json", "2 rows", "expected 3", "copy it again")


def test_an_answer_that_is_no_option_is_refused(folder: Path) -> None:
    edit(folder / TASK / f"{TASK}_test.json", lambda rows: [rows[0], {**rows[1], "answer": "nothing"}, rows[2]])
    assert_refused(
        folder, "toyquiz_test.json", "row 2 of 3", "'nothing'", "not among", "test thing 1x", "copy it again"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"choices": ["same", "same "], "answer": "same"}, ["more than once"]),
        ({"choices": ["a", " "], "answer": "a"}, ["none empty"]),
        ({"choices": ["a"], "answer": "a"}, ["two or more"]),
        ({"question": " \n "}, ["empty question"]),
        ({"choices": None}, ["field 'choices' is null, not a list"]),
        ({"choices": "abc", "answer": "a"}, ["field 'choices' is text, not a list"]),
        ({"choices": {"a": 1, "b": 2}, "answer": "a"}, ["field 'choices' is an object, not a list"]),
        ({"choices": ["a", None], "answer": "a"}, ["option 2 of field 'choices' is null"]),
        ({"choices": ["1", 1], "answer": "1"}, ["option 2 of field 'choices' is the number 1, not text"]),
        ({"choices": ["1", 1.0], "answer": "1"}, ["option 2 of field 'choices' is the number 1.0, not text"]),
        ({"choices": ["yes", True], "answer": "yes"}, ["option 2 of field 'choices' is true, not text"]),
        ({"choices": ["a", ["b"]], "answer": "a"}, ["option 2 of field 'choices' is a list, not text"]),
        ({"choices": ["a", "\u200b"], "answer": "a"}, ["none empty"]),
        ({"question": None}, ["field 'question' is null, not text"]),
        ({"question": ["a", "b"]}, ["field 'question' is a list, not text"]),
        ({"answer": None}, ["field 'answer' is null, not text"]),
        ({"answer": 1}, ["field 'answer' is the number 1, not text"]),
        ({"answer": "b"}, ["not among", "not its letter or number"]),
        ({"id": None}, ["field 'id' is null"]),
        ({"id": True}, ["field 'id' is true"]),
        ({"id": 1.5}, ["field 'id' is the number 1.5"]),
        ({"id": " "}, ["field 'id' is empty"]),
        ({"id": 0}, ["toyquiz/test/0", "twice"]),
    ],
)
def test_a_bad_row_is_refused(folder: Path, change: dict[str, Any], words: list[str]) -> None:
    edit(folder / TASK / f"{TASK}_test.json", lambda rows: [rows[0], {**rows[1], **change}, rows[2]])
    assert_refused(folder, "toyquiz_test.json", "row 2 of 3", *words)


def test_a_row_without_a_field_or_of_another_kind_is_refused(folder: Path) -> None:
    edit(folder / TASK / f"{TASK}_test.json", lambda rows: [{"id": 0}, *rows[1:]])
    assert_refused(folder, "row 1 of 3", "'question' is missing")
    load_split.cache_clear()
    edit(folder / TASK / f"{TASK}_test.json", lambda rows: ["text", *rows[1:]])
    assert_refused(folder, "row 1 of 3")


def test_changed_text_is_found_by_the_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {split: split_facts(load_split(at(folder), TASK, split)) for split in SPLITS}
    monkeypatch.setitem(shipped_facts(), TASK, facts)
    load_split.cache_clear()
    assert len(load_split(at(folder), TASK, "test")) == 3
    load_split.cache_clear()
    edit(folder / TASK / f"{TASK}_test.json", lambda rows: [{**rows[0], "question": "Changed?"}, *rows[1:]])
    assert_refused(folder, "toyquiz_test.json", "3 rows", "digest", facts["test"]["digest"][:12], "copy it again")


def test_equal_wrong_options_are_allowed() -> None:
    row = {"id": 1, "question": "q", "choices": ["a", "a", "b"], "answer": "b"}
    assert multiple_choice(row, task="t", split="train").answer == 2


def test_passages_and_question_are_parted() -> None:
    assert split_passages("One  line.\nmore \n Two. \n Is it\nso? \n") == ("One line. more Two.", "Is it so?")
    assert split_passages("Only a question?") == ("", "Only a question?")


def test_rationales_are_split_by_teacher(folder: Path) -> None:
    assert rationale_keys(at(folder), TASK) == ("first", "second")
    assert load_rationales(at(folder), TASK, "valid", "first") == {
        "toyquiz/valid/0": "One valid 0.",
        "toyquiz/valid/1": "One valid 1.",
    }
    assert load_rationales(at(folder), TASK, "valid", "second") == {"toyquiz/valid/0": "Two 0", "toyquiz/valid/1": ""}


def test_rationale_files_are_read_in_the_order_of_their_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "ROWS_PER_FILE", 2)
    llm = folder / TASK / "llm"
    strings = json.loads((llm / "train_CoT_0.json").read_text())
    for number in range(3):
        (llm / f"train_CoT_{number}.json").write_text(json.dumps(strings[2 * number : 2 * number + 2]))
    result = load_rationales(at(folder), TASK, "train", "first")
    assert list(result.values()) == [f"One train {number}." for number in range(6)]
    (llm / "train_CoT_1.json").unlink()
    with pytest.raises(UserError, match=r"train_CoT_1\.json: file not found, expected 2 rationales"):
        load_rationales(at(folder), TASK, "train", "first")


def test_missing_and_short_rationale_files_are_refused(folder: Path) -> None:
    path = folder / TASK / "llm" / "test_CoT_0.json"
    edit(path, lambda strings: strings[:-1])
    with pytest.raises(UserError, match=r"test_CoT_0\.json: 2 rationales, expected 3; copy it again"):
        load_rationales(at(folder), TASK, "test", "first")
    path.unlink()
    with pytest.raises(UserError, match=r"test_CoT_0\.json: file not found, expected 3 rationales"):
        load_rationales(at(folder), TASK, "test", "first")


def test_misaligned_rationales_are_refused(folder: Path) -> None:
    edit(folder / TASK / "llm" / "test_CoT_0.json", lambda strings: [strings[1], strings[0], strings[2]])
    with pytest.raises(UserError, match=r"rationale 0 is not about the question of toyquiz/test/0.*do not line up"):
        load_rationales(at(folder), TASK, "test", "second")


def test_an_unknown_teacher_is_told_which_there_are(folder: Path) -> None:
    with pytest.raises(UserError, match="'third'.*first, second"):
        load_rationales(at(folder), TASK, "test", "third")


def test_the_one_teacher_task_says_so() -> None:
    assert plugins.load_task("piqa").rationale_keys == ("flan-t5-xl",)
    with pytest.raises(UserError, match="llama-2-7b.*it has: flan-t5-xl"):
        load_rationales(Source("release", "anywhere"), "piqa", "train", "llama-2-7b")


def test_a_source_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TINYLLM_BENCH_DATA", raising=False)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    assert find_source("sample", None) == Source("sample")
    assert find_source("auto", str(folder)) == Source("release", str(folder))
    assert find_source("auto", None) == Source("hub")
    monkeypatch.setenv("TINYLLM_BENCH_DATA", str(folder))
    assert find_source("auto", None) == Source("release", str(folder))
    assert find_source("release", None) == Source("release", str(folder))
    assert find_source("hub", None) == Source("hub")


def test_no_source_says_what_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TINYLLM_BENCH_DATA", raising=False)
    with pytest.raises(UserError) as caught:  # the tests' environment is offline
        find_source("auto", None)
    for word in ("--data-dir", "TINYLLM_BENCH_DATA", "hub", "--preset quickstart"):
        assert word in str(caught.value)
    with pytest.raises(UserError, match="--data-dir"):
        find_source("release", None)
    with pytest.raises(UserError, match="not a folder"):
        find_source("auto", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="drop one"):
        find_source("sample", str(tmp_path))
    with pytest.raises(UserError, match="Did you mean 'release'"):
        find_source("relese", None)  # type: ignore[arg-type]


def test_the_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, tinyllm_bench.data.sources, tinyllm_bench.data.checks, tinyllm_bench.data.splits\n"
        "bad = {'torch', 'datasets', 'pandas', 'transformers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_task_without_a_sample_says_so() -> None:
    with pytest.raises(UserError, match="toyquiz.*no sample"):
        load_split(Source("sample"), TASK, "test")


def test_sample_sizes_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sources.SAMPLE_SIZES, "valid", 9)
    with pytest.raises(UserError, match=r"jsonl: 8 rows, expected 9"):
        load_split(Source("sample"), plugins.names("task")[0], "valid")
