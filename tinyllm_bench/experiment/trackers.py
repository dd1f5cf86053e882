"""Experiment trackers (`report_to`): training steps, evaluations and the result, logged by accelerate's trackers.

accelerate's tracker classes are used without an `Accelerator`: a cell continues after its trainer with the test split,
and `Accelerator.end_training` would end the process group that the next cells need.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.events import Evaluation, Event, Report, StudentEvaluated, TrackerFailed, TrainingStep
from tinyllm_bench.base.files import canonical_json
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.record import public_config
from tinyllm_bench.leaderboard.public import public_text
from tinyllm_bench.leaderboard.record import RunRecord

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "tinyllm-bench"
_SPENT = {"student_tokens", "teacher_tokens_in", "teacher_tokens_out", "rollout_tokens", "train_flops", "seconds"}
Values = dict[str, Any]


class Trackers:
    """The trackers of one cell, started with the first value. A context manager; for the main process alone.

    A tracker that fails (no network, no account) is reported once and gets no more values: the run's own files hold
    every number anyway.
    """

    def __init__(self, cell: Cell, folder: Path, report: Report) -> None:
        self._cell, self._folder, self._report = cell, folder, report
        self._trackers: dict[str, GeneralTracker] | None = None

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *error: object) -> None:
        self._each(lambda tracker: tracker.finish())

    def event(self, event: Event) -> None:
        """Log a training step or an evaluation; trackers have no use for other events."""
        match event:
            case TrainingStep():
                self._log(step_values(event), event.step)
            case StudentEvaluated(evaluation):
                self._log(evaluation_values(evaluation), evaluation.step)
            case _:
                pass

    def result(self, record: RunRecord) -> None:
        """Log the finished cell's numbers."""
        self._log(result_values(record), record.training.steps if record.training else 0)

    def _log(self, values: Values, step: int) -> None:
        if self._trackers is None:
            self._trackers = {name: self._create(name) for name in self._cell.config.report_to}
            self._each(lambda tracker: tracker.start())
            self._each(lambda tracker: tracker.store_init_configuration(_settings(self._cell)))
        self._each(lambda tracker: tracker.log(values, step=step))

    def _create(self, name: str) -> "GeneralTracker":
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind, run, group = LOGGER_TYPE_TO_CLASS[name], self._cell.run_id, self._cell.task.name
        if kind.requires_logging_directory:
            return kind(name, str(self._folder))
        options: dict[str, dict[str, Any]] = {
            "wandb": {"id": run, "name": run, "group": group, "resume": "allow", "dir": str(self._folder)},
            "trackio": {"name": run, "group": group, "resume": "allow"},
            "mlflow": {"run_name": run},
        }
        return kind(PROJECT, **options[name])

    def _each(self, call: Callable[["GeneralTracker"], None]) -> None:
        for name, tracker in list((self._trackers or {}).items()):
            try:
                call(tracker)
            except Exception as error:
                assert self._trackers is not None
                del self._trackers[name]
                self._report(TrackerFailed(name, public_text(f"{type(error).__name__}: {error}")))


def _settings(cell: Cell) -> Values:
    """The run's settings for a tracker: flat, without machine paths and keys."""
    facts = {"run_id": cell.run_id, "label": cell.label, "task": cell.task.name, "seed": cell.seed}
    return {**facts, "mode": cell.mode, **_flat(public_config(cell))}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Values:
    flat: Values = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = canonical_json(value) if isinstance(value, list | tuple) else value
    return flat


def step_values(step: TrainingStep) -> Values:
    """A training step by names: loss (of each channel where there are several), learning rate, tokens, measurements."""
    values = {"train/loss": step.loss, "train/learning_rate": step.learning_rate, "train/tokens": step.tokens}
    channels = step.by_channel if len(step.by_channel) > 1 else {}
    return values | _named("train/loss/", channels) | _named("train/", step.measured)


def evaluation_values(evaluation: Evaluation) -> Values:
    """An evaluation by names, without those that were not measured."""
    values = {name: getattr(evaluation, name) for name in ("accuracy", "gold_probability", "loss")}
    return _named("valid/", values) | _named("valid/", evaluation.probe)


def result_values(record: RunRecord) -> Values:
    """A record's numbers by names: the score on the test split and what the run spent."""
    values = {"accuracy": record.accuracy, **record.secondary}
    if record.score is not None:
        values |= {key: getattr(record.score, key) for key in ("n", "correct", "wrong", "unparsed")}
    spent = {} if record.budget is None else record.budget.model_dump(include=_SPENT, exclude_none=True)
    return _named("test/", values) | _named("spent/", spent)


def _named(prefix: str, values: Mapping[str, Any]) -> Values:
    """Values under names that every tracker accepts."""
    return {prefix + re.sub(r"[^\w./ -]", "_", name): value for name, value in values.items() if value is not None}
