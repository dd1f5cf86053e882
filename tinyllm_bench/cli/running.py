"""Runs a request cell by cell and tells about it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tinyllm_bench.base.config import flatten
from tinyllm_bench.cli.console import Console
from tinyllm_bench.pipeline.request import Request

if TYPE_CHECKING:
    from tinyllm_bench.pipeline.matrix import Matrix


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
    from tinyllm_bench.pipeline.cells import plan_cells

    preset, cells = plan_cells(request, anchors=anchors, check_hub=not (dry_run or show_config))
    typer.echo(f"preset {preset}" + ("" if request.preset else " (chosen by this machine; --preset takes another)"))
    if show_config:
        for cell in cells:
            _show_config(cell)
        return 0
    for cell in cells:
        typer.echo(_line(cell))
    if dry_run:
        return 0
    return _run(cells, runs, until=until, board=board)


def _line(cell: Any) -> str:
    name, amount = cell.config.budget.asked if cell.method else ("", 0)
    told = f"{amount:,.10g} {name.replace('_', ' ')}"
    cost = f", {len(cell.records('train'))} training records, {told}" if cell.method else ""
    teachers = f", teachers {' + '.join(dict.fromkeys(t.key for t in cell.teachers))}" if cell.teachers else ""
    asked = f"{len(cell.records('test'))} test items, reading {cell.reading}, {cell.source.kind} data"
    return f"  {cell.label} on {cell.task.name}, seed {cell.seed}: {asked}{cost}{teachers} [{cell.run_id}]"


def _show_config(cell: Any) -> None:
    typer.echo(f"\n{cell.label} on {cell.task.name}, seed {cell.seed}")
    values = flatten(cell.config)
    values |= {f"method.{key}": value for key, value in values.pop("method").items()}
    for key, value in sorted(values.items()):
        typer.echo(f"  {key} = {value!r}  ({cell.origin.get(key, 'default')})")


def _run(cells: list[Any], runs: Path, *, until: str, board: Path | None) -> int:
    done = run_cells(cells, runs, until=until)
    _summary([one.folder for one in done.outcomes if one.record is not None], done.failed, board, runs, until)
    return 1 if done.failed else 0


def run_cells(cells: list[Any], runs: Path, *, until: str = "predict") -> "Matrix":
    """Run cells one after another, telling what goes on; returns their outcomes and the cells that failed."""
    from tinyllm_bench.pipeline.matrix import run_matrix

    command = shlex.join(["tinyllm-bench", *sys.argv[1:]])
    with Console() as console:
        return run_matrix(cells, runs, until=until, command=command, watch=console)


def _summary(folders: list[Path], failed: Sequence[Any], board: Path | None, runs: Path, until: str) -> None:
    if until != "predict" and not failed:
        typer.echo(f"stage {until} is done; the next command with the same arguments: tinyllm-bench run")
    if folders and board is None:
        typer.echo(f"records: {', '.join(str(folder / 'run.json') for folder in folders)}")
        typer.echo(f"next: tinyllm-bench board add {' '.join(str(folder) for folder in folders)}")
    elif folders and board is not None:
        from tinyllm_bench.report.board import board_add, board_build, board_show

        board_add(folders, board, replace=True)
        page = board_build(board)
        typer.echo("")
        typer.echo(board_show(board))
        typer.echo(f"\nrecords: {runs}/*/run.json   board: {page}")
    if failed:
        names = ", ".join(f"{cell.label} on {cell.task.name}" for cell in failed)
        typer.echo(f"{len(failed)} failed: {names}; the same command tries them again", err=True)
