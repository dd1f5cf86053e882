"""Events of running cells: a closed union of dataclasses, matched by type wherever events are shown or written.

Two files of a run's folder are JSON lines of events (`to_json`, `from_json`): `events.jsonl` has starts and ends of
stages, `train/metrics.jsonl` optimiser steps and evaluations.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from tinyllm_bench.base.errors import UserError


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The student on the validation split after `step` optimiser steps, `fraction` of the run.

    `accuracy` is a share of the `n` questions, `gold_probability` the mean probability of the gold option (rankings
    only), `loss` the token mean of the gold answers' cross-entropy in nats (if checkpoints are selected by it), `probe`
    the method's own measurements on sampled texts.
    """

    step: int
    fraction: float
    accuracy: float
    gold_probability: float | None
    n: int
    loss: float | None = None
    probe: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A cell starts, or resumes after the training of a prerequisite."""

    run_id: str
    label: str
    task: str
    event: Literal["cell_started"] = "cell_started"


@dataclass(frozen=True, slots=True)
class PrerequisiteStarted:
    """A cell whose student the current one needs is trained first."""

    label: str
    model: str
    event: Literal["prerequisite_started"] = "prerequisite_started"


@dataclass(frozen=True, slots=True)
class AnnotationProgress:
    """Progress of generating a teacher's missing texts."""

    teacher: str
    done: int
    total: int
    event: Literal["annotation_progress"] = "annotation_progress"


@dataclass(frozen=True, slots=True)
class AnnotationFailed:
    """Some texts of a teacher could not be generated; `reason` is that of the first."""

    teacher: str
    failed: int
    total: int
    reason: str
    event: Literal["annotation_failed"] = "annotation_failed"


@dataclass(frozen=True, slots=True)
class AnnotationFinished:
    """The method's annotations are complete."""

    annotations: int
    event: Literal["annotation_finished"] = "annotation_finished"


@dataclass(frozen=True, slots=True)
class LogitCacheOpened:
    """The number of responses whose teacher distributions are not cached yet."""

    missing: int
    bytes_per_token: int
    event: Literal["logit_cache_opened"] = "logit_cache_opened"


@dataclass(frozen=True, slots=True)
class LogitCacheProgress:
    """Progress of scoring the missing responses with the teacher."""

    done: int
    total: int
    event: Literal["logit_cache_progress"] = "logit_cache_progress"


@dataclass(frozen=True, slots=True)
class TrainingResumed:
    """An interrupted training resumes from the checkpoint after `step` of `steps`."""

    step: int
    steps: int
    event: Literal["training_resumed"] = "training_resumed"


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """One optimiser step: its loss in mean nats per token, also by channel, and the student tokens since the start.

    `steps` is the expected length of the run, `measured` the means of the method's own measurements in this step.
    """

    step: int
    steps: int
    loss: float
    by_channel: Mapping[str, float]
    learning_rate: float
    tokens: int
    measured: Mapping[str, float] = field(default_factory=dict)
    event: Literal["training_step"] = "training_step"


@dataclass(frozen=True, slots=True)
class StudentEvaluated:
    """The student was evaluated on the validation split."""

    evaluation: Evaluation
    event: Literal["student_evaluated"] = "student_evaluated"


@dataclass(frozen=True, slots=True)
class TrainingFinished:
    """The student is trained; `last_loss` is None if the cell has several students."""

    steps: int
    last_loss: float | None
    event: Literal["training_finished"] = "training_finished"


@dataclass(frozen=True, slots=True)
class PredictionProgress:
    """Progress of answering the test questions."""

    done: int
    total: int
    event: Literal["prediction_progress"] = "prediction_progress"


@dataclass(frozen=True, slots=True)
class RunRecorded:
    """The record of the run is written; `accuracy` is None if nothing was scored."""

    accuracy: float | None
    event: Literal["run_recorded"] = "run_recorded"


@dataclass(frozen=True, slots=True)
class TrackerFailed:
    """An experiment tracker raised an error and receives no more values."""

    tracker: str
    error: str
    event: Literal["tracker_failed"] = "tracker_failed"


Event = (
    CellStarted
    | PrerequisiteStarted
    | AnnotationProgress
    | AnnotationFailed
    | AnnotationFinished
    | LogitCacheOpened
    | LogitCacheProgress
    | TrainingResumed
    | TrainingStep
    | StudentEvaluated
    | TrainingFinished
    | PredictionProgress
    | RunRecorded
    | TrackerFailed
)
Report = Callable[[Event], None]


def to_json(event: Event) -> dict[str, Any]:
    """The event as a JSON object; its key `event` names the type."""
    return asdict(event)


@cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="event")])


def from_json(row: Mapping[str, Any], file: object) -> Event:
    """An event that `to_json` wrote; further keys, such as a time, are ignored.

    Raises:
        UserError: it is not an event; the message names `file`.
    """
    try:
        return _adapter().validate_python(row)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(map(str, detail["loc"])) or "event"
        raise UserError(f"{file}: damaged event ({place}: {detail['msg']}); delete the run's folder") from error
