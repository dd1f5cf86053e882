"""The settings of training, the same for every method of a comparison."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tinyllm_bench.training.layout import LayoutChoice
from tinyllm_bench.training.result import Select


class TrainConfig(BaseModel):
    """How the student is trained; the same for every method of a comparison.

    `looks` are the shares of the run after which validation is scored, `look_every` looks after every so many steps
    and at the end instead; `select: best` keeps the most accurate of them, `loss` the one with the lowest
    validation loss (of the gold answers), `last` the end. `weight_decay` is AdamW's, of matrices alone: norms and
    biases have none. `micro_batch_tokens` is a memory limit in padded tokens and does not change the optimisation;
    nor does `layout`: `shared` computes what a question's examples begin with in common once (`auto`: where the
    student can).
    `attention: flex` is FlexAttention, for GPUs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    learning_rate: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup: float = Field(0.0, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    batch_records: int = Field(16, ge=1)
    micro_batch_tokens: int = Field(4096, ge=1)
    max_target_tokens: int = Field(256, ge=1)
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    layout: LayoutChoice = "auto"
    attention: Literal["sdpa", "flex"] = "sdpa"
    looks: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    look_every: int | None = Field(None, ge=1)
    select: Select = "best"
    checkpoint_seconds: float = Field(300.0, ge=0)
