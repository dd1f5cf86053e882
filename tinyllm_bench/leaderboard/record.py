"""The run record, `run.json`: all that a board may know about one cell, its arithmetic checked on every load."""

import datetime
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from operator import eq
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic_core import to_json

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest, write_json
from tinyllm_bench.base.reading import read_bytes, strict_json
from tinyllm_bench.data.records import ScoringMode
from tinyllm_bench.leaderboard.items import MOST_OPTIONS, Items, questions
from tinyllm_bench.leaderboard.public import machine_paths
from tinyllm_bench.leaderboard.public import public as public
from tinyllm_bench.leaderboard.public import public_text as public_text
from tinyllm_bench.leaderboard.record_parts import AnnotationInfo as AnnotationInfo
from tinyllm_bench.leaderboard.record_parts import BackendInfo as BackendInfo
from tinyllm_bench.leaderboard.record_parts import Budget as Budget
from tinyllm_bench.leaderboard.record_parts import Count, FileName, Measured, OneLine, Part, Seed, Share, Short, Text
from tinyllm_bench.leaderboard.record_parts import DataInfo as DataInfo
from tinyllm_bench.leaderboard.record_parts import EvaluationInfo as EvaluationInfo
from tinyllm_bench.leaderboard.record_parts import GitInfo as GitInfo
from tinyllm_bench.leaderboard.record_parts import ModelInfo as ModelInfo
from tinyllm_bench.leaderboard.record_parts import Score as Score
from tinyllm_bench.leaderboard.record_parts import SplitInfo as SplitInfo
from tinyllm_bench.leaderboard.record_parts import TeacherCost as TeacherCost
from tinyllm_bench.leaderboard.record_parts import TeacherInfo as TeacherInfo
from tinyllm_bench.leaderboard.record_parts import Training as Training

SCHEMA_VERSION = 1
RECORD_FILE = "run.json"
_MOST_BYTES = 64 * 10**6  # a record of half a million questions
PROTOCOL_FIELDS = (
    "task",
    "version",
    "scored_ids_digest",
    "n",
    "mode",
    "prompt_digest",
    "parser_version",
    "metric",
    "max_context_words",
)


def ids_digest(ids: Iterable[str]) -> str:
    """Digest of a set of record ids: their order does not matter."""
    return questions(tuple(ids)).digest


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """SHA-256 of a protocol; only rows whose hashes are equal may stand in one table."""
    return _hash(to_json(dict(protocol)))


@lru_cache(maxsize=256)
def _hash(protocol: bytes) -> str:
    """Kept by the JSON text, in which 1, 1.0 and true differ: thousands of records share a protocol."""
    return digest(json.loads(protocol))


def protocol_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two protocols differ, sorted."""
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))


_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|\+00:00)$"


def _real_time(text: str) -> str:
    """A time that exists: there is no month 21."""
    datetime.datetime.fromisoformat(text).timestamp()
    return text


class _Protocol(Part):
    """The kinds of a protocol's fields."""

    task: FileName
    version: Count
    scored_ids_digest: Short
    n: Annotated[int, Field(ge=1, le=10**9)]
    mode: ScoringMode
    prompt_digest: Short
    parser_version: Short | Count
    metric: Short
    max_context_words: Count | None


# Groups of settings that are read from a record's config.
_GROUPS = ("annotations", "backend", "budget", "data", "eval", "method", "student", "teacher", "train")
# Figures with a column of their own: another one of that name would stand in its place.
_OWN_COLUMNS = ("", "accuracy", "gap_to_teacher_recovered")


