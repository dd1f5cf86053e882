"""`board add`, `build` and `show`: leaderboards of run records."""

from pathlib import Path
from typing import Annotated

import typer

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import check_writable
from tinyllm_bench.cli.console import terminal_width
from tinyllm_bench.cli.options import DataDir, Verifier
from tinyllm_bench.cli.output import echo

BoardFolder = Annotated[Path, typer.Option("--board-dir", help="Folder of the leaderboard.")]


def board_add(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or run.json files.")],
    board_dir: BoardFolder = Path("runs/board"),
    verify: Annotated[
        bool, typer.Option("--verify", help="Verify each run first, as `verify` does, and store the verdicts.")
    ] = False,
    data_dir: DataDir = None,
    by: Verifier = None,
) -> None:
    """Add records to a leaderboard and rebuild it. Unless you verify them, they are listed as self-reported."""
    from tinyllm_bench.audit.verify import store_verdict
    from tinyllm_bench.audit.verify import verify as verify_one
    from tinyllm_bench.leaderboard import board

    verifications = [verify_one(path, data_dir=data_dir) for path in runs] if verify else []
    for result in verifications:
        if not result.ok:
            more = f" (and {len(result.problems) - 1} more)" if len(result.problems) > 1 else ""
            raise UserError(f"{result.problems[0].text}{more}; see `tinyllm-bench verify {result.path}`")
    for path in board.board_add(runs, board_dir):
        echo(f"added {path}")
    for result in verifications:
        file = store_verdict(result, board_dir, by=by)
        reasons = "; ".join(result.not_checked)
        echo(f"{result.tier}: {file}" if file else f"{result.path}: stays self-reported, {reasons}")
    echo(f"board: {board.board_build(board_dir)}")


def board_build(board_dir: BoardFolder = Path("leaderboards")) -> None:
    """Rebuild a leaderboard's pages from its records."""
    from tinyllm_bench.leaderboard import board

    check_writable(board_dir, "--board-dir")
    echo(f"board: {board.board_build(board_dir)}")


def board_show(board_dir: BoardFolder = Path("runs/board")) -> None:
    """Print a leaderboard."""
    from tinyllm_bench.leaderboard import board

    echo(board.board_show(board_dir, width=terminal_width()))
