"""What is printed when a request is done: its cells, the board, where the files are and what to type next."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllm_bench.cli.console import terminal_width
from tinyllm_bench.cli.output import echo
from tinyllm_bench.cli.progress import Row
from tinyllm_bench.leaderboard.tables import Cells, duration, percent, text_table
from tinyllm_bench.leaderboard.terminal import filled

if TYPE_CHECKING:
    from tinyllm_bench.experiment.runner import Matrix
    from tinyllm_bench.leaderboard.record import RunRecord

COLUMNS = 80  # what is no table is broken here where no terminal says how wide it is


def summarise(done: "Matrix", rows: Sequence[Row], *, runs: Path, until: str, board: Path | None) -> None:
    """Print it all. The last line, on standard error, is about what failed.

    Args:
        done: The outcomes.
        rows: How far each cell came, with the reasons of the failures.
        runs: The folder of all runs.
        until: The last stage that was asked for.
        board: The board's folder; None where none is written.
    """
    records = {one.record.run_id: one.record for one in done.outcomes if one.record is not None}
    folders = [one.folder for one in done.outcomes if one.record is not None]
    if until != "predict" and not done.failed:
        echo(f"stage {until} is done; the next command with the same arguments: tinyllm-bench run")
    if records or done.failed:
        echo(f"\n{text_table([_cells(row, records.get(row.run_id)) for row in rows], markdown=False)}")
    for row in rows:
        if row.error is not None and not row.first:
            echo(filled(f"{row.name} failed: {row.error}", terminal_width() or COLUMNS, "  "))
    if folders and board is not None:
        _show_board(folders, board)
    if folders:
        _show_next(list(records.values()), folders, runs, board)
    if done.failed:
        names = ", ".join(f"{cell.label} on {cell.task.name}" for cell in done.failed)
        echo(f"{len(done.failed)} failed: {names}; the same command tries them again", err=True)


def _cells(row: Row, record: "RunRecord | None") -> Cells:
    name = f"{'  first: ' if row.first else ''}{row.label} on {row.task}"
    if record is None:
        accuracy, tokens, seconds = _state(row), row.tokens, row.took
    else:
        accuracy, budget = _accuracy(record), record.budget
        tokens, seconds = (budget.student_tokens, budget.seconds) if budget else (0, None)
    told = "-" if seconds is None else duration(seconds) + (" (before)" if row.state == "kept" else "")
    shown = f"{tokens:,}" if tokens else "-"
    return {"cell": name, "seed": str(row.seed), "accuracy": accuracy, "student tokens": shown, "time": told}


def _state(row: Row) -> str:
    """What became of a cell without a record: it failed, or was to do some of its stages only."""
    if row.state == "failed" or not row.seconds:
        return row.state
    return f"{', '.join(row.seconds)} done"


def _accuracy(record: "RunRecord") -> str:
    if record.accuracy is None or record.score is None:
        return "-"
    told = "expected" if record.expected_accuracy is not None else f"{record.score.correct}/{record.score.n}"
    return f"{percent(record.accuracy)} % ({told})"


def _show_board(folders: Sequence[Path], board: Path) -> None:
    from tinyllm_bench.leaderboard.board import board_add, board_build, board_show

    board_add(folders, board, replace=True)
    board_build(board)
    echo(f"\n{board_show(board, width=terminal_width())}")


def _show_next(records: Sequence["RunRecord"], folders: Sequence[Path], runs: Path, board: Path | None) -> None:
    """Where the files are, and the commands that go on from here."""
    trained = [folder for record, folder in zip(records, folders, strict=True) if record.kind == "method"]
    if board is None:
        echo(f"records: {', '.join(str(folder / 'run.json') for folder in folders)}")
    else:
        echo(f"records: {runs}/*/run.json")
        echo(f"board:   {board / 'README.md'}, {board / 'index.html'}")
    if trained:
        echo(f"curves:  {trained[0] if len(trained) == 1 else runs / '*'}/train/curves.svg")
    commands = (
        [f"tinyllm-bench board add {shlex.join(map(str, folders))}"] if board is None else _compared(records, board)
    )
    commands += [f"tinyllm-bench curves {shlex.quote(str(runs))}"] if trained else []
    echo("\n".join(f"{'next:' if number == 0 else '':<6}{text}" for number, text in enumerate(commands)))


def _compared(records: Sequence["RunRecord"], board: Path) -> list[str]:
    labels = list(dict.fromkeys(record.label for record in records if record.kind == "method"))
    place = shlex.quote(str(board))
    if len(labels) < 2:
        return [f"tinyllm-bench board show --board-dir {place}"]
    return [f"tinyllm-bench compare {shlex.quote(labels[-1])} {shlex.quote(labels[0])} --in {place}"]
