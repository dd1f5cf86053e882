"""The progress of a request's cells, computed from events: stages, rates, time left. `live` and `console` show it."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import TYPE_CHECKING, Literal, assert_never

from tinyllm_bench.base.events import (
    AnnotationFailed,
    AnnotationFinished,
    AnnotationProgress,
    CellStarted,
    Evaluation,
    Event,
    LogitCacheOpened,
    LogitCacheProgress,
    PredictionProgress,
    PrerequisiteStarted,
    RunRecorded,
    StudentEvaluated,
    TrackerFailed,
    TrainingFinished,
    TrainingResumed,
    TrainingStep,
)

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell
    from tinyllm_bench.experiment.runner import CellResult

STAGES = ("annotate", "train", "predict")
State = Literal["waiting", "running", "done", "reused", "failed"]  # reused: finished by an earlier command


@dataclass
class Meter:
    """A growing count and its rate, measured from its first value: a resumed cell does not start at 0."""

    first: tuple[float, float, float] | None = None  # seconds, count, amount
    now: tuple[float, float, float] = (0.0, 0.0, 0.0)
    total: float = 0.0

    def update(self, seconds: float, count: float, total: float, amount: float) -> None:
        """`count` of `total` are done; `amount` is in the unit of the rate (tokens, questions, texts)."""
        restarts = count < self.now[1]  # another teacher's texts, another round
        self.now, self.total = (seconds, count, amount), total
        self.first = self.now if restarts or self.first is None else self.first

    def _elapsed(self) -> tuple[float, float, float]:
        first = self.first or self.now
        seconds, count, amount = (now - then for now, then in zip(self.now, first, strict=True))
        return seconds, count, amount

    @property
    def rate(self) -> float | None:
        """Amount per second; None in the first second."""
        seconds, _, amount = self._elapsed()
        return amount / seconds if seconds >= 1 and amount > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds left at this pace."""
        seconds, count, _ = self._elapsed()
        return (self.total - self.now[1]) * seconds / count if seconds >= 1 and count > 0 else None


@dataclass
class CellProgress:
    """The progress of one cell; `prerequisite`: it only trains a model that another cell needs."""

    run_id: str
    label: str
    task: str
    seed: int
    stages: tuple[str, ...]
    kind: str = "method"
    prerequisite: bool = False
    state: State = "waiting"
    stage: str | None = None
    part: dict[str, tuple[int, int]] = field(default_factory=dict)
    logits: tuple[int, int] | None = None  # responses scored by the teacher and in all, while its cache is filled
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = 0.0
    stage_began: float = 0.0
    took: float | None = None
    meter: Meter = field(default_factory=Meter)
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    evaluations: list[Evaluation] = field(default_factory=list)
    accuracy: float | None = None
    error: str | None = None

    @property
    def name(self) -> str:
        """Its name in a sentence."""
        return f"{self.label} on {self.task}, seed {self.seed}"

    @property
    def stage_left(self) -> float | None:
        """Seconds left of its stage at this pace; unknown while the teacher's logits are cached, before training."""
        return self.meter.left if self.logits is None else None

    @property
    def remaining(self) -> tuple[str, ...]:
        """Stages that are not finished, including the running one."""
        if self.state in ("done", "reused", "failed"):
            return ()
        return self.stages[self.stages.index(self.stage) :] if self.stage else self.stages