class RunRecord(Part):
    """One cell: a method (or a reference baseline) on one task, one mode and one seed.

    `own_settings`: settings outside of `method` that the method itself brings along, such as a learning rate; nobody
    asked for another. `sample` marks rows made from sample data. `expected_accuracy` is the exact value of a reference
    baseline that guesses; such a reference baseline needs no score. A reference baseline with neither is one that
    cannot be measured (recorded text). `clusters` number the items that share a passage or a question, empty where none
    do; `gold` are the numbers of the items' right answers where all have the same named ones (yes, no, maybe), empty
    elsewhere; `paths` are accuracies by every policy and what the paths are like
    (`evaluation.sampled_answers.policy_report`).
    """

    schema_version: Literal[1] = 1
    run_id: FileName
    created: Annotated[str, Field(pattern=_TIME), AfterValidator(_real_time)]
    kind: Literal["method", "reference_baseline"]
    name: OneLine
    label: OneLine
    sample: bool
    task: FileName
    task_version: Count
    mode: ScoringMode
    seed: Seed = 0
    request: dict[str, Any] = {}
    config: dict[str, Any] = {}
    own_settings: tuple[OneLine, ...] = ()
    protocol: dict[str, Any]
    protocol_hash: Short
    student: ModelInfo | None = None
    teachers: tuple[TeacherInfo, ...] = ()
    data: DataInfo
    annotations: tuple[AnnotationInfo, ...] = ()
    budget: Budget | None = None
    training: Training | None = None
    score: Score | None = None
    secondary: dict[Short, Share] = {}
    paths: dict[Short, Measured] = {}
    expected_accuracy: Share | None = None
    chance: Annotated[float, Field(ge=0, lt=1)]
    test_evaluations: Count = 0
    selected_on: Literal["valid", "test"] = "valid"
    notes: tuple[Text, ...] = ()
    items: Items = Field(default_factory=Items.of)
    clusters: tuple[Annotated[int, Field(ge=0, le=10**9)], ...] = ()
    gold: tuple[Annotated[int, Field(ge=0, lt=MOST_OPTIONS)], ...] = ()
    predictions_digest: Short | None = None
    backend: BackendInfo | None = None
    git: GitInfo = GitInfo()
    packages: dict[Short, Short] = {}
    command: Text = ""

    @model_validator(mode="after")
    def _protocol_agrees(self) -> Self:
        if set(self.protocol) != set(PROTOCOL_FIELDS):
            raise ValueError(f"protocol has {sorted(self.protocol)}, needs exactly {sorted(PROTOCOL_FIELDS)}")
        try:
            _Protocol.model_validate(self.protocol, strict=True)
        except ValidationError as error:
            raise ValueError(f"protocol.{_first_problem(error)}") from None
        if protocol_hash(self.protocol) != self.protocol_hash:
            raise ValueError("protocol_hash is not the digest of protocol: one of them was edited")
        told = {"task": self.task, "version": self.task_version, "mode": self.mode}
        differs = [key for key, value in told.items() if self.protocol[key] != value]
        if differs:
            raise ValueError(f"protocol and record disagree on {', '.join(differs)}")
        return self

    @model_validator(mode="after")
    def _settings_are_groups(self) -> Self:
        wrong = [key for key in _GROUPS if not isinstance(self.config.get(key) or {}, dict)]
        if wrong:
            raise ValueError(f"config.{wrong[0]} is no group of settings")
        taken = [key for key in self.secondary if "_".join(re.split(r"[\W_]+", key.strip())) in _OWN_COLUMNS]
        if taken:
            raise ValueError(f"secondary: a figure may not be called {taken[0]!r}, as a column of its own is")
        return self

    @model_validator(mode="after")
    def _holds_no_machine_paths(self) -> Self:
        specs = [model.spec for model in (self.student, *self.teachers) if model]
        found = next(machine_paths([self.command, self.request, self.config, specs, self.notes]), None)
        if found is not None:
            raise ValueError(f"a record holds no machine paths: {found[:200]}")
        return self

    @model_validator(mode="after")
    def _method_is_complete(self) -> Self:
        missing = [key for key in ("student", "budget", "score") if getattr(self, key) is None]
        if self.kind == "method" and missing:
            raise ValueError(f"a method's record needs {', '.join(missing)}")
        if self.kind == "method" and self.expected_accuracy is not None:
            raise ValueError("expected_accuracy belongs to reference baselines: a method's accuracy is measured")
        return self

    @model_validator(mode="after")
    def _items_agree(self) -> Self:
        if self.score is None:
            if self.items:
                raise ValueError("a record without a score has no items")
            return self
        for name, told in (("clusters", self.clusters), ("gold answers", self.gold)):
            if told and len(told) != len(self.items):
                raise ValueError(f"{len(told)} {name} for {len(self.items)} items")
        asked, answers, marks = self.items.asked, self.items.answers, self.items.marks
        facts = {
            "n": (len(marks), self.score.n),
            "distinct ids": (asked.distinct, self.score.n),
            "protocol n": (self.protocol["n"], self.score.n),
            "correct": (sum(marks), self.score.correct),
            "unparsed": (answers.count(None), self.score.unparsed),
        }
        wrong = [f"{key} {found} in items, {told} in score" for key, (found, told) in facts.items() if found != told]
        if wrong:
            raise ValueError("; ".join(wrong))
        if self.score.unparsed and (None, 1) in zip(answers, marks, strict=True):
            raise ValueError("an item without an answer is marked correct")
        if self.gold and marks != bytes(map(eq, answers, self.gold)):
            raise ValueError("an item's mark does not say whether its answer is the gold one")
        if asked.digest != self.protocol["scored_ids_digest"]:
            raise ValueError("the items are not the protocol's scored ids")
        return self

    @property
    def accuracy(self) -> float | None:
        """Share of right answers (exact where known without asking); None when it cannot be measured."""
        if self.expected_accuracy is not None:
            return self.expected_accuracy
        return None if self.score is None else self.score.correct / self.score.n


def record_path(record: RunRecord) -> str:
    """Where a record lies in its board's folder."""
    return f"results/{record.protocol_hash[:12]}/{record.task}/{record.run_id}.json"


def load_record(path: str | Path) -> RunRecord:
    """Read and check a record: a file, or the folder of a run.

    Raises:
        UserError: missing or broken file, another schema, unknown or missing fields, numbers that disagree.
    """
    inside = Path(path) if os.path.isdir(path) else None
    file = Path(path, RECORD_FILE) if inside else Path(path)
    data = read_bytes(file, most=_MOST_BYTES, inside=inside)
    try:
        found = strict_json(data)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): truncated or edited?") from None
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{file} is not a run record of schema {SCHEMA_VERSION} (found {repr(version)[:40]}); run the cell again"
        )
    try:
        return RunRecord.model_validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        raise UserError(
            f"{file} is refused: {_first_problem(error)}; run the cell again instead of editing it"
        ) from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"])
    message = re.sub(r"\s+", " ", first["msg"].removeprefix("Value error, "))[:400]
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{place}: {message}{more}" if place else f"{message}{more}"


def save_record(record: RunRecord, path: Path) -> Path:
    """Write a record atomically, to a file or as `run.json` of a run's folder; returns the file.

    The record is checked again first, so that a copy made with changed numbers cannot reach the disk.
    """
    path = Path(path)
    file = path if path.suffix == ".json" else path / RECORD_FILE
    content = record.model_dump(mode="json")
    RunRecord.model_validate(content)
    write_json(file, content)
    return file
