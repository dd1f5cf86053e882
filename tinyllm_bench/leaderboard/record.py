"""The run record, `run.json`: everything a board knows about one cell; its arithmetic is checked on every load.

From top to bottom: the kinds of fields, the parts of a record, its scored items, its protocol, the record itself, and
how it is read and written.
"""

import datetime
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import eq
from pathlib import Path
from typing import Annotated, Any, Literal, Self, overload

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema, to_json

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest, read_bytes, strict_json, write_json
from tinyllm_bench.data.records import NUMBER_KEY, ScoringMode
from tinyllm_bench.leaderboard.public import machine_paths

SCHEMA_VERSION = 1
RECORD_FILE = "run.json"
MAX_OPTIONS = 10_000  # of one question
_MAX_BYTES = 64 * 10**6  # a record of half a million questions

# Bounds that no real run comes near, so that no number of a record can make a table's arithmetic fail.
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=1e30)]
Seconds = Annotated[float, Field(ge=0, le=1e11)]
Measured = Annotated[float, Field(ge=-1e30, le=1e30)]
# Both become file and folder names of a board, so they may not hold a path.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]
OneLine = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$", max_length=200)]
# Any characters: whatever shows a text escapes it (`base.escaping`).
Short = Annotated[str, Field(max_length=300)]
Text = Annotated[str, Field(max_length=20_000)]
Track = Literal["student_tokens", "epochs", "flops", "seconds"]


_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|\+00:00)$"


class RecordPart(BaseModel):
    """Base of all parts of a record: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelInfo(RecordPart):
    """A model that was evaluated.

    `digest` is that of the evaluated weights, `initial_digest` of the weights before training; where another cell
    trained those first, `base_digest` is that of the weights before, which `spec` names. `chat_template`: prompts went
    through the model's own chat template.
    """

    spec: OneLine
    digest: Short | None = None
    initial_digest: Short | None = None
    base_digest: Short | None = None
    tokenizer_digest: Short | None = None
    parameters: Count | None = None
    architecture: Short | None = None
    chat_template: bool = False


class TeacherInfo(RecordPart):
    """A teacher. `gold_visible`: it saw the right answer when it wrote; None when that is not known.

    `settings` are those of a live teacher: kind of prompt, demonstrations, sampling.
    """

    spec: OneLine
    note: Text | None = None
    gold_visible: bool | None = None
    settings: dict[str, Any] = {}


class SplitInfo(RecordPart):
    """Rows of a split and the digest of its content."""

    rows: Count
    digest: Short


class DataInfo(RecordPart):
    """Where the questions came from and which of them trained and selected the student.

    `overlap` is the number of scored test questions whose normalised question is among the training records;
    None where it was not counted.
    """

    source: Short
    splits: dict[Short, SplitInfo] = {}
    train_ids_digest: Short | None = None
    n_train: Count | None = None
    valid_ids_digest: Short | None = None
    overlap: Count | None = None


class TeacherCost(RecordPart):
    """What a teacher's texts cost, charged in full; `usd` is None without a price."""

    tokens_in: Count
    tokens_out: Count
    seconds: Seconds
    usd: Amount | None = None
    engines: tuple[Short, ...] = ()


class AnnotationInfo(RecordPart):
    """How many of one teacher's texts were used, missing, or rejected (reason: count).

    `text_digest` is that of the texts used; None where it was not computed. `cost` is None for recorded texts.
    `degenerate_rate`: of the programs with the right answer, the share that only hold the label; None without any.
    """

    teacher: Short
    kind: Short
    used: Count
    missing: Count = 0
    rejected: dict[Short, Count] = {}
    control: Short | None = None
    text_digest: Short | None = None
    degenerate_rate: Share | None = None
    cost: TeacherCost | None = None


