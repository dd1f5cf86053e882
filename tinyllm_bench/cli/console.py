"""What a person sees while cells run: a live view on a terminal, one line per event in a log otherwise.

Of several processes only the main one says anything.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.cli.output import echo
from tinyllm_bench.cli.progress import Progress, about_text, clock_text

if TYPE_CHECKING:
    from tinyllm_bench.cli.live import LiveView

QUIET_SECONDS = 10.0
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # as accelerate reads them


def is_main_process() -> bool:
    """Whether this is the first of the processes that a launcher started; asks no library that starts slowly."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0") == "0"


def on_terminal() -> bool:
    """Whether there is a terminal that can redraw what it shows."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Console:
    """Tells progress; a context manager, so that a terminal is left in order.

    Args:
        cells: The cells that will run, in order; without any, only events are told.
        until: The last stage.
        live: A view to draw in; by default one on the terminal, where there is one.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        cells: Sequence[Any] = (),
        *,
        until: str = "predict",
        live: "LiveView | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress = Progress(cells, until=until, clock=clock)
        self.speaks = is_main_process()
        self.live = live
        self._clock, self._last = clock, 0.0

    def __enter__(self) -> "Console":
        if self.live is None and self.speaks and on_terminal():
            from tinyllm_bench.cli.live import LiveView

            self.live = LiveView(self.progress)
        if self.live is not None:
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def cell(self, cell: Any, number: int, count: int) -> None:
        """A new cell starts."""
        left = self.progress.left() if number > 1 else None
        self.progress.cell(cell)
        about = "" if left is None else f" (about {about_text(left)} left for all)"
        self._log(f"[{number}/{count}] {cell.label} on {cell.task.name}, seed {cell.seed}{about}")

    def done(self, cell: Any, outcome: Any) -> None:
        """The cell is finished."""
        self.progress.done(outcome)
        took = self.progress.top.took if self.progress.top else None
        self._log(f"  done in {clock_text(took or 0)}" if outcome.fresh else "finished before; nothing to do")

    def failed(self, cell: Any, error: Exception, log: Path | None) -> None:
        """The cell failed; `log` holds the traceback of what is not the user's to mend."""
        reason = str(error) if log is None else f"{type(error).__name__}: {error} (traceback in {log})"
        self.progress.failed(reason)
        self.say(f"failed: {reason}" if self.live is None else f"{cell.label} on {cell.task.name} failed: {reason}")

    def say(self, text: str) -> None:
        """One line that stays."""
        if self.live is not None:
            self.live.say(text)
        elif self.speaks:
            echo(text, err=True)

    def _log(self, text: str) -> None:
        """A line that a live view shows in its own way."""
        if self.live is None:
            self.say(text)

    def event(self, event: Mapping[str, Any]) -> None:
        """One event of the pipeline: steps and counts are thinned out, the rest is always told."""
        self.progress.event(event)
        text = describe(event)
        if text is None:
            return
        if "failed" in event or "tracker" in event:
            self.say(f"  {text}")
            return
        if "step" in event:
            text += self._rate()
        moving = "step" in event or "predicted" in event or "annotated" in event
        if moving and self._clock() - self._last < QUIET_SECONDS and not _last_one(event):
            return
        self._last = self._clock() if moving else self._last
        self._log(f"  {text}")

    def _rate(self) -> str:
        """Tokens per second since the cell's first step here, and the time left."""
        row = self.progress.current
        if row is None or row.meter.rate is None or row.meter.left is None:
            return ""
        return f", {row.meter.rate:.0f} tokens/s, {row.meter.left / 60:.1f} min left"


def _last_one(event: Mapping[str, Any]) -> bool:
    done = event.get("step") or event.get("predicted") or event.get("annotated")
    return done == (event.get("steps") or event.get("of"))


def describe(event: Mapping[str, Any]) -> str | None:
    """An event in words; None for one that a person need not see."""
    if event.get("stage") == "record":
        return f"recorded: accuracy {100 * event['accuracy']:.1f} %"
    return next((words(event) for key, words in _WORDS.items() if key in event), None)


def _look(event: Mapping[str, Any]) -> str:
    look = event["look"]
    share = f"{100 * look['fraction']:.0f} %"
    loss = "" if look["loss"] is None else f", loss {look['loss']:.4f}"
    probe = "".join(f", {name} {value:.3g}" for name, value in look["probe"].items())
    return f"validation at {share}: accuracy {100 * look['accuracy']:.1f} % of {look['n']}{loss}{probe}"


# By the key that tells an event's kind; the first that an event has counts.
_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "step": lambda e: f"step {e['step']}/{e['steps']}  loss {e['loss']:.3f}  {e['tokens']:,} tokens",
    "look": _look,
    "logits": lambda e: f"logit cache: {e['logits']} responses to score, {e['bytes_per_token']} bytes a token",
    "first": lambda e: f"first: {e['first']}",
    "failed": lambda e: f"{e['teacher']}: {e['failed']} of {e['of']} texts could not be had: {e['reason']}",
    "tracker": lambda e: f"{e['tracker']} is told no more: {e['error']}",
    "annotated": lambda e: f"{e['teacher']}: {e['annotated']}/{e['of']} texts",
    "predicted": lambda e: f"asked {e['predicted']}/{e['of']} test questions",
    "resumed": lambda e: f"goes on after step {e['resumed']} of {e['steps']}",
}
