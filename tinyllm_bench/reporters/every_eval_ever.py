"""Every Eval Ever: the runs of a board as aggregate records of that format, one JSON record a line.

The models below hold the fields that we fill, spelled as their owners do, and nothing else. The format is young and may
change. Runs on sample data are marked.
"""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tinyllm_bench.base.escaping import visible
from tinyllm_bench.leaderboard.exports import BoardData
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.stats.intervals import wilson
from tinyllm_bench.leaderboard.verdicts import SELF_REPORTED, Tier
from tinyllm_bench.reporters.eval_results import NAME, hub_source

FILE = "every_eval_ever.jsonl"


def REPORTER(board: BoardData) -> dict[str, str]:
    """One line a run; an empty text where no run was scored."""
    forms = (
        every_eval_ever(row.label, board.records[run.record], board.publisher, run.trust)
        for section in board.sections
        for row in section.rows
        for run in row.runs
    )
    return {FILE: "".join(f"{visible(form.model_dump_json(exclude_none=True))}\n" for form in forms if form)}


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceMetadata(_Form):
    """Who publishes the result. `evaluator_relationship` is `other`: a record does not say how its maker and the
    method's authors relate."""

    source_name: str
    source_type: Literal["documentation", "evaluation_run"]
    source_organization_name: str
    evaluator_relationship: Literal["first_party", "third_party", "collaborative", "other"]
    additional_details: dict[str, str]


class EvalLibrary(_Form):
    """The program that evaluated the model."""

    name: str
    version: str
    additional_details: dict[str, str]


class InferenceEngine(_Form):
    """What ran the student when it was scored."""

    name: str
    version: str


class ModelDetails(_Form):
    """The two details that the schema requires, and ours: method, student, seed, digests."""

    model_config = ConfigDict(extra="allow", frozen=True)

    deployment_type: Literal["self_deployed", "externally_managed", "unknown"]
    model_availability: Literal["open_weights", "closed_weights", "unknown"]


class EvaluatedModel(_Form):
    """A trained student has no name on the hub: its id is `tinyllm-bench/<run id>`."""

    name: str
    id: str
    inference_engine: InferenceEngine | None = None
    additional_details: ModelDetails


class SourceData(_Form):
    """The questions: a data set on the hub where the task names one, else `other`."""

    dataset_name: str
    source_type: Literal["hf_dataset", "other"]
    hf_repo: str | None = None
    hf_split: str | None = None
    samples_number: int | None = None
    additional_details: dict[str, str]


class MetricConfig(_Form):
    """An accuracy or a macro-F1: a share between 0 and 1, higher is better."""

    evaluation_description: str
    metric_id: str
    metric_name: str
    metric_kind: Literal["accuracy", "f1"] = "accuracy"
    metric_unit: Literal["proportion"] = "proportion"
    lower_is_better: Literal[False] = False
    score_type: Literal["continuous"] = "continuous"
    min_score: float = 0.0
    max_score: float = 1.0


class ConfidenceInterval(_Form):
    """The interval of one run, over questions: variance between seeds is not in it."""

    lower: float
    upper: float
    confidence_level: float
    method: str


class Uncertainty(_Form):
    """The run's interval and its number of questions."""

    confidence_interval: ConfidenceInterval
    num_samples: int


class ScoreDetails(_Form):
    """The score; `details` holds the counts behind it."""

    score: float
    details: dict[str, str]
    uncertainty: Uncertainty | None = None


class GenerationArgs(_Form):
    """The command that made the run."""

    execution_command: str


class GenerationConfig(_Form):
    """How the run was made; decoding is part of the protocol and the configuration, which the record holds."""

    generation_args: GenerationArgs
    additional_details: dict[str, str]


class EvaluationResult(_Form):
    """One metric of one run."""

    evaluation_result_id: str
    evaluation_name: str
    source_data: SourceData
    metric_config: MetricConfig
    score_details: ScoreDetails
    generation_config: GenerationConfig


class EveryEvalEver(_Form):
    """One run as an aggregate record of Every Eval Ever, `eval.schema.json` version 0.3.0.

    Source: github.com/evaleval/every_eval_ever (PyPI package `every_eval_ever` 0.3.0, paper arXiv:2606.14516).
    Uncertain: `source_type` (we say `evaluation_run`, since a record holds every answer, though no instance file is
    attached), and `retrieved_timestamp`, which we take from the run so that the same record gives the same bytes.
    The datastore expects one JSON file a record under data/<benchmark>/<developer>/<model>/; we write one line each.
    """

    schema_version: Literal["0.3.0"] = "0.3.0"
    evaluation_id: str
    evaluation_timestamp: str
    retrieved_timestamp: str
    source_metadata: SourceMetadata
    eval_library: EvalLibrary
    model_info: EvaluatedModel
    evaluation_results: tuple[EvaluationResult, ...]