class Budget(RecordPart):
    """The budget of a cell and what it spent.

    `student_tokens` counts non-pad prompt and target tokens through the student's forward and backward pass,
    `computed_tokens` those actually computed: a shared prompt counts once, a last target token not at all.
    Teacher tokens and seconds are charged in full; they are None where the text was recorded before. Divided by
    `teacher_shared_by`, the methods of the request that learn from the same texts, they are amortised. Init tokens are
    those of the cells that made the initial student, which the budget is charged with, and the teacher. Rollout tokens
    were sampled during training, in `rollout_seconds` of `train_seconds`. `train_flops` is
    an estimate by parameters and computed tokens, rollouts and a white-box teacher included; None where it does not
    hold (encoder-decoder students). Seconds are wall time, `train_seconds` of training alone. `track` is the unit
    in which the budget was set and `amount` its size: methods are compared at the same amount of one unit.
    """

    track: Track | None = None
    amount: Annotated[float, Field(gt=0, le=1e30)] | None = None

    student_tokens_limit: Count | None = None
    student_tokens: Count = 0
    computed_tokens: Count | None = None
    tokens_by_channel: dict[Short, Count] = {}
    prompt_tokens: Count | None = None
    target_tokens: Count | None = None
    teacher_tokens_in: Count | None = None
    teacher_tokens_out: Count | None = None
    teacher_seconds: Seconds | None = None
    teacher_shared_by: Annotated[int, Field(ge=1, le=10**6)] = 1
    student_init_tokens: Count | None = None
    teacher_init_tokens: Count | None = None
    rollout_tokens: Count = 0
    rollout_seconds: Seconds = 0.0
    steps: Count = 0
    epochs: Amount = 0.0
    train_flops: Amount | None = None
    seconds: Seconds = 0.0
    train_seconds: Seconds = 0.0
    tokens_per_second: Amount | None = None
    peak_memory_bytes: Count | None = None
    device: Short | None = None

    @model_validator(mode="after")
    def _tokens_add_up(self) -> Self:
        if self.prompt_tokens is not None and self.target_tokens is not None:
            total = self.prompt_tokens + self.target_tokens
            if total != self.student_tokens:
                raise ValueError(f"prompt_tokens + target_tokens = {total}, student_tokens = {self.student_tokens}")
        return self


class EvaluationInfo(RecordPart):
    """One evaluation on the validation split during training.

    `loss` is the mean cross-entropy of a gold answer's tokens; `probe` holds what the method measured on texts that the
    student sampled for validation questions (reverse KL, length, distinct-n): these never select anything.
    """

    fraction: Share
    step: Count
    accuracy: Share | None = None
    gold_probability: Share | None = None
    n: Count
    loss: Amount | None = None
    probe: dict[Short, Measured] = {}
    selected: bool = False


class Training(RecordPart):
    """How training went: optimiser steps, first and last loss, the evaluations and the rule that chose one.

    `start` is the evaluation before the first step, of methods that sample texts; `measured` holds the method's
    own means over all steps. `layout` is how a question's examples were computed (`shared` or `separate`),
    `layout_reason` why they were not shared.
    """

    steps: Count
    first_loss: Measured | None = None
    last_loss: Measured | None = None
    start: EvaluationInfo | None = None
    evaluations: tuple[EvaluationInfo, ...] = ()
    measured: dict[Short, Measured] = {}
    select: Short
    layout: Short | None = None
    layout_reason: Text | None = None


class Score(RecordPart):
    """Counts over the scored items; the last three are not part of the sum."""

    n: Annotated[int, Field(ge=1, le=10**9)]
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


class BackendInfo(RecordPart):
    """What ran the student when it was scored; `layout` is how the options of a question were computed."""

    name: Short
    dtype: Short
    device: Short
    layout: Short | None = None
    layout_reason: Text | None = None
    versions: dict[Short, Short] = {}


class GitInfo(RecordPart):
    """The commit of the code; None outside a checkout."""

    commit: Short | None = None
    dirty: bool | None = None


# --- scored items -----------------------------------------------------------------------------------------------------

Answer = int | str | None
Item = tuple[str, Answer, int]
_QuestionId = Annotated[str, Field(min_length=1, max_length=500)]
_Option = Annotated[int, Field(ge=0, lt=MAX_OPTIONS)]
_NumberAnswer = Annotated[str, Field(pattern=f"^{NUMBER_KEY}$", max_length=40)]
_ItemRows = tuple[tuple[_QuestionId, _Option | _NumberAnswer | None, Literal[0, 1]], ...]
_ITEM_ROWS: TypeAdapter[_ItemRows] = TypeAdapter(_ItemRows)


