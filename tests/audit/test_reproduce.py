"""A paper's table rerun: what is run, how a cell is judged, and what the page says."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import run_all
from tinyllm_bench.audit import reproduce as tables
from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.sources import load_split
from tinyllm_bench.experiment.plan_cells import plan_cells
from tinyllm_bench.leaderboard.record import load_record
from tinyllm_bench.leaderboard.reported import load_reported, reported_folder, reported_value
from tinyllm_bench.leaderboard.rows import Gain
from tinyllm_bench.leaderboard.stats.intervals import Estimate

pytestmark = pytest.mark.slow

REPORTED = load_reported(reported_folder())
NAMES = tables.reproductions()
every_table = pytest.mark.parametrize("name", NAMES)


def estimate(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high, None, 0.01, 10.0, "test", "test")


def gain(low: float, high: float) -> Gain:
    return Gain((low + high) / 2, low, high)


@every_table
def test_a_table_names_existing_methods_tasks_and_tables(name: str) -> None:
    reproduction = tables.load_reproduction(name)
    assert set(reproduction.methods) <= set(plugins.names("method")) and set(reproduction.tasks) <= set(
        plugins.names("task")
    )
    assert {reproduction.table, *reproduction.related_tables} <= {table.id for table in REPORTED.tables}
    assert reproduction.baseline in reproduction.methods
    for variant in ("as_published", "as_corrected"):
        assert reproduction.variant(variant).deviations  # type: ignore[arg-type]


def test_an_unknown_table_or_task_is_refused() -> None:
    with pytest.raises(UserError, match=f"Did you mean '{NAMES[0]}'"):
        tables.load_reproduction(f"{NAMES[0]}x")
    reproduction = tables.load_reproduction("tinyllm")
    arguments: dict[str, Any] = {"settings": (), "seeds": 1, "runs": Path("runs")}
    with pytest.raises(UserError, match="this table has obqa, arc"):
        tables.request_of(reproduction, "as_corrected", "cpu", tasks=("svamp",), **arguments)
    with pytest.raises(UserError, match="cpu or paper"):
        tables.request_of(reproduction, "as_corrected", "modern", tasks=(), **arguments)


@pytest.mark.parametrize(
    ("paper", "low", "high", "verdict"),
    [
        (0.50, 0.48, 0.55, "reproduced"),
        (0.50, 0.30, 0.60, "underpowered"),
        (0.50, 0.51, 0.60, "not reproduced"),
        (None, 0.4, 0.6, "not judged"),
    ],
)
def test_verdicts_of_values(paper: float | None, low: float, high: float, verdict: str) -> None:
    assert tables.verdict_of_value(paper, estimate(low, high)) == verdict
    assert tables.verdict_of_value(paper, None) == "not run"


@pytest.mark.parametrize(
    ("paper", "low", "high", "verdict"),
    [
        (0.06, 0.01, 0.09, "reproduced"),
        (0.06, -0.03, 0.09, "underpowered"),
        (0.06, -0.08, 0.02, "not reproduced"),
        (0.06, 0.07, 0.12, "not reproduced"),
        (-0.04, -0.06, -0.01, "reproduced"),
        (0.0, -0.02, 0.02, "underpowered"),
    ],
)
def test_verdicts_of_gains(paper: float, low: float, high: float, verdict: str) -> None:
    assert tables.verdict_of_gain(paper, gain(low, high)) == verdict
    assert (
        tables.verdict_of_gain(None, gain(low, high))
        == tables.verdict_of_gain(paper, Gain(why_not="other budget"))
        == "not judged"
    )
    assert tables.verdict_of_gain(paper, None) == "not run"


@pytest.mark.parametrize("variant", ["as_published", "as_corrected"])
def test_a_table_is_run_judged_and_written(variant: Any, tiny_llama_dir: Path, tmp_path: Path) -> None:
    reproduction = tables.load_reproduction("tinyllm")
    small = (
        *(f"student.model=dir:{tiny_llama_dir}", "data.source=sample", "backend.engine=hf", "eval.max_new_tokens=4"),
        *("teachers=[replay:sample#terse,replay:sample#stepwise]", "budget.student_tokens=9000"),
        *("data.markers={}", "train.eval_every=20", "train.batch_records=1", "train.learning_rate=1e-3"),
    )
    request = tables.request_of(
        reproduction, variant, "cpu", tasks=("obqa",), settings=small, seeds=1, runs=tmp_path / "reproduce"
    )
    cells = plan_cells(request)[1]
    outcomes = run_all(cells, request.runs)
    records = [load_record(outcome.folder) for outcome in outcomes]
    published = variant == "as_published"
    for record in records:
        assert record.training and record.selected_on == ("test" if published else "valid")
        assert record.test_evaluations == (1 + len(record.training.evaluations) if published else 1)
        assert ("to the letter" in record.protocol["metric"]) == published
        assert any("selected on the test split" in note for note in record.notes) == published
    steps = [evaluation.step for evaluation in records[0].training.evaluations]  # type: ignore[union-attr]
    assert steps[:-1] == list(range(20, 20 * len(steps), 20))
    judged = tables.judge(reproduction, records, REPORTED, ("obqa",), own_student=False)
    assert [(one.method, one.task) for one in judged] == [("finetune", "obqa"), ("tinyllm", "obqa")]
    assert judged[0].paper == pytest.approx(0.416) and judged[0].verdict == "not judged"
    assert judged[0].gain is not None and judged[0].gain.why_not == "baseline"
    assert judged[1].paper_gain == pytest.approx(0.06) and judged[1].gain is not None
    text = tables.table_text(reproduction, variant, judged, REPORTED, preset="cpu", student="tiny", own_student=False)
    page = tables.write_page(request.runs, reproduction.name, variant, text)
    assert page.read_text() == text and text.startswith("# TinyLLM's main table")
    assert "CPU scale with another student (tiny)" in text and "2602.01064" in text
    assert all(deviation in text for deviation in reproduction.variant(variant).deviations)


def planned(variant: Any, release: Path, student: Path, *settings: str, **arguments: Any) -> list[Any]:
    """The cells of TinyLLM's table on the real data, for a student that is never trained."""
    reproduction = tables.load_reproduction("tinyllm")
    own = (f"student.model=dir:{student}", f"data.dir={release}", "data.source=release", "backend.engine=hf", *settings)
    request = tables.request_of(
        reproduction, variant, "cpu", tasks=(), settings=own, seeds=1, runs=Path("runs"), **arguments
    )
    return plan_cells(request)[1]


