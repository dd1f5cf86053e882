"""The result of a training run, and its file `train/result.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Evaluation
from tinyllm_bench.base.files import read_json, write_json
from tinyllm_bench.training.settings import Select

RESULT_FILE = Path("train") / "result.json"


class ValidationScore(NamedTuple):
    """The student's score on the validation split; the fields are those of `Evaluation`."""

    accuracy: float
    gold_probability: float | None
    n: int
    loss: float | None = None


def checkpoint_score(evaluation: Evaluation, select: Select) -> tuple[float, float, int]:
    """A key to select the best checkpoint by (larger is better): accuracy, then gold probability, then the earlier one;
    with `select: loss` the lower loss, then the earlier one."""
    if select == "loss":
        return (-float("inf") if evaluation.loss is None else -evaluation.loss, 0.0, -evaluation.step)
    return (evaluation.accuracy, evaluation.gold_probability or 0.0, -evaluation.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSummary:
    """A training run in numbers.

    Losses are weighted sums of mean nats per token. `seconds` are without evaluations. `student_tokens` are counted
    example by example; `computed_tokens` are those that the student computed, where a shared prompt counts once.
    `flops` is the estimate of `flops_per_token`, with rollouts and a white-box teacher. `records` counts a question
    each time it is trained on. `rollout_tokens` were sampled in `rollout_seconds`, which are part of `seconds`. `start`
    is the evaluation before the first step of an on-policy method; it is never selected. `measured` are means over all
    steps of the method's own measurements.
    """

    steps: int
    records: int
    student_tokens: int
    computed_tokens: int
    flops: float
    tokens_by_channel: Mapping[str, int]
    first_loss: float | None
    last_loss: float | None
    evaluations: tuple[Evaluation, ...]
    selected_step: int
    seconds: float
    rollout_tokens: int = 0
    rollout_seconds: float = 0.0
    start: Evaluation | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult(TrainingSummary):
    """The result of the training stage, `train/result.json`: the run in numbers, and the trained student.

    `epochs` is the mean number of times that a question was trained on; `targets_cut` were longer than the limit,
    `targets_dropped` are programs that the student's tokenizer cannot encode. `layout_reason` is why the layout is not
    `shared`. Digests are of weights and tokenizer; `student_files` are the saved files' digests by name.
    """

    initial_digest: str
    student_digest: str
    tokenizer_digest: str
    architecture: str
    parameters: int
    encoder_decoder: bool
    layout: str
    layout_reason: str | None
    targets_cut: int
    targets_dropped: int
    epochs: float
    peak_memory_bytes: int
    student_files: Mapping[str, str] = field(default_factory=dict)


def save_result(result: TrainResult, run: Path) -> None:
    """Write a run's `train/result.json`."""
    write_json(run / RESULT_FILE, asdict(result))


@cache
def _type_adapter() -> TypeAdapter[TrainResult]:
    """Built once: it takes milliseconds."""
    return TypeAdapter(TrainResult)


def load_result(run: Path) -> TrainResult:
    """The training result in a run's folder.

    Raises:
        UserError: it is damaged.
    """
    try:
        return _type_adapter().validate_python(read_json(run / RESULT_FILE))
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        field = ".".join(map(str, detail["loc"]))
        raise UserError(f"{run / RESULT_FILE}: {field}: {detail['msg']}; delete the folder {run}") from error
