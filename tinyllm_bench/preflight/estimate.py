"""What a request will cost before anything is spent: every cell with those that train first, in numbers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tinyllm_bench.base.files import read_checked, read_json
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.identity import GUESSES
from tinyllm_bench.experiment.predict import part_file, predictions_file
from tinyllm_bench.experiment.train import init_cost
from tinyllm_bench.leaderboard.record import RECORD_FILE
from tinyllm_bench.preflight.counts import Counts, Training
from tinyllm_bench.preflight.disk import Disk, disk_of, missing_logits
from tinyllm_bench.preflight.memory import memory_of, peak_of
from tinyllm_bench.preflight.probe import Pace, probe_key, probed, probed_asking
from tinyllm_bench.preflight.texts import Bill
from tinyllm_bench.preflight.time import (
    live_seconds,
    looks_of,
    predict_seconds,
    step_seconds,
    training_seconds,
)

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """What one cell will take. What is done already takes nothing more; None is what cannot be told.

    done: stages that are finished; counts: of the training, `exact` where nothing in it is guessed; seconds: by part;
    memory and disk in bytes; usd: of the texts that are lacking, where their price is set.
    """

    run_id: str
    label: str
    task: str
    seed: int
    reading: str
    kind: str
    trains_only: bool
    questions: Mapping[str, int]
    done: tuple[str, ...]
    first: tuple[str, ...]
    epochs: float | None = None
    looks: int | None = None
    layout: str | None = None
    counts: Mapping[str, Any] | None = None
    texts: tuple[Mapping[str, Any], ...] = ()
    seconds: Mapping[str, float | None] | None = None
    memory: int | None = None
    memory_parts: Mapping[str, int] | None = None
    disk: Mapping[str, int] = field(default_factory=dict)
    usd: float | None = None

    @property
    def total_seconds(self) -> float | None:
        """All parts; None without a probe, or where a part is not known."""
        if self.seconds is None or None in self.seconds.values():
            return None
        return sum(float(part or 0) for part in self.seconds.values())

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return "record" in self.done or (self.trains_only and "train" in self.done)


class Planner:
    """Plans cells one after another; what an earlier one will make is not counted again."""

    def __init__(self, *, probe: bool = True, report: Report = lambda event: None) -> None:
        self.plans: dict[str, CellPlan] = {}
        self.paces: dict[tuple[Any, ...], Pace] = {}
        self._probe, self._report = probe, report
        self._texts: set[str] = set()
        self._pace_of: dict[str, Pace | None] = {}

    def add(self, cell: Cell) -> CellPlan:
        """The plan of a cell; those that it needs first are planned before it."""
        if cell.run_id not in self.plans:
            for first in cell.earlier:
                self.add(first)
            self.plans[cell.run_id] = self._planned(cell)
        return self.plans[cell.run_id]

    @property
    def probe_seconds(self) -> float:
        """What the probes took."""
        return sum(pace.took for pace in self.paces.values())

    def _planned(self, cell: Cell) -> CellPlan:
        done = stages_done(cell)
        common: dict[str, Any] = {
            "run_id": cell.run_id,
            "label": cell.label,
            "task": cell.task.name,
            "seed": cell.seed,
            "reading": cell.reading,
            "kind": cell.kind,
            "trains_only": cell.trains_only,
            "questions": {split: len(cell.records(split)) for split in ("train", "valid", "test")},
            "done": done,
            "first": tuple(first.run_id for first in cell.earlier),
        }
        if "record" in done or (cell.trains_only and "train" in done):
            return CellPlan(**common, **_spent(cell))
        if cell.method is None or cell.students or "train" in done:
            return CellPlan(**common, **self._asked_only(cell))
        return CellPlan(**common, **self._trained(cell))

    def _asked_only(self, cell: Cell) -> dict[str, Any]:
        """Of anchors, of several students who answer together, and of a student that is trained already."""
        memory = peak_of(cell, None)
        if cell.name in GUESSES or not self._probe:
            return {"seconds": {} if cell.name in GUESSES else None, "memory": memory}
        pace = next((self._pace_of.get(one.run_id) for one in cell.students.values()), None)
        pace = pace or self._pace(("asked", *probe_key(cell, None)), lambda: probed_asking(cell))
        shots = 1.0 + cell.config.eval.shots if cell.name == "few_shot" else 1.0
        return {
            "seconds": {"predict": predict_seconds(cell, pace, done=asked_already(cell), shots=shots)},
            "memory": memory,
        }

    def _trained(self, cell: Cell) -> dict[str, Any]:
        self._report({"planning": cell.label, "task": cell.task.name})
        training = Training(cell)
        pace = self._pace(probe_key(cell, training), lambda: probed(training)) if self._probe else None
        if pace is not None and pace.lengths and training.drawing is not None:
            training.measured_lengths(pace.lengths)
        plan = training.plan(self._charged(cell))
        counts = training.counted(plan, None if pace is None else lambda mini: step_seconds(training, pace, mini))
        bills = self._bills(training)
        looks = None if counts is None else looks_of(training, counts.steps)
        self._pace_of[cell.run_id] = pace
        memory = memory_of(training)
        peak = memory.peak if pace is None else _refined(training, memory.peak, pace)
        disk: Disk = disk_of(training, looks or len(cell.config.train.looks))
        return {
            "epochs": None if counts is None else counts.records / (plan.inner_epochs * len(training.groups)),
            "looks": looks,
            "layout": training.collator.layout,
            "counts": None if counts is None else asdict(counts),
            "texts": tuple(bill._asdict() for bill in bills),
            "seconds": None if pace is None or counts is None else _seconds(training, counts, pace, bills, looks or 0),
            "memory": peak,
            "memory_parts": memory._asdict(),
            "disk": disk._asdict(),
            "usd": _sum([bill.usd for bill in bills if bill.lacking]),
        }

    def _pace(self, key: tuple[Any, ...], make: Callable[[], Pace]) -> Pace:
        if key not in self.paces:
            began = time.perf_counter()
            self.paces[key] = make()
            self._report({"probed": len(self.paces), "seconds": time.perf_counter() - began})
        return self.paces[key]

    def _charged(self, cell: Cell) -> float:
        """What making the initial student takes or took, in the unit of the cell's budget."""
        first, name = cell.student_from, cell.config.budget.asked[0]
        if first is None or name == "epochs":
            return 0.0
        if (cell.runs / first.run_id / "train" / "result.json").exists():
            return init_cost(first, cell.runs, name)
        planned = self.plans[first.run_id]
        if name == "seconds":
            return float((planned.seconds or {}).get("steps") or 0.0)
        return float((planned.counts or {})["tokens" if name == "student_tokens" else name])

    def _bills(self, training: Training) -> list[Bill]:
        """What the texts cost that no cell before this one will have had written."""
        found = []
        for bill in training.texts.bills:
            new = [key for key in bill.keys if key not in self._texts]
            self._texts.update(new)
            found.append(bill.part(len(new)))
        return found


