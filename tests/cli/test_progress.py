"""Stages, rates and the time left, from events and a clock that the test sets."""

import pytest

from tests.cli.watched import Clock, Done, cell, step
from tinyllm_bench.base.events import (
    AnnotationFinished,
    CellStarted,
    LogitCacheOpened,
    LogitCacheProgress,
    PredictionProgress,
    PrerequisiteStarted,
    RunRecorded,
    TrainingFinished,
)
from tinyllm_bench.cli.progress import Meter, Progress, about_text, clock_text


def test_a_meter_counts_from_where_it_stood() -> None:
    meter = Meter()
    meter.update(0.0, 500, 1000, 5000)
    assert meter.rate is None and meter.left is None, "what was done before was not done in no time"
    meter.update(10.0, 600, 1000, 6000)
    assert meter.rate == 100 and meter.left == 40
    meter.update(11.0, 1, 1000, 10)
    assert meter.rate is None, "it starts anew with another teacher"


def test_a_cell_goes_through_its_stages() -> None:
    clock = Clock()
    progress = Progress([cell("a")], clock=clock)
    progress.cell(cell("a"))
    (row,) = progress.rows
    assert (row.state, row.stage) == ("running", "annotate")
    clock.now += 2
    progress.event(AnnotationFinished(8))
    assert row.stage == "train" and row.seconds == {"annotate": 2.0}
    progress.event(step(1))
    clock.now += 10
    progress.event(step(3))
    assert row.part == {"train": (3, 10)} and row.meter.rate == 20.0
    assert progress.left() is None, "nothing was asked yet"
    progress.event(TrainingFinished(10, 1.0))
    progress.event(PredictionProgress(32, 64))
    progress.event(RunRecorded(0.25))
    progress.done(Done(None, True))
    assert (row.state, row.accuracy, row.took) == ("done", 0.25, 12.0)


def test_a_reference_baseline_is_only_asked() -> None:
    progress = Progress([cell("a", kind="reference_baseline")])
    progress.cell(cell("a", kind="reference_baseline"))
    assert progress.rows[0].stage == "predict"


def test_a_stage_command_ends_with_its_stage() -> None:
    progress = Progress([cell("a"), cell("b", kind="reference_baseline")], until="train")
    assert [row.stages for row in progress.rows] == [("annotate", "train"), ()]


def test_what_trains_first_stands_under_its_cell() -> None:
    clock = Clock()
    progress = Progress([cell("a"), cell("b")], clock=clock)
    progress.cell(cell("a"))
    progress.event(PrerequisiteStarted("starter", "model"))
    progress.event(CellStarted("x", "starter", "quiz"))
    clock.now += 50
    assert [(row.run_id, row.prerequisite) for row in progress.rows] == [("a", False), ("x", True), ("b", False)]
    assert progress.current is progress.rows[1]
    progress.event(AnnotationFinished(8))
    progress.event(TrainingFinished(10, 1.0))
    assert progress.rows[1].state == "done" and progress.count("done") == 0
    progress.event(CellStarted("a", "learner", "quiz"))
    clock.now += 3
    progress.event(AnnotationFinished(8))
    assert progress.rows[0].seconds == {"annotate": 3.0}, "the other cell's training is not its own stage"


def test_a_failure_reaches_the_cell_and_what_trained_for_it() -> None:
    progress = Progress([cell("a")])
    progress.cell(cell("a"))
    progress.event(CellStarted("x", "starter", "quiz"))
    progress.failed("boom")
    assert [(row.state, row.error) for row in progress.rows] == [("failed", "boom")] * 2
    assert progress.left() == 0


def run_one(progress: Progress, clock: Clock, name: str, label: str, seconds: float) -> None:
    progress.cell(cell(name, label))
    for stage in ("annotate", "train"):
        clock.now += seconds / 2
        progress.event(AnnotationFinished(8) if stage == "annotate" else TrainingFinished(10, 1.0))
    clock.now += 10
    progress.event(RunRecorded(0.5))
    progress.done(Done(None, True))


def test_time_left_comes_from_the_cells_most_alike() -> None:
    clock = Clock()
    cells = [cell("a", "quick"), cell("b", "slow"), cell("c", "quick"), cell("d", "slow"), cell("e", "other")]
    progress = Progress(cells, clock=clock)
    run_one(progress, clock, "a", "quick", 100)
    assert progress.left() == 4 * 110, "all are like the only one that ran"
    run_one(progress, clock, "b", "slow", 300)
    assert progress.left() == 110 + 310 + 210


def test_time_left_counts_the_pace_of_the_cell_that_runs() -> None:
    clock = Clock()
    progress = Progress([cell("z", kind="reference_baseline"), cell("a"), cell("b")], clock=clock)
    progress.cell(cell("z", kind="reference_baseline"))
    clock.now += 5
    progress.event(RunRecorded(0.5))
    progress.done(Done(None, True))
    assert progress.left() is None, "no method has trained yet"
    progress.cell(cell("a"))
    progress.event(AnnotationFinished(8))
    progress.event(step(1))
    clock.now += 20
    progress.event(step(5))
    # 5 more steps of 5 s and 5 s of asking; then 45 s of training (20 elapsed, 25 to come) and 5 s of asking.
    assert progress.left() == pytest.approx(25 + 5 + 45 + 5)


def test_a_cell_of_an_earlier_call_costs_nothing() -> None:
    progress = Progress([cell("a")])
    progress.cell(cell("a"))
    progress.done(Done(None, False))
    assert progress.rows[0].state == "reused" and progress.left() == 0


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61, "1:01"), (3723, "1:02:03")])
def test_clock_text(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (100, "2 min"), (11700, "3 h 15 min")])
def test_about_text(seconds: float, text: str) -> None:
    assert about_text(seconds) == text


def test_a_logit_cache_that_fills_is_seen_before_the_training_and_not_taken_for_it() -> None:
    clock = Clock()
    progress = Progress([cell("a"), cell("b")], clock=clock)
    progress.cell(cell("a"))
    row = progress.rows[0]
    progress.event(AnnotationFinished(8))
    progress.event(LogitCacheOpened(40, 388))
    assert row.stage == "train" and row.logits == (0, 40)
    progress.event(LogitCacheProgress(10, 40))
    clock.now += 5
    progress.event(LogitCacheProgress(20, 40))
    assert row.logits == (20, 40) and row.meter.rate == 2.0 and row.meter.left == 10.0
    assert row.stage_left is None and progress.cell_left(row) is None, "the training has no pace yet"
    progress.event(step(1))
    clock.now += 10
    progress.event(step(3))
    assert row.logits is None and row.meter.rate == 20.0 and row.part == {"train": (3, 10)}
