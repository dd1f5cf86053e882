"""`curves`: training curves of runs, as lines of text and as a picture."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.cli.output import echo

Runs = Annotated[list[Path], typer.Argument(help="Run folders, or folders that hold runs.")]
To = Annotated[Path | None, typer.Option("--to", help="Draw all of them into this one SVG.")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("curves")(curves)


def curves(runs: Runs, to: To = None) -> None:
    """Print training curves and draw them: train/curves.svg of each run, or all in one file."""
    from tinyllm_bench.base.files import check_writable, write_text
    from tinyllm_bench.leaderboard.curves import ASCII_BARS, BARS, curves_text, draw_run, drawing, read_curves

    if to is not None and to.suffix != ".svg":
        raise UserError(f"--to {to}: the picture is an SVG; name a file that ends in .svg")
    if to is not None:
        check_writable(to, "--to", file=True)
    bars = BARS if (sys.stdout.encoding or "").lower().startswith("utf") else ASCII_BARS
    folders = _trained(runs)
    found = []
    for folder in folders:
        found.append(read_curves(folder))
        echo(curves_text(found[-1], bars=bars))
        if to is None:
            echo(f"  {draw_run(folder)}")
    if to is not None:
        write_text(to, drawing(found))
        echo(f"{len(found)} run{'' if len(found) == 1 else 's'}: {to}")


def _trained(paths: list[Path]) -> list[Path]:
    """The runs among these folders and inside them that have trained something, each once."""
    from tinyllm_bench.leaderboard.curves import METRICS

    inside = {path: sorted(one for one in path.glob("*") if (one / METRICS).is_file()) for path in paths}
    found = [one for path in paths for one in ([path] if (path / METRICS).is_file() else inside[path])]
    if not found:
        told = ", ".join(str(path) for path in paths)
        raise UserError(f"no training metrics in {told}; name runs that trained a student, e.g. runs/*")
    return list(dict.fromkeys(found))
