"""The settings of a run: every key, its type and its default. Presets and method files only set these."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tinyllm_bench.teachers.settings import AnnotationConfig
from tinyllm_bench.training.logit_cache import Precision
from tinyllm_bench.training.settings import LayoutChoice, TrainConfig

TrackerName = Literal["trackio", "wandb", "mlflow", "tensorboard"]
NOT_RECORDED = {"report_to"}  # settings that change nothing about a run: neither stored nor recorded with it


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraConfig(_Settings):
    """Low-rank adapters instead of full training (peft); merged into the student before it is evaluated."""

    r: int = Field(16, ge=1, le=4096)
    alpha: int = Field(32, ge=1, le=10**6)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"


class InitConfig(_Settings):
    """A model that another cell trains first, by its own method and to its own budget (one of the two)."""

    method: str
    student_tokens: int | None = Field(None, ge=1, le=10**15)
    epochs: float | None = Field(None, gt=0, le=10**6)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.student_tokens is None) == (self.epochs is None):
            raise ValueError("set exactly one of student_tokens and epochs (the other to null)")
        return self


class TeacherInitConfig(InitConfig):
    """How the teacher is trained on the task first, and on how many records.

    train_limit: a stratified subset of the training records, null for the whole training split, independent of the
    student's `data.train_limit`: a teacher that is the student's own model must have seen more records than it.
    """

    train_limit: int | None = Field(None, ge=1, le=10**9)


class StudentConfig(_Settings):
    """The model that is trained: a model spec, fully fine-tuned or by LoRA.

    dtype: of the weights where the student is evaluated without training, as in reference baselines; a trained student
    has float32 weights, since 16 bits round small steps away (train.mixed_precision=bf16 computes in 16 bits); init:
    train the student by another method first, at the cell's cost.
    """

    model: str = "bundled:smollm2-135m"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoraConfig | None = None
    init: InitConfig | None = None


class CacheConfig(_Settings):
    """A cache on disk of the teacher's distributions over the training responses, which the student is trained from.

    k: the top-k tokens that are stored per position, the rest as one probability mass, or `all`; precision: of the
    stored log-probabilities; engine: the backend that computes them.
    """

    k: Annotated[int, Field(ge=1, le=10**7)] | Literal["all"] = 64
    precision: Precision = "float16"
    engine: Literal["hf", "vllm"] = "hf"


class TeacherConfig(_Settings):
    """The white-box teacher, for methods that learn from its distributions or from responses that it generates.

    model: its spec (`?adapter=FOLDER` applies a LoRA adapter), null for the one of `teachers` that the method uses;
    init: train the teacher on the task first, as MiniLLM does (arXiv:2306.08543); dtype: on an accelerator bfloat16
    saves memory; cache: learn from cached distributions instead of the live model; chat: a teacher with another
    tokenizer reads the question in its own chat template.
    """

    model: str | None = None
    init: TeacherInitConfig | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    cache: CacheConfig | None = None
    chat: bool = False


class DataConfig(_Settings):
    """The records, and how prompts word them.

    train_limit: a stratified subset of the training records; max_context_words: only the passage is cut, from its
    start; rationale_context: whether rationale channels see the options; markers: replaces a channel's marker by name;
    cut_tokens: truncate every prompt to this length, as some released code does: the question may be lost; plain_text:
    a UTF-8 text file for methods that also train on plain text, cut into pieces of `plain_tokens`.
    """

    source: Literal["auto", "release", "hub", "sample"] = "auto"
    dir: str | None = Field(None, min_length=1)
    train_limit: int | None = Field(None, ge=1, le=10**9)
    max_context_words: int = Field(160, ge=0, le=10**9)
    style: Literal["marker", "paper"] = "marker"
    rationale_context: Literal["options", "question"] = "options"
    markers: dict[str, str] = {}
    cut_tokens: int | None = Field(None, ge=1, le=10**9)
    plain_text: str | None = Field(None, min_length=1)
    plain_tokens: int = Field(128, ge=8, le=10**6)


class EvalConfig(_Settings):
    """How students are evaluated. limit: a fixed stratified subset of the test split, null for all of it.

    match: a generated answer is read by the parser, or must be a choice's text to the letter (`exact`).

    layout: `shared` scores the options of a question as branches of one sequence (`auto`: where the student can).
    """

    mode: Literal["auto", "generate", "multiple_choice", "cloze"] = "auto"
    limit: int | None = Field(None, ge=1, le=10**9)
    valid_limit: int = Field(200, ge=1, le=10**9)
    batch_size: int = Field(16, ge=1, le=10**6)
    layout: LayoutChoice = "auto"
    shots: int = Field(3, ge=1, le=1000)
    shot_max_words: int = Field(64, ge=1, le=10**6)
    max_new_tokens: int = Field(64, ge=1, le=10**6)
    match: Literal["parser", "exact"] = "parser"
    chat_template: Literal["auto", "always", "never"] = "auto"


class BudgetConfig(_Settings):
    """How long a student is trained, in one of these units: student tokens, epochs, FLOPs or seconds; the others null.

    The cost of making the initial student is charged to all but epochs. FLOPs are an estimate (`flops_per_token`) that
    holds for decoder-only students; how far a number of seconds reaches depends on the machine, so that such a run is
    not reproducible to the byte.
    """

    student_tokens: int | None = Field(None, ge=1, le=10**15)
    epochs: float | None = Field(None, gt=0, le=10**6)
    flops: float | None = Field(None, gt=0, le=1e30)
    seconds: float | None = Field(None, gt=0, le=1e9)

    @property
    def limit(self) -> tuple[str, float]:
        """The unit that is set, and its amount."""
        ((name, amount),) = [(name, value) for name, value in self if value is not None]
        return name, amount

    @property
    def has_one_unit(self) -> bool:
        """Whether exactly one unit is set."""
        return sum(value is not None for _, value in self) == 1


class BackendConfig(_Settings):
    """Where students run: the device, and the engine of evaluation."""

    engine: Literal["auto", "hf", "vllm"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"


class BenchConfig(_Settings):
    """All settings of one cell. `method` holds the settings of the cell's method, checked by the method's own model.

    `report_to` names the experiment trackers that training and the result are logged to: one name or a list.
    """

    student: StudentConfig = StudentConfig()
    teacher: TeacherConfig = TeacherConfig()
    teachers: tuple[str, ...] = ()
    data: DataConfig = DataConfig()
    annotations: AnnotationConfig = AnnotationConfig()
    method: dict[str, Any] = {}
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    budget: BudgetConfig = BudgetConfig()
    backend: BackendConfig = BackendConfig()
    report_to: tuple[TrackerName, ...] = ()

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value
