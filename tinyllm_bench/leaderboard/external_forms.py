"""A board's runs in two public forms: Every Eval Ever records and Hugging Face evaluation results.

Each form is a small model of ours: the fields that we fill, spelled as their owners do, and nothing else. Both are
young and may change; each class names the version that it was written from. Runs from sample data are no benchmark
results: the first form marks them, the second leaves them out.
"""

import json
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import visible
from tinyllm_bench.base.plugins import load_task
from tinyllm_bench.data.records import HubSource
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.stats.arithmetic import wilson
from tinyllm_bench.leaderboard.verdicts import SELF_REPORTED, Tier

NAME = "tinyllm-bench"
_NOTES = 500  # characters; our own limit


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceMetadata(_Form):
    """Who says so. `evaluator_relationship` is `other`: a record does not tell who its maker is to the method."""

    source_name: str
    source_type: Literal["documentation", "evaluation_run"]
    source_organization_name: str
    evaluator_relationship: Literal["first_party", "third_party", "collaborative", "other"]
    additional_details: dict[str, str]


class EvalLibrary(_Form):
    """The program that asked and scored."""

    name: str
    version: str
    additional_details: dict[str, str]


class InferenceEngine(_Form):
    """What ran the student when it was scored."""

    name: str
    version: str


class ModelDetails(_Form):
    """The two details that the schema demands, and ours: method, student, seed, digests."""

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
    """Of one run, over questions: it says nothing about seeds."""

    lower: float
    upper: float
    confidence_level: float
    method: str


class Uncertainty(_Form):
    """The run's interval and its number of questions."""

    confidence_interval: ConfidenceInterval
    num_samples: int


class ScoreDetails(_Form):
    """The score; `details` are the counts that it is made of."""

    score: float
    details: dict[str, str]
    uncertainty: Uncertainty | None = None


class GenerationArgs(_Form):
    """The command that made the run."""

    execution_command: str


class GenerationConfig(_Form):
    """How it was made; decoding is part of the protocol and the configuration, which the record holds."""

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
    The datastore wants one JSON file a record under data/<benchmark>/<developer>/<model>/; we write one line each.
    """

    schema_version: Literal["0.3.0"] = "0.3.0"
    evaluation_id: str
    evaluation_timestamp: str
    retrieved_timestamp: str
    source_metadata: SourceMetadata
    eval_library: EvalLibrary
    model_info: EvaluatedModel
    evaluation_results: tuple[EvaluationResult, ...]


class ResultDataset(_Form):
    """Which benchmark: `task_id` should be a task of the data set's own `eval.yaml`."""

    id: str
    task_id: str
    revision: str | None = None


class ResultEntry(_Form):
    """One entry of a model repository's `.eval_results/*.yaml`; the repository is the model.

    Source: huggingface/hub-docs `docs/hub/eval-results.md`, marked there as work in progress, and
    `huggingface_hub.EvalResultEntry` 2.4.0, which reads what we write. Uncertain: the unit of `value` (their examples
    show 20.90 and 0.412; ours is per cent) and `task_id`: the data sets' owners register tasks, and ours, named
    `<task>_<mode>`, are not registered, so that the hub may show but not rank them.
    """

    dataset: ResultDataset
    value: float
    date: str
    notes: str = Field(max_length=_NOTES)


def every_eval_ever(
    label: str, record: RunRecord, organization: str, trust: Tier = SELF_REPORTED
) -> EveryEvalEver | None:
    """A run in the first form, None where nothing was scored; `organization` is who publishes it."""
    if record.score is None:
        return None
    model = _model(label, record)
    stamp = str(int(datetime.fromisoformat(record.created).timestamp()))
    return EveryEvalEver(
        evaluation_id=f"{NAME}-{record.task}-{record.mode}/{model.id.replace('/', '_')}/{stamp}",
        evaluation_timestamp=record.created,
        retrieved_timestamp=stamp,
        source_metadata=_who(organization, record.sample, trust),
        eval_library=_library(record.packages.get(NAME, "unknown"), record.git.commit, record.git.dirty),
        model_info=model,
        evaluation_results=tuple(_results(record)),
    )


def _model(label: str, record: RunRecord) -> EvaluatedModel:
    backend, student = record.backend, record.student
    engine = InferenceEngine(name=backend.name, version=_engine_version(record)) if backend else None
    told = {
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
        additional_details=ModelDetails.model_validate(details | {key: value for key, value in told.items() if value}),
    )


def _engine_version(record: RunRecord) -> str:
    """The engine's package is called as the backend is; where it is not, the version is not told."""
    versions = record.backend.versions if record.backend else {}
    return versions.get(record.backend.name if record.backend else "") or "unknown"


# Parts that thousands of runs share are made once; they cannot be changed.
@lru_cache(maxsize=256)
def _who(organization: str, sample: bool, trust: Tier) -> SourceMetadata:
    return SourceMetadata(
        source_name=NAME,
        source_type="evaluation_run",
        source_organization_name=organization,
        evaluator_relationship="other",
        additional_details={"sample_data": str(sample).lower(), "trust": trust},
    )


@lru_cache(maxsize=256)
def _library(version: str, commit: str | None, dirty: bool | None) -> EvalLibrary:
    told = {"commit": commit, "dirty": None if dirty is None else str(dirty).lower()}
    return EvalLibrary(name=NAME, version=version, additional_details={key: text for key, text in told.items() if text})


