"""A forecast is what a run then does: steps, tokens and FLOPs exactly, unless something is sampled."""

from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tests.preflight import doctor_plants as plants
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_json
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.predict import Engines
from tinyllm_bench.experiment.runner import run_cell
from tinyllm_bench.preflight.forecast import CellForecast, forecast
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

pytestmark = pytest.mark.slow

SHORT = ("data.train_limit=12", "eval.limit=8", "eval.valid_limit=4", "budget.student_tokens=2000")
NO_INIT = ("student.init=null", "teacher.init=null")
WRITTEN = ("annotations.engine=hf", "annotations.sampling={temperature: 0, max_new_tokens: 6}")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"teacher.model=dir:{saved(tiny_llama(seed=1), tmp_path_factory.mktemp('teachers') / 'other')}"


def planned(cell: Cell) -> CellForecast:
    return forecast([cell], speed=plants.speed).cell(cell.run_id)


def result_of(cell: Cell) -> dict[str, Any]:
    run_all([cell], cell.runs, until="train")
    result: dict[str, Any] = read_json(cell.runs / cell.run_id / "train" / "result.json")
    return result


def check_exact(plan: CellForecast, result: dict[str, Any]) -> None:
    counts = plan.counts
    assert counts is not None and counts.exact
    assert (counts.steps, counts.tokens) == (result["steps"], result["student_tokens"])
    assert (counts.computed, counts.flops) == (result["computed_tokens"], result["flops"])
    assert plan.evaluations == len(result["evaluations"]) and plan.layout == result["layout"]
    assert plan.epochs == pytest.approx(result["epochs"], abs=1e-4)


