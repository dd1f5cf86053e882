"""A run, from cells to records: annotate, train, predict and record, cell by cell.

Each finished stage is stored and never repeated; a cell that fails does not stop the others. Progress goes to the
observer, to the run's log and to experiment trackers.
"""

import datetime
import shutil
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

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
from tinyllm_bench.base.files import append_checked, locked, read_checked, write_json, write_text
from tinyllm_bench.data.records import Annotation, Prediction
from tinyllm_bench.experiment.annotate import annotate, annotation_counts, training_targets
from tinyllm_bench.experiment.cell import Cell, device_of, plugins_of
from tinyllm_bench.experiment.predict import (
    Engines,
    EvaluatedStudent,
    Evaluator,
    evaluator_of,
    load_evaluated_student,
    part_file,
    predict,
    predictions_digest,
    predictions_file,
    student_file,
)
from tinyllm_bench.experiment.record import RunFacts, Spent, make_record
from tinyllm_bench.experiment.settings import NOT_RECORDED
from tinyllm_bench.experiment.trackers import Trackers
from tinyllm_bench.experiment.train import joint_training, train
from tinyllm_bench.generation.vllm_worker import forget_failures
from tinyllm_bench.leaderboard.curves import draw_run
from tinyllm_bench.leaderboard.record import RECORD_FILE, GitInfo, RunRecord, load_record, save_record
from tinyllm_bench.training.result import RESULT_FILE, TrainResult, load_result

STAGES = ("annotate", "train", "predict")


class CellResult(NamedTuple):
    """The result of a cell: its folder, its record if it is finished, and whether anything had to be run."""

    folder: Path
    record: RunRecord | None
    fresh: bool


class Watch(Protocol):
    """Observes a run; the calls come in the order of the cells."""

    def cell(self, cell: Cell, number: int, count: int) -> None:
        """The `number`th of `count` cells starts (from 1)."""

    def event(self, event: Event) -> None:
        """Something happened in the running cell."""

    def done(self, cell: Cell, outcome: CellResult) -> None:
        """The cell is finished."""

    def failed(self, cell: Cell, error: Exception, log: Path | None) -> None:
        """The cell failed; `log` holds the traceback of an error that the user cannot fix."""


class Matrix(NamedTuple):
    """The results of the finished cells, and the cells that failed."""

    outcomes: tuple[CellResult, ...]
    failed: tuple[Cell, ...]


def run_matrix(cells: Sequence[Cell], runs: Path, *, until: str = "predict", command: str = "", watch: Watch) -> Matrix:
    """Run cells one after another, each up to the stage `until`.

    Args:
        cells: The cells, as `plan_cells` gives them.
        runs: The folder of all runs.
        until: The last stage, one of `STAGES`.
        command: The command line, for the records.
        watch: Observes the run.
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
) -> CellResult:
    """Run the stages of a cell up to `until` that are not finished yet; a finished cell is read back.

    Args:
        cell: The resolved cell.
        runs: The folder of all runs.
        engines: Processes that outlive the cell.
        until: The last stage, one of `STAGES`; after `predict` the record is written.
        command: The command line, for the record.
        report: Receives every event; starts and ends of stages are also written to `events.jsonl`.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    # One process evaluates the test split while the others wait, which takes longer than the usual time-out.
    process = PartialState(cpu=device_of(cell) == "cpu", timeout=datetime.timedelta(days=2))
    folder = runs / cell.run_id
    with locked(folder / "cell") if process.is_main_process else nullcontext():
        finished = [(folder / RECORD_FILE).exists()]
        broadcast_object_list(finished)
        if finished[0]:
            return CellResult(folder, load_record(folder), False)
        for prerequisite in cell.prerequisites:
            if not (runs / prerequisite.run_id / RESULT_FILE).exists():
                report(PrerequisiteStarted(prerequisite.label, prerequisite.student.text))
                run_cell(prerequisite, runs, engines, until="train", command=command, report=report)
        with Trackers(cell, folder, report) as trackers:
            run = _Run(
                cell=cell,
                folder=folder,
                engines=engines,
                command=command,
                report=report,
                trackers=trackers,
                main=process.is_main_process,
            )
            return run.run(until)


