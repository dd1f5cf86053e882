"""What lies in place of files of a submitted folder, a board and settings: one line each, within seconds."""

import json
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.base.test_files import BOMB, ODD, odd
from tests.cli.conftest import Call, CommandResult
from tests.leaderboard.fakes import CONFIG, flags, make_record
from tinyllm_bench.leaderboard.record import save_record

BAD_JSON = (
    '{"a": ' + "9" * 5000 + "}",
    "[" * 10**5,
    '{"a": NaN}',
    '"\\ud800"',
    "[1]",
    "null",
    '{"a": 1, "a": 2}',
    "{}",
)
BAD_YAML = (BOMB, "[" * 10**5, "a: " + "9" * 5000, "a: 2026-21-01", "- 1", "a: 1\na: 2", "\x00", "title: &a [*a]")


def assert_refused_in_one_line(output: CommandResult, began: float) -> None:
    """One line each for what is wrong, no traceback, no wait."""
    assert output.status in (1, 2) and "Traceback" not in output.out + output.err and time.monotonic() - began < 20
    assert all(len(line) < 1000 for line in (output.out + output.err).splitlines())
    assert len(output.err.splitlines()) <= 1


@pytest.fixture(scope="module")
def finished(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.experiment.runs import one_cell, run_all

    runs = tmp_path_factory.mktemp("runs")
    cell = one_cell(tiny_llama_dir, "backend.engine=hf", "eval.valid_limit=4", "train.evaluations=[1.0]", runs=runs)
    (outcome,) = run_all([cell], runs)
    folder: Path = outcome.folder
    return folder


FILES = (
    *(
        "run.json",
        "config.yaml",
        "ledger.jsonl",
        "events.jsonl",
        "predictions/obqa.jsonl.zst",
        "predictions/student.json",
    ),
    *("train/result.json", "train/metrics.jsonl"),
)


def spoiled(name: str) -> list[bytes]:
    """What may lie in place of a run's file: bytes that are no text, and texts that are what the file is not."""
    texts = BAD_YAML if name.endswith(".yaml") else BAD_JSON
    if name.endswith(".zst"):
        made = [
            zstandard.ZstdCompressor().compress(text.encode()) for text in (*texts, "\n" * 10**7, '{"record_id": []}\n')
        ]
        return [*made, zstandard.ZstdCompressor().compress(b"\0" * 10**9), b"nothing"]
    if name.endswith(".jsonl"):
        rows = [
            *texts,
            '{"test_evaluation": []}',
            '{"event": "training_step", "step": {}}',
            '{"event": "cell_started"}',
            '{"event": 1}',
        ]
        return [f"{zlib.crc32(row.encode()):08x}\t{row}\n".encode() for row in rows] + [b"\xff\xfe"]
    return [*(text.encode() for text in texts), b"\xff\xfe", b"\xc3("]


@pytest.mark.parametrize("name", FILES)
def test_verify_says_in_a_line_what_is_wrong_with_a_file(call: Call, finished: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "runs" / finished.name
    shutil.copytree(finished, folder)
    for kind in (*ODD, "link"):
        began, place = time.monotonic(), folder / name
        if kind == "link":
            place.symlink_to(finished / name)
        else:
            odd(kind, place)
        assert_refused_in_one_line(call("verify", folder), began)
        if kind != "huge":
            call("curves", folder)
        shutil.rmtree(place) if kind == "folder" else place.unlink()
    for data in spoiled(name):
        began = time.monotonic()
        (folder / name).write_bytes(data)
        output = call("verify", folder)
        if output.status:
            assert_refused_in_one_line(output, began)
        else:  # a training that took no step, a student of which nothing is told
            assert name in ("train/metrics.jsonl", "predictions/student.json") and output.err == ""
        if name == "run.json":
            assert_refused_in_one_line(call("board", "add", folder, "--board-dir", tmp_path / "board"), began)
            assert not (tmp_path / "board").exists()
        if name.startswith("train/"):
            output = call("curves", folder)
            assert output.status in (0, 2) and len(output.err.splitlines()) <= 1


@pytest.mark.parametrize("text", [*BAD_YAML, *ODD], ids=range(len(BAD_YAML) + len(ODD)))
def test_a_board_s_and_a_request_s_settings(call: Call, tmp_path: Path, text: str) -> None:
    run = save_record(make_record("mine", flags(20, 13)), tmp_path / "run").parent
    board = tmp_path / "board"
    (board / "boards").mkdir(parents=True)
    for place in (board / "boards" / "main.yaml", tmp_path / "config.yaml"):
        if text in ODD:
            odd(text, place)
        else:
            place.write_text(text)
    if text != "loop":
        for command in (("board", "add", run, "--board-dir", board), ("board", "build", "--board-dir", board)):
            began = time.monotonic()
            assert_refused_in_one_line(call(*command), began)
    began = time.monotonic()
    assert_refused_in_one_line(
        call("run", "--method", "finetune", "--task", "obqa", "--config", tmp_path / "config.yaml", "--dry-run"), began
    )


@pytest.mark.parametrize("kind", [*ODD, *BAD_JSON[:4]], ids=range(len(ODD) + 4))
def test_what_lies_beside_a_record(call: Call, tmp_path: Path, kind: str) -> None:
    board = tmp_path / "board"
    (board / "boards").mkdir(parents=True)
    (board / "boards" / "main.yaml").write_text(CONFIG)
    run = save_record(make_record("mine", flags(20, 13)), tmp_path / "run").parent

    def put(place: Path) -> None:
        if kind in ODD:
            odd(kind, place)
        else:
            place.write_text(kind)

    put(run / "verified.json")  # nobody reads it
    assert call("board", "add", run, "--board-dir", board).status == 0
    if kind == "loop":
        return
    put(run / "refutations.jsonl")
    if kind in ODD:  # a half line alone is what a crash leaves
        began = time.monotonic()
        assert_refused_in_one_line(call("board", "add", run, "--board-dir", board), began)
    (record,) = board.rglob("mine-*.json")
    put(record.with_suffix(".verified"))
    began = time.monotonic()
    assert_refused_in_one_line(call("board", "build", "--board-dir", board), began)


@pytest.mark.parametrize("text", [*BAD_YAML, *ODD[:3], ODD[4]], ids=range(len(BAD_YAML) + 4))
def test_reported_values(tmp_path: Path, text: str) -> None:
    from tinyllm_bench.base.errors import UserError
    from tinyllm_bench.leaderboard.reported import load_reported

    place = tmp_path / "paper.yaml"
    odd(text, place) if text in ODD else place.write_text(text)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"paper\.yaml") as error:
        load_reported(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000 and time.monotonic() - began < 20


def test_a_record_on_a_board_that_leads_out_of_it(call: Call, tmp_path: Path) -> None:
    record: Any = make_record("mine", flags(20, 13))
    board = tmp_path / "board"
    assert call("board", "add", save_record(record, tmp_path / "run"), "--board-dir", board).status == 0
    (place,) = board.rglob("mine-*.json")
    outside = save_record(record, tmp_path / "outside" / "x.json")
    assert json.loads(outside.read_text()) and place.unlink() is None
    place.symlink_to(outside)
    output = call("board", "build", "--board-dir", board)
    assert output.status == 2 and "leads out of" in output.err
