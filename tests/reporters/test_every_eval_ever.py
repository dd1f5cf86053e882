"""Every Eval Ever records of a board's runs."""

import json
from pathlib import Path

from tests.leaderboard.conftest import board as board
from tests.leaderboard.fakes import add, flags, make_record, make_reference
from tinyllm_bench.leaderboard.board import board_files
from tinyllm_bench.leaderboard.stats.intervals import wilson
from tinyllm_bench.reporters.every_eval_ever import EveryEvalEver, every_eval_ever


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
    [line] = board_files(board)["every_eval_ever.jsonl"].splitlines()
    assert EveryEvalEver.model_validate_json(line).model_info.additional_details.model_extra == {
        "method": "m",
        "kind": "method",
        "seed": "0",
        "student": "dir:small",
        "dtype": "float32",
    }


def test_the_file_is_one_json_record_a_line(board: Path) -> None:
    add(board, make_record("mine", flags(20, 9)), make_record("odd", flags(20, 9), label="</x>: ["))
    lines = board_files(board)["every_eval_ever.jsonl"].splitlines()
    assert [json.loads(line)["source_metadata"]["source_organization_name"] for line in lines] == ["Toy board"] * 2
