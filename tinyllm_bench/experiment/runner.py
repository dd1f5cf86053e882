"""Cells one after another: one that fails does not stop the others, and whoever watches is told."""

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Event
from tinyllm_bench.base.files import write_text
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.predict import Engines
from tinyllm_bench.experiment.stages import Outcome, run_cell
from tinyllm_bench.generation.worker import forget_failures


class Watch(Protocol):
    """Who is told what goes on; the calls come in the order of the cells."""

    def cell(self, cell: Cell, number: int, count: int) -> None:
        """The `number`th of `count` cells starts (from 1)."""

    def event(self, event: Event) -> None:
        """Something happened in the cell that runs."""

    def done(self, cell: Cell, outcome: Outcome) -> None:
        """The cell is finished."""

    def failed(self, cell: Cell, error: Exception, log: Path | None) -> None:
        """The cell failed; `log` holds the traceback of what is not the user's to mend."""


class Matrix(NamedTuple):
    """What became of the cells: the finished ones, and those that failed."""

    outcomes: tuple[Outcome, ...]
    failed: tuple[Cell, ...]


def run_matrix(cells: Sequence[Cell], runs: Path, *, until: str = "predict", command: str = "", watch: Watch) -> Matrix:
    """Run cells one after another, each up to the stage `until`.

    Args:
        cells: The cells, as `plan_cells` gives them.
        runs: The folder of all runs.
        until: The last stage, one of `STAGES`.
        command: The command line, kept in the records.
        watch: Is told what goes on.
    """
    forget_failures()
    outcomes, failed = [], []
    with Engines() as engines:
        for number, cell in enumerate(cells, start=1):
            watch.cell(cell, number, len(cells))
            try:
                outcome = run_cell(cell, runs, engines, until=until, command=command, report=watch.event)
            except UserError as error:
                failed.append(cell)
                watch.failed(cell, error, None)
            except Exception as error:
                failed.append(cell)
                log = runs / cell.run_id / "error.log"
                write_text(log, traceback.format_exc())
                watch.failed(cell, error, log)
            else:
                outcomes.append(outcome)
                watch.done(cell, outcome)
    return Matrix(tuple(outcomes), tuple(failed))
