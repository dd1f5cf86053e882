"""LaTeX, CSV, JSON and the two public forms: small goldens, round trips, what is left out and what is removed."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.leaderboard.fakes import add, flags, make_record, make_reference
from tinyllm_bench.base import plugins
from tinyllm_bench.leaderboard.board import board_build
from tinyllm_bench.leaderboard.exports import BoardData
from tinyllm_bench.leaderboard.external_forms import EveryEvalEver, ResultEntry, eval_results, every_eval_ever
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.stats.arithmetic import ANY_RUN, wilson
from tinyllm_bench.leaderboard.stats.intervals import difference, row_of


def build(folder: Path) -> dict[str, str]:
    board_build(folder)
    return {file.name: file.read_text() for file in folder.iterdir() if file.is_file() and file.suffix != ".lock"}


def test_rows_and_runs_as_csv(board: Path) -> None:
    # 10 of 20 right: share 0.5; the record says 1,000 tokens
    add(board, make_record("floor", flags(20, 10)), make_reference("guess", None, expected_accuracy=0.25))
    files = build(board)
    guess, floor = csv.DictReader(io.StringIO(files["board.csv"]))
    assert (guess["kind"], guess["accuracy"], guess["accuracy_low"], guess["seeds"]) == (
        "reference_baseline",
        "0.25",
        "0.25",
        "",
    )
    assert (floor["task"], floor["mode"], floor["sample"]) == ("toy", "cloze", "no")
    low, high = wilson(10, 20)
    assert (floor["accuracy"], floor["accuracy_low"], floor["accuracy_high"]) == ("0.5", repr(low), repr(high))
    assert floor["student_tokens"] == "1000.0" and floor["seconds"] == "42.4" and floor["trust"] == "self-reported"
    assert floor["no_gain"] == "baseline" and floor["gain"] == ""
    runs = list(csv.DictReader(io.StringIO(files["runs.csv"])))
    assert [run["row"] for run in runs] == ["guess", "floor"]
    assert (runs[1]["n"], runs[1]["correct"], runs[1]["wrong"], runs[1]["unparsed"]) == ("20", "10", "10", "0")
    assert (board / runs[1]["record"]).is_file() and "--method floor" in runs[1]["command"]
    assert "\r" not in files["board.csv"]


def test_json_goes_through_its_model(board: Path) -> None:
    add(board, make_record("floor", flags(20, 10), sample=True), make_record("mine", flags(20, 14), seed=3))
    text = build(board)["data.json"]
    data = BoardData.model_validate_json(text)
    assert data.model_dump_json(indent=1) + "\n" == text
    [section] = data.sections
    floor, mine = section.rows
    assert floor.sample and floor.label == "floor [sample]" and not mine.sample
    assert floor.accuracy == 0.5 and floor.interval == tuple(wilson(10, 20)) and mine.runs[0].seed == 3
    assert floor.seeds == 1 and section.protocol["n"] == 20


def test_nothing_in_an_export_is_rounded_or_printed(board: Path) -> None:
    runs = [make_record("mine", flags(30, right), n=30, seed=seed) for seed, right in enumerate((17, 20, 22))]
    runs += [make_record("floor", flags(30, right), n=30, seed=seed) for seed, right in enumerate((11, 10, 13))]
    add(board, *runs)
    files = build(board)
    [section] = BoardData.model_validate_json(files["data.json"]).sections
    floor, mine = section.rows
    tables = [row_of(np.array([flags(30, right) for right in rights]).T) for rights in ((17, 20, 22), (11, 10, 13))]
    found = difference(*tables)
    assert mine.accuracy == pytest.approx(59 / 90, rel=1e-15)
    assert (mine.gain, mine.gain_interval, mine.gain_p) == (found.value, (found.low, found.high), found.p)
    assert mine.gain_scope == ANY_RUN and (mine.best_rank, floor.tied_with_best) == (1, False)
    [csv_floor, csv_mine] = csv.DictReader(io.StringIO(files["board.csv"]))
    assert float(csv_mine["gain_low"]) == found.low and float(csv_mine["gain"]) == found.value
    assert csv_floor["tied_with_best"] == "False"
    text = files["data.json"]
    assert "cells" not in text and "+24." not in text, "no printed cell is carried"


def test_a_table_that_is_gone_takes_its_file_along(board: Path) -> None:
    [place] = add(board, make_record("floor", flags(20, 10)))
    add(board, make_record("floor", flags(10, 8), task="toy2", n=10))
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
    add(board, make_record("floor", flags(20, 10)), make_record("floor", flags(40, 10), n=40))
    names = [name for name in build(board) if name.endswith(".tex")]
    assert len(names) == 2 and all(name.startswith("toy-cloze-") for name in names)


def test_every_eval_ever_form() -> None:
    record = make_record(
        "mine",
        flags(20, 14),
        unparsed=2,
        secondary={"accuracy_plain": 0.45},
        backend={"name": "hf", "dtype": "float32", "device": "cpu", "versions": {"hf": "1.2"}},
        packages={"tinyllm-bench": "9.9"},
    )
    form = every_eval_ever("mine (lr=1)", record, "Toy board")
    assert form and EveryEvalEver.model_validate_json(form.model_dump_json(exclude_none=True)) == form
    # 2026-01-02T03:04:05Z is 1,767,323,045 s after 1970
    assert form.retrieved_timestamp == "1767323045" and form.evaluation_id.endswith("/1767323045")
    assert form.eval_library.version == "9.9" and form.model_info.inference_engine
    assert form.model_info.inference_engine.version == "1.2"
    assert form.model_info.id == f"tinyllm-bench/{record.run_id}" and form.model_info.name == "mine (lr=1), dir:small"
    main, plain = form.evaluation_results
    assert main.score_details.score == 0.7 and main.score_details.details["unparsed"] == "2"
    uncertainty = main.score_details.uncertainty
    assert uncertainty and uncertainty.num_samples == 20
    assert (uncertainty.confidence_interval.lower, uncertainty.confidence_interval.upper) == wilson(14, 20)
    assert plain.metric_config.metric_id == "tinyllm-bench.accuracy_plain" and plain.score_details.score == 0.45
    assert main.generation_config.generation_args.execution_command == record.command
    assert main.source_data.source_type == "other" and main.source_data.dataset_name == "toy"


def test_every_eval_ever_marks_samples_and_skips_what_was_not_scored(board: Path) -> None:
    sample = every_eval_ever("m", make_record("m", flags(20, 9), sample=True), "b")
    assert sample and sample.source_metadata.additional_details["sample_data"] == "true"
    assert sample.evaluation_results[0].source_data.dataset_name == "toy (sample questions)"
    add(board, make_reference("guess", None, expected_accuracy=0.25), make_record("m", flags(20, 9)))
    [line] = build(board)["every_eval_ever.jsonl"].splitlines()
    assert EveryEvalEver.model_validate_json(line).model_info.additional_details.model_extra == {
        "method": "m",
        "kind": "method",
        "seed": "0",
        "student": "dir:small",
        "dtype": "float32",
    }


def with_hub() -> str:
    """A built-in task whose data set is on the hub."""
    return next(name for name in plugins.names("task") if plugins.load_task(name).hub)


def hub_record(**changes: Any) -> RunRecord:
    data = {"source": "hub", "splits": {"test": {"rows": 20, "digest": "d"}}, "train_ids_digest": "t"}
    return make_record("mine", flags(20, 13), **({"task": with_hub(), "data": data} | changes))


def test_hugging_face_reads_our_entries(board: Path) -> None:
    from huggingface_hub import EvalResultEntry
    from huggingface_hub._eval_results import parse_eval_result_entries

    record = hub_record()
    add(board, record)
    content = yaml.safe_load(build(board)["eval_results.yaml"])[record.run_id]
    [entry] = parse_eval_result_entries(content)
    assert isinstance(entry, EvalResultEntry)
    hub = plugins.load_task(record.task).hub
    assert (entry.dataset_id, entry.task_id, entry.value) == (hub.path, f"{record.task}_cloze", 65.0)
    assert entry.dataset_revision == hub.revision and entry.date == record.created
    assert entry.notes and "n = 20" in entry.notes and "43.3 to 81.9" in entry.notes
    assert [ResultEntry.model_validate(one) for one in content] == eval_results(record)


@pytest.mark.parametrize("changes", [{"sample": True}, {"kind": "reference_baseline"}, {"task": "toy"}])
def test_no_entry_for_samples_reference_baselines_and_tasks_that_the_hub_lacks(changes: dict[str, Any]) -> None:
    assert eval_results(hub_record(**changes)) == []


def test_an_entry_from_the_release_names_no_revision() -> None:
    [entry] = eval_results(hub_record(data={"source": "release"}))
    assert entry.dataset.revision is None and "questions from release" in entry.notes


def test_external_files_are_json_and_yaml(board: Path) -> None:
    add(board, hub_record(), make_record("odd", flags(20, 9), label="</x>: ["))
    files = build(board)
    assert len([json.loads(line) for line in files["every_eval_ever.jsonl"].splitlines()]) == 2
    assert all(isinstance(key, str) for key in yaml.safe_load(files["eval_results.yaml"]))
