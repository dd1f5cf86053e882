"""Cells as a progress display sees them, outcomes, and a clock that a test sets."""

from types import SimpleNamespace
from typing import Any, NamedTuple

from tinyllm_bench.base.events import Evaluation, StudentEvaluated, TrainingStep


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Done(NamedTuple):
    """An outcome: its record and whether anything had to be done."""

    record: Any
    fresh: bool


def cell(run_id: str, label: str = "learner", task: str = "quiz", seed: int = 0, kind: str = "method") -> Any:
    """A cell with what a display asks of it."""
    return SimpleNamespace(run_id=run_id, label=label, task=SimpleNamespace(name=task), seed=seed, kind=kind)


def step(number: int, of: int = 10, tokens: int = 100) -> TrainingStep:
    """A training step."""
    return TrainingStep(number, of, 3.0 - number / 10, by_channel={}, learning_rate=1e-4, tokens=tokens * number)


def evaluated(accuracy: float, number: int = 5) -> StudentEvaluated:
    """An evaluation on the validation split."""
    return StudentEvaluated(Evaluation(number, 0.5, accuracy, None, 8))