def test_rejected_texts_are_counted_on_the_data(
    release: Path, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYLLM_BENCH_DATA", str(release))
    filtered = tables.filtered_texts(planned("as_corrected", release, tiny_llama_dir))
    share = {(one.task, one.teacher): sum(one.reasons.values()) / one.texts for one in filtered}
    second = {task: round(100 * share[task, "llama-2-7b"], 1) for task, key in share if key == "llama-2-7b"}
    assert second == {"obqa": 38.6, "arc": 28.5, "riddle": 27.5, "pubmedqa": 4.0, "bioasq": 3.3}
    assert max(value for (_, key), value in share.items() if key == "flan-t5-xl") < 0.02
    published = tables.filtered_texts(planned("as_published", release, tiny_llama_dir))
    assert {reason for one in published for reason in one.reasons} == {"empty", "nan"}
    assert sum(one.reasons.get("nan", 0) for one in published) == 105
    table = tables.load_reproduction("tinyllm")
    cells = tables.judge(table, [], REPORTED, ("obqa",), own_student=False)
    page = tables.table_text(
        table, "as_corrected", cells, REPORTED, preset="cpu", student="x", own_student=False, filtered=filtered
    )
    line = next(line for line in page.splitlines() if "38.6" in line).replace(
        "\\", ""
    )  # Markdown escapes the underscore
    assert all(word in line for word in ("obqa", "llama-2-7b", "4,957", "1,914", "prompt_junk 1,696"))


def test_as_published_says_which_texts_and_ends_it_does_not_learn() -> None:
    table = tables.load_reproduction("tinyllm")
    cells = tables.judge(table, [], REPORTED, ("obqa",), own_student=False)
    page = tables.table_text(table, "as_published", cells, REPORTED, preset="cpu", student="x", own_student=False)
    deviations = [line for line in page.splitlines() if line.startswith("- the released code")]
    assert any("trains on" in line and "texts that are 'nan'" in line for line in deviations)
    assert any("cuts at 256 tokens" in line and "end token" in line for line in deviations)


def test_as_published_prompts_are_cut_after_their_first_tokens(release: Path, tiny_t5_dir: Path) -> None:
    """The released code cuts the end of a prompt, so the passage's beginning must be there."""
    one = ("teachers=[replay:release#flan-t5-xl]", "data.markers={'rationale:flan-t5-xl': 'explain: '}")
    cells = planned("as_published", release, tiny_t5_dir, *one)
    cell = next(one for one in cells if one.task.name == "bioasq")
    whole = max(load_split(cell.source, "bioasq", "test"), key=lambda record: len(record.context))
    (record,) = [record for record in cell.truncated_records("test") if record.id == whole.id]
    assert record.context == whole.context and cell.config.data.cut_tokens == 100
    assert cell.config.eval.max_new_tokens == 63, "generation_max_length counts the start token"


def test_as_published_minillm_alone_trains_as_its_released_code(tiny_llama_dir: Path) -> None:
    reproduction = tables.load_reproduction("minillm")
    small = (f"student.model=dir:{tiny_llama_dir}", f"teacher.model=dir:{tiny_llama_dir}", "student.init=null")
    settings = (
        *small,
        "teacher.init={method: finetune, epochs: 1}",
        "data.source=sample",
        "budget.student_tokens=9000",
    )
    for variant, expected in (
        ("as_published", ("constant", 100, (0.9, 0.95), 1e-6)),
        ("as_corrected", ("linear", None, (0.9, 0.999), 0.0)),
    ):
        name: Any = variant
        request = tables.request_of(reproduction, name, "cpu", tasks=(), settings=settings, seeds=1, runs=Path("runs"))
        cells = {cell.name: cell for cell in plan_cells(request)[1]}
        train = cells["minillm"].config.train
        assert (train.scheduler, train.warmup_steps, train.betas, train.weight_decay) == expected
        assert (train.learning_rate, train.batch_records) == (5e-6, 64)
        assert cells["minillm"].config.method["parity"] == ("released_code" if variant == "as_published" else "paper")
        assert all(cells[name].config.train.scheduler == "linear" for name in ("finetune", "kd", "seqkd"))
        first = cells["minillm"].teacher_from
        assert first is not None and first.config.train.scheduler == "linear"
    given = tables.request_of(
        reproduction,
        "as_published",
        "cpu",
        tasks=(),
        settings=(*settings, "train.warmup_steps=7"),
        seeds=1,
        runs=Path("runs"),
    )
    assert {cell.config.train.warmup_steps for cell in plan_cells(given)[1]} == {7}, "the user's settings win"


def test_the_paper_s_own_student_is_recognised_by_its_spec() -> None:
    reproduction = tables.load_reproduction("tinyllm")
    assert tables.is_paper_student(REPORTED, "hf:google/flan-t5-small", reproduction)
    assert not tables.is_paper_student(REPORTED, "bundled:smollm2-135m", reproduction)
    value = reported_value(
        REPORTED, method="tinyllm", task="obqa", student=reproduction.paper_student, table=reproduction.table
    )
    assert value is not None and value.value == Decimal("47.60")
