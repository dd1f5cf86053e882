"""The parts of a run record: models, teachers, data, texts, budget, training, score, backend."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


class Part(BaseModel):
    """Base of all parts: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelInfo(Part):
    """A model that was asked.

    `digest` is of its weights as asked, `initial_digest` of the weights before training; where another cell trained
    those first, `base_digest` is of the weights before that, which `spec` names. `chat_template` says that it was
    asked through its own chat template.
    """

    spec: OneLine
    digest: Short | None = None
    initial_digest: Short | None = None
    base_digest: Short | None = None
    tokenizer_digest: Short | None = None
    parameters: Count | None = None
    architecture: Short | None = None
    chat_template: bool = False


class TeacherInfo(Part):
    """A teacher. `gold_visible`: it saw the right answer when it wrote; None when that is not known.

    `settings` are those of a live teacher: kind of prompt, demonstrations, sampling.
    """

    spec: OneLine
    note: Text | None = None
    gold_visible: bool | None = None
    settings: dict[str, Any] = {}


class SplitInfo(Part):
    """Rows of a split and the digest of its content."""

    rows: Count
    digest: Short


class DataInfo(Part):
    """Where the questions came from and which of them trained and selected the student.

    `overlap` is the number of scored test questions whose normalised question stands among the training records;
    None where it was not counted.
    """

    source: Short
    splits: dict[Short, SplitInfo] = {}
    train_ids_digest: Short | None = None
    n_train: Count | None = None
    valid_ids_digest: Short | None = None
    overlap: Count | None = None


class TeacherCost(Part):
    """What a teacher's texts cost, charged in full; None where it is not known (energy, price)."""

    tokens_in: Count
    tokens_out: Count
    seconds: Seconds
    joules: Amount | None = None
    usd: Amount | None = None
    engines: tuple[Short, ...] = ()


class AnnotationInfo(Part):
    """What became of one teacher's texts: used, missing, or rejected (reason: count).

    `text_digest` is of the texts that were used; None where it was not taken. `cost` is None for recorded texts.
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


class Budget(Part):
    """What a cell was allowed and what it spent.

    `student_tokens` counts non-pad prompt and target tokens through the student's forward and backward pass,
    `computed_tokens` those that were really computed: a shared prompt counts once, a last target token not at all.
    Teacher tokens and seconds are charged in full; they are None where the text was recorded before. Divided by
    `teacher_shared_by`, the methods of the request that learn from the same texts, they are amortised. Init tokens are
    those of the cells that made the initial student, which the budget is charged with, and the teacher. Rollout tokens
    were sampled during training, in `rollout_seconds` of `train_seconds`. `train_flops` is
    an estimate by parameters and computed tokens, rollouts and a white-box teacher included; None where it does not
    hold (encoder-decoder students). Seconds are wall time, `train_seconds` of training alone. `track` is the unit that
    the budget was set in and `amount` how much of it: methods are compared at the same amount of one unit.
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


class EvaluationInfo(Part):
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


class Training(Part):
    """How training went: optimiser steps, first and last loss, the evaluations and the rule that chose one.

    `start` is the evaluation before the first step, of methods that sample texts; `measured` are the method's own means
    over all steps. `layout` is how a question's examples were computed (`shared` or `separate`), `layout_reason` why
    not shared.
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


class Score(Part):
    """Counts over the scored items; the last three stand outside the sum."""

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


class BackendInfo(Part):
    """What ran the student when it was scored; `layout` tells how the options of a question were computed."""

    name: Short
    dtype: Short
    device: Short
    layout: Short | None = None
    layout_reason: Text | None = None
    versions: dict[Short, Short] = {}


class GitInfo(Part):
    """The commit of the code; None outside a checkout."""

    commit: Short | None = None
    dirty: bool | None = None