class QuestionIds:
    """The ids of a run's questions in one order, with figures that are the same for all runs on these questions.

    `digest` is that of the set of ids, `distinct` the number of different ids.
    """

    __slots__ = ("digest", "distinct", "ids")

    def __init__(self, ids: tuple[str, ...]) -> None:
        self.ids = ids
        self.digest = digest(sorted(ids))
        self.distinct = len(set(ids))


@lru_cache(maxsize=256)
def question_ids(ids: tuple[str, ...]) -> QuestionIds:
    """The same object for the same ids, which thousands of runs of one protocol have in the same order."""
    return QuestionIds(ids)


class Items(Sequence[Item]):
    """A sequence of (question id, answer, 1 if right else 0) of one run, held as columns: a board holds millions.

    `answers` are numbers of options, normalised numbers as text, or None where no answer could be parsed; `marks` holds
    one byte an item.
    """

    __slots__ = ("answers", "marks", "questions")

    def __init__(self, questions: QuestionIds, answers: tuple[Answer, ...], marks: bytes) -> None:
        self.questions, self.answers, self.marks = questions, answers, marks

    @classmethod
    def of(cls, rows: Iterable[Item] = ()) -> Self:
        """Items from rows that need no validation."""
        ids, answers, marks = tuple(zip(*rows, strict=True)) or ((), (), ())
        return cls(question_ids(ids), answers, bytes(marks))

    @property
    def ids(self) -> tuple[str, ...]:
        """The questions' ids."""
        return self.questions.ids

    def __len__(self) -> int:
        return len(self.marks)

    def __iter__(self) -> Iterator[Item]:
        return zip(self.ids, self.answers, self.marks, strict=True)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> "Items": ...
    def __getitem__(self, place: int | slice) -> "Item | Items":
        if isinstance(place, slice):
            return Items.of(list(self)[place])
        return self.ids[place], self.answers[place], self.marks[place]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Items):
            return NotImplemented
        return (self.ids, self.answers, self.marks) == (other.ids, other.answers, other.marks)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Items.of({list(self)})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read from and written as a list of lists."""

        def validate(value: Any, validate_rows: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Items:
            if isinstance(value, Items):
                return value
            if info.mode != "json":
                return Items.of(validate_rows(value))
            # Strict validation refuses a parsed JSON list where a tuple is expected, so the rows become JSON again.
            return Items.of(_ITEM_ROWS.validate_json(json.dumps(value), strict=True))

        return core_schema.with_info_wrap_validator_function(
            validate,
            handler.generate_schema(_ItemRows),
            serialization=core_schema.plain_serializer_function_ser_schema(tuple),
        )


# --- protocol ---------------------------------------------------------------------------------------------------------

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


class _Protocol(RecordPart):
    """The types of the protocol's fields; the names are `PROTOCOL_FIELDS`."""

    task: FileName
    version: Count
    scored_ids_digest: Short
    n: Annotated[int, Field(ge=1, le=10**9)]
    mode: ScoringMode
    prompt_digest: Short
    parser_version: Short | Count
    metric: Short
    max_context_words: Count | None


def ids_digest(ids: Iterable[str]) -> str:
    """Digest of a set of record ids: their order does not matter."""
    return question_ids(tuple(ids)).digest


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """SHA-256 of a protocol; only rows with the same hash share a table."""
    return _json_digest(to_json(dict(protocol)))


@lru_cache(maxsize=256)
def _json_digest(protocol: bytes) -> str:
    """Cached by the JSON text, in which 1, 1.0 and true differ: thousands of records share a protocol."""
    return digest(json.loads(protocol))