def every_eval_ever(
    label: str, record: RunRecord, organization: str, trust: Tier = SELF_REPORTED
) -> EveryEvalEver | None:
    """A run as a record of this format, None where nothing was scored; `organization` publishes it."""
    if record.score is None:
        return None
    model = _model(label, record)
    stamp = str(int(datetime.fromisoformat(record.created).timestamp()))
    return EveryEvalEver(
        evaluation_id=f"{NAME}-{record.task}-{record.mode}/{model.id.replace('/', '_')}/{stamp}",
        evaluation_timestamp=record.created,
        retrieved_timestamp=stamp,
        source_metadata=_publisher(organization, record.sample, trust),
        eval_library=_library(record.packages.get(NAME, "unknown"), record.git.commit, record.git.dirty),
        model_info=model,
        evaluation_results=tuple(_results(record)),
    )


def _model(label: str, record: RunRecord) -> EvaluatedModel:
    backend, student = record.backend, record.student
    engine = None
    if backend:  # a backend is named like its package; where it is not, the version is unknown
        engine = InferenceEngine(name=backend.name, version=backend.versions.get(backend.name) or "unknown")
    own = {
        "method": record.name,
        "kind": record.kind,
        "seed": str(record.seed),
        "student": student.spec if student else None,
        "student_digest": student.digest if student else None,
        "dtype": backend.dtype if backend else None,
    }
    details = {"deployment_type": "self_deployed", "model_availability": "unknown"}
    return EvaluatedModel(
        name=f"{label}, {student.spec}" if student else label,
        id=f"{NAME}/{record.run_id}",
        inference_engine=engine,
        additional_details=ModelDetails.model_validate(details | {key: value for key, value in own.items() if value}),
    )


# Parts that thousands of runs share are made once; they are immutable.
@lru_cache(maxsize=256)
def _publisher(organization: str, sample: bool, trust: Tier) -> SourceMetadata:
    return SourceMetadata(
        source_name=NAME,
        source_type="evaluation_run",
        source_organization_name=organization,
        evaluator_relationship="other",
        additional_details={"sample_data": str(sample).lower(), "trust": trust},
    )


@lru_cache(maxsize=256)
def _library(version: str, commit: str | None, dirty: bool | None) -> EvalLibrary:
    details = {"commit": commit, "dirty": None if dirty is None else str(dirty).lower()}
    return EvalLibrary(
        name=NAME, version=version, additional_details={key: text for key, text in details.items() if text}
    )


def _results(record: RunRecord) -> Iterable[EvaluationResult]:
    score = record.score
    assert score is not None, "only for scored runs"
    counts = {key: str(getattr(score, key)) for key in ("n", "correct", "wrong", "unparsed")}
    main = ScoreDetails(
        score=score.correct / score.n,
        details=counts | {"test_evaluations": str(record.test_evaluations), "chance": repr(record.chance)},
        uncertainty=_uncertainty(score.correct, score.n),
    )
    generation = GenerationConfig(
        generation_args=GenerationArgs(execution_command=" ".join(record.command.split()) or "unknown"),
        additional_details={"protocol_hash": record.protocol_hash, "mode": record.mode},
    )
    yield _result(record, "accuracy", main, generation)
    for key, value in sorted(record.secondary.items()):
        if 0 <= value <= 1:
            yield _result(record, key, ScoreDetails(score=value, details={"n": str(score.n)}), generation)


@lru_cache(maxsize=65536)
def _uncertainty(correct: int, n: int) -> Uncertainty:
    low, high = wilson(correct, n)
    interval = ConfidenceInterval(lower=low, upper=high, confidence_level=0.95, method="Wilson score, one run")
    return Uncertainty(confidence_interval=interval, num_samples=n)


def _result(record: RunRecord, metric: str, details: ScoreDetails, generation: GenerationConfig) -> EvaluationResult:
    return EvaluationResult(
        evaluation_result_id=f"{record.run_id}/{metric}",
        evaluation_name=f"{record.task}, {record.mode} mode",
        source_data=_source(
            record.task, record.sample, record.data.source, record.protocol["scored_ids_digest"], record.protocol["n"]
        ),
        metric_config=_metric(metric, record.protocol["metric"]),
        score_details=details,
        generation_config=generation,
    )


@lru_cache(maxsize=256)
def _metric(name: str, protocol_metric: str) -> MetricConfig:
    """A figure of a record by its name; `protocol_metric` is the metric of its protocol."""
    is_f1 = name == "macro_f1"
    what = "Unweighted mean of F1 over the answers" if is_f1 else "Share of right answers"
    return MetricConfig(
        evaluation_description=f"{what}; metric: {protocol_metric}",
        metric_id="accuracy" if name == "accuracy" else f"{NAME}.{name}",
        metric_name=name.replace("_", " "),
        metric_kind="f1" if is_f1 else "accuracy",
    )


@lru_cache(maxsize=256)
def _source(task: str, sample: bool, origin: str, ids_digest: str, n: int) -> SourceData:
    hub = None if sample else hub_source(task)
    details = {"data_source": origin, "scored_ids_digest": ids_digest}
    if hub is None:
        name = f"{task} (sample questions)" if sample else task
        return SourceData(dataset_name=name, source_type="other", additional_details=details)
    return SourceData(
        dataset_name=task,
        source_type="hf_dataset",
        hf_repo=hub.path,
        samples_number=n,
        additional_details=details | {"hub_revision": hub.revision},
    )
