"""Questions that ask for a number, from the request to the record."""

from pathlib import Path

import pytest

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tinyllm_bench.evaluation.reference_baselines import expected
from tinyllm_bench.experiment.cell import protocol_of
from tinyllm_bench.experiment.predict import load_predictions, predictions_file

pytestmark = pytest.mark.slow

HF = "backend.engine=hf"


def test_the_protocol_names_the_reader_of_numbers_for_numbers_alone(tiny_llama_dir: Path) -> None:
    numbers = protocol_of(one_cell(tiny_llama_dir, HF, tasks=("svamp",)))
    choices = protocol_of(one_cell(tiny_llama_dir, "eval.mode=generate", HF))
    assert (numbers["parser_version"], choices["parser_version"]) == ("numbers 2, keys 1", "2")
    assert numbers["mode"] == "generate" and numbers["task"] == "svamp"


@pytest.mark.parametrize("task", ["svamp", "gsm8k"])
def test_a_student_is_trained_evaluated_and_recorded(task: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    request = quick(tiny_llama_dir, HF, "eval.max_new_tokens=8", tasks=(task,), runs=tmp_path)
    cells = [cell for cell in cells_of(request, reference_baselines=True) if cell.name != "zero_shot"]
    records = {o.record.name: o.record for o in run_all(cells, tmp_path) if o.record is not None}
    assert set(records) == {"random", "majority", "few_shot", "finetune"}
    for record in records.values():
        assert record.chance == 0 and record.mode == "generate" and record.sample and len(record.items) == 16
        assert all(answer is None or isinstance(answer, str) for _, answer, _ in record.items)
    test, train = cells[0].records("test"), cells[0].records("train")
    assert records["random"].expected_accuracy == expected(test, train)
    trained = next(cell for cell in cells if cell.name == "finetune")
    stored = load_predictions(predictions_file(trained, tmp_path / trained.run_id))
    golds = {record.id: record.gold_key for record in test}
    assert [(p.record_id, p.answer, int(p.correct)) for p in stored] == list(records["finetune"].items)
    assert all(p.correct == (p.answer == golds[p.record_id]) for p in stored)


def test_methods_of_rationales_train_on_word_problems(tiny_llama_dir: Path, tmp_path: Path) -> None:
    request = quick(tiny_llama_dir, HF, "eval.max_new_tokens=8", methods=("tinyllm",), tasks=("svamp",), runs=tmp_path)
    (outcome,) = run_all(cells_of(request), tmp_path)
    assert outcome.record is not None
    used = {info.teacher: info.used for info in outcome.record.annotations}
    assert used == {"terse": 24, "stepwise": 24}
