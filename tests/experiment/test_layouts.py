"""Shared prompts through the whole pipeline: the same cell, the same numbers, a smaller bill."""

from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import one_cell, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_checked
from tinyllm_bench.experiment.predict import load_predictions, predictions_file
from tinyllm_bench.leaderboard.record import RunRecord, load_record

pytestmark = pytest.mark.slow


def trained(student: Path, runs: Path, layout: str, **changes: Any) -> tuple[RunRecord, list[float], list[float]]:
    """Record, losses by step and option log-probabilities of a TinyLLM cell in one layout."""
    settings = (
        f"train.layout={layout}",
        f"eval.layout={layout}",
        "train.batch_records=2",
        "budget.student_tokens=9000",
    )
    cell = one_cell(student, *settings, method="tinyllm", **changes)
    (outcome,) = run_all([cell], runs / layout)
    steps = [
        e["loss"] for e in read_checked(outcome.folder / "train" / "metrics.jsonl") if e["event"] == "training_step"
    ]
    answers = load_predictions(predictions_file(cell, outcome.folder))
    return load_record(outcome.folder), steps, [value for p in answers for value in p.option_logprobs]


def test_both_layouts_train_the_same_student(tiny_llama_dir: Path, tmp_path: Path) -> None:
    separate, losses, values = trained(tiny_llama_dir, tmp_path, "separate")
    shared, same_losses, same_values = trained(tiny_llama_dir, tmp_path, "auto")
    assert separate.run_id == shared.run_id, "a layout is no part of the cell"
    assert same_losses == pytest.approx(losses, rel=1e-4)
    assert len(losses) > 3
    assert same_values == pytest.approx(values, rel=1e-3)
    for record, layout, reason in ((separate, "separate", "requested"), (shared, "shared", None)):
        assert record.training is not None and record.backend is not None
        assert (record.training.layout, record.training.layout_reason) == (layout, reason)
        assert (record.backend.layout, record.backend.layout_reason) == (layout, reason)
    bills = [record.budget for record in (separate, shared)]
    assert bills[0] and bills[1] and bills[0].student_tokens == bills[1].student_tokens
    assert bills[1].computed_tokens and bills[0].computed_tokens
    assert bills[1].computed_tokens < 0.9 * bills[0].computed_tokens < bills[0].student_tokens
    assert bills[1].train_flops and bills[0].train_flops and bills[1].train_flops < bills[0].train_flops


def test_an_encoder_decoder_says_what_it_did(tiny_t5_dir: Path, tmp_path: Path) -> None:
    record, _, _ = trained(tiny_t5_dir, tmp_path, "auto")
    assert record.training is not None and record.training.layout == "shared"
    assert record.backend is not None and record.backend.layout == "shared"


def test_flex_attention_needs_a_gpu(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, "train.attention=flex", "backend.device=cpu")
    with pytest.raises(UserError, match="train.attention=flex needs a GPU"):
        run_all([cell], tmp_path)