def _results(record: RunRecord) -> Iterable[EvaluationResult]:
    score = record.score
    assert score is not None, "asked only of scored runs"
    counts = {key: str(getattr(score, key)) for key in ("n", "correct", "wrong", "unparsed")}
    main = ScoreDetails(
        score=score.correct / score.n,
        details=counts | {"test_evaluations": str(record.test_evaluations), "chance": repr(record.chance)},
        uncertainty=_uncertainty(score.correct, score.n),
    )
    made = GenerationConfig(
        generation_args=GenerationArgs(execution_command=" ".join(record.command.split()) or "unknown"),
        additional_details={"protocol_hash": record.protocol_hash, "mode": record.mode},
    )
    yield _result(record, "accuracy", main, made)
    for key, value in sorted(record.secondary.items()):
        if 0 <= value <= 1:
            yield _result(record, key, ScoreDetails(score=value, details={"n": str(score.n)}), made)


@lru_cache(maxsize=65536)
def _uncertainty(correct: int, n: int) -> Uncertainty:
    low, high = wilson(correct, n)
    interval = ConfidenceInterval(lower=low, upper=high, confidence_level=0.95, method="Wilson score, one run")
    return Uncertainty(confidence_interval=interval, num_samples=n)


def _result(record: RunRecord, metric: str, details: ScoreDetails, made: GenerationConfig) -> EvaluationResult:
    return EvaluationResult(
        evaluation_result_id=f"{record.run_id}/{metric}",
        evaluation_name=f"{record.task}, {record.mode} mode",
        source_data=_source(record.task, record.sample, record.data.source, *_scored(record)),
        metric_config=_metric(metric, record.protocol["metric"]),
        score_details=details,
        generation_config=made,
    )


@lru_cache(maxsize=256)
def _metric(name: str, asked: str) -> MetricConfig:
    """A figure of a record by its name; `asked` is what the protocol calls its metric."""
    is_f1 = name == "macro_f1"
    what = "Unweighted mean of F1 over the answers" if is_f1 else "Share of right answers"
    return MetricConfig(
        evaluation_description=f"{what}; metric: {asked}",
        metric_id="accuracy" if name == "accuracy" else f"{NAME}.{name}",
        metric_name=name.replace("_", " "),
        metric_kind="f1" if is_f1 else "accuracy",
    )


def _scored(record: RunRecord) -> tuple[str, int]:
    return str(record.protocol["scored_ids_digest"]), record.protocol["n"]


@lru_cache(maxsize=256)
def _source(task: str, sample: bool, origin: str, ids_digest: str, n: int) -> SourceData:
    hub = None if sample else _hub(task)
    told = {"data_source": origin, "scored_ids_digest": ids_digest}
    if hub is None:
        name = f"{task} (sample questions)" if sample else task
        return SourceData(dataset_name=name, source_type="other", additional_details=told)
    return SourceData(
        dataset_name=task,
        source_type="hf_dataset",
        hf_repo=hub.path,
        samples_number=n,
        additional_details=told | {"hub_revision": hub.revision},
    )


@lru_cache(maxsize=256)
def _hub(task: str) -> HubSource | None:
    """The data set on the hub that a task's questions come from; None for a task that is not installed here."""
    try:
        found: HubSource | None = load_task(task).hub
    except UserError:
        return None
    return found


def eval_results(record: RunRecord) -> list[ResultEntry]:
    """The entries for the repository of a run's student.

    Empty for reference baselines, sample data, and tasks whose data set is not on the hub: there is nothing to hang
    them on.
    """
    hub = _hub(record.task)
    score = record.score
    if record.kind != "method" or record.sample or hub is None or score is None:
        return []
    low, high = wilson(score.correct, score.n)
    notes = (
        f"{NAME}: {record.label}, seed {record.seed}, {record.mode} mode, n = {score.n}, unparsed "
        f"{score.unparsed}, accuracy in per cent, 95 % Wilson interval {100 * low:.1f} to {100 * high:.1f}, "
        f"questions from {record.data.source}, protocol {record.protocol_hash[:12]}"
    )
    revision = hub.revision if record.data.source == "hub" else None
    dataset = ResultDataset(id=hub.path, task_id=f"{record.task}_{record.mode}", revision=revision)
    return [
        ResultEntry(
            dataset=dataset, value=round(100 * score.correct / score.n, 4), date=record.created, notes=notes[:_NOTES]
        )
    ]


def every_eval_ever_lines(runs: Iterable[tuple[str, RunRecord, Tier]], organization: str) -> str:
    """All runs in the first form, one JSON record a line; empty where none was scored."""
    forms = (every_eval_ever(label, record, organization, trust) for label, record, trust in runs)
    return "".join(f"{visible(form.model_dump_json(exclude_none=True))}\n" for form in forms if form)


def eval_results_yaml(runs: Iterable[tuple[str, RunRecord, Tier]]) -> str:
    """All runs in the second form: run id, then the content of its `.eval_results/*.yaml`; empty where there is none.

    Entries stand in YAML's flow style, which is JSON.
    """
    made: list[str] = []
    for _, record, _ in runs:
        entries = [_json(entry.model_dump(exclude_none=True)) for entry in eval_results(record)]
        made += [f"{_json(record.run_id)}:", *(f"- {entry}" for entry in entries)] if entries else []
    return "\n".join(made) + "\n" if made else ""


def eval_results_file(record: RunRecord) -> dict[str, str]:
    """The second form as a file of the student's own repository, by its name; empty where there is nothing to say."""
    entries = "".join(f"- {_json(entry.model_dump(exclude_none=True))}\n" for entry in eval_results(record))
    return {f".eval_results/{record.task}_{record.mode}.yaml": entries} if entries else {}


def _json(value: Any) -> str:
    return visible(json.dumps(value, ensure_ascii=False))
