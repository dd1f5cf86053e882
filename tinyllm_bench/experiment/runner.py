"""A run, from cells to records: annotate, train, predict and record, cell by cell.

Each finished stage is kept and never done twice; a cell that fails does not stop the others; whoever watches is told.
"""

import datetime
import shutil
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from tinyllm_bench.base import provenance
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import (
    AnnotationFinished,
    CellStarted,
    Event,
    PrerequisiteStarted,
    Report,
    RunRecorded,
    StudentEvaluated,
    TrainingFinished,
    to_json,
)
from tinyllm_bench.base.files import append_checked, locked, read_checked, read_json, write_json, write_text
from tinyllm_bench.data.records import Annotation, Prediction
from tinyllm_bench.experiment.annotate import annotate, annotation_counts, taught
from tinyllm_bench.experiment.cell import Cell, device_of
from tinyllm_bench.experiment.identity import GUESSES, plugins_of
from tinyllm_bench.experiment.predict import (
    Engines,
    PathAsker,
    StudentAsker,
    guesser,
    part_file,
    predict,
    predictions_digest,
    predictions_file,
)
from tinyllm_bench.experiment.record import RunFacts, Spent, make_record
from tinyllm_bench.experiment.sample_answers import joint_training
from tinyllm_bench.experiment.settings import WATCHING
from tinyllm_bench.experiment.trackers import Trackers
from tinyllm_bench.experiment.train import train
from tinyllm_bench.generation.vllm_worker import forget_failures
from tinyllm_bench.leaderboard.curves import draw_run
from tinyllm_bench.leaderboard.record import RECORD_FILE, GitInfo, RunRecord, load_record, save_record
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.training.result import RESULT_FILE, TrainResult, load_result

STAGES = ("annotate", "train", "predict")


class Outcome(NamedTuple):
    """What became of a cell: its folder, its record when it is finished, and whether anything had to be done."""

    folder: Path
    record: RunRecord | None
    fresh: bool


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


