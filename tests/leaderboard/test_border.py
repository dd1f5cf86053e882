"""What a board takes is what it can build: records that are wrong in any way are refused before they lie there."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.fakes import add, flags, make_fields, make_record
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard import board as boards
from tinyllm_bench.leaderboard.board import board_add, board_build, board_records
from tinyllm_bench.leaderboard.record import RunRecord, load_record, record_path, save_record

ITEMS = make_fields("mine", flags(20, 13))["items"]
PROTOCOL = make_fields("mine", flags(20, 13))["protocol"]


def run(folder: Path, **changes: Any) -> Path:
    """A run's folder whose record has fields changed behind its back."""
    file = save_record(make_record("mine", flags(20, 13)), folder / "run")
    content = json.loads(file.read_text())
    for name, value in changes.items():
        place, _, field = name.partition("__")
        if field:
            content[place][field] = value
        else:
            content[place] = value
    file.write_text(json.dumps(content))
    return file.parent


BUDGET = {"student_tokens": 1000}
WRONG: list[tuple[dict[str, Any], str]] = [
    # what does not add up
    ({"sample": True}, "sample is True; expected False"),
    ({"data__source": "sample"}, "sample is False; expected True"),
    ({"config": {"data": {"source": "sample"}}}, "config.data.source is sample"),
    ({"test_evaluations": 0}, "test_evaluations is 0; expected 1"),
    ({"run_id": "another-toy-cloze-s0-1"}, "run_id is another"),
    ({"request": {"seeds": 0}}, "seed is 0; expected less than 0"),
    ({"config": {"eval": {"limit": 3}}}, "protocol.n is 20; expected 3"),
    ({"config": {"eval": {"limit": "3"}}}, "config.eval.limit is 3; expected a whole number"),
    # values that no run has
    ({"created": "2026-21-02T03:04:05Z"}, "created: month must be in"),
    ({"created": "2026-02-30T03:04:05Z"}, "created: day is out of range"),
    ({"created": "٢٠٢٦-01-02T03:04:05Z"}, "created"),
    ({"seed": -1}, "seed: .*greater than or equal to 0"),
    ({"seed": 10**20}, "seed"),
    ({"seed": 0.0}, "seed: .*valid integer"),
    ({"seed": False}, "seed: .*valid integer"),
    ({"secondary": {"accuracy_plain": 1e308}}, "secondary.accuracy_plain"),
    ({"secondary": {"accuracy": 0.99}}, "may not be called 'accuracy'"),
    ({"secondary": {" accuracy ": 0.99}}, "may not be called"),
    ({"secondary": ["accuracy_plain"]}, "secondary"),
    ({"chance": -0.1}, "chance"),
    ({"test_evaluations": 1.5}, "test_evaluations"),
    ({"test_evaluations": 10**30}, "test_evaluations"),
    ({"budget": BUDGET | {"seconds": 1e300}}, "budget.seconds"),
    ({"budget": BUDGET | {"student_tokens": 10**400}}, "number of 401 digits"),
    ({"budget": BUDGET | {"train_flops": "many"}}, "budget.train_flops"),
    ({"score": {"n": 20, "correct": 13.0, "wrong": 7}}, "score.correct"),
    ({"items": [[ITEMS[0][0], 10**9, 1], *ITEMS[1:]]}, "items"),
    ({"items": [[ITEMS[0][0], -1, 1], *ITEMS[1:]]}, "items"),
    ({"gold": [10**12] * 20}, "gold"),
    ({"clusters": [10**12] * 20}, "clusters"),
    ({"protocol": PROTOCOL | {"n": "20"}}, "protocol.n"),
    ({"protocol": PROTOCOL | {"metric": ["accuracy"]}}, "protocol.metric"),
    ({"protocol": PROTOCOL | {"max_context_words": 1e9}}, "protocol.max_context_words"),
    ({"config": {"train": ["learning_rate"]}}, "config.train is no group of settings"),
    ({"config": {"eval": "all"}}, "config.eval is no group of settings"),
    ({"config": ["train"]}, "config"),
    ({"label": "x" * 10**5}, "label"),
    ({"notes": ["x" * 10**6]}, "notes"),
    ({"schema_version": "9" * 10**5}, "not a run record of schema 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_wrong_record_is_refused_in_one_line_by_add_and_by_build(
    board: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = run(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        board_add([folder], board)
    assert str(folder) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 700
    assert board_records(board) == []
    record = make_record("mine", flags(20, 13))
    place = save_record(record, board / record_path(record))
    place.write_bytes((folder / "run.json").read_bytes())
    with pytest.raises(UserError, match=str(place.name)) as error:
        board_build(board)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"seed": 0', '"seed": 0, "seed": 1', "the key 'seed' appears twice"),
        ('"sample": false', '"sample": true, "sample": false', "the key 'sample' appears twice"),
        ('"request": {}', '"request": {"a": {"b": 1, "b": 2}}', "the key 'b' appears twice"),
        ('"request": {}', '"request": {"a": NaN}', "NaN is not a JSON number"),
        ('"request": {}', '"request": {"a": [-Infinity]}', "-Infinity is not a JSON number"),
        ('"request": {}', '"request": {"a": 1e999}', "1e999 is too large"),
        ('"request": {}', '"request": {"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('"request": {}', '"request": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep|recursion"),
        ('"request": {}', '"request": {"a": ' + "[" * 400 + "]" * 400 + "}", "recursion"),
        ('"request": {}', '"request": {"a": "\\ud800"}', "lone surrogate"),
        ('"request": {}', '"request": {"a": "\\ud800', "line"),
    ],
)
@pytest.mark.parametrize("laid_out", [True, False], ids=["as saved", "otherwise"])
def test_json_that_readers_disagree_on_is_refused(
    board: Path, tmp_path: Path, before: str, after: str, message: str, laid_out: bool
) -> None:
    file = save_record(make_record("mine", flags(20, 13)), tmp_path / "run")
    text = file.read_text()
    if not laid_out:
        text = json.dumps(json.loads(text))
    assert before in text
    file.write_text(text.replace(before, after, 1))
    with pytest.raises(UserError, match=message) as error:
        board_add([file.parent], board)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_sample_questions_are_known_whatever_a_record_says(board: Path, tmp_path: Path) -> None:
    from tinyllm_bench.data.sources import find_source, load_split, manifest
    from tinyllm_bench.leaderboard.record import ids_digest, protocol_hash

    source = find_source("sample", None)
    ids = [one.id for one in load_split(source, "obqa", "test")]
    fields = make_fields("mine", flags(len(ids), 5), task="obqa", n=len(ids))
    fields["items"] = [[name, 0, flag] for name, (_, _, flag) in zip(ids, fields["items"], strict=True)]
    fields["protocol"] |= {"scored_ids_digest": ids_digest(ids)}
    fields["protocol_hash"] = protocol_hash(fields["protocol"])
    file = save_record(RunRecord.model_validate(fields), tmp_path / "run")
    with pytest.raises(UserError, match=r"sample is False; expected True \(its questions are those of the sample data"):
        board_add([file], board)
    other = make_fields("mine", flags(20, 5), task="obqa")
    other["data"]["splits"]["test"]["digest"] = manifest(source, "obqa")["test"]["digest"]
    with pytest.raises(UserError, match="its questions are those of the sample data"):
        board_add([save_record(RunRecord.model_validate(other), tmp_path / "other")], board)


def test_a_board_takes_nothing_that_its_tables_cannot_be_made_of(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a check does not know of: the tables are tried before anything is copied, and build names the record."""
    add(board, make_record("tuned", flags(20, 10)))
    real = boards._section_files

    def breaks(section: Any, slug: str, **more: Any) -> Any:
        if any(record.name == "mine" for record in section.records):
            raise OverflowError("cannot convert\nfloat infinity")
        return real(section, slug, **more)

    monkeypatch.setattr(boards, "_section_files", breaks)
    before = {file: file.read_bytes() for file in board.rglob("*") if file.is_file()}
    record = make_record("mine", flags(20, 13))
    with pytest.raises(UserError, match=rf"{record.run_id}.json cannot be put on a board \(OverflowError: cannot"):
        board_add([save_record(record, tmp_path / "run")], board)
    assert {file: file.read_bytes() for file in board.rglob("*") if file.is_file()} == before
    place = save_record(record, board / record_path(record))
    with pytest.raises(UserError, match=rf"{place.name} cannot be put on a board"):
        board_build(board)


def test_a_record_that_contradicts_those_there_is_refused_before_it_lies_there(board: Path, tmp_path: Path) -> None:
    clusters = [i // 2 for i in range(20)]
    add(board, make_record("tuned", flags(20, 10), clusters=clusters))
    liar = make_record("mine", flags(20, 13), clusters=clusters[::-1])
    with pytest.raises(UserError, match="with different `clusters`"):
        board_add([save_record(liar, tmp_path / "run")], board)
    board_build(board)
    assert [record.name for record in board_records(board)] == ["tuned"]


def test_a_record_s_file_is_a_file_of_its_folder(board: Path, tmp_path: Path) -> None:
    import os

    record = make_record("mine", flags(20, 13))
    elsewhere = save_record(record, tmp_path / "elsewhere")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link that leads out of"):
        load_record(folder)
    (folder / "run.json").unlink()
    os.mkfifo(folder / "run.json")
    with pytest.raises(UserError, match="not a regular file"):
        board_add([folder], board)
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="leads out of"):
        load_record(folder)
    with pytest.raises(UserError, match="not a regular file"):
        load_record(folder / "run.json")
    (folder / "run.json").unlink()
    with (folder / "run.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(UserError, match="more than the 64.0 MB"):
        load_record(folder)
    (folder / "run.json").unlink()
    (folder / "run.json").symlink_to("run.json")
    with pytest.raises(UserError, match="cannot be read|leads out of"):
        load_record(folder)
    (folder / "run.json").unlink()
    (folder / "run.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(UserError, match="not UTF-8"):
        load_record(folder)
    (folder / "run.json").write_bytes(b"\xef\xbb\xbf" + elsewhere.read_bytes())
    assert load_record(folder) == record
