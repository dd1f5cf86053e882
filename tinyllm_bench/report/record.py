"""The run record, `run.json`: all that a board may know about one cell, its arithmetic checked on every load."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest, read_json, write_json
from tinyllm_bench.data.records import Reading
from tinyllm_bench.report.public import machine_paths
from tinyllm_bench.report.public import public as public
from tinyllm_bench.report.public import public_text as public_text

SCHEMA_VERSION = 1
RECORD_FILE = "run.json"
PROTOCOL_FIELDS = (
    "task",
    "version",
    "scored_ids_digest",
    "n",
    "reading",
    "prompt_digest",
    "parser_version",
    "metric",
    "max_context_words",
)

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Both become file and folder names of a board, so they may not hold a path.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=200)]
Item = tuple[str, int | None, Literal[0, 1]]


def ids_digest(ids: Iterable[str]) -> str:
    """Digest of a set of record ids: their order does not matter."""
    return digest(sorted(ids))


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """SHA-256 of a protocol; only rows whose hashes are equal may stand in one table."""
    return digest(dict(protocol))


def protocol_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two protocols differ, sorted."""
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelInfo(_Part):
    """A model that was asked.

    `digest` is of its weights as asked, `initial_digest` of the weights before training; where another cell trained
    those first, `base_digest` is of the weights before that, which `spec` names. `chat_template` says that it was
    asked through its own chat template.
    """

    spec: OneLine
    digest: str | None = None
    initial_digest: str | None = None
    base_digest: str | None = None
    tokenizer_digest: str | None = None
    parameters: Count | None = None
    architecture: str | None = None
    chat_template: bool = False


class TeacherInfo(_Part):
    """A teacher. `gold_visible`: it saw the right answer when it wrote; None when that is not known.

    `asked` says how a live teacher was asked: kind of prompt, demonstrations, drawing.
    """

    spec: OneLine
    note: str | None = None
    gold_visible: bool | None = None
    asked: dict[str, Any] = {}


class SplitInfo(_Part):
    """Rows of a split and the digest of its content."""

    rows: Count
    digest: str


class DataInfo(_Part):
    """Where the questions came from and which of them trained and selected the student.

    `overlap` is the number of scored test questions whose normalised question stands among the training records;
    None where it was not counted.
    """

    source: str
    splits: dict[str, SplitInfo] = {}
    train_ids_digest: str | None = None
    n_train: Count | None = None
    valid_ids_digest: str | None = None
    overlap: Count | None = None


class TeacherCost(_Part):
    """What a teacher's texts cost, charged in full; None where it is not known (energy, price)."""

    tokens_in: Count
    tokens_out: Count
    seconds: Annotated[float, Field(ge=0)]
    joules: Annotated[float, Field(ge=0)] | None = None
    usd: Annotated[float, Field(ge=0)] | None = None
    engines: tuple[str, ...] = ()


class AnnotationInfo(_Part):
    """What became of one teacher's texts: used, missing, or rejected (reason: count).

    `text_digest` is of the texts that were used; None where it was not taken. `cost` is None for recorded texts.
    """

    teacher: str
    kind: str
    used: Count
    missing: Count = 0
    rejected: dict[str, Count] = {}
    control: str | None = None
    text_digest: str | None = None
    cost: TeacherCost | None = None


