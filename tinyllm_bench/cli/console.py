"""What is printed while cells run: a live view on a terminal, otherwise a log with one line per event.

Of several processes only the main one prints.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_never

from tinyllm_bench.base.events import (
    AnnotationFailed,
    AnnotationFinished,
    AnnotationProgress,
    CellStarted,
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
from tinyllm_bench.cli.output import echo
from tinyllm_bench.cli.progress import Progress, about_text, clock_text

if TYPE_CHECKING:
    from tinyllm_bench.cli.live import LiveView
    from tinyllm_bench.experiment.cell import Cell
    from tinyllm_bench.experiment.runner import CellResult

QUIET_SECONDS = 10.0
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")  # as accelerate reads them


def is_main_process() -> bool:
    """Whether this is the first of the processes that a launcher started; imports no library that starts slowly."""
    return next((os.environ[name] for name in _RANKS if name in os.environ), "0") == "0"


def on_terminal() -> bool:
    """Whether standard error is a terminal that can redraw lines."""
    return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


def terminal_width() -> int | None:
    """Width in columns if standard output is a terminal, else None."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


class Console:
    """Prints progress; a context manager, so that the terminal is restored.

    Args:
        cells: The cells that will run, in order; without any, only events are printed.
        until: The last stage.
        live: A view to draw in; by default one on standard error if it is a terminal.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        cells: "Sequence[Cell]" = (),
        *,
        until: str = "predict",
        live: "LiveView | None" = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.progress = Progress(cells, until=until, clock=clock)
        self.is_main = is_main_process()
        self.live = live
        self._clock, self._last = clock, 0.0

    def __enter__(self) -> "Console":
        if self.live is None and self.is_main and on_terminal():
            from tinyllm_bench.cli.live import LiveView

            self.live = LiveView(self.progress)
        if self.live is not None:
            self.live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.live is not None:
            self.live.__exit__(*error)

    def cell(self, cell: "Cell", number: int, count: int) -> None:
        """A new cell starts."""
        left = self.progress.left() if number > 1 else None
        self.progress.cell(cell)
        about = "" if left is None else f" (about {about_text(left)} left for all)"
        self._log(f"[{number}/{count}] {cell.label} on {cell.task.name}, seed {cell.seed}{about}")

    def done(self, cell: "Cell", outcome: "CellResult") -> None:
        """The cell is finished."""
        self.progress.done(outcome)
        took = self.progress.top.took if self.progress.top else None
        self._log(f"  done in {clock_text(took or 0)}" if outcome.fresh else "already finished; nothing to do")

    def failed(self, cell: "Cell", error: Exception, log: Path | None) -> None:
        """The cell failed; `log` holds the traceback of an error that is not the user's."""
        reason = str(error) if log is None else f"{type(error).__name__}: {error} (traceback in {log})"
        self.progress.failed(reason)
        self.say(f"failed: {reason}" if self.live is None else f"{cell.label} on {cell.task.name} failed: {reason}")

    def say(self, text: str) -> None:
        """Print a permanent line."""
        if self.live is not None:
            self.live.say(text)
        elif self.is_main:
            echo(text, err=True)

    def _log(self, text: str) -> None:
        """A line for the log only: a live view shows it in its own way."""
        if self.live is None:
            self.say(text)

    def event(self, event: Event) -> None:
        """One event of the run: steps and counts are printed at most every ten seconds, the rest always."""
        self.progress.event(event)
        text = describe(event)
        if text is None:
            return
        last = True
        match event:
            case AnnotationFailed() | TrackerFailed():
                self.say(f"  {text}")
                return
            case TrainingStep(step=step, steps=steps):
                text, last = text + self._rate(), step == steps
            case (
                AnnotationProgress(done=done, total=total)
                | LogitCacheProgress(done=done, total=total)
                | PredictionProgress(done=done, total=total)
            ):
                last = done == total
            case _:
                self._log(f"  {text}")
                return
        if last or self._clock() - self._last >= QUIET_SECONDS:
            self._last = self._clock()
            self._log(f"  {text}")

    def _rate(self) -> str:
        """Tokens per second since the cell's first step here, and the time left."""
        row = self.progress.current
        if row is None or row.meter.rate is None or row.meter.left is None:
            return ""
        return f", {row.meter.rate:.0f} tokens/s, {row.meter.left / 60:.1f} min left"


def describe(event: Event) -> str | None:
    """An event in words; None for one that is not shown."""
    match event:
        case PrerequisiteStarted():
            return f"first: {event.label} on {event.model}"
        case AnnotationProgress():
            return f"{event.teacher}: {event.done}/{event.total} texts"
        case AnnotationFailed():
            return f"{event.teacher}: {event.failed} of {event.total} texts are not available: {event.reason}"
        case LogitCacheOpened():
            return f"logit cache: {event.missing} responses to score, {event.bytes_per_token} bytes per token"
        case LogitCacheProgress():
            return f"logit cache: {event.done}/{event.total} responses"
        case TrainingResumed():
            return f"resumes after step {event.step} of {event.steps}"
        case TrainingStep():
            return f"step {event.step}/{event.steps}  loss {event.loss:.3f}  {event.tokens:,} tokens"
        case StudentEvaluated(evaluation):
            accuracy = f"accuracy {100 * evaluation.accuracy:.1f} % of {evaluation.n}"
            loss = "" if evaluation.loss is None else f", loss {evaluation.loss:.4f}"
            probe = "".join(f", {name} {value:.3g}" for name, value in evaluation.probe.items())
            return f"validation at {100 * evaluation.fraction:.0f} %: {accuracy}{loss}{probe}"
        case PredictionProgress():
            return f"answered {event.done}/{event.total} test questions"
        case RunRecorded():
            return "recorded" if event.accuracy is None else f"recorded: accuracy {100 * event.accuracy:.1f} %"
        case TrackerFailed():
            return f"{event.tracker} gets no more values: {event.error}"
        case CellStarted() | AnnotationFinished() | TrainingFinished():
            return None
        case _:
            assert_never(event)
