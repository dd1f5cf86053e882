"""Hugging Face evaluation results of a board's runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.leaderboard.conftest import board as board
from tests.leaderboard.fakes import add, flags, make_record
from tinyllm_bench.base import plugins
from tinyllm_bench.leaderboard.board import board_build, board_files
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.reporters.eval_results import ResultEntry, eval_results


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
    content = yaml.safe_load(board_files(board)["eval_results.yaml"])[record.run_id]
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


def test_the_file_is_yaml_and_goes_with_its_last_entry(board: Path) -> None:
    record = hub_record()
    [place] = add(board, record)
    add(board, make_record("odd", flags(20, 9), label="</x>: ["))
    board_build(board)
    assert list(yaml.safe_load((board / "eval_results.yaml").read_text())) == [record.run_id]
    place.unlink()
    board_build(board)
    assert not (board / "eval_results.yaml").exists() and (board / "every_eval_ever.jsonl").is_file()
