"""The Python API does what the command line does, and loads nothing before it is used."""

import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tinyllm_bench
from tests.test_architecture import HEAVY, ROOT
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import AnnotationFinished, RunRecorded, TrainingFinished
from tinyllm_bench.leaderboard.record import RunRecord

LABELS = ["finetune", "tinyllm"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TINYLLM_BENCH_DATA", raising=False)
        patch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def small(student: Path) -> dict[str, Any]:
    return {"student": {"model": f"dir:{student}"}, "budget.student_tokens": 3000, "eval.valid_limit": 4}


class Seen:
    """A watch that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def cell(self, cell: Any, number: int, count: int) -> None:
        self.told.append(f"{cell.label} {number}/{count}")

    def event(self, event: Any) -> None:
        stages = {AnnotationFinished: "annotate", TrainingFinished: "train", RunRecorded: "record"}
        self.told += [stages[type(event)]] if type(event) in stages else []

    def done(self, cell: Any, outcome: Any) -> None:
        self.told.append("fresh" if outcome.fresh else "known")

    def failed(self, cell: Any, error: Exception, log: Path | None) -> None:
        self.told.append("failed")


@pytest.fixture(scope="module")
def result(tiny_llama_dir: Path, place: Path) -> Any:
    return tinyllm_bench.run(
        method="finetune, tinyllm", task="obqa", preset="quickstart", settings=small(tiny_llama_dir), runs_dir=place
    )


def test_importing_the_package_is_light() -> None:
    code = "import sys, tinyllm_bench; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert set(done.stdout.split()) & (HEAVY | {"pydantic", "tinyllm_bench.api"}) == set()


def test_what_the_package_offers() -> None:
    assert tinyllm_bench.__all__ == sorted(tinyllm_bench.__all__)
    assert all(getattr(tinyllm_bench, name) is not None for name in tinyllm_bench.__all__)
    assert set(tinyllm_bench.__all__) <= set(dir(tinyllm_bench)) and tinyllm_bench.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'rum'"):
        _ = tinyllm_bench.rum  # type: ignore[attr-defined]
    assert (Path(tinyllm_bench.__file__).parent / "py.typed").is_file()


def test_results_are_records(result: Any, place: Path) -> None:
    assert [record.label for record in result.records] == LABELS and result.failed == ()
    assert all(isinstance(record, RunRecord) for record in result.records)
    for record in result.records:
        assert tinyllm_bench.load_record(result.folder(record)) == record
        assert "--no-reference-baselines" in record.command and "budget.student_tokens=3000" in record.command


def test_the_kept_command_gives_the_same_cells(result: Any, tiny_llama_dir: Path, place: Path) -> None:
    """As far as a record may tell: the student's folder is not in it."""
    from tinyllm_bench.experiment.plan_cells import plan_cells
    from tinyllm_bench.experiment.request import Request

    words = shlex.split(result.records[0].command)
    settings = [word for word in words if "=" in word and not word.startswith("student.model=")]
    assert words[:2] == ["tinyllm-bench", "run"] and words[words.index("--method") + 1] == "finetune,tinyllm"
    request = Request(
        methods=("finetune", "tinyllm"),
        tasks=("obqa",),
        preset=words[words.index("--preset") + 1],
        assignments=(f"student.model=dir:{tiny_llama_dir}", *settings),
        runs=place,
    )
    assert [cell.run_id for cell in plan_cells(request)[1]] == [record.run_id for record in result.records]


def test_again_it_reads_back_what_is_there(result: Any, tiny_llama_dir: Path, place: Path) -> None:
    seen, folder = Seen(), str(tiny_llama_dir)
    flat = {"student.model": f"dir:{folder}", "budget": {"student_tokens": 3000}, "eval": {"valid_limit": 4}}
    again = tinyllm_bench.run(
        method=LABELS, task=["obqa"], preset="quickstart", settings=flat, runs_dir=str(place), watch=seen
    )
    assert seen.told == ["finetune 1/2", "known", "tinyllm 2/2", "known"]
    assert again.records == result.records


def test_the_table_is_the_board_s(result: Any, tmp_path: Path) -> None:
    table = result.table()
    assert list(table["method"]) == LABELS and list(table["n"]) == [16, 16]
    page = result.board(tmp_path / "board").read_text()
    for line in table.itertuples():
        assert line.low < line.accuracy < line.high
        assert f"{100 * line.low:.1f} to {100 * line.high:.1f}" in page


def test_a_comparison(result: Any, place: Path) -> None:
    baseline, trained = result.records
    (one,) = tinyllm_bench.compare(trained, baseline).comparisons
    (same,) = tinyllm_bench.compare("tinyllm", "finetune", place=place).comparisons
    assert one.estimate == same.estimate
    assert one.estimate.value == pytest.approx(trained.accuracy - baseline.accuracy)
    (same,) = tinyllm_bench.compare(result.folder(trained), result.folder(baseline)).comparisons
    assert one.estimate == same.estimate
    with pytest.raises(UserError, match="two records, or two names"):
        tinyllm_bench.compare(trained, result.folder(baseline))


@pytest.mark.parametrize(
    ("wrong", "output"),
    [
        ({"method": "finetun"}, "Did you mean 'finetune'"),
        ({"settings": {"train": {"learning_rat": 1}}}, "Did you mean 'train.learning_rate'"),
        ({"settings": {"train.learning_rate": object()}}, "a setting is a number, a text"),
        ({"seeds": 0}, "at least 1 is needed"),
        ({"method": ()}, "nothing to run"),
    ],
)
def test_a_wrong_request_raises(wrong: dict[str, Any], output: str, tmp_path: Path) -> None:
    asked = {"method": "finetune", "task": "obqa", "preset": "quickstart", "runs_dir": tmp_path} | wrong
    with pytest.raises(UserError, match=output):
        tinyllm_bench.run(**asked)
    assert list(tmp_path.iterdir()) == []


def test_a_cell_that_fails_stops_no_other(
    result: Any, tiny_llama_dir: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinyllm_bench.base.plugins import load_method

    def broken(self: Any, *arguments: Any) -> Any:
        raise RuntimeError("the loss is broken")

    monkeypatch.setattr(load_method("finetune"), "loss", broken)
    seen = Seen()
    settings = small(tiny_llama_dir) | {"train.learning_rate": 2e-3}
    found = tinyllm_bench.run(
        method=LABELS, task="obqa", preset="quickstart", settings=settings, runs_dir=place, watch=seen
    )
    assert [record.label for record in found.records] == ["tinyllm"]
    (failed,) = found.failed
    assert failed.label == "finetune" and isinstance(failed.error, RuntimeError)
    assert failed.log is not None and "the loss is broken" in failed.log.read_text()
    assert seen.told.count("failed") == 1


@pytest.mark.slow
def test_the_notebook_runs(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NOTEBOOK_STUDENT", f"dir:{tiny_llama_dir}")
    monkeypatch.setenv("NOTEBOOK_RUNS", str(tmp_path / "runs"))
    runpy.run_path(str(ROOT / "examples" / "notebook.py"))
    output = capsys.readouterr().out
    assert "finetune" in output and "points (" in output and (tmp_path / "runs" / "board" / "index.html").is_file()
