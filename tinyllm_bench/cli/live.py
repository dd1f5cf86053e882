"""The live view of a terminal: the cells and their stages as a table, below it the running cell. Rendered by rich.

Every state is a word or a sign, never only a colour; a terminal without UTF-8 gets ASCII signs.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console as Screen
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tinyllm_bench.base.escaping import terminal, visible
from tinyllm_bench.cli.progress import CellProgress, Progress, about_text, clock_text
from tinyllm_bench.leaderboard.curves import ASCII_BARS, BARS, sparkline

WIDE = 120  # from this many columns, the table has bars, tokens and losses
_WORDS = {"annotate": "annotating", "train": "training", "predict": "predicting"}
_AMOUNTS = {"annotate": "texts/s", "train": "tokens/s", "predict": "questions/s"}
_STYLES = {"running": "bold", "failed": "red", "done": "", "reused": "dim", "waiting": "dim"}


class Signs(NamedTuple):
    """The signs of the states, of a bar, of a prerequisite, and of rows that are not shown."""

    running: str
    done: str
    reused: str
    failed: str
    waiting: str
    full: str
    empty: str
    under: str
    more: str
    bars: str


UNICODE = Signs("▶", "✓", "=", "✗", "·", "━", "─", "└", "…", BARS)
ASCII = Signs(">", "+", "=", "!", ".", "#", "-", "`", "...", ASCII_BARS)


class View:
    """A `Progress` as rich draws it, rebuilt at every refresh."""

    def __init__(self, progress: Progress, screen: Screen) -> None:
        self.progress, self.screen = progress, screen
        self.signs = UNICODE if (screen.encoding or "").lower().startswith("utf") else ASCII

    def __rich__(self) -> RenderableType:
        with self.progress.lock:
            foot = [*self._now(), *self._failures()]
            parts: list[RenderableType] = []
            if self.progress.rows:
                height = self.screen.height - len(foot) - 4
                parts = [self._head(), self._table(max(height, 3)), Text()]
            return Group(*parts, *foot)

    @property
    def wide(self) -> bool:
        """Whether more columns fit."""
        return self.screen.width >= WIDE

    def _head(self) -> Text:
        """Counts of all cells, and the time."""
        progress = self.progress
        count = progress.count
        states = {"done": count("done", "reused"), "failed": count("failed"), "waiting": count("waiting")}
        parts = [f"{n} {word}" for word, n in states.items() if n or word == "done"]
        left = progress.left()
        parts.append(f"{clock_text(progress.clock() - progress.began)} elapsed")
        parts.append("time left unknown" if left is None else f"about {about_text(left)} left")
        total = sum(not row.prerequisite for row in progress.rows)
        return self._line(f"{total} cell{'' if total == 1 else 's'}: {', '.join(parts)}", "bold")

    def _table(self, height: int) -> Table:
        progress = self.progress
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", expand=True)
        table.add_column("", width=1)
        table.add_column("cell", no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column("seed", justify="right", width=4)
        for stage in ("annotate", "train", "predict"):
            table.add_column(stage, width=16 if self.wide else 8, no_wrap=True)
        if self.wide:
            for name, width in (("tokens", 9), ("loss", 8), ("validation", 10)):
                table.add_column(name, justify="right", width=width, no_wrap=True)
        table.add_column("accuracy", justify="right", width=8, no_wrap=True)
        table.add_column("time", justify="right", width=8, no_wrap=True)
        first, last = self._window(height)
        if first:
            table.add_row("", self._elided(progress.rows[:first], "above"), style="dim")
        for row in progress.rows[first:last]:
            cells = (Text(visible(cell)) for cell in self._cells(row))  # Text: a label must not be read as markup
            table.add_row(*cells, style=_STYLES[row.state])
        if last < len(progress.rows):
            table.add_row("", self._elided(progress.rows[last:], "below"), style="dim")
        return table

    def _window(self, height: int) -> tuple[int, int]:
        """The slice of rows that fits the screen: those around the running one."""
        rows = self.progress.rows
        if len(rows) <= height:
            return 0, len(rows)
        shown = max(height - 2, 1)
        current = self.progress.current or self.progress.top
        middle = rows.index(current) if current in rows else 0
        first = min(max(middle - shown // 2, 0), len(rows) - shown)
        return first, first + shown

    def _elided(self, rows: Sequence[CellProgress], where: str) -> str:
        states = [row.state for row in rows if not row.prerequisite]
        counts = {"done": sum(state in ("done", "reused") for state in states)}
        counts |= {state: states.count(state) for state in ("failed", "waiting")}
        summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return f"{self.signs.more} {len(states)} {where}: {summary}"

    def _cells(self, row: CellProgress) -> list[str]:
        name = f"{row.label} on {row.task}"
        shown = f"{self.signs.under} first: {name}" if row.prerequisite else name
        cells = [getattr(self.signs, row.state), shown, str(row.seed)]
        cells += [self._stage(row, stage) for stage in ("annotate", "train", "predict")]
        if self.wide:
            cells.append(f"{row.tokens:,}" if row.tokens else "")
            cells.append(f"{row.losses[-1]:.4g}" if row.losses else "")
            cells.append(f"{100 * row.evaluations[-1].accuracy:.1f} %" if row.evaluations else "")
        return [*cells, self._result(row), self._time(row)]

    def _stage(self, row: CellProgress, stage: str) -> str:
        """How far a stage is: a percentage, with a bar if it fits."""
        if stage not in row.stages or row.state in ("waiting", "reused"):
            return ""
        if stage in row.seconds:
            return "done"
        if stage != row.stage:
            return "stopped" if row.state == "failed" and stage in row.part else ""
        done, of = row.logits or row.part.get(stage, (0, 0))
        if not of:
            return "starting"
        share = min(done / of, 1.0)
        full = int(10 * share)
        bar = f"{self.signs.full * full}{self.signs.empty * (10 - full)} " if self.wide else ""
        return f"{bar}{100 * share:.0f} %"

    def _result(self, row: CellProgress) -> str:
        if row.state == "failed":
            return "failed"
        return "" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"

    def _time(self, row: CellProgress) -> str:
        if row.state == "reused":
            return "earlier"
        if row.state == "running":
            return clock_text(self.progress.clock() - row.began)
        return "" if row.took is None else clock_text(row.took)

    def _now(self) -> list[Text]:
        """The running cell: its activity, throughput, time left, loss and validation accuracy."""
        row = self.progress.current
        if row is None or row.state != "running":
            return []
        lines = [self._pace(row)]
        if row.losses:
            lines.append(self._line(f"loss        {self._spark(row.losses)}  {row.losses[-1]:.4g}"))
        if row.evaluations:
            shares = [evaluation.accuracy for evaluation in row.evaluations]
            summary = f"{100 * shares[-1]:.1f} % of {row.evaluations[-1].n}, best {100 * max(shares):.1f} %"
            lines.append(self._line(f"validation  {self._spark(shares)}  {summary}"))
        return lines

    def _pace(self, row: CellProgress) -> Text:
        who = f"{row.name}: " if self.wide and row.run_id else ""
        if row.stage is None:
            return self._line(f"now         {who}starting")
        done, of = row.logits or row.part.get(row.stage, (0, 0))
        activity, unit = _WORDS[row.stage], _AMOUNTS[row.stage]
        if row.logits is not None:
            activity, unit = "caching the teacher's logits", "responses/s"
        parts = [f"{who}{activity}" + (f" {done:,}/{of:,}" if of else "")]
        if row.meter.rate is not None:
            rate = f"{row.meter.rate:,.0f}" if row.meter.rate >= 100 else f"{row.meter.rate:.3g}"
            parts.append(f"{rate} {unit}")
        if row.logits is not None and row.meter.left is not None:
            parts.append(f"{about_text(row.meter.left)} left")
        left = self.progress.cell_left(row)
        parts += [] if left is None else [f"{about_text(left)} left for this cell"]
        return self._line(f"now         {', '.join(parts)}")

    def _failures(self) -> list[Text]:
        """Reasons of the last failures, one line each."""
        failed = [row for row in self.progress.rows if row.state == "failed" and not row.prerequisite]
        return [self._line(f"failed      {row.name}: {row.error}", "red") for row in failed[-2:]]

    def _spark(self, values: Sequence[float]) -> str:
        return sparkline(values, min(40, self.screen.width // 3), bars=self.signs.bars)

    def _line(self, text: str, style: str = "") -> Text:
        return Text(visible(" ".join(text.split("\n"))), style=style, no_wrap=True, overflow="ellipsis")


class LiveView:
    """A view on a terminal, redrawn twice a second; a context manager, so that the terminal is restored."""

    def __init__(self, progress: Progress, screen: Screen | None = None) -> None:
        self.screen = screen or Screen(stderr=True)
        self.view = View(progress, self.screen)
        self._live = Live(
            console=self.screen,
            get_renderable=lambda: self.view,
            refresh_per_second=2,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )

    def __enter__(self) -> "LiveView":
        before = {sys.stderr, sys.stdout}
        self._live.start(refresh=True)
        self._logs = [handler for handler in _log_handlers() if handler.stream in before]
        self._streams = [handler.setStream(sys.stderr) for handler in self._logs]
        return self

    def __exit__(self, *error: Any) -> None:
        for handler, stream in zip(self._logs, self._streams, strict=True):
            handler.setStream(stream)
        self._live.transient = error[0] is None  # on an error, the last view stays visible
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a permanent line above the view."""
        self.screen.print(terminal(text), markup=False, highlight=False, soft_wrap=True)


def _log_handlers() -> list[Any]:
    """Log handlers with a stream of their own, which would write into the view: rich redirects only what is printed."""
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    handlers = {id(handler): handler for logger in loggers for handler in logger.handlers}
    return [handler for handler in handlers.values() if isinstance(handler, logging.StreamHandler)]