@dataclass(kw_only=True)
class _Run:
    """One run of a cell: the stages in order, each of which reads back what an earlier call has finished.

    `main`: this is the main process, the only one that writes and reports.
    """

    cell: Cell
    folder: Path
    engines: Engines
    command: str
    report: Report
    trackers: Trackers
    main: bool
    started: float = field(default_factory=time.monotonic)
    train_seconds: float = 0.0

    def event(self, event: Event) -> None:
        """Pass an event on; starts and ends of stages are also logged (training writes its own metrics)."""
        if not self.main:
            return
        if isinstance(event, CellStarted | AnnotationFinished | TrainingFinished | RunRecorded):
            append_checked(self.folder / "events.jsonl", [{"time": round(time.time(), 3), **to_json(event)}])
        if isinstance(event, StudentEvaluated | TrainingFinished):
            draw_run(self.folder)
        self.trackers.event(event)
        self.report(event)

    def run(self, until: str) -> CellResult:
        """The stages up to `until`; after `predict` the record."""
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        cell, folder = self.cell, self.folder
        provenance.reset_peak_memory()
        if not (folder / "config.yaml").exists() and self.main:
            config = cell.config.model_dump(mode="json", exclude=NOT_RECORDED)
            write_text(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        self.event(CellStarted(cell.run_id, cell.label, cell.task.name))
        targets: list[Annotation] = []
        training: TrainResult | None = None
        if cell.kind == "method":
            # on every process, where the lock of the cache waits as long as it takes
            annotations = annotate(cell, report=self.event)
            # the main process decides: a program that meets its time limit in one process may exceed it in another
            shared = [training_targets(cell, annotations) if self.main else []]
            if PartialState().num_processes > 1:
                broadcast_object_list(shared)
            targets = shared[0]
            self.event(AnnotationFinished(len(targets)))
            if until == "annotate":
                return CellResult(folder, None, True)
            before = time.monotonic()
            if cell.students:  # trained by cells of their own, which came first
                run_ids = dict.fromkeys(student.run_id for student in cell.students.values())
                training = joint_training([load_result(cell.runs / run_id) for run_id in run_ids])
            else:
                training = train(cell, folder, targets, report=self.event)
            self.train_seconds = time.monotonic() - before
            self.event(TrainingFinished(training.steps, training.last_loss))
        if until != "predict":
            return CellResult(folder, None, True)
        record = self._predict_and_record(targets, training) if self.main else None
        PartialState().wait_for_everyone()
        return CellResult(folder, record, True)

    def _predict_and_record(self, annotations: Sequence[Annotation], training: TrainResult | None) -> RunRecord:
        """Predict the test records, and write the record."""
        cell, folder, scratch = self.cell, self.folder, self.folder / "scratch"
        evaluator = evaluator_of(cell, folder, self.engines, scratch)
        student = self._evaluated_student(evaluator, training)
        predictions = predict(cell, folder, cell.records("test"), evaluator.answer, report=self.event)
        shutil.rmtree(scratch, ignore_errors=True)
        test_evaluations = self._count_test_evaluation(predictions)
        # seconds of training that earlier, interrupted calls spent; this call's own are added below
        earlier = max(training.seconds - self.train_seconds, 0.0) if training else 0.0
        peak = provenance.peak_memory()
        student_init, teacher_init = (
            None if first is None else load_result(cell.runs / first.run_id)
            for first in (cell.student_from, cell.teacher_from)
        )
        commit, dirty = provenance.git_state()
        facts = RunFacts(
            run_id=cell.run_id,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            training=training,
            student_init=student_init,
            teacher_init=teacher_init,
            annotations=annotation_counts(cell, annotations),
            student=student,
            spent=Spent(
                seconds=round(time.monotonic() - self.started + earlier, 2),
                peak_memory_bytes=peak if training is None else max(peak, training.peak_memory_bytes),
                device=provenance.device_name(),
            ),
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

    def _evaluated_student(self, evaluator: Evaluator, training: TrainResult | None) -> EvaluatedStudent | None:
        """The student that answers, stored before its first answer; those of another student or backend are removed."""
        file = student_file(self.folder)
        if predictions_file(self.cell, self.folder).exists():
            return load_evaluated_student(self.folder) if file.exists() else None
        student = evaluator.student()
        if student is None:
            return None
        if training is not None and student.digest != training.student_digest:
            raise UserError(f"{self.folder / 'student'} is not the student that was trained; delete {self.folder}")
        if not file.exists() or load_evaluated_student(self.folder) != student:
            part_file(self.cell, self.folder).unlink(missing_ok=True)
            write_json(file, student.model_dump(mode="json"))
        return student

    def _count_test_evaluation(self, predictions: Sequence[Prediction]) -> int:
        """Count an evaluation on the test split once per finished prediction, however often the command was called."""
        ledger = self.folder / "ledger.jsonl"
        evaluations = [row for row in read_checked(ledger) if "test_evaluation" in row]
        mark = predictions_digest(predictions)
        if not any(row["mark"] == mark for row in evaluations):
            append_checked(ledger, [{"test_evaluation": len(evaluations) + 1, "items": len(predictions), "mark": mark}])
            return len(evaluations) + 1
        return len(evaluations)
