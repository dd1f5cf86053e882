"""A child process: answers, refusals, deaths, silence, and a new one after each."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.worker import Child, ChildFailed, forget_failures


@pytest.fixture
def child() -> Iterator[Child]:
    forget_failures()
    with Child(
        "tests.models.echo_child", name="Echo", instead="Or shout.", environment={"ECHO_VARIABLE": "ours"}
    ) as one:
        yield one


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_answers_come_back_and_what_it_prints_does_not(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    assert child.pid is None
    assert child.ask({"op": "say", "text": "héllo\n"}) == {"ok": "héllo\n", "variable": "ours"}
    first = child.pid
    with pytest.raises(UserError, match="^that cannot be had; ask for something else$"):
        child.ask({"op": "refuse"})
    assert child.ask({"op": "say", "text": 1})["ok"] == 1 and child.pid == first
    child.stop()
    assert first is not None and not is_running(first)
    monkeypatch.setenv("ECHO_VARIABLE", "theirs")
    assert child.ask({"op": "say", "text": 2}) == {"ok": 2, "variable": "theirs"}


def test_a_death_and_a_failure_are_told_with_the_end_of_the_log(child: Child) -> None:
    with pytest.raises(UserError, match=r"the Echo process died at 'die'; its log ends: .*last words\. Or shout\."):
        child.ask({"op": "die"})
    assert child.pid is None
    with pytest.raises(UserError, match="Echo failed at 'fail': RuntimeError: the engine broke; its log ends"):
        child.ask({"op": "fail"})
    assert child.pid is None
    assert child.ask({"op": "say", "text": "again"})["ok"] == "again"


def test_silence_has_a_limit(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllm_bench.generation.worker._STOP_SECONDS", 0.1)
    child.ask({"op": "say", "text": ""})
    pid, began = child.pid, time.monotonic()
    with pytest.raises(UserError, match="Echo did not answer within 0 s"):
        child.ask({"op": "sleep"}, 0.1)
    assert time.monotonic() - began < 20 and pid is not None and not is_running(pid)


def test_the_log_is_kept_where_it_is_wanted(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "echo.log"
    with Child("tests.models.echo_child", name="Echo", log=log) as child:
        child.ask({"op": "say", "text": ""})
    assert "a library's own words" in log.read_text()


def test_what_could_not_be_started_is_not_tried_again_in_a_run(child: Child) -> None:
    with pytest.raises(ChildFailed) as first:
        child.start({"op": "fail"}, what="a model")
    with pytest.raises(UserError, match="Echo is not tried again in this run") as again:
        child.start({"op": "fail"}, what="a model")
    assert child.pid is None, "no process was started for it"
    assert str(first.value) in str(again.value) and "Or shout." in str(again.value)
    assert "\n" not in str(again.value)
    assert child.start({"op": "say", "text": 1}, what="another model")["ok"] == 1
    with pytest.raises(UserError, match="^that cannot be had"):
        child.start({"op": "refuse"}, what="a third")
    with pytest.raises(UserError, match="^that cannot be had"):  # the user's to mend, and cheap
        child.start({"op": "refuse"}, what="a third")
    forget_failures()
    with pytest.raises(ChildFailed, match="the engine broke"):
        child.start({"op": "fail"}, what="a model")


def test_one_death_is_forgiven_and_two_are_not(child: Child) -> None:
    for _ in range(2):
        assert child.start({"op": "say", "text": 1}, what="a model")["ok"] == 1
        with pytest.raises(ChildFailed, match="died at 'die'"):
            child.ask({"op": "die"})
    with pytest.raises(UserError, match="not tried again in this run: the Echo process died at 'die'"):
        child.start({"op": "say", "text": 1}, what="another model")