def run_cell(
    cell: Cell, runs: Path, engines: Engines, *, until: str = "predict", command: str = "", report: Report
) -> Outcome:
    """Do the stages of a cell up to `until` that are not done yet; a finished cell is read back.

    Args:
        cell: The resolved cell.
        runs: The folder of all runs.
        engines: What outlives the cell.
        until: The last stage, one of `STAGES`; after `predict` the record is written.
        command: The command line, kept in the record.
        report: Is told of progress; every event also lands in `events.jsonl`.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # The test split is asked by one process while the others wait for it: longer than the usual time-out.
    process = PartialState(cpu=device_of(cell) == "cpu", timeout=datetime.timedelta(days=2))
    folder = runs / cell.run_id
    with locked(folder / "cell") if process.is_main_process else nullcontext():
        finished = [(folder / RECORD_FILE).exists()]
        broadcast_object_list(finished)
        if finished[0]:
            return Outcome(folder, load_record(folder), False)
        for first in cell.earlier:
            if not (runs / first.run_id / RESULT_FILE).exists():
                report(PrerequisiteStarted(first.label, first.student.text))
                run_cell(first, runs, engines, until="train", command=command, report=report)
        with Trackers(cell, folder, report) as trackers:
            return _Run(cell, folder, engines, command, report, trackers, main=process.is_main_process).go(until)


class _Run:
    """One cell on its way: the stages in order, each reading back what an earlier call had finished."""

    def __init__(
        self,
        cell: Cell,
        folder: Path,
        engines: Engines,
        command: str,
        report: Report,
        trackers: Trackers,
        *,
        main: bool,
    ) -> None:
        self.cell, self.folder, self.engines, self.command, self._report = cell, folder, engines, command, report
        self.trackers, self.main = trackers, main

    def event(self, event: Event) -> None:
        """Pass an event on; starts and ends of stages are also written (training writes its own metrics)."""
        if not self.main:
            return
        if isinstance(event, CellStarted | AnnotationFinished | TrainingFinished | RunRecorded):
            append_checked(self.folder / "events.jsonl", [{"time": round(time.time(), 3), **to_json(event)}])
        if isinstance(event, StudentEvaluated | TrainingFinished):
            draw_run(self.folder)
        self.trackers.event(event)
        self._report(event)

    def go(self, until: str) -> Outcome:
        from accelerate import PartialState

        cell, folder = self.cell, self.folder
        self.started, self.train_seconds = time.monotonic(), 0.0
        provenance.reset_peak_memory()
        if not (folder / "config.yaml").exists() and self.main:
            config = cell.config.model_dump(mode="json", exclude=WATCHING)
            write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        self.event(CellStarted(cell.run_id, cell.label, cell.task.name))
        annotations: list[Annotation] = []
        training: TrainResult | None = None
        if cell.kind == "method":
            annotations = self._annotations()
            self.event(AnnotationFinished(len(annotations)))
            if until == "annotate":
                return Outcome(folder, None, True)
            before = time.monotonic()
            if cell.students:  # trained by cells of their own, which came first
                trained = dict.fromkeys(student.run_id for student in cell.students.values())
                training = joint_training([load_result(cell.runs / run_id) for run_id in trained])
            else:
                training = train(cell, folder, annotations, report=self.event)
            self.train_seconds = time.monotonic() - before
            self.event(TrainingFinished(training.steps, training.last_loss))
        if until != "predict":
            return Outcome(folder, None, True)
        record = self._recorded(annotations, training) if self.main else None
        PartialState().wait_for_everyone()
        return Outcome(folder, record, True)

    def _annotations(self) -> list[Annotation]:
        """What the method learns, as the main process has it: a program that meets its time limit in one process may
        not in another.
        """
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        # on every process: the cache's lock waits as long as it takes
        texts = annotate(self.cell, report=self.event)
        shared = [taught(self.cell, texts) if self.main else None]
        if PartialState().num_processes > 1:
            broadcast_object_list(shared)
        assert shared[0] is not None
        return shared[0]

    def _recorded(self, annotations: Sequence[Annotation], training: TrainResult | None) -> RunRecord:
        """Ask the student the test records, and write the record."""
        cell, folder, scratch = self.cell, self.folder, self.folder / "asked"
        asked: dict[str, Any] = {}
        if cell.name in GUESSES:
            ask = guesser(cell)
        else:
            asker: StudentAsker | PathAsker
            if cell.students:
                asker = PathAsker(cell, self.engines, scratch)
            else:
                trained = None if training is None else parse_spec(f"dir:{folder / 'student'}", role="student")
                asker = StudentAsker(cell, trained or cell.student, self.engines, scratch)
            asked, ask = self._asked(asker, training), asker.ask
        predictions = predict(cell, folder, cell.records("test"), ask, report=self.event)
        shutil.rmtree(scratch, ignore_errors=True)
        test_evaluations = self._count_test_evaluation(predictions)
        # wall seconds of this call, and of the training that earlier, interrupted calls had done
        earlier = max(training.seconds - self.train_seconds, 0.0) if training else 0.0
        peak = provenance.peak_memory()
        spent = Spent(
            seconds=round(time.monotonic() - self.started + earlier, 2),
            peak_memory_bytes=peak if training is None else max(peak, training.peak_memory_bytes),
            device=provenance.device_name(),
        )
        first = {"student_init": cell.student_from, "teacher_init": cell.teacher_from}
        commit, dirty = provenance.git_state()
        facts = RunFacts(
            run_id=cell.run_id,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            training=training,
            **{key: None if one is None else load_result(cell.runs / one.run_id) for key, one in first.items()},
            annotations=annotation_counts(cell, annotations),
            asked=asked,
            spent=spent,
            test_evaluations=test_evaluations,
            git=GitInfo(commit=commit, dirty=dirty),
            packages={**provenance.packages(), **plugins_of(cell)},
            command=self.command,
        )
        record = make_record(cell, predictions, facts)
        save_record(record, folder)
        self.trackers.result(record)
        self.event(RunRecorded(record.accuracy))
        return record

    def _asked(self, asker: StudentAsker | PathAsker, training: TrainResult | None) -> dict[str, Any]:
        """Facts of the asked student, written before its first answer; answers of another student or backend go."""
        file = self.folder / "predictions" / "asked.json"
        if predictions_file(self.cell, self.folder).exists():
            return read_json(file)
        facts = asker.facts()
        if training is not None and facts["student"]["digest"] != training.student_digest:
            raise UserError(f"{self.folder / 'student'} is not the student that was trained; delete {self.folder}")
        if not file.exists() or read_json(file) != facts:
            part_file(self.cell, self.folder).unlink(missing_ok=True)
            write_json(file, facts)
        return facts

    def _count_test_evaluation(self, predictions: Sequence[Prediction]) -> int:
        """Count an evaluation on the test split once per finished prediction, however often the command was called."""
        ledger = self.folder / "ledger.jsonl"
        evaluations = [row for row in read_checked(ledger) if "test_evaluation" in row]
        mark = predictions_digest(predictions)
        if not any(row["mark"] == mark for row in evaluations):
            append_checked(ledger, [{"test_evaluation": len(evaluations) + 1, "items": len(predictions), "mark": mark}])
            return len(evaluations) + 1
        return len(evaluations)
