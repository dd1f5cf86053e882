"""`report_to`: what trackers log, by TensorBoard's own files and by fakes of accelerate's interface."""

from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
from accelerate.tracking import GeneralTracker

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Evaluation, TrackerFailed, TrainingStep
from tinyllm_bench.base.files import read_checked
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.plan_cells import plan_cells
from tinyllm_bench.experiment.trackers import PROJECT, Trackers, evaluation_values, step_values

pytestmark = pytest.mark.slow

Calls = list[tuple[str, Any]]


class FakeTracker(GeneralTracker):
    """Records its calls; fails at the call that `fails` names."""

    name = "fake"
    requires_logging_directory = False
    calls: Calls = []
    fails: str | None = None

    def __init__(self, project: str, **kwargs: Any) -> None:
        super().__init__()
        self._keep("made", (project, kwargs))

    def _keep(self, what: str, value: Any) -> None:
        self.calls.append((what, value))
        if what == self.fails:
            raise ConnectionError("no network at https://me:secret@host/x")

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        self._keep("start", None)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._keep("settings", values)

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._keep("log", (step, values))

    def finish(self) -> None:
        self._keep("finish", None)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A fake in the place of wandb, trackio and mlflow; its calls."""
    for name in ("wandb", "trackio", "mlflow"):
        monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, FakeTracker)
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["wandb", "trackio", "mlflow"])
    monkeypatch.setattr(FakeTracker, "calls", [])
    monkeypatch.setattr(FakeTracker, "fails", None)
    return FakeTracker.calls


def test_a_tracker_changes_no_cell(tiny_llama_dir: Path, fake: Calls) -> None:
    plain = one_cell(tiny_llama_dir)
    for asked in ("report_to=wandb", "report_to=[wandb,mlflow]"):
        assert one_cell(tiny_llama_dir, asked).run_id == plain.run_id


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_one_that_is_not_installed_is_refused_with_the_line_that_installs_it(
    tiny_llama_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate.tracking, "_available_trackers", ["tensorboard"])
    with pytest.raises(UserError, match=f"report_to={name}: {name} is not installed; pip install {name}"):
        plan_cells(quick(tiny_llama_dir, f"report_to={name}"))


def test_an_unknown_one_is_refused_with_those_that_are_known(tiny_llama_dir: Path) -> None:
    with pytest.raises(UserError, match="report_to.*'trackio', 'wandb', 'mlflow' or 'tensorboard'"):
        plan_cells(quick(tiny_llama_dir, "report_to=[wandbb]"))


def test_a_tracker_logs_settings_steps_evaluations_and_the_result(
    tiny_llama_dir: Path, fake: Calls, tmp_path: Path
) -> None:
    cell = one_cell(tiny_llama_dir, "report_to=wandb")
    (outcome,) = run_all([cell], tmp_path)
    record = outcome.record
    assert record is not None and record.training is not None and record.score is not None
    assert [what for what, _ in fake[:3]] == ["made", "start", "settings"] and fake[-1][0] == "finish"
    assert fake[0][1][0] == PROJECT and fake[0][1][1]["id"] == cell.run_id
    logged = [value for what, value in fake if what == "log"]
    rows = list(read_checked(outcome.folder / "train" / "metrics.jsonl"))
    losses = [(step, values["train/loss"]) for step, values in logged if "train/loss" in values]
    assert losses == [(row["step"], row["loss"]) for row in rows if row["event"] == "training_step"] and len(losses) > 4
    looked = [(step, values["valid/accuracy"]) for step, values in logged if "valid/accuracy" in values]
    assert looked == [(one.step, one.accuracy) for one in record.training.evaluations]
    step, result = logged[-1]
    assert step == record.training.steps == max(step for step, _ in logged), "wandb takes no step back"
    assert result["test/accuracy"] == record.accuracy and result["test/correct"] == record.score.correct
    assert record.budget is not None and result["spent/student_tokens"] == record.budget.student_tokens
    assert "report_to" not in record.config and "report_to" not in (outcome.folder / "config.yaml").read_text()
    before = len(fake)
    run_all([cell], tmp_path)
    assert len(fake) == before, "a finished cell tells nothing again"


def events_of(cell: Cell, folder: Path) -> list[Any]:
    """Tell two steps to a cell's trackers; what they report."""
    events: list[Any] = []
    with Trackers(cell, folder, events.append) as trackers:
        for number in (1, 2):
            trackers.event(TrainingStep(number, 2, 1.0, {"label": 1.0}, learning_rate=0.1, tokens=5))
    return events


def test_settings_are_plain_and_hold_no_machine_path(tiny_llama_dir: Path, fake: Calls, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, "report_to=mlflow")
    assert events_of(cell, tmp_path) == []
    settings = next(value for what, value in fake if what == "settings")
    assert settings["run_id"] == cell.run_id and settings["train.learning_rate"] == 3e-3
    assert all(value is None or isinstance(value, bool | int | float | str) for value in settings.values())
    assert "report_to" not in settings and "data.dir" not in settings
    assert str(tiny_llama_dir.parent) not in str(settings) and settings["student.model"] == "dir:tiny_llama"


@pytest.mark.parametrize("call", ["start", "settings", "log", "finish"])
def test_a_tracker_that_fails_gets_no_more_values(
    tiny_llama_dir: Path, fake: Calls, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTracker, "fails", call)
    events = events_of(one_cell(tiny_llama_dir, "report_to=wandb"), tmp_path)
    assert events == [TrackerFailed("wandb", "ConnectionError: no network at https://host/x")]
    assert [what for what, _ in fake].count(call) == 1 and fake[-1][0] == call


def test_reference_baselines_log_their_result(tiny_llama_dir: Path, fake: Calls, tmp_path: Path) -> None:
    cells = cells_of(quick(tiny_llama_dir, "report_to=wandb", methods=()), reference_baselines=True)
    run_all([cell for cell in cells if cell.name == "random"], tmp_path)
    ((step, values),) = [value for what, value in fake if what == "log"]
    assert step == 0 and values["test/accuracy"] == 0.25


def test_tensorboard_for_real(tiny_llama_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (outcome,) = run_all([one_cell(tiny_llama_dir, "report_to=tensorboard")], tmp_path)
    record = outcome.record
    assert record is not None and record.training is not None
    actual = EventAccumulator(str(outcome.folder / "tensorboard")).Reload()
    rows = [row for row in read_checked(outcome.folder / "train" / "metrics.jsonl") if row["event"] == "training_step"]
    losses = actual.Scalars("train/loss")
    assert [one.step for one in losses] == [row["step"] for row in rows]
    assert [one.value for one in losses] == pytest.approx([row["loss"] for row in rows])
    assert [one.value for one in actual.Scalars("test/accuracy")] == pytest.approx([record.accuracy])
    assert [one.step for one in actual.Scalars("valid/accuracy")] == [one.step for one in record.training.evaluations]


def test_values_by_names() -> None:
    step = TrainingStep(1, 2, 3.0, {"a": 1.0, "b:c": 2.0}, learning_rate=0.1, tokens=5, measured={"length": 4.0})
    assert step_values(step) == {
        "train/loss": 3.0,
        "train/learning_rate": 0.1,
        "train/tokens": 5,
        "train/loss/a": 1.0,
        "train/loss/b_c": 2.0,
        "train/length": 4.0,
    }
    evaluation = Evaluation(1, 0.5, 0.5, None, 8, loss=2.0, probe={"reverse_kl": 1.0})
    assert evaluation_values(evaluation) == {"valid/accuracy": 0.5, "valid/loss": 2.0, "valid/reverse_kl": 1.0}
