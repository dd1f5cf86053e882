"""`run`, its stages `annotate`, `train` and `predict`, and `reference-baselines`: plan, run and print the cells."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllm_bench.base.files import cache_root, check_writable
from tinyllm_bench.cli.console import Console, is_main_process, on_terminal, terminal_width
from tinyllm_bench.cli.options import BoardDir, DryRun, ReferenceBaselines, ShowConfig, own_command, takes_request
from tinyllm_bench.cli.output import echo
from tinyllm_bench.cli.progress import CellProgress

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell
    from tinyllm_bench.experiment.request import Request
    from tinyllm_bench.experiment.runner import Matrix
    from tinyllm_bench.leaderboard.record import RunRecord

COLUMNS = 80  # at which text outside tables is wrapped if the terminal's width is unknown


@takes_request()
def run(
    request: "Request",
    *,
    board_dir: BoardDir = None,
    reference_baselines: ReferenceBaselines = True,
    dry_run: DryRun = False,
    show_config: ShowConfig = False,
) -> int:
    """Run an experiment and write a leaderboard. Annotates, trains, evaluates and records; resumes if run again."""
    board = board_dir or request.runs / "board"
    return run_request(
        request, board=board, reference_baselines=reference_baselines, dry_run=dry_run, show_config=show_config
    )


@takes_request()
def annotate(request: "Request", *, dry_run: DryRun = False, show_config: ShowConfig = False) -> int:
    """Collect the teachers' annotations only (the first stage of run)."""
    return run_request(request, until="annotate", dry_run=dry_run, show_config=show_config)


@takes_request()
def train(request: "Request", *, dry_run: DryRun = False, show_config: ShowConfig = False) -> int:
    """Annotate and train only (the first two stages of run)."""
    return run_request(request, until="train", dry_run=dry_run, show_config=show_config)


@takes_request()
def predict(request: "Request", *, dry_run: DryRun = False, show_config: ShowConfig = False) -> int:
    """Annotate, train, evaluate and record, without a leaderboard."""
    return run_request(request, dry_run=dry_run, show_config=show_config)


@takes_request(without=("method", "seeds"))
def reference_baselines(
    request: "Request", *, board_dir: BoardDir = None, dry_run: DryRun = False, show_config: ShowConfig = False
) -> int:
    """Run the reference baselines only: random, majority, and the untrained student."""
    board = board_dir or request.runs / "board"
    return run_request(request, board=board, reference_baselines=True, dry_run=dry_run, show_config=show_config)


def run_request(
    request: "Request",
    *,
    reference_baselines: bool = False,
    until: str = "predict",
    board: Path | None = None,
    dry_run: bool = False,
    show_config: bool = False,
) -> int:
    """Plan, run and record the cells of a request; returns the exit status."""
    from tinyllm_bench.experiment.plan_cells import plan_cells

    preset, cells = plan_cells(request, reference_baselines=reference_baselines, check_hub=not (dry_run or show_config))
    if is_main_process():
        echo(f"preset {preset}{'' if request.preset else ' (chosen for this machine; --preset overrides it)'}")
        if show_config:
            for cell in cells:
                _show_config(cell)
        elif on_terminal() and not dry_run:  # the live view shows the cells anyway
            counts = Counter(cell.label for cell in cells)
            labels = ", ".join(f"{count} x {label}" if count > 1 else label for label, count in counts.items())
            echo(f"{labels} (--dry-run lists every cell)")
        else:
            for cell in cells:
                echo(_description(cell))
    if show_config or dry_run:
        return 0
    check_writable_folders(cells, request.runs, board)
    console = Console(cells, until=until)
    done = run_cells(cells, request.runs, until=until, console=console)
    if is_main_process():
        summarise(done, console.progress.rows, runs=request.runs, until=until, board=board)
    return 1 if done.failed else 0


def check_writable_folders(cells: "Sequence[Cell]", runs: Path, board: Path | None = None) -> None:
    """Refuse folders that a run would have to write to and cannot, before anything is computed.

    Raises:
        UserError: the folder of runs, the leaderboard's, or the cache, where a cell writes into it.
    """
    check_writable(runs, "--runs-dir")
    if board is not None:
        check_writable(board, "--board-dir")
    live = any(not teacher.recorded for cell in cells for teacher in cell.teachers)
    if live or any(cell.config.teacher.cache is not None and cell.signal is not None for cell in cells):
        check_writable(cache_root(), "the cache, TINYLLM_BENCH_CACHE")


def run_cells(
    cells: "Sequence[Cell]", runs: Path, *, until: str = "predict", console: Console | None = None
) -> "Matrix":
    """Run cells one after another and print progress; returns their outcomes and the cells that failed."""
    from tinyllm_bench.experiment.runner import run_matrix
    from tinyllm_bench.preflight.models import refuse_errors

    refuse_errors(cells, runs)
    with console or Console(cells, until=until) as watch:
        return run_matrix(cells, runs, until=until, command=own_command(), watch=watch)


