"""Cells as a progress display sees them, outcomes, and a clock that a test sets."""

from types import SimpleNamespace
from typing import Any, NamedTuple


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


def step(number: int, of: int = 10, tokens: int = 100) -> dict[str, Any]:
    """A training step's event."""
    return {"step": number, "steps": of, "loss": 3.0 - number / 10, "tokens": tokens * number, "by_channel": {}}


def look(accuracy: float, number: int = 5) -> dict[str, Any]:
    """An event of a look at validation."""
    found = {"step": number, "fraction": 0.5, "accuracy": accuracy, "gold_probability": None, "n": 8, "loss": None}
    return {"look": {**found, "probe": {}}}
