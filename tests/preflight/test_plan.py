"""What a plan says is what a run then does: steps, tokens and FLOPs to the last one, wherever nothing is drawn."""

from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tinyllm_bench.base.files import read_json
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.preflight.estimate import CellPlan, Planner, totals
from tinyllm_bench.preflight.plan import plan_request
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

pytestmark = pytest.mark.slow

SHORT = ("data.train_limit=12", "eval.limit=8", "eval.valid_limit=4", "budget.student_tokens=2000")
NO_INIT = ("student.init=null", "teacher.init=null")
WRITTEN = ("annotations.engine=hf", "annotations.draw={temperature: 0, max_new_tokens: 6}")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"teacher.model=dir:{saved(tiny_llama(seed=1), tmp_path_factory.mktemp('teachers') / 'other')}"


def planned(cell: Cell, *, probe: bool = False) -> CellPlan:
    return Planner(probe=probe).add(cell)


def result_of(cell: Cell) -> dict[str, Any]:
    run_all([cell], cell.runs, until="train")
    found: dict[str, Any] = read_json(cell.runs / cell.run_id / "train" / "result.json")
    return found


def check_exact(plan: CellPlan, result: dict[str, Any]) -> None:
    counts = plan.counts
    assert counts is not None and counts["exact"]
    told = {key: counts[key] for key in ("steps", "tokens", "computed", "flops")}
    assert told == {
        "steps": result["steps"],
        "tokens": result["student_tokens"],
        "computed": result["computed_tokens"],
        "flops": result["flops"],
    }
    assert plan.looks == len(result["looks"]) and plan.layout == result["layout"]
    assert plan.epochs == pytest.approx(result["epochs"], abs=1e-4)