@pytest.mark.parametrize("method", ["finetune", "dss", "tinyllm", "kd"])
@pytest.mark.parametrize("layout", ["auto", "separate"])
def test_a_plan_is_exact(method: str, layout: str, tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    settings = (*SHORT, *NO_INIT, teacher, f"train.layout={layout}")
    cell = one_cell(tiny_llama_dir, *settings, method=method, runs=tmp_path)
    plan = planned(cell)
    check_exact(plan, result_of(cell))


@pytest.mark.parametrize("budget", ["epochs=2.4", "flops=2e9", "student_tokens=700"])
def test_a_plan_is_exact_in_every_unit_that_can_be_counted(budget: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    settings = (*SHORT, "budget.student_tokens=null", f"budget.{budget}", "train.micro_batch_tokens=200")
    cell = one_cell(tiny_llama_dir, *settings, method="tinyllm", runs=tmp_path)
    check_exact(planned(cell), result_of(cell))


def test_a_plan_of_an_encoder_decoder_and_of_adapters_is_exact(
    tiny_llama_dir: Path, tiny_t5_dir: Path, tmp_path: Path
) -> None:
    t5 = one_cell(tiny_t5_dir, *SHORT, method="tinyllm", runs=tmp_path)
    check_exact(planned(t5), result_of(t5))
    lora = one_cell(tiny_llama_dir, *SHORT, "student.lora={r: 4}", method="finetune", runs=tmp_path)
    check_exact(planned(lora), result_of(lora))


def test_cells_that_run_first_are_planned_and_charged(tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    init = ("student.init={method: finetune, epochs: 1}", "teacher.init={method: finetune, epochs: 2}")
    cell = one_cell(tiny_llama_dir, *SHORT, teacher, *init, method="kd", runs=tmp_path)
    plans = forecast([cell], speed=plants.speed)
    plan = plans.cell(cell.run_id)
    assert [one.run_id for one in plans.cells] == [*plan.first, cell.run_id] and len(plan.first) == 2
    result = result_of(cell)
    check_exact(plan, result)
    for first in cell.prerequisites:
        check_exact(plans.cell(first.run_id), read_json(tmp_path / first.run_id / "train" / "result.json"))


def test_a_plan_of_one_student_per_channel_is_exact(tiny_llama_dir: Path, tmp_path: Path) -> None:
    settings = ("teachers=[replay:sample#stepwise]", "backend.engine=hf", "method.max_new_tokens=8", *SHORT)
    how = {"method": "mixed_distillation", "tasks": ("svamp",)}
    cell = one_cell(tiny_llama_dir, *settings, runs=tmp_path, **how)
    plans = forecast([cell], speed=plants.speed)
    run_all([cell], tmp_path, until="train")
    for one in cell.prerequisites:
        check_exact(plans.cell(one.run_id), read_json(tmp_path / one.run_id / "train" / "result.json"))


@pytest.mark.parametrize("name", ["gkd", "minillm"])
def test_sampled_texts_are_an_estimate(name: str, tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    """Sampled texts are assumed to be as long as the given ones; an untrained student writes to its limit instead."""
    settings = (*SHORT, *NO_INIT, teacher, f"method.{name}.max_new_tokens=8", "budget.student_tokens=6000")
    slow = ("train.batch_records=4", "train.learning_rate=1e-6")
    cell = one_cell(tiny_llama_dir, *settings, *slow, method=name, runs=tmp_path)
    counts = planned(cell).counts
    assert counts is not None and not counts.exact
    result = result_of(cell)
    assert counts.tokens == pytest.approx(result["student_tokens"], rel=0.05)
    assert counts.computed == pytest.approx(result["computed_tokens"], rel=0.05)
    assert counts.flops == pytest.approx(result["flops"], rel=0.1)
    assert counts.sampled_tokens == pytest.approx(result["rollout_tokens"], rel=0.4)
    assert counts.steps == pytest.approx(result["steps"], rel=0.05, abs=1)


def test_missing_texts_are_billed_once(
    tiny_llama_dir: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path / "cache"))
    price = "annotations.prices={other: [1.0, 2.0]}"
    settings = (*SHORT, *NO_INIT, *WRITTEN, teacher, price, "method.kd.response=teacher")
    cells = cells_of(quick(tiny_llama_dir, *settings, methods=("seqkd", "kd"), runs=tmp_path))
    first, second = forecast(cells, speed=plants.speed).cells
    assert first.counts is not None and not first.counts.exact
    (cost,) = first.texts
    assert (cost.cached, cost.missing) == (0, 12) and cost.tokens_in > 0 and 12 <= cost.tokens_out <= 12 * 6
    assert first.usd == pytest.approx((cost.tokens_in + 2 * cost.tokens_out) / 1e6)
    assert (first.seconds["texts"] or 0) > 0 == second.seconds["texts"]
    assert second.texts[0].missing == 0, "seqkd will have written them"
    run_all(cells[:1], tmp_path, until="annotate")
    again = planned(cells[0])
    assert again.texts[0].cached == 12 and again.texts[0].missing == 0
    check_exact(again, result_of(cells[0]))


def test_finished_work_costs_nothing(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, *SHORT, runs=tmp_path)
    assert planned(cell).done == ()
    run_all([cell], tmp_path, until="train")
    trained = planned(cell)
    assert trained.done == ("train",) and trained.counts is None and not trained.is_done
    run_all([cell], tmp_path)
    finished = planned(cell)
    assert finished.is_done and finished.total_seconds == 0
    assert forecast([cell], speed=plants.speed).totals.student_tokens == 0


def test_totals_and_time_follow_from_the_counts(tiny_llama_dir: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    cells = cells_of(
        quick(tiny_llama_dir, *SHORT, methods=("finetune", "tinyllm"), runs=runs), reference_baselines=True
    )
    plans = forecast(cells, speed=plants.speed, detect=0.3, price=3.6)
    assert not runs.exists(), "nothing is written"
    total = plans.totals
    counts = [one.counts for one in plans.cells if one.counts]
    assert total.flops == sum(one.flops for one in counts) and total.student_tokens == sum(one.tokens for one in counts)
    trained = [one for one in plans.cells if one.counts]
    assert [one.seconds["training"] for one in trained] == [pytest.approx(one.flops / 4e10) for one in counts]
    assert total.seconds == pytest.approx(sum(one.total_seconds or 0 for one in plans.cells)) and total.seconds > 0
    assert total.usd_device == pytest.approx(total.seconds / 1000) and plans.matmul_flops == {"float32": 1e11}
    assert all(one.memory > 1e8 for one in plans.cells)
    (one,) = plans.detectable
    assert one.comparisons == 1 and 0 < one.difference <= 1 and one.detect == 0.3


def test_a_budget_in_seconds_ends_by_the_speed(tiny_llama_dir: Path, tmp_path: Path) -> None:
    settings = (*SHORT, "budget.student_tokens=null", "budget.seconds=2")
    cell = one_cell(tiny_llama_dir, *settings, runs=tmp_path)
    plan = planned(cell)
    assert plan.counts is not None and plan.counts.steps > 1 and not plan.counts.exact
    assert plan.seconds["training"] == pytest.approx(2, rel=0.05)


def test_seeds_share_everything_but_the_order(tiny_llama_dir: Path, tmp_path: Path) -> None:
    request = quick(tiny_llama_dir, *SHORT, methods=("tinyllm",), runs=tmp_path, seeds=2)
    both = forecast(cells_of(request), speed=plants.speed)
    alone = [planned(cell) for cell in cells_of(request)]
    assert list(both.cells) == alone and both.cells[0].counts != both.cells[1].counts


def test_a_cache_of_distributions_is_filled_once(tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    cache = "teacher.cache={k: 4}"
    cells = cells_of(quick(tiny_llama_dir, *SHORT, *NO_INIT, teacher, cache, methods=("kd",), runs=tmp_path, seeds=2))
    first, second = forecast(cells, speed=plants.speed).cells
    assert first.disk.logits > 0 == second.disk.logits and (first.seconds["logits"] or 0) > 0


@pytest.mark.parametrize("lora", ["null", "{r: 4}"])
def test_disk_is_a_close_upper_bound(lora: str, tmp_path: Path) -> None:
    """A student of 5 million parameters that saves checkpoints at every step: what its folder grows to."""
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    student = saved(tiny_llama(**wide), tmp_path / "student")
    settings = (*SHORT, f"student.lora={lora}", "train.checkpoint_seconds=0")
    cell = one_cell(student, *settings, runs=tmp_path / "runs")
    disk, folder, most = planned(cell).disk, tmp_path / "runs" / cell.run_id, 0

    def size() -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    def watch(event: Any) -> None:
        nonlocal most
        most = max(most, size())

    with Engines() as engines:
        run_cell(cell, cell.runs, engines, command="test", report=watch)
    assert 0.8 * disk.final - 4 * 2**20 < size() <= disk.final
    assert most <= disk.peak


def test_a_cell_that_cannot_be_forecast_says_why(tiny_llama_dir: Path, tmp_path: Path) -> None:
    init = ("student.init={method: finetune, epochs: 9}", "budget.student_tokens=300")
    cells = cells_of(quick(tiny_llama_dir, *SHORT, *init, methods=("finetune",), runs=tmp_path))
    with pytest.raises(UserError, match="took"):
        forecast(cells, speed=plants.speed)
    first, cell = forecast(cells, speed=plants.speed, tolerant=True).cells
    assert first.problem is None and "took" in (cell.problem or "") and cell.charged > 300
    assert cell.total_seconds is None and cell.counts is None
