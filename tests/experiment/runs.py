"""Small requests on the sample data, and the call of the pipeline that the command line makes."""

from pathlib import Path
from typing import Any

from tinyllm_bench.base.events import Event
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.plan_cells import plan_cells
from tinyllm_bench.experiment.predict import Engines
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.experiment.runner import CellResult, run_cell

TOKENS = 3000


def quick(student: Path, *settings: str, methods: tuple[str, ...] = ("finetune",), **changes: Any) -> Request:
    """A request that a tiny student finishes in a second or two."""
    small = (f"student.model=dir:{student}", f"budget.student_tokens={TOKENS}", "train.learning_rate=3e-3")
    fields = {"methods": methods, "tasks": ("obqa",), "preset": "quickstart", **changes}
    return Request(assignments=(*small, *settings), **fields)


def cells_of(request: Request, *, reference_baselines: bool = False) -> list[Cell]:
    """The planned cells of a request."""
    return plan_cells(request, reference_baselines=reference_baselines)[1]


def one_cell(student: Path, *settings: str, method: str = "finetune", **changes: Any) -> Cell:
    """The only cell of a small request."""
    (cell,) = cells_of(quick(student, *settings, methods=(method,), **changes))
    return cell


def run_all(
    cells: list[Cell], runs: Path, *, until: str = "predict", events: list[Any] | None = None
) -> list[CellResult]:
    """Run cells one after another, as the command does; events are collected where a list is given."""

    def report(event: Event) -> None:
        if events is not None:
            events.append(event)

    with Engines() as engines:
        return [run_cell(cell, runs, engines, until=until, command="test", report=report) for cell in cells]
