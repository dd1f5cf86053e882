"""What a person sees while cells run."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.watched import Clock, Done, cell
from tinyllm_bench.base.events import (
    AnnotationFailed,
    AnnotationFinished,
    AnnotationProgress,
    CellStarted,
    Evaluation,
    Event,
    LogitCacheOpened,
    LogitCacheProgress,
    PredictionProgress,
    PrerequisiteStarted,
    RunRecorded,
    StudentEvaluated,
    TrackerFailed,
    TrainingFinished,
    TrainingResumed,
    TrainingStep,
)
from tinyllm_bench.cli.console import Console, describe, on_terminal

STEP = TrainingStep(3, 8, 1.23456, by_channel={}, learning_rate=1e-4, tokens=12345)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (STEP, "step 3/8  loss 1.235  12,345 tokens"),
        (
            StudentEvaluated(Evaluation(4, 0.5, 0.25, 0.3, 8)),
            "validation at 50 %: accuracy 25.0 % of 8",
        ),
        (
            StudentEvaluated(Evaluation(4, 0.5, 0.25, 0.3, 8, 1.23456, {"reverse_kl": 0.5, "length": 3.0})),
            "validation at 50 %: accuracy 25.0 % of 8, loss 1.2346, reverse_kl 0.5, length 3",
        ),
        (LogitCacheOpened(8, 388), "logit cache: 8 responses to score, 388 bytes per token"),
        (LogitCacheProgress(5, 8), "logit cache: 5/8 responses"),
        (PrerequisiteStarted("finetune", "dir:x"), "first: finetune on dir:x"),
        (AnnotationProgress("t", 5, 9), "t: 5/9 texts"),
        (
            AnnotationFailed("t", 2, 9, "the server said 500"),
            "t: 2 of 9 texts are not available: the server said 500",
        ),
        (PredictionProgress(5, 9), "answered 5/9 test questions"),
        (TrainingResumed(5, 9), "resumes after step 5 of 9"),
        (RunRecorded(0.5), "recorded: accuracy 50.0 %"),
        (TrackerFailed("t", "no network"), "t gets no more values: no network"),
        (CellStarted("some-run", "x", "y"), None),
    ],
)
def test_events_in_words(event: Event, words: str | None) -> None:
    assert describe(event) == words


def test_a_log_keeps_the_last_step_and_few_others(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        for step in range(1, 9):
            console.event(replace(STEP, step=step))
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 2 and lines[-1].startswith("  step 8/8")


def test_a_log_thins_steps_by_time_and_tells_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Console(cells := [cell("a")], clock=clock) as console:
        console.cell(cells[0], 1, 1)
        for step in range(1, 9):
            console.event(replace(STEP, step=step, tokens=1000 * step))
            clock.now += 4
    assert capsys.readouterr().err.splitlines() == [
        "[1/1] learner on quiz, seed 0",
        "  step 1/8  loss 1.235  1,000 tokens",
        "  step 4/8  loss 1.235  4,000 tokens, 250 tokens/s, 0.3 min left",
        "  step 7/8  loss 1.235  7,000 tokens, 250 tokens/s, 0.1 min left",
        "  step 8/8  loss 1.235  8,000 tokens, 250 tokens/s, 0.0 min left",
    ]


def test_a_log_says_when_all_will_be_done_as_soon_as_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    cells = [cell("a"), cell("b"), cell("c")]
    with Console(cells, clock=clock) as console:
        for number, one in enumerate(cells, start=1):
            console.cell(one, number, 3)
            clock.now += 100
            for event in (AnnotationFinished(8), TrainingFinished(10, 1.0)):
                console.event(event)
            console.event(RunRecorded(0.5))
            console.done(one, Done(None, True))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines == [
        "[1/3] learner on quiz, seed 0",
        "[2/3] learner on quiz, seed 0 (about 3 min left for all)",
        "[3/3] learner on quiz, seed 0 (about 2 min left for all)",
    ]


def test_a_log_shows_how_far_the_logit_cache_is(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Console(clock=clock) as console:
        console.event(LogitCacheOpened(30, 388))
        for done in range(1, 31):
            console.event(LogitCacheProgress(done, 30))
            clock.now += 1
    assert capsys.readouterr().err.splitlines() == [
        "  logit cache: 30 responses to score, 388 bytes per token",
        "  logit cache: 1/30 responses",
        "  logit cache: 11/30 responses",
        "  logit cache: 21/30 responses",
        "  logit cache: 30/30 responses",
    ]


def test_a_failed_cell_is_told_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    one = cell("a")
    with Console([one]) as console:
        console.cell(one, 1, 1)
        console.failed(one, RuntimeError("boom"), Path("runs/a/error.log"))
    assert capsys.readouterr().err.splitlines()[-1] == "failed: RuntimeError: boom (traceback in runs/a/error.log)"
    assert console.progress.rows[0].state == "failed"


@pytest.mark.parametrize("name", ["RANK", "OMPI_COMM_WORLD_RANK"])
def test_of_several_processes_only_the_main_one_speaks(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell("a")
    for rank, lines in (("0", 2), ("1", 0)):
        monkeypatch.setenv(name, rank)
        with Console([one]) as console:
            console.cell(one, 1, 1)
            console.event(STEP)
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_a_terminal_gets_a_live_view_and_a_dumb_one_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for term, live in (("xterm-256color", True), ("dumb", False), ("", False)):
        monkeypatch.setenv("TERM", term)
        assert on_terminal() == live
