"""What a person sees while cells run: a live line on a terminal, one line per event in a log otherwise."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

QUIET_SECONDS = 10.0


class Console:
    """Prints progress events; a context manager, so that a live line is always ended."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._last = 0.0
        self._open = False
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *error: object) -> None:
        self._end_line()

    def cell(self, cell: Any, number: int, count: int) -> None:
        """A new cell starts."""
        self._first = None
        self.say(f"[{number}/{count}] {cell.label} on {cell.task.name}, seed {cell.seed}")

    def done(self, cell: Any, outcome: Any) -> None:
        """The cell is finished."""
        if not outcome.fresh:
            self.say("finished before; nothing to do")

    def failed(self, cell: Any, error: Exception, log: Path | None) -> None:
        """The cell failed; `log` holds the traceback of what is not the user's to mend."""
        kind = "" if log is None else f"{type(error).__name__}: "
        self.say(f"failed: {kind}{error}" + ("" if log is None else f" (traceback in {log})"))

    def say(self, text: str) -> None:
        """One line that stays."""
        self._end_line()
        typer.echo(text, err=True)

    def event(self, event: Mapping[str, Any]) -> None:
        """One event of the pipeline: steps and counts are thinned out, the rest is always shown."""
        text = describe(event)
        if text is None:
            return
        if "step" in event:
            text += self._rate(event)
        moving = "step" in event or "predicted" in event or "annotated" in event
        if not moving:
            self.say(f"  {text}")
        elif self.live:
            sys.stderr.write(f"\r\x1b[2K  {text[:100]}")
            sys.stderr.flush()
            self._open = True
        elif time.monotonic() - self._last >= QUIET_SECONDS or _last_one(event):
            self._last = time.monotonic()
            self.say(f"  {text}")

    def _rate(self, event: Mapping[str, Any]) -> str:
        """Tokens per second since the cell's first step here, and the time left."""
        now, tokens = time.monotonic(), int(event["tokens"])
        if self._first is None:
            self._first = (now, tokens)
        seconds, done = now - self._first[0], tokens - self._first[1]
        if seconds < 1 or done <= 0:
            return ""
        left = (event["steps"] - event["step"]) * tokens / event["step"] / (done / seconds)
        return f", {done / seconds:.0f} tokens/s, {left / 60:.1f} min left"

    def _end_line(self) -> None:
        if self._open:
            sys.stderr.write("\n")
            self._open = False


def _last_one(event: Mapping[str, Any]) -> bool:
    done = event.get("step") or event.get("predicted") or event.get("annotated")
    return done == (event.get("steps") or event.get("of"))


def describe(event: Mapping[str, Any]) -> str | None:
    """An event in words; None for one that a person need not see."""
    if "step" in event:
        return f"step {event['step']}/{event['steps']}  loss {event['loss']:.3f}  {event['tokens']:,} tokens"
    if "look" in event:
        look = event["look"]
        share = f"{100 * look['fraction']:.0f} %"
        loss = "" if look["loss"] is None else f", loss {look['loss']:.4f}"
        probe = "".join(f", {name} {value:.3g}" for name, value in look["probe"].items())
        return f"validation at {share}: accuracy {100 * look['accuracy']:.1f} % of {look['n']}{loss}{probe}"
    if "logits" in event:
        return f"logit cache: {event['logits']} responses to score, {event['bytes_per_token']} bytes a token"
    if "first" in event:
        return f"first: {event['first']}"
    if "failed" in event:
        return f"{event['teacher']}: {event['failed']} of {event['of']} texts could not be had: {event['reason']}"
    if "annotated" in event:
        return f"{event['teacher']}: {event['annotated']}/{event['of']} texts"
    if "predicted" in event:
        return f"asked {event['predicted']}/{event['of']} test questions"
    if "resumed" in event:
        return f"goes on after step {event['resumed']} of {event['steps']}"
    if event.get("stage") == "record":
        return f"recorded: accuracy {100 * event['accuracy']:.1f} %"
    return None