class Progress:
    """All cells of a request. The calls are those of `experiment.runner.Watch`.

    Args:
        cells: The cells, in the order in which they run.
        until: The last stage.
        clock: Monotonic seconds.
    """

    def __init__(
        self, cells: "Sequence[Cell]" = (), *, until: str = "predict", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock, self.lock = clock, RLock()
        self.began = clock()
        self._stages = STAGES[: STAGES.index(until) + 1]
        self.rows = [self._row(cell) for cell in cells]
        self.top: CellProgress | None = None
        # Without cells the only activity is collecting annotations, which has no name.
        self.current: CellProgress | None = (
            None if cells else CellProgress("", "", "", 0, STAGES[:1], state="running", stage="annotate")
        )

    def _row(self, cell: "Cell") -> CellProgress:
        stages = self._stages if cell.kind == "method" else tuple(s for s in self._stages if s == "predict")
        return CellProgress(cell.run_id, cell.label, cell.task.name, cell.seed, stages, cell.kind)

    def count(self, *states: State) -> int:
        """Number of cells in these states, without prerequisites."""
        return sum(row.state in states for row in self.rows if not row.prerequisite)

    def cell(self, cell: "Cell") -> None:
        """A cell starts."""
        with self.lock:
            self.top = next((row for row in self.rows if row.run_id == cell.run_id and not row.prerequisite), None)
            if self.top is None:
                self.top = self._row(cell)
                self.rows.append(self.top)
            self._start(self.top)

    def _start(self, row: CellProgress) -> None:
        row.state, row.began = "running", self.clock()
        self.current = row
        self._enter(row, row.stages[0] if row.stages else None)

    def _enter(self, row: CellProgress, stage: str | None) -> None:
        row.stage, row.stage_began, row.meter = stage, self.clock(), Meter()

    def event(self, event: Event) -> None:
        """Something happened in the cell that runs."""
        with self.lock:
            if isinstance(event, CellStarted):
                self._switch(event)
            row = self.current
            if row is None:
                return
            match event:
                case AnnotationProgress(done=done, total=total):
                    self._count(row, "annotate", done, total, done)
                case AnnotationFinished():
                    self._leave(row, "annotate")
                case LogitCacheOpened(missing=missing):
                    row.logits = (0, missing) if missing else None
                case LogitCacheProgress(done=done, total=total):
                    row.logits = (done, total)
                    row.meter.update(self.clock(), done, total, done)
                case TrainingStep(step=step, steps=steps, loss=loss, tokens=tokens):
                    if row.logits is not None:  # the cache is full: the meter counts tokens from here
                        row.logits, row.meter = None, Meter()
                    row.losses.append(loss)
                    row.tokens = tokens
                    self._count(row, "train", step, steps, tokens)
                case StudentEvaluated(evaluation):
                    row.evaluations.append(evaluation)
                case TrainingFinished():
                    self._leave(row, "train")
                case PredictionProgress(done=done, total=total):
                    self._count(row, "predict", done, total, done)
                case RunRecorded(accuracy=accuracy):
                    row.accuracy = accuracy
                    self._leave(row, "predict")
                case CellStarted() | PrerequisiteStarted() | AnnotationFailed() | TrainingResumed() | TrackerFailed():
                    pass
                case _:
                    assert_never(event)

    def _switch(self, event: CellStarted) -> None:
        """Another cell is running now: a prerequisite of the top cell, or the top cell itself."""
        top = self.top
        if top is None or event.run_id == top.run_id:
            self.current = top
            if top is not None:  # the time of the prerequisite is not part of this cell's stage
                top.stage_began = self.clock()
            return
        row = CellProgress(event.run_id, event.label, event.task, top.seed, STAGES[:2], prerequisite=True)
        self.rows.insert(self.rows.index(top) + 1 + sum(1 for _ in self._prerequisites(top)), row)
        self._start(row)

    def _prerequisites(self, top: CellProgress) -> Iterator[CellProgress]:
        """The prerequisites of `top`."""
        for row in self.rows[self.rows.index(top) + 1 :]:
            if not row.prerequisite:
                return
            yield row

    def _count(self, row: CellProgress, stage: str, done: int, total: int, amount: int) -> None:
        if stage != row.stage and stage in row.stages:
            self._enter(row, stage)
        row.part[stage] = (done, total)
        row.meter.update(self.clock(), done, total, amount)

    def _leave(self, row: CellProgress, stage: str) -> None:
        row.seconds[stage], row.logits = self.clock() - row.stage_began, None
        rest = row.stages[row.stages.index(stage) + 1 :] if stage in row.stages else ()
        if rest:
            self._enter(row, rest[0])
        elif row.prerequisite:
            self._end(row, "done")

    def _end(self, row: CellProgress, state: State) -> None:
        row.state, row.stage, row.took = state, None, self.clock() - row.began

    def done(self, outcome: "CellResult") -> None:
        """The cell is finished."""
        with self.lock:
            assert self.top is not None
            if outcome.record is not None:
                self.top.accuracy = outcome.record.accuracy
            self._end(self.top, "done" if outcome.fresh else "reused")

    def failed(self, error: str) -> None:
        """The cell failed, and with it a prerequisite that was running."""
        with self.lock:
            assert self.top is not None
            for row in (self.top, *self._prerequisites(self.top)):
                if row.state == "running":
                    row.error = error
                    self._end(row, "failed")

    def cell_left(self, row: CellProgress) -> float | None:
        """Seconds until a cell is done, from its pace and from similar cells; None while that is unknown."""
        total = 0.0
        for stage in row.remaining:
            seconds = row.stage_left if stage == row.stage else None
            if seconds is None:
                seconds = self._similar_seconds(row, stage)
                if seconds is None:
                    return None
                if stage == row.stage:
                    seconds = max(0.0, seconds - (self.clock() - row.stage_began))
            total += seconds
        return total

    def left(self) -> float | None:
        """Seconds until all cells are done; None while a cell resembles none that has run or is running."""
        with self.lock:
            seconds = [self.cell_left(row) for row in self.rows if row.remaining]
        return None if None in seconds else sum(value for value in seconds if value is not None)

    def _similar_seconds(self, row: CellProgress, stage: str) -> float | None:
        """Mean seconds of a stage in the cells most similar to this one."""
        known: dict[tuple[str, ...], list[float]] = defaultdict(list)
        for other in self.rows:
            seconds = other.seconds.get(stage, self._projected(other, stage))
            if seconds is not None and other is not row and other.prerequisite == row.prerequisite:
                for key in _similarity_keys(other, stage):
                    known[key].append(seconds)
        return next((sum(known[key]) / len(known[key]) for key in _similarity_keys(row, stage) if key in known), None)

    def _projected(self, row: CellProgress, stage: str) -> float | None:
        """The estimated duration of a running stage."""
        left = row.stage_left if row.stage == stage else None
        return None if left is None else self.clock() - row.stage_began + left


def _similarity_keys(row: CellProgress, stage: str) -> Iterator[tuple[str, ...]]:
    """Keys that similar cells share, closest first; prediction costs much the same whatever the method."""
    yield "label", row.label, row.task
    yield "label", row.label
    yield "kind", row.kind, row.task
    yield "kind", row.kind
    if stage == "predict":
        yield ("any",)


def clock_text(seconds: float) -> str:
    """`0:42`, `12:03`, `1:02:03`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def about_text(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 10 min`: rounded as an estimate should be."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