def stages_done(cell: Cell) -> tuple[str, ...]:
    """The stages of a cell that are finished."""
    folder = cell.runs / cell.run_id
    trained = cell.method is not None and not cell.students and (folder / "train" / "result.json").exists()
    files = {"predict": predictions_file(cell, folder), "record": folder / RECORD_FILE}
    return (*(("train",) if trained else ()), *(stage for stage, file in files.items() if file.exists()))


def asked_already(cell: Cell) -> int:
    """Test questions that an interrupted run has answers for."""
    folder = cell.runs / cell.run_id
    if predictions_file(cell, folder).exists():
        return len(cell.records("test"))
    return sum(len(row["predictions"]) for row in read_checked(part_file(cell, folder)))


def _spent(cell: Cell) -> dict[str, Any]:
    return {"seconds": {}, "memory": 0, "usd": 0.0}


def _seconds(
    training: Training, counts: Counts, pace: Pace, bills: Sequence[Bill], looks: int
) -> dict[str, float | None]:
    cell = training.asked
    found: dict[str, float | None] = {"texts": live_seconds(training, pace, bills)}
    found |= training_seconds(
        training, counts, pace, looks, scored=sum(item.tokens for item in missing_logits(training))
    )
    if cell.config.budget.seconds is not None:
        found |= {"steps": cell.config.budget.seconds, "drawing": 0.0}
    left = 1.0 - trained_share(cell, counts.steps)
    for part in ("steps", "drawing", "looks", "checkpoints"):
        found[part] = left * float(found[part] or 0.0)
    if not cell.trains_only:
        found["predict"] = predict_seconds(training.cell, pace)
    return found


def trained_share(cell: Cell, steps: int) -> float:
    """How much of its training an interrupted run has kept in its last checkpoint."""
    places = sorted((cell.runs / cell.run_id / "train" / "checkpoints").glob("step-*/manifest.json"))
    return min(read_json(places[-1])["step"] / steps, 1.0) if places else 0.0


def _refined(training: Training, peak: int, pace: Pace) -> int:
    """The peak, raised by what the estimate missed at the probe's own micro-batch.

    What an earlier probe left with the allocator is used again, so that a later one may show less than it takes.
    """
    if not pace.probed:
        return peak
    tried = memory_of(training, pace.probed)
    return peak + max(tried.libraries + pace.peak - tried.training, 0)


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum; None where one is not known."""
    return None if any(value is None for value in values) else float(sum(value or 0.0 for value in values))


def totals(plans: Sequence[CellPlan], *, start: float | None, price: float | None) -> dict[str, Any]:
    """The request as a whole: sums, and the largest of what is held at a time. `price` is in USD per device hour."""
    left = [plan for plan in plans if not plan.is_done]
    counted = [plan.counts for plan in left if plan.counts is not None]
    texts = [text for plan in left for text in plan.texts]
    seconds = _sum([plan.total_seconds for plan in left])
    if seconds is not None and start is not None:
        seconds += start
    device = None if price is None or seconds is None else price * seconds / 3600
    teachers = _sum([plan.usd for plan in left if plan.counts is not None])
    return {
        "cells": len(plans),
        "done": len(plans) - len(left),
        "student_tokens": sum(one["tokens"] for one in counted),
        "flops": sum(one["flops"] for one in counted),
        "teacher_tokens_in": sum(text["tokens_in"] for text in texts),
        "teacher_tokens_out": sum(text["tokens_out"] for text in texts),
        "seconds": seconds,
        "start_seconds": start,
        "memory": max((plan.memory or 0 for plan in left), default=0),
        "disk": sum(plan.disk.get("kept", 0) for plan in left),
        "disk_peak": sum(plan.disk.get("kept", 0) for plan in left)
        + max((plan.disk.get("peak", 0) - plan.disk.get("kept", 0) for plan in left), default=0),
        "usd_teachers": teachers,
        "usd_device": device,
    }
