"""Live teachers through the whole pipeline: two tiny models write, every method learns from the same texts."""

from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import AnnotationProgress
from tinyllm_bench.cli.teachers import quality_reports
from tinyllm_bench.leaderboard.record import load_record

pytestmark = pytest.mark.slow

SMALL = (
    "data.train_limit=6",
    "annotations.sampling.max_new_tokens=8",
    "annotations.engine=hf",
    "annotations.filters=[empty]",
)


@pytest.fixture
def settings(tiny_llama_dir: Path, tiny_t5_dir: Path) -> tuple[str, ...]:
    """Two teachers of different families."""
    return (f"teachers=[dir:{tiny_llama_dir},dir:{tiny_t5_dir}]", *SMALL)


def test_two_models_teach_and_their_cost_is_in_the_record(
    tiny_llama_dir: Path, settings: tuple[str, ...], tmp_path: Path
) -> None:
    drop = "method.dss.teacher=tiny_llama"
    cells = cells_of(quick(tiny_llama_dir, *settings, drop, methods=("dss", "tinyllm")))
    events: list[Any] = []
    outcomes = run_all(cells, tmp_path, events=events)
    dss, both = (load_record(outcome.folder) for outcome in outcomes)
    assert [teacher.note for teacher in both.teachers] == ["live", "live"]
    assert all(teacher.gold_visible and teacher.settings["kind"] == "forced" for teacher in both.teachers)
    assert [a.teacher for a in both.annotations] == ["tiny_llama", "tiny_t5"]
    for counts in both.annotations:
        assert counts.cost is not None and counts.used + sum(counts.rejected.values()) == 6
        assert counts.cost.tokens_in > 6 * 50 and 0 < counts.cost.tokens_out <= 6 * 8
        assert counts.cost.engines and counts.cost.usd is None
    assert both.budget is not None and dss.budget is not None
    assert both.budget.teacher_tokens_in == sum(a.cost.tokens_in for a in both.annotations if a.cost)
    assert both.budget.teacher_seconds and both.budget.teacher_seconds > 0
    assert (both.budget.teacher_shared_by, dss.budget.teacher_shared_by) == (2, 2)
    asked = [event for event in events if isinstance(event, AnnotationProgress)]
    assert sum(event.done == event.total for event in asked) == 2, "the second method asked nobody"
    assert dss.annotations[0].text_digest == both.annotations[0].text_digest


def test_a_teacher_s_prompts_make_another_cell(tiny_llama_dir: Path, settings: tuple[str, ...]) -> None:
    changes = (
        (),
        ("annotations.kind=free",),
        ("annotations.demonstrations.shots=0",),
        ("annotations.demonstrations.select=nearest",),
        ("annotations.sampling.temperature=0.7",),
        (f"teachers=[dir:{tiny_llama_dir}]",),
    )
    ids = [one_cell(tiny_llama_dir, *settings, *change, method="tinyllm").run_id for change in changes]
    assert len(set(ids)) == len(ids)
    elsewhere = ("annotations.batch=3", "annotations.engine=auto", "annotations.on_teacher_error=skip")
    assert one_cell(tiny_llama_dir, *settings, *elsewhere, method="tinyllm").run_id == ids[0]


def test_two_teachers_of_one_name_are_refused(tiny_llama_dir: Path) -> None:
    twice = f"teachers=[dir:{tiny_llama_dir},api:http://localhost:1/v1#tiny_llama]"
    with pytest.raises(UserError, match="both called 'tiny_llama'"):
        one_cell(tiny_llama_dir, twice, method="tinyllm")


def test_prices_are_charged(tiny_llama_dir: Path, tmp_path: Path) -> None:
    price = "annotations.prices={tiny_llama: [1.0, 2.0]}"
    cell = one_cell(tiny_llama_dir, f"teachers=[dir:{tiny_llama_dir}]", *SMALL, price, method="tinyllm")
    (outcome,) = run_all([cell], tmp_path)
    (counts,) = load_record(outcome.folder).annotations
    assert counts.cost is not None
    assert counts.cost.usd == pytest.approx((counts.cost.tokens_in + 2 * counts.cost.tokens_out) / 1e6, abs=1e-6)


def test_the_report_judges_recorded_and_live_teachers_together(tiny_llama_dir: Path) -> None:
    teachers = f"teachers=[replay:sample#terse,dir:{tiny_llama_dir}]"
    result = quality_reports(quick(tiny_llama_dir, teachers, *SMALL, methods=()), report=lambda event: None)
    assert [(report.task, report.teacher, report.n) for report in result] == [
        ("obqa", "terse", 6),
        ("obqa", "tiny_llama", 6),
    ]


def test_a_server_that_is_not_there_is_one_line(tiny_llama_dir: Path, tmp_path: Path) -> None:
    settings = ("teachers=[api:http://127.0.0.1:9/v1#big]", "annotations.api.attempts=1", "annotations.api.timeout=1")
    cell = one_cell(tiny_llama_dir, *settings, *SMALL, method="tinyllm")
    with pytest.raises(UserError, match="127.0.0.1:9"):
        run_all([cell], tmp_path)


@pytest.mark.parametrize(
    "ablation",
    [
        "annotations.demonstrations.shots=0",
        "annotations.kind=free",
        "annotations.kind=rationale_then_answer",
        "annotations.demonstrations.select=nearest",
        "annotations.demonstrations.select=stratified",
        "annotations.demonstrations.rationales=replay:sample#stepwise",
        "annotations.control=gold",
    ],
)
def test_the_ablations_run(ablation: str, tiny_llama_dir: Path, settings: tuple[str, ...], tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, *settings, ablation, method="tinyllm")
    (outcome,) = run_all([cell], tmp_path)
    record = load_record(outcome.folder)
    forced = "annotations.kind" not in ablation
    assert all(teacher.gold_visible is forced for teacher in record.teachers)
    assert record.score is not None and record.score.n == 16


@pytest.mark.parametrize("left", ["tiny_llama", "tiny_t5"])
def test_either_teacher_may_be_left_out(left: str, tiny_llama_dir: Path, tiny_t5_dir: Path, tmp_path: Path) -> None:
    folder = {"tiny_llama": tiny_llama_dir, "tiny_t5": tiny_t5_dir}[left]
    (outcome,) = run_all([one_cell(tiny_llama_dir, f"teachers=[dir:{folder}]", *SMALL, method="tinyllm")], tmp_path)
    assert [counts.teacher for counts in load_record(outcome.folder).annotations] == [left]
