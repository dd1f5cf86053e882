"""CSV and JSON: round trips, and files that go when their table goes."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from tests.leaderboard.fakes import add, flags, make_record, make_reference
from tinyllm_bench.leaderboard.board import board_build
from tinyllm_bench.leaderboard.exports import BoardData
from tinyllm_bench.leaderboard.stats.intervals import difference, summarise, wilson
from tinyllm_bench.leaderboard.stats.significance import ANY_RUN


def build(folder: Path) -> dict[str, str]:
    board_build(folder)
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file() and file.suffix != ".lock"}


def test_rows_and_runs_as_csv(board: Path) -> None:
    # 10 of 20 right: share 0.5; the record says 1,000 tokens
    add(board, make_record("tuned", flags(20, 10)), make_reference("guess", None, expected_accuracy=0.25))
    files = build(board)
    guess, tuned = csv.DictReader(io.StringIO(files["board.csv"]))
    assert (guess["kind"], guess["accuracy"], guess["accuracy_low"], guess["seeds"]) == (
        "reference_baseline",
        "0.25",
        "0.25",
        "",
    )
    assert (tuned["task"], tuned["mode"], tuned["sample"]) == ("toy", "cloze", "no")
    low, high = wilson(10, 20)
    assert (tuned["accuracy"], tuned["accuracy_low"], tuned["accuracy_high"]) == ("0.5", repr(low), repr(high))
    assert tuned["student_tokens"] == "1000.0" and tuned["seconds"] == "42.4" and tuned["trust"] == "self-reported"
    assert tuned["no_gain"] == "baseline" and tuned["gain"] == ""
    runs = list(csv.DictReader(io.StringIO(files["runs.csv"])))
    assert [run["row"] for run in runs] == ["guess", "tuned"]
    assert (runs[1]["n"], runs[1]["correct"], runs[1]["wrong"], runs[1]["unparsed"]) == ("20", "10", "10", "0")
    assert (board / runs[1]["record"]).is_file() and "--method tuned" in runs[1]["command"]
    assert "\r" not in files["board.csv"]


def test_json_goes_through_its_model(board: Path) -> None:
    add(board, make_record("tuned", flags(20, 10), sample=True), make_record("mine", flags(20, 14), seed=3))
    text = build(board)["data.json"]
    data = BoardData.model_validate_json(text)
    assert data.model_dump_json(indent=1) + "\n" == text
    [section] = data.sections
    tuned, mine = section.rows
    assert tuned.sample and tuned.label == "tuned [sample]" and not mine.sample
    assert tuned.accuracy == 0.5 and tuned.interval == tuple(wilson(10, 20)) and mine.runs[0].seed == 3
    assert tuned.seeds == 1 and section.protocol["n"] == 20


def test_nothing_in_an_export_is_rounded_or_printed(board: Path) -> None:
    runs = [make_record("mine", flags(30, right), n=30, seed=seed) for seed, right in enumerate((17, 20, 22))]
    runs += [make_record("tuned", flags(30, right), n=30, seed=seed) for seed, right in enumerate((11, 10, 13))]
    add(board, *runs)
    files = build(board)
    [section] = BoardData.model_validate_json(files["data.json"]).sections
    tuned, mine = section.rows
    tables = [summarise(np.array([flags(30, right) for right in rights]).T) for rights in ((17, 20, 22), (11, 10, 13))]
    found = difference(*tables)
    assert mine.accuracy == pytest.approx(59 / 90, rel=1e-15)
    assert (mine.gain, mine.gain_interval, mine.gain_p) == (found.value, (found.low, found.high), found.p)
    assert mine.gain_scope == ANY_RUN and (mine.best_rank, tuned.tied_with_best) == (1, False)
    [csv_tuned, csv_mine] = csv.DictReader(io.StringIO(files["board.csv"]))
    assert float(csv_mine["gain_low"]) == found.low and float(csv_mine["gain"]) == found.value
    assert csv_tuned["tied_with_best"] == "False"
    text = files["data.json"]
    assert "cells" not in text and "+24." not in text, "no printed cell is carried"


def test_a_table_that_is_gone_takes_its_file_along(board: Path) -> None:
    [place] = add(board, make_record("tuned", flags(20, 10)))
    add(board, make_record("tuned", flags(10, 8), task="toy2", n=10))
    (board / "own.tex").write_text("% mine\n")
    assert {"toy-cloze.tex", "toy2-cloze.tex", "mean-over-tasks.tex", "every_eval_ever.jsonl"} <= set(build(board))
    place.unlink()
    files = build(board)
    assert "toy2-cloze.tex" in files and not {"toy-cloze.tex", "mean-over-tasks.tex"} & set(files)
    assert files["own.tex"] == "% mine\n"
    for file in (board / "results").rglob("*.json"):
        file.unlink()
    assert set(build(board)) == {"README.md", "index.html", "board.csv", "runs.csv", "data.json", "own.tex"}


def test_rival_protocols_have_files_of_their_own(board: Path) -> None:
    add(board, make_record("tuned", flags(20, 10)), make_record("tuned", flags(40, 10), n=40))
    names = [name for name in build(board) if name.endswith(".tex")]
    assert len(names) == 2 and all(name.startswith("toy-cloze-") for name in names)
