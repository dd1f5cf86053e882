"""Runs a request cell by cell, tells about it, and says at the end what came out and what to do next."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.config import flatten
from tinyllm_bench.base.files import cache_root, check_writable
from tinyllm_bench.cli.console import Console, is_main_process, on_terminal
from tinyllm_bench.cli.options import own_command
from tinyllm_bench.cli.output import echo
from tinyllm_bench.experiment.request import Request

if TYPE_CHECKING:
    from tinyllm_bench.experiment.runner import Matrix


def run_request(
    request: Request,
    runs: Path,
    *,
    anchors: bool,
    until: str = "predict",
    board: Path | None = None,
    dry_run: bool = False,
    show_config: bool = False,
) -> int:
    """Plan, run and record the cells of a request; returns the exit status."""
    from tinyllm_bench.experiment.plan_cells import plan_cells

    preset, cells = plan_cells(request, anchors=anchors, check_hub=not (dry_run or show_config))
    if is_main_process():
        chosen = "" if request.preset else " (chosen by this machine; --preset takes another)"
        echo(f"preset {preset}{chosen}")
        _announce(cells, show_config=show_config, briefly=on_terminal() and not dry_run)
    if show_config or dry_run:
        return 0
    check_places(cells, runs, board)
    return _run(cells, runs, until=until, board=board)


def check_places(cells: list[Any], runs: Path, board: Path | None = None) -> None:
    """Refuse folders that a run will write and cannot, before anything is computed.

    Raises:
        UserError: runs, board, or the cache where a cell writes into it.
    """
    check_writable(runs, "--runs-dir")
    if board is not None:
        check_writable(board, "--board-dir")
    live = any(not teacher.recorded for cell in cells for teacher in cell.teachers)
    if live or any(cell.config.teacher.cache is not None and cell.signal is not None for cell in cells):
        check_writable(cache_root(), "the cache, TINYLLM_BENCH_CACHE")


def _announce(cells: list[Any], *, show_config: bool, briefly: bool) -> None:
    """What will run; briefly where a live view shows the cells anyway."""
    if show_config:
        for cell in cells:
            _show_config(cell)
    elif briefly:
        counts = Counter(cell.label for cell in cells)
        told = ", ".join(f"{count} x {label}" if count > 1 else label for label, count in counts.items())
        echo(f"{told} (--dry-run tells of every cell)")
    else:
        for cell in cells:
            echo(_line(cell))


def _line(cell: Any) -> str:
    name, amount = cell.config.budget.asked if cell.method else ("", 0)
    told = f"{amount:,.10g} {name.replace('_', ' ')}"
    cost = f", {len(cell.records('train'))} training records, {told}" if cell.method else ""
    teachers = f", teachers {' + '.join(dict.fromkeys(t.key for t in cell.teachers))}" if cell.teachers else ""
    asked = f"{len(cell.records('test'))} test items, reading {cell.reading}, {cell.source.kind} data"
    return f"  {cell.label} on {cell.task.name}, seed {cell.seed}: {asked}{cost}{teachers} [{cell.run_id}]"


def _show_config(cell: Any) -> None:
    echo(f"\n{cell.label} on {cell.task.name}, seed {cell.seed}")
    values = flatten(cell.config)
    values |= {f"method.{key}": value for key, value in values.pop("method").items()}
    for key, value in sorted(values.items()):
        echo(f"  {key} = {value!r}  ({cell.origin.get(key, 'default')})")


def _run(cells: list[Any], runs: Path, *, until: str, board: Path | None) -> int:
    console = Console(cells, until=until)
    done = run_cells(cells, runs, until=until, console=console)
    if is_main_process():
        from tinyllm_bench.cli.summary import summarise

        summarise(done, console.progress.rows, runs=runs, until=until, board=board)
    return 1 if done.failed else 0


def run_cells(cells: list[Any], runs: Path, *, until: str = "predict", console: Console | None = None) -> "Matrix":
    """Run cells one after another, telling what goes on; returns their outcomes and the cells that failed."""
    from tinyllm_bench.experiment.runner import run_matrix
    from tinyllm_bench.preflight.models import refuse_errors

    refuse_errors(cells, runs)

    with console or Console(cells, until=until) as watch:
        return run_matrix(cells, runs, until=until, command=own_command(), watch=watch)