class Budget(_Part):
    """What a cell was allowed and what it spent.

    `student_tokens` counts non-pad prompt and target tokens through the student's forward and backward pass,
    `computed_tokens` those that were really computed: a shared prompt counts once, a last target token not at all.
    Teacher tokens and seconds are charged in full; they are None where the text was recorded before. Divided by
    `teacher_shared_by`, the methods of the request that learn from the same texts, they are amortised. Init tokens are
    those of the cells that made the initial student, which the budget is charged with, and the teacher. Rollout tokens
    were drawn during training, in `rollout_seconds` of `train_seconds`. `train_flops` is
    the estimate 6 * parameters * computed tokens, not a count; None where that does not hold (LoRA, encoder-decoder
    students). Seconds are wall time, `train_seconds` of training alone.
    """

    asked_student_tokens: Count | None = None
    student_tokens: Count = 0
    computed_tokens: Count | None = None
    tokens_by_channel: dict[str, Count] = {}
    prompt_tokens: Count | None = None
    target_tokens: Count | None = None
    teacher_tokens_in: Count | None = None
    teacher_tokens_out: Count | None = None
    teacher_seconds: Annotated[float, Field(ge=0)] | None = None
    teacher_shared_by: Annotated[int, Field(ge=1)] = 1
    student_init_tokens: Count | None = None
    teacher_init_tokens: Count | None = None
    rollout_tokens: Count = 0
    rollout_seconds: Annotated[float, Field(ge=0)] = 0.0
    steps: Count = 0
    epochs: Annotated[float, Field(ge=0)] = 0.0
    train_flops: Annotated[float, Field(ge=0)] | None = None
    seconds: Annotated[float, Field(ge=0)] = 0.0
    train_seconds: Annotated[float, Field(ge=0)] = 0.0
    tokens_per_second: Annotated[float, Field(ge=0)] | None = None
    peak_memory_bytes: Count | None = None
    device: str | None = None

    @model_validator(mode="after")
    def _tokens_add_up(self) -> Self:
        if self.prompt_tokens is not None and self.target_tokens is not None:
            total = self.prompt_tokens + self.target_tokens
            if total != self.student_tokens:
                raise ValueError(f"prompt_tokens + target_tokens = {total}, student_tokens = {self.student_tokens}")
        return self


class Look(_Part):
    """One look at the validation items during training.

    `loss` is the mean cross-entropy of a gold answer's tokens; `probe` holds what the method measured on texts that the
    student drew for validation questions (reverse KL, length, distinct-n): these never select anything.
    """

    fraction: Share
    step: Count
    accuracy: Share | None = None
    gold_probability: Share | None = None
    n: Count
    loss: Annotated[float, Field(ge=0)] | None = None
    probe: dict[str, float] = {}
    selected: bool = False


class Training(_Part):
    """How training went: optimiser steps, first and last loss, the looks and the rule that chose one.

    `start` is the look before the first step, of methods that draw texts; `measured` are the method's own means over
    all steps. `layout` is how a question's examples were computed (`shared` or `separate`), `layout_reason` why not
    shared.
    """

    steps: Count
    first_loss: float | None = None
    last_loss: float | None = None
    start: Look | None = None
    looks: tuple[Look, ...] = ()
    measured: dict[str, float] = {}
    select: str
    layout: str | None = None
    layout_reason: str | None = None


class Score(_Part):
    """Counts over the scored items; the last three stand outside the sum."""

    n: Annotated[int, Field(ge=1)]
    correct: Count
    wrong: Count
    unparsed: Count = 0
    hit_token_limit: Count = 0
    context_cut: Count = 0
    ties: Count = 0

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = self.correct + self.wrong + self.unparsed
        if total != self.n:
            raise ValueError(f"correct + wrong + unparsed = {total}, but n = {self.n}")
        if max(self.hit_token_limit, self.context_cut, self.ties) > self.n:
            raise ValueError(f"hit_token_limit, context_cut and ties may not exceed n = {self.n}")
        return self


class BackendInfo(_Part):
    """What ran the student when it was scored; `layout` tells how the options of a question were computed."""

    name: str
    dtype: str
    device: str
    layout: str | None = None
    layout_reason: str | None = None
    versions: dict[str, str] = {}


class GitInfo(_Part):
    """The commit of the code; None outside a checkout."""

    commit: str | None = None
    dirty: bool | None = None