@pytest.mark.parametrize("method", ["finetune", "dss", "tinyllm", "kd"])
@pytest.mark.parametrize("layout", ["auto", "separate"])
def test_a_plan_is_exact(method: str, layout: str, tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    settings = (*SHORT, *NO_INIT, teacher, f"train.layout={layout}")
    cell = one_cell(tiny_llama_dir, *settings, method=method, runs=tmp_path)
    plan = planned(cell)
    check_exact(plan, result_of(cell))


@pytest.mark.parametrize("budget", ["epochs=2.4", "flops=2e9", "student_tokens=700"])
def test_in_every_unit_that_can_be_counted(budget: str, tiny_llama_dir: Path, tmp_path: Path) -> None:
    settings = (*SHORT, "budget.student_tokens=null", f"budget.{budget}", "train.micro_batch_tokens=200")
    cell = one_cell(tiny_llama_dir, *settings, method="tinyllm", runs=tmp_path)
    check_exact(planned(cell), result_of(cell))


def test_of_an_encoder_decoder_and_of_adapters(tiny_llama_dir: Path, tiny_t5_dir: Path, tmp_path: Path) -> None:
    t5 = one_cell(tiny_t5_dir, *SHORT, method="tinyllm", runs=tmp_path)
    check_exact(planned(t5), result_of(t5))
    lora = one_cell(tiny_llama_dir, *SHORT, "student.lora={r: 4}", method="finetune", runs=tmp_path)
    check_exact(planned(lora), result_of(lora))


def test_cells_that_come_first_are_planned_and_charged(tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    init = ("student.init={method: finetune, epochs: 1}", "teacher.init={method: finetune, epochs: 2}")
    cell = one_cell(tiny_llama_dir, *SHORT, teacher, *init, method="kd", runs=tmp_path)
    planner = Planner(probe=False)
    plan = planner.add(cell)
    assert list(planner.plans) == [*plan.first, cell.run_id] and len(plan.first) == 2
    result = result_of(cell)
    check_exact(plan, result)
    for first in cell.earlier:
        check_exact(planner.plans[first.run_id], read_json(tmp_path / first.run_id / "train" / "result.json"))


def test_students_of_each_channel(tiny_llama_dir: Path, tmp_path: Path) -> None:
    settings = ("teachers=[replay:sample#stepwise]", "backend.engine=hf", "method.max_new_tokens=8", *SHORT)
    how = {"method": "mixed_distillation", "tasks": ("svamp",)}
    cell = one_cell(tiny_llama_dir, *settings, runs=tmp_path, **how)
    planner = Planner(probe=False)
    planner.add(cell)
    run_all([cell], tmp_path, until="train")
    for one in cell.earlier:
        check_exact(planner.plans[one.run_id], read_json(tmp_path / one.run_id / "train" / "result.json"))


@pytest.mark.parametrize("name", ["gkd", "minillm"])
def test_what_is_drawn_is_an_estimate(name: str, tiny_llama_dir: Path, teacher: str, tmp_path: Path) -> None:
    """The probe draws with the very student, so that lengths are of its own texts, as long as it hardly changes."""
    settings = (*SHORT, *NO_INIT, teacher, f"method.{name}.max_new_tokens=8", "budget.student_tokens=6000")
    slow = ("train.batch_records=4", "train.learning_rate=1e-6")
    cell = one_cell(tiny_llama_dir, *settings, *slow, method=name, runs=tmp_path)
    plan = planned(cell, probe=True)
    assert plan.counts is not None and not plan.counts["exact"]
    result = result_of(cell)
    assert plan.counts["tokens"] == pytest.approx(result["student_tokens"], rel=0.05)
    assert plan.counts["computed"] == pytest.approx(result["computed_tokens"], rel=0.05)
    assert plan.counts["flops"] == pytest.approx(result["flops"], rel=0.05)
    assert plan.counts["drawn"] == pytest.approx(result["rollout_tokens"], rel=0.2)
    assert plan.counts["steps"] == pytest.approx(result["steps"], rel=0.05, abs=1)


def test_texts_that_nobody_wrote_yet_are_billed_once(
    tiny_llama_dir: Path, teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path / "cache"))
    price = "annotations.prices={other: [1.0, 2.0]}"
    settings = (*SHORT, *NO_INIT, *WRITTEN, teacher, price, "method.kd.response=teacher")
    cells = cells_of(quick(tiny_llama_dir, *settings, methods=("seqkd", "kd"), runs=tmp_path))
    planner = Planner(probe=False)
    first, second = (planner.add(cell) for cell in cells)
    assert first.counts is not None and not first.counts["exact"]
    (bill,) = first.texts
    assert (bill["kept"], bill["lacking"]) == (0, 12) and bill["tokens_in"] > 0 and 12 <= bill["tokens_out"] <= 12 * 6
    assert first.usd == pytest.approx((bill["tokens_in"] + 2 * bill["tokens_out"]) / 1e6)
    assert second.texts[0]["lacking"] == 0, "seqkd will have had them written"
    run_all(cells[:1], tmp_path, until="annotate")
    again = planned(cells[0])
    assert again.texts[0]["kept"] == 12 and again.texts[0]["lacking"] == 0
    check_exact(again, result_of(cells[0]))


def test_what_is_done_costs_nothing_more(tiny_llama_dir: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, *SHORT, runs=tmp_path)
    assert planned(cell).done == ()
    run_all([cell], tmp_path, until="train")
    trained = planned(cell)
    assert trained.done == ("train",) and trained.counts is None and not trained.is_done
    run_all([cell], tmp_path)
    finished = planned(cell)
    assert finished.is_done and finished.total_seconds == 0
    assert totals([finished], start=None, price=None)["student_tokens"] == 0


def test_a_probe_tells_times_and_writes_nothing(tiny_llama_dir: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    request = quick(tiny_llama_dir, *SHORT, methods=("finetune", "tinyllm"), runs=runs)
    found = plan_request(request, anchors=True, wished=0.3, price=3.6)
    assert not runs.exists()
    total = found["totals"]
    assert found["probe_seconds"] > 0 and total["seconds"] > total["start_seconds"] > 0
    assert total["usd_device"] == pytest.approx(total["seconds"] / 1000)
    assert all(cell["total_seconds"] is not None and cell["memory"] > 1e8 for cell in found["cells"])
    assert total["student_tokens"] == sum(cell["counts"]["tokens"] for cell in found["cells"] if cell["counts"])
    (told,) = found["detectable"]
    assert told["comparisons"] == 1 and 0 < told["difference"] <= 1 and told["wished"] == 0.3


def test_seconds_are_the_budget_itself(tiny_llama_dir: Path, tmp_path: Path) -> None:
    settings = (*SHORT, "budget.student_tokens=null", "budget.seconds=2")
    cell = one_cell(tiny_llama_dir, *settings, runs=tmp_path)
    unknown = planned(cell)
    assert unknown.counts is None and unknown.seconds is None
    plan = planned(cell, probe=True)
    assert plan.counts is not None and plan.seconds is not None
    assert plan.seconds["steps"] == 2 and plan.counts["steps"] > 1 and not plan.counts["exact"]
