"""A worker process: answers, refusals, deaths, silence, and a new process after each."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.vllm_worker import WorkerFailed, WorkerProcess, forget_failures


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    forget_failures()
    with WorkerProcess(
        "tests.generation.echo_worker", name="Echo", advice="Or shout.", environment={"ECHO_VARIABLE": "ours"}
    ) as process:
        yield process


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_answers_come_back_and_what_it_prints_does_not(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.pid is None
    assert worker.ask({"op": "say", "text": "héllo\n"}) == {"ok": "héllo\n", "variable": "ours"}
    first = worker.pid
    with pytest.raises(UserError, match="^that is not available; request something else$"):
        worker.ask({"op": "refuse"})
    assert worker.ask({"op": "say", "text": 1})["ok"] == 1 and worker.pid == first
    worker.stop()
    assert first is not None and not is_running(first)
    monkeypatch.setenv("ECHO_VARIABLE", "theirs")
    assert worker.ask({"op": "say", "text": 2}) == {"ok": 2, "variable": "theirs"}


def test_a_death_and_a_failure_are_reported_with_the_end_of_the_log(worker: WorkerProcess) -> None:
    with pytest.raises(UserError, match=r"the Echo process died at 'die'; its log ends: .*last words\. Or shout\."):
        worker.ask({"op": "die"})
    assert worker.pid is None
    with pytest.raises(UserError, match="Echo failed at 'fail': RuntimeError: the engine broke; its log ends"):
        worker.ask({"op": "fail"})
    assert worker.pid is None
    assert worker.ask({"op": "say", "text": "again"})["ok"] == "again"


def test_silence_has_a_limit(worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllm_bench.generation.vllm_worker._STOP_SECONDS", 0.1)
    worker.ask({"op": "say", "text": ""})
    pid, began = worker.pid, time.monotonic()
    with pytest.raises(UserError, match="Echo did not answer within 0 s"):
        worker.ask({"op": "sleep"}, 0.1)
    assert time.monotonic() - began < 20 and pid is not None and not is_running(pid)


def test_the_log_is_written_to_the_given_file(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "echo.log"
    with WorkerProcess("tests.generation.echo_worker", name="Echo", log=log) as worker:
        worker.ask({"op": "say", "text": ""})
    assert "a library's own words" in log.read_text()


def test_what_could_not_be_started_is_not_tried_again_in_a_run(worker: WorkerProcess) -> None:
    with pytest.raises(WorkerFailed) as first:
        worker.start({"op": "fail"}, what="a model")
    with pytest.raises(UserError, match="Echo is not tried again in this run") as again:
        worker.start({"op": "fail"}, what="a model")
    assert worker.pid is None, "no process was started for it"
    assert str(first.value) in str(again.value) and "Or shout." in str(again.value)
    assert "\n" not in str(again.value)
    assert worker.start({"op": "say", "text": 1}, what="another model")["ok"] == 1
    with pytest.raises(UserError, match="^that is not available"):
        worker.start({"op": "refuse"}, what="a third")
    with pytest.raises(UserError, match="^that is not available"):  # the user's own mistake, and cheap to repeat
        worker.start({"op": "refuse"}, what="a third")
    forget_failures()
    with pytest.raises(WorkerFailed, match="the engine broke"):
        worker.start({"op": "fail"}, what="a model")


def test_after_two_deaths_no_worker_is_started(worker: WorkerProcess) -> None:
    for _ in range(2):
        assert worker.start({"op": "say", "text": 1}, what="a model")["ok"] == 1
        with pytest.raises(WorkerFailed, match="died at 'die'"):
            worker.ask({"op": "die"})
    with pytest.raises(UserError, match="not tried again in this run: the Echo process died at 'die'"):
        worker.start({"op": "say", "text": 1}, what="another model")
