"""Experiment trackers (`report_to`): what training measures and what came out, told to accelerate's trackers.

accelerate's tracker classes are used without an `Accelerator`: a cell goes on after its trainer (the test split is
asked), and `Accelerator.end_training` would end the process group that the next cells need.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.files import canonical_json
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.record import public_config
from tinyllm_bench.leaderboard.public import public_text
from tinyllm_bench.leaderboard.record import RunRecord

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "tinyllm-bench"
Values = dict[str, Any]


class Trackers:
    """The trackers of one cell, started with the first thing to tell. A context manager; for the main process alone.

    A tracker that fails (no network, no account) is reported once and told no more: the run's own files hold every
    number anyway.
    """

    def __init__(self, cell: Cell, folder: Path, report: Callable[[Mapping[str, Any]], None]) -> None:
        self._cell, self._folder, self._report = cell, folder, report
        self._trackers: dict[str, GeneralTracker] | None = None

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *error: object) -> None:
        self._each(lambda tracker: tracker.finish())

    def event(self, event: Mapping[str, Any]) -> None:
        """Tell of a training step or a look at validation; other events are nothing to a tracker."""
        if "step" in event:
            self._log(step_values(event), event["step"])
        elif "look" in event:
            self._log(look_values(event["look"]), event["look"]["step"])

    def result(self, record: RunRecord) -> None:
        """Tell the finished cell's numbers."""
        self._log(result_values(record), record.training.steps if record.training else 0)

    def _log(self, values: Values, step: int) -> None:
        if self._trackers is None:
            self._trackers = {name: self._made(name) for name in self._cell.config.report_to}
            self._each(lambda tracker: tracker.start())
            self._each(lambda tracker: tracker.store_init_configuration(_settings(self._cell)))
        self._each(lambda tracker: tracker.log(values, step=step))

    def _made(self, name: str) -> "GeneralTracker":
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind, run, group = LOGGER_TYPE_TO_CLASS[name], self._cell.run_id, self._cell.task.name
        if kind.requires_logging_directory:
            return kind(name, str(self._folder))
        named: dict[str, dict[str, Any]] = {
            "wandb": {"id": run, "name": run, "group": group, "resume": "allow", "dir": str(self._folder)},
            "trackio": {"name": run, "group": group, "resume": "allow"},
            "mlflow": {"run_name": run},
        }
        return kind(PROJECT, **named[name])

    def _each(self, tell: Callable[["GeneralTracker"], None]) -> None:
        for name, tracker in list((self._trackers or {}).items()):
            try:
                tell(tracker)
            except Exception as error:
                assert self._trackers is not None
                del self._trackers[name]
                self._report({"tracker": name, "error": public_text(f"{type(error).__name__}: {error}")})


def _settings(cell: Cell) -> Values:
    """What a tracker shows as the run's settings: flat, plain, without places or keys."""
    facts = {"run_id": cell.run_id, "label": cell.label, "task": cell.task.name, "seed": cell.seed}
    return {**facts, "reading": cell.reading, **_flat(public_config(cell))}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Values:
    flat: Values = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = canonical_json(value) if isinstance(value, list | tuple) else value
    return flat


def step_values(event: Mapping[str, Any]) -> Values:
    """A training step by names: loss (of each channel where there are several), learning rate, tokens, measurements."""
    values = {"train/loss": event["loss"], "train/learning_rate": event["lr"], "train/tokens": event["tokens"]}
    channels = event["by_channel"] if len(event["by_channel"]) > 1 else {}
    return values | _named("train/loss/", channels) | _named("train/", event.get("measured", {}))


def look_values(look: Mapping[str, Any]) -> Values:
    """A look at validation by names; what was not measured is left out."""
    values = {key: look[key] for key in ("accuracy", "gold_probability", "loss") if look[key] is not None}
    return _named("valid/", values) | _named("valid/", look["probe"])


def result_values(record: RunRecord) -> Values:
    """A record's numbers by names: the score on the test split and what the run spent."""
    values = {"accuracy": record.accuracy, **record.secondary}
    if record.score is not None:
        values |= {key: getattr(record.score, key) for key in ("n", "correct", "wrong", "unparsed")}
    spent = {} if record.budget is None else record.budget.model_dump(include=_SPENT, exclude_none=True)
    return _named("test/", values) | _named("spent/", spent)


_SPENT = {"student_tokens", "teacher_tokens_in", "teacher_tokens_out", "rollout_tokens", "train_flops", "seconds"}


def _named(prefix: str, values: Mapping[str, Any]) -> Values:
    """Names that every tracker takes."""
    return {prefix + re.sub(r"[^\w./ -]", "_", name): value for name, value in values.items() if value is not None}