def _show_config(cell: "Cell") -> None:
    from tinyllm_bench.base.config import flatten

    echo(f"\n{cell.label} on {cell.task.name}, seed {cell.seed}")
    values = flatten(cell.config)
    values |= {f"method.{key}": value for key, value in values.pop("method").items()}
    for key, value in sorted(values.items()):
        echo(f"  {key} = {value!r}  ({cell.origin.get(key, 'default')})")


def _description(cell: "Cell") -> str:
    """A cell in one line: what it evaluates, what it trains on and with which teachers."""
    facts = [f"{len(cell.records('test'))} test questions, {cell.mode} scoring, {cell.source.kind} data"]
    if cell.method:
        name, amount = cell.config.budget.limit
        facts.append(f"{len(cell.records('train'))} training records, {amount:,.10g} {name.replace('_', ' ')}")
    if cell.teachers:
        facts.append(f"teachers {' + '.join(dict.fromkeys(teacher.key for teacher in cell.teachers))}")
    return f"  {cell.label} on {cell.task.name}, seed {cell.seed}: {', '.join(facts)} [{cell.run_id}]"


# --- the summary ------------------------------------------------------------------------------------------------------


def summarise(done: "Matrix", rows: Sequence[CellProgress], *, runs: Path, until: str, board: Path | None) -> None:
    """Print the cells, the leaderboard, where the files are and what to run next; last, on standard error, what failed.

    Args:
        done: The outcomes.
        rows: How far each cell came, with the reasons of the failures.
        runs: The folder of all runs.
        until: The last stage of the request.
        board: The leaderboard's folder; None where none is written.
    """
    from tinyllm_bench.leaderboard.tables import text_table
    from tinyllm_bench.leaderboard.terminal import filled

    records = {outcome.record.run_id: outcome.record for outcome in done.outcomes if outcome.record is not None}
    folders = [outcome.folder for outcome in done.outcomes if outcome.record is not None]
    if until != "predict" and not done.failed:
        echo(f"stage {until} is complete; to continue: tinyllm-bench run, with the same arguments")
    if records or done.failed:
        table = [_summary_row(row, records.get(row.run_id)) for row in rows]
        echo(f"\n{text_table(table, markdown=False)}")
    for row in rows:
        if row.error is not None and not row.prerequisite:
            echo(filled(f"{row.name} failed: {row.error}", terminal_width() or COLUMNS, "  "))
    if folders and board is not None:
        from tinyllm_bench.leaderboard.board import board_add, board_build, board_show

        board_add(folders, board, replace=True)
        board_build(board)
        echo(f"\n{board_show(board, width=terminal_width())}")
    if folders:
        _show_files_and_next(list(records.values()), folders, runs, board)
    if done.failed:
        names = ", ".join(f"{cell.label} on {cell.task.name}" for cell in done.failed)
        echo(f"{len(done.failed)} failed: {names}; run the same command again to retry", err=True)


def _summary_row(row: CellProgress, record: "RunRecord | None") -> dict[str, str]:
    from tinyllm_bench.leaderboard.tables import duration, percent

    if record is None:  # the cell failed, or only some of its stages were requested
        stages = "" if row.state == "failed" else ", ".join(row.seconds)
        accuracy, tokens, seconds = f"{stages} done" if stages else str(row.state), row.tokens, row.took
    else:
        accuracy, tokens, seconds = "-", 0, None
        if record.accuracy is not None and record.score is not None:
            exact = "expected" if record.expected_accuracy is not None else f"{record.score.correct}/{record.score.n}"
            accuracy = f"{percent(record.accuracy)} % ({exact})"
        if record.budget:
            tokens, seconds = record.budget.student_tokens, record.budget.seconds
    earlier = " (earlier run)" if row.state == "reused" else ""
    return {
        "cell": f"{'  first: ' if row.prerequisite else ''}{row.label} on {row.task}",
        "seed": str(row.seed),
        "accuracy": accuracy,
        "student tokens": f"{tokens:,}" if tokens else "-",
        "time": "-" if seconds is None else f"{duration(seconds)}{earlier}",
    }


def _show_files_and_next(
    records: Sequence["RunRecord"], folders: Sequence[Path], runs: Path, board: Path | None
) -> None:
    trained = [folder for record, folder in zip(records, folders, strict=True) if record.kind == "method"]
    if board is None:
        echo(f"records: {', '.join(str(folder / 'run.json') for folder in folders)}")
        commands = [f"tinyllm-bench board add {shlex.join(map(str, folders))}"]
    else:
        echo(f"records: {runs}/*/run.json")
        echo(f"board:   {board / 'README.md'}, {board / 'index.html'}")
        labels = list(dict.fromkeys(record.label for record in records if record.kind == "method"))
        place = shlex.quote(str(board))
        if len(labels) < 2:
            commands = [f"tinyllm-bench board show --board-dir {place}"]
        else:
            commands = [f"tinyllm-bench compare {shlex.quote(labels[-1])} {shlex.quote(labels[0])} --in {place}"]
    if trained:
        echo(f"curves:  {trained[0] if len(trained) == 1 else runs / '*'}/train/curves.svg")
        commands.append(f"tinyllm-bench curves {shlex.quote(str(runs))}")
    echo("\n".join(f"{'next:' if number == 0 else '':<6}{text}" for number, text in enumerate(commands)))
