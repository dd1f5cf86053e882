"""The Python API: what the command line does, with results as objects.

`run` plans and runs cells as `tinyllm-bench run` does, `compare` is `tinyllm-bench compare`, `load_record` reads a run.
An invalid request raises `UserError` before anything starts; a cell that fails does not stop the others and is in
`Result.failed`.
"""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.config import as_assignments
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Event
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.plan_cells import plan_cells
from tinyllm_bench.experiment.request import Request, split_names
from tinyllm_bench.experiment.runner import CellResult, Watch, run_matrix
from tinyllm_bench.leaderboard.compare import ComparisonReport, find_pairs, pair_of
from tinyllm_bench.leaderboard.compare import compare as compare_pairs
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.record import load_record as load_record
from tinyllm_bench.preflight.models import refuse_errors

if TYPE_CHECKING:
    import pandas as pd

Names = str | Iterable[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A cell that failed. `error` is the exception; `log` has its traceback where the error is not the user's."""

    run_id: str
    label: str
    task: str
    seed: int
    error: Exception
    log: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a request: the records of its finished cells in order, those that failed, and the runs folder."""

    records: tuple[RunRecord, ...]
    failed: tuple[Failed, ...]
    runs_dir: Path

    def folder(self, record: RunRecord) -> Path:
        """The folder of a run: its student, its predictions, its record."""
        return self.runs_dir / record.run_id

    def table(self) -> "pd.DataFrame":
        """One row per run; see `leaderboard.tables.runs_frame`."""
        from tinyllm_bench.leaderboard.tables import runs_frame

        return runs_frame(self.records)

    def board(self, folder: str | Path) -> Path:
        """Add the records to a board and build it; returns its `README.md`."""
        from tinyllm_bench.leaderboard.board import board_add, board_build

        board_add([self.folder(record) for record in self.records], Path(folder), replace=True)
        return board_build(Path(folder))


def run(
    *,
    method: Names = (),
    task: Names,
    preset: str | None = None,
    config: str | Path | None = None,
    seeds: int = 1,
    settings: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    backend: str | None = None,
    runs_dir: str | Path = "runs",
    reference_baselines: bool = False,
    watch: Watch | None = None,
) -> Result:
    """Run methods on tasks; finished runs in `runs_dir` are read back, and interrupted ones resume.

    Args:
        method: Names, in one text with commas or several, or `all`; none with `reference_baselines=True` for those
            alone.
        task: Names of tasks, the same way.
        preset: `quickstart`, `cpu`, `paper` or `modern`; without one the machine decides, as on the command line.
        config: A YAML file with settings.
        seeds: 3 means seeds 0, 1 and 2.
        settings: Settings by dotted name, nested, or both: `{"train.learning_rate": 1e-4}` is
            `{"train": {"learning_rate": 1e-4}}`.
        data_dir: The release's folder.
        backend: `hf`, `vllm` or `auto`.
        runs_dir: The folder of runs.
        reference_baselines: Also run the reference baselines.
        watch: Receives progress; nothing is printed without one. `cli.console.Console` prints what a command prints.

    Raises:
        UserError: the request is invalid; nothing was started.
    """
    request = Request(
        methods=split_names(method),
        tasks=split_names(task),
        preset=preset,
        config_file=None if config is None else Path(config),
        assignments=as_assignments(settings or {}),
        seeds=seeds,
        data_dir=None if data_dir is None else str(data_dir),
        engine=backend,
        runs=Path(runs_dir),
    )
    _, cells = plan_cells(request, reference_baselines=reference_baselines)
    watcher = _ErrorCollector(watch)
    refuse_errors(cells, request.runs)
    done = run_matrix(cells, request.runs, command=_command(request, reference_baselines), watch=watcher)
    records = tuple(outcome.record for outcome in done.outcomes if outcome.record is not None)
    return Result(records=records, failed=tuple(watcher.errors), runs_dir=request.runs)


def compare(
    a: str | Path | RunRecord,
    b: str | Path | RunRecord,
    *,
    place: str | Path | None = None,
    student: str | None = None,
) -> ComparisonReport:
    """Compare two runs, two rows of a board or two boards, question by question; differences are `a` minus `b`.

    Args:
        a: A record, a run's folder, a record's file, a board's folder, or the name of a row in `place`.
        b: The same kind of thing.
        place: The board or the folder of runs where rows are looked up; `runs/board` or `runs` without one.
        student: The student of the rows, where several have rows of that name.

    Raises:
        UserError: two kinds of things, unknown or ambiguous names, two protocols.
    """
    if isinstance(a, RunRecord) and isinstance(b, RunRecord):
        return compare_pairs(pair_of(a, b))
    if isinstance(a, RunRecord) or isinstance(b, RunRecord):
        raise UserError("compare takes two records, or two names or folders; load_record(FOLDER) gives a record")
    where = None if place is None else Path(place)
    return compare_pairs(find_pairs(str(a), str(b), place=where, student=student))


def _command(request: Request, reference_baselines: bool) -> str:
    """The equivalent command line, for the record."""
    words = ["tinyllm-bench", "run" if request.methods else "reference-baselines"]
    options = {
        "--method": ",".join(request.methods),
        "--task": ",".join(request.tasks),
        "--preset": request.preset,
        "--config": request.config_file,
        "--data-dir": request.data_dir,
        "--backend": request.engine,
    }
    for option, value in options.items():
        words += [option, str(value)] if value else []
    words += ["--seeds", str(request.seeds)] if request.seeds > 1 else []
    words += ["--no-reference-baselines"] if request.methods and not reference_baselines else []
    return shlex.join([*words, *request.assignments])


@dataclass(frozen=True, slots=True)
class _ErrorCollector:
    """Collects the errors of failed cells, and forwards everything to the caller's watch."""

    watch: Watch | None
    errors: list[Failed] = field(default_factory=list)

    def cell(self, cell: Cell, number: int, count: int) -> None:
        if self.watch is not None:
            self.watch.cell(cell, number, count)

    def event(self, event: Event) -> None:
        if self.watch is not None:
            self.watch.event(event)

    def done(self, cell: Cell, outcome: CellResult) -> None:
        if self.watch is not None:
            self.watch.done(cell, outcome)

    def failed(self, cell: Cell, error: Exception, log: Path | None) -> None:
        failure = Failed(
            run_id=cell.run_id, label=cell.label, task=cell.task.name, seed=cell.seed, error=error, log=log
        )
        self.errors.append(failure)
        if self.watch is not None:
            self.watch.failed(cell, error, log)