class RunRecord(_Part):
    """One cell: a method (or an anchor) on one task, one reading and one seed.

    `sample` marks rows made from sample data. `expected_accuracy` is the exact value of an anchor that guesses;
    such an anchor needs no score. An anchor with neither is one that cannot be measured (recorded text).
    """

    schema_version: Literal[1] = 1
    run_id: FileName
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)$")]
    kind: Literal["method", "anchor"]
    name: OneLine
    label: OneLine
    sample: bool
    task: FileName
    task_version: int
    reading: Reading
    seed: int = 0
    asked: dict[str, Any] = {}
    config: dict[str, Any] = {}
    protocol: dict[str, Any]
    protocol_hash: str
    student: ModelInfo | None = None
    teachers: tuple[TeacherInfo, ...] = ()
    data: DataInfo
    annotations: tuple[AnnotationInfo, ...] = ()
    budget: Budget | None = None
    training: Training | None = None
    score: Score | None = None
    secondary: dict[str, float] = {}
    expected_accuracy: Share | None = None
    chance: Annotated[float, Field(ge=0, lt=1)]
    test_looks: Count = 0
    notes: tuple[str, ...] = ()
    items: tuple[Item, ...] = ()
    predictions_digest: str | None = None
    backend: BackendInfo | None = None
    git: GitInfo = GitInfo()
    packages: dict[str, str] = {}
    command: str = ""

    @model_validator(mode="after")
    def _protocol_agrees(self) -> Self:
        if set(self.protocol) != set(PROTOCOL_FIELDS):
            raise ValueError(f"protocol has {sorted(self.protocol)}, needs exactly {sorted(PROTOCOL_FIELDS)}")
        if protocol_hash(self.protocol) != self.protocol_hash:
            raise ValueError("protocol_hash is not the digest of protocol: one of them was edited")
        told = {"task": self.task, "version": self.task_version, "reading": self.reading}
        differs = [key for key, value in told.items() if self.protocol[key] != value]
        if differs:
            raise ValueError(f"protocol and record disagree on {', '.join(differs)}")
        return self

    @model_validator(mode="after")
    def _holds_no_machine_paths(self) -> Self:
        specs = [model.spec for model in (self.student, *self.teachers) if model]
        found = next(machine_paths([self.command, self.asked, self.config, specs, self.notes]), None)
        if found is not None:
            raise ValueError(f"a record holds no machine paths: {found}")
        return self

    @model_validator(mode="after")
    def _method_is_complete(self) -> Self:
        missing = [key for key in ("student", "budget", "score") if getattr(self, key) is None]
        if self.kind == "method" and missing:
            raise ValueError(f"a method's record needs {', '.join(missing)}")
        if self.kind == "method" and self.expected_accuracy is not None:
            raise ValueError("expected_accuracy belongs to anchors: a method's accuracy is measured")
        return self

    @model_validator(mode="after")
    def _items_agree(self) -> Self:
        if self.score is None:
            if self.items:
                raise ValueError("a record without a score has no items")
            return self
        ids = [record_id for record_id, _, _ in self.items]
        facts = {
            "n": (len(ids), self.score.n),
            "distinct ids": (len(set(ids)), self.score.n),
            "protocol n": (self.protocol["n"], self.score.n),
            "correct": (sum(flag for _, _, flag in self.items), self.score.correct),
            "unparsed": (sum(answer is None for _, answer, _ in self.items), self.score.unparsed),
        }
        wrong = [f"{key} {found} in items, {told} in score" for key, (found, told) in facts.items() if found != told]
        if wrong:
            raise ValueError("; ".join(wrong))
        if any(answer is None and flag for _, answer, flag in self.items):
            raise ValueError("an item without an answer is marked correct")
        if ids_digest(ids) != self.protocol["scored_ids_digest"]:
            raise ValueError("the items are not the protocol's scored ids")
        return self

    @property
    def accuracy(self) -> float | None:
        """Share of right answers (exact where known without asking); None when it cannot be measured."""
        if self.expected_accuracy is not None:
            return self.expected_accuracy
        return None if self.score is None else self.score.correct / self.score.n


def load_record(path: Path) -> RunRecord:
    """Read and check a record: a file, or the folder of a run.

    Raises:
        UserError: missing or broken file, another schema, unknown or missing fields, numbers that disagree.
    """
    path = Path(path)
    file = path / RECORD_FILE if path.is_dir() else path
    found = read_json(file)
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{file} is not a run record of schema {SCHEMA_VERSION} (found {version!r}); run the cell again"
        )
    try:
        return RunRecord.model_validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        raise UserError(
            f"{file} is refused: {_first_problem(error)}; run the cell again instead of editing it"
        ) from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = re.sub(r"\s+", " ", first["msg"].removeprefix("Value error, "))
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
