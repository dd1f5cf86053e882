"""Hugging Face evaluation results: entries for the repository of each trained student, as one YAML file.

The models below hold the fields that we fill, spelled as their owners do, and nothing else. The format is young and may
change. Runs on sample data are no benchmark results and are left out.
"""

import json
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import visible
from tinyllm_bench.base.plugins import load_task
from tinyllm_bench.data.records import HubSource
from tinyllm_bench.leaderboard.exports import BoardData
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.stats.intervals import wilson

NAME = "tinyllm-bench"
FILE = "eval_results.yaml"
_MAX_NOTES = 500  # characters; our own limit


def REPORTER(board: BoardData) -> dict[str, str]:
    """Run ids, each with the content of its `.eval_results/*.yaml`; an empty text where there is none.

    Entries are in YAML's flow style, which is JSON.
    """
    lines: list[str] = []
    for run in (run for section in board.sections for row in section.rows for run in row.runs):
        if entries := eval_results(board.records[run.record]):
            lines += [
                f"{_json(run.run_id)}:",
                *(f"- {_json(entry.model_dump(exclude_none=True))}" for entry in entries),
            ]
    return {FILE: "\n".join(lines) + "\n" if lines else ""}


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    notes: str = Field(max_length=_MAX_NOTES)


def eval_results(record: RunRecord) -> list[ResultEntry]:
    """The entries for the repository of a run's student.

    Empty for reference baselines, sample data, and tasks whose data set is not on the hub.
    """
    hub = hub_source(record.task)
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
            dataset=dataset,
            value=round(100 * score.correct / score.n, 4),
            date=record.created,
            notes=notes[:_MAX_NOTES],
        )
    ]


def eval_results_file(record: RunRecord) -> dict[str, str]:
    """The entries as a file of the student's own repository, by its name; empty where there are none."""
    entries = "".join(f"- {_json(entry.model_dump(exclude_none=True))}\n" for entry in eval_results(record))
    return {f".eval_results/{record.task}_{record.mode}.yaml": entries} if entries else {}


@lru_cache(maxsize=256)
def hub_source(task: str) -> HubSource | None:
    """The data set on the hub that a task's questions come from; None for a task that is not installed here."""
    try:
        source: HubSource | None = load_task(task).hub
    except UserError:
        return None
    return source


def _json(value: Any) -> str:
    return visible(json.dumps(value, ensure_ascii=False))