def protocol_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Names of the fields in which two protocols differ, sorted."""
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))


# --- the record -------------------------------------------------------------------------------------------------------

# Groups of settings that boards read from a record's config.
_GROUPS = ("annotations", "backend", "budget", "data", "eval", "method", "student", "teacher", "train")
# Names of a board's own columns, which a task's secondary figure may not take.
_RESERVED_FIGURES = ("", "accuracy", "gap_to_teacher_recovered")


def _existing_time(text: str) -> str:
    """Refuses a date that does not exist, such as month 21."""
    datetime.datetime.fromisoformat(text).timestamp()
    return text


class RunRecord(RecordPart):
    """One cell: a method (or a reference baseline) on one task, one mode and one seed.

    `own_settings`: settings outside of `method` that are the method's own defaults, such as a learning rate, where the
    user did not set another value. `sample` marks runs on sample data. `expected_accuracy` is the exact value of a
    reference baseline that guesses, which needs no score. A reference baseline with neither cannot be measured
    (recorded text). `clusters` gives the same number to items that share a passage or a question, and is empty where
    none do; `gold` holds the numbers of the items' right answers where all items have the same named options (yes, no,
    maybe), and is empty elsewhere; `paths` holds the accuracy of every voting policy and statistics of the sampled
    reasoning paths (`evaluation.sampled_answers.policy_report`).
    """

    schema_version: Literal[1] = 1
    run_id: FileName
    created: Annotated[str, Field(pattern=_TIME), AfterValidator(_existing_time)]
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
    gold: tuple[Annotated[int, Field(ge=0, lt=MAX_OPTIONS)], ...] = ()
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
        own = {"task": self.task, "version": self.task_version, "mode": self.mode}
        differs = [key for key, value in own.items() if self.protocol[key] != value]
        if differs:
            raise ValueError(f"protocol and record disagree on {', '.join(differs)}")
        return self

    @model_validator(mode="after")
    def _settings_are_groups(self) -> Self:
        wrong = [key for key in _GROUPS if not isinstance(self.config.get(key) or {}, dict)]
        if wrong:
            raise ValueError(f"config.{wrong[0]} is no group of settings")
        taken = [key for key in self.secondary if "_".join(re.split(r"[\W_]+", key.strip())) in _RESERVED_FIGURES]
        if taken:
            raise ValueError(f"secondary: a figure may not be called {taken[0]!r}, as a column of its own is")
        return self

    @model_validator(mode="after")
    def _holds_no_machine_paths(self) -> Self:
        specs = [model.spec for model in (self.student, *self.teachers) if model]
        path = next(machine_paths([self.command, self.request, self.config, specs, self.notes]), None)
        if path is not None:
            raise ValueError(f"a record holds no machine paths: {path[:200]}")
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
        for name, values in (("clusters", self.clusters), ("gold answers", self.gold)):
            if values and len(values) != len(self.items):
                raise ValueError(f"{len(values)} {name} for {len(self.items)} items")
        questions, answers, marks = self.items.questions, self.items.answers, self.items.marks
        counts = {
            "n": (len(marks), self.score.n),
            "distinct ids": (questions.distinct, self.score.n),
            "protocol n": (self.protocol["n"], self.score.n),
            "correct": (sum(marks), self.score.correct),
            "unparsed": (answers.count(None), self.score.unparsed),
        }
        wrong = [
            f"{key} {counted} in items, {stated} in score"
            for key, (counted, stated) in counts.items()
            if counted != stated
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        if self.score.unparsed and (None, 1) in zip(answers, marks, strict=True):
            raise ValueError("an item without an answer is marked correct")
        if self.gold and marks != bytes(map(eq, answers, self.gold)):
            raise ValueError("an item's mark does not say whether its answer is the gold one")
        if questions.digest != self.protocol["scored_ids_digest"]:
            raise ValueError("the items are not the protocol's scored ids")
        return self

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, the exact value for a guess; None when it cannot be measured."""
        if self.expected_accuracy is not None:
            return self.expected_accuracy
        return None if self.score is None else self.score.correct / self.score.n


def record_path(record: RunRecord) -> str:
    """The path of a record in its board's folder."""
    return f"results/{record.protocol_hash[:12]}/{record.task}/{record.run_id}.json"


def load_record(path: str | Path) -> RunRecord:
    """Read and check a record: a file, or the folder of a run.

    Raises:
        UserError: missing or broken file, another schema, unknown or missing fields, numbers that disagree.
    """
    inside = Path(path) if os.path.isdir(path) else None
    file = Path(path, RECORD_FILE) if inside else Path(path)
    data = read_bytes(file, max_bytes=_MAX_BYTES, inside=inside)
    try:
        content = strict_json(data)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): truncated or edited?") from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise UserError(
            f"{file} is not a run record of schema {SCHEMA_VERSION} (found {repr(version)[:40]}); run the cell again"
        )
    try:
        return RunRecord.model_validate_json(json.dumps(content), strict=True)
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
