"""`run`: annotate, train, predict and record, cell by cell; each finished stage is kept and never done twice."""

import datetime
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

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
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.identity import GUESSES, plugins_of
from tinyllm_bench.experiment.predict import (
    Engines,
    StudentAsker,
    guesser,
    part_file,
    predict,
    predictions_digest,
    predictions_file,
)
from tinyllm_bench.experiment.record import RunFacts, Spent, make_record
from tinyllm_bench.experiment.sample_answers import PathAsker, joint_training
from tinyllm_bench.experiment.settings import WATCHING
from tinyllm_bench.experiment.trackers import Trackers
from tinyllm_bench.experiment.train import device_of, train
from tinyllm_bench.leaderboard.curves import draw_run
from tinyllm_bench.leaderboard.record import RECORD_FILE, GitInfo, RunRecord, load_record, save_record
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.training.result import RESULT_FILE, TrainResult, load_result

STAGES = ("annotate", "train", "predict")


class Outcome(NamedTuple):
    """What became of a cell: its folder, its record when it is finished, and whether anything had to be done."""

    folder: Path
    record: RunRecord | None
    fresh: bool


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
    process = PartialState(cpu=device_of(cell) == "cpu", timeout=timedelta(days=2))
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

    def go(self, until: str) -> Outcome:
        from accelerate import PartialState

        self.started = time.monotonic()
        provenance.reset_peak_memory()
        self._begin()
        annotations: list[Annotation] = []
        training: TrainResult | None = None
        if self.cell.kind == "method":
            annotations = self._taught()
            self.event(AnnotationFinished(len(annotations)))
            if until == "annotate":
                return Outcome(self.folder, None, True)
            before = time.monotonic()
            training = self._trained(annotations)
            self.train_seconds = time.monotonic() - before
            self.event(TrainingFinished(training.steps, training.last_loss))
        if until != "predict":
            return Outcome(self.folder, None, True)
        record = self._predict(annotations, training) if self.main else None
        PartialState().wait_for_everyone()
        return Outcome(self.folder, record, True)

    def _taught(self) -> list[Annotation]:
        """What the main process found: a program that meets its time limit in one process may not in another."""
        from accelerate import PartialState
        from accelerate.utils import broadcast_object_list

        said = annotate(self.cell, report=self.event)  # on every process: the cache's lock waits as long as it takes
        found = [taught(self.cell, said) if self.main else None]
        if PartialState().num_processes > 1:
            broadcast_object_list(found)
        assert found[0] is not None
        return found[0]

    def _trained(self, annotations: Sequence[Annotation]) -> TrainResult:
        if self.cell.students:
            students = dict.fromkeys(student.run_id for student in self.cell.students.values())
            return joint_training([load_result(self.cell.runs / run_id) for run_id in students])
        return train(self.cell, self.folder, annotations, report=self.event)

    def _begin(self) -> None:
        if not (self.folder / "config.yaml").exists() and self.main:
            config = self.cell.config.model_dump(mode="json", exclude=WATCHING)
            write_text(self.folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        self.event(CellStarted(self.cell.run_id, self.cell.label, self.cell.task.name))

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

    def _predict(self, annotations: Sequence[Annotation], training: TrainResult | None) -> RunRecord:
        cell, records = self.cell, self.cell.records("test")
        if cell.name in GUESSES:
            predictions = predict(cell, self.folder, records, guesser(cell), report=self.event)
            asked: dict[str, Any] = {}
        else:
            asker = self._asker(training)
            asked = self._asked(asker, training)
            predictions = predict(cell, self.folder, records, asker.ask, report=self.event)
            shutil.rmtree(asker.scratch, ignore_errors=True)
        looks = self._look_at_test(predictions)
        peak = provenance.peak_memory()
        spent = Spent(
            seconds=self._seconds(training),
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
            test_looks=looks,
            git=GitInfo(commit=commit, dirty=dirty),
            packages={**provenance.packages(), **plugins_of(cell)},
            command=self.command,
        )
        record = make_record(cell, predictions, facts)
        save_record(record, self.folder)
        self.trackers.result(record)
        self.event(RunRecorded(record.accuracy))
        return record

    def _asker(self, training: TrainResult | None) -> StudentAsker | PathAsker:
        scratch = self.folder / "asked"
        if self.cell.students:
            return PathAsker(self.cell, self.engines, scratch)
        return StudentAsker(self.cell, self._student(training), self.engines, scratch)

    def _student(self, training: TrainResult | None) -> ModelSpec:
        if training is None:
            return self.cell.student
        return parse_spec(f"dir:{self.folder / 'student'}", role="student")

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

    def _look_at_test(self, predictions: Sequence[Prediction]) -> int:
        """Count a look at the test split once per finished prediction, however often the command was called."""
        ledger = self.folder / "ledger.jsonl"
        looks = [row for row in read_checked(ledger) if "test_look" in row]
        mark = predictions_digest(predictions)
        if not any(row["mark"] == mark for row in looks):
            append_checked(ledger, [{"test_look": len(looks) + 1, "items": len(predictions), "mark": mark}])
            return len(looks) + 1
        return len(looks)

    def _seconds(self, training: TrainResult | None) -> float:
        """Wall seconds of this call, and of the training that earlier, interrupted calls had done."""
        earlier = max(training.seconds - self.train_seconds, 0.0) if training else 0.0
        return round(time.monotonic() - self.started + earlier, 2)
