"""What a person sees while cells run."""

from typing import Any

import pytest

from tinyllm_bench.cli.console import Console, describe
from tinyllm_bench.learn.outcome import Look

STEP = {"step": 3, "steps": 8, "loss": 1.23456, "by_channel": {}, "tokens": 12345}


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (STEP, "step 3/8  loss 1.235  12,345 tokens"),
        (
            {"look": Look(4, 0.5, 0.25, 0.3, 8)._asdict()},
            "validation at 50 %: accuracy 25.0 % of 8",
        ),
        (
            {"look": Look(4, 0.5, 0.25, 0.3, 8, 1.23456, {"reverse_kl": 0.5, "length": 3.0})._asdict()},
            "validation at 50 %: accuracy 25.0 % of 8, loss 1.2346, reverse_kl 0.5, length 3",
        ),
        ({"logits": 8, "bytes_per_token": 388}, "logit cache: 8 responses to score, 388 bytes a token"),
        ({"teacher": "t", "annotated": 5, "of": 9}, "t: 5/9 texts"),
        (
            {"teacher": "t", "failed": 2, "of": 9, "reason": "the server said 500"},
            "t: 2 of 9 texts could not be had: the server said 500",
        ),
        ({"predicted": 5, "of": 9}, "asked 5/9 test questions"),
        ({"resumed": 5, "steps": 9}, "goes on after step 5 of 9"),
        ({"stage": "record", "accuracy": 0.5}, "recorded: accuracy 50.0 %"),
        ({"cell": "some-run", "label": "x", "task": "y"}, None),
    ],
)
def test_events_in_words(event: dict[str, Any], words: str | None) -> None:
    assert describe(event) == words


def test_a_log_keeps_the_last_step_and_few_others(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        for step in range(1, 9):
            console.event({**STEP, "step": step})
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 2 and lines[-1].startswith("  step 8/8")


def test_a_live_line_is_rewritten_and_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        console.live = True
        console.event(STEP)
        console.event({**STEP, "step": 4})
        console.say("something else")
        console.event({**STEP, "step": 5})
    text = capsys.readouterr().err
    assert text.count("\r") == 3 and text.count("\n") == 3
    assert text.endswith("\n"), "the shell's prompt gets a line of its own"


def test_the_rate_counts_from_the_first_step_here(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 110.0])
    monkeypatch.setattr("tinyllm_bench.cli.console.time.monotonic", lambda: next(now))
    console = Console()
    assert console._rate({**STEP, "tokens": 5000}) == "", "a resumed run has not trained these tokens just now"
    assert console._rate({**STEP, "step": 4, "steps": 8, "tokens": 6000}) == ", 100 tokens/s, 1.0 min left"
