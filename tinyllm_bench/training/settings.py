"""The settings of training, the same for every method of a comparison."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Select = Literal["best", "loss", "last"]
Scheduler = Literal["linear", "cosine", "constant"]
Layout = Literal["shared", "separate"]
LayoutChoice = Literal["auto", "shared", "separate"]


class TrainConfig(BaseModel):
    """How the student is trained; the same for every method of a comparison.

    `evaluations` are the shares of the run after which the student is evaluated on the validation split; `eval_every`
    evaluates every so many steps and at the end instead. `select: best` takes the most accurate weights, `loss` those
    with the lowest validation loss (of the gold answers), `last` those of the end. `weight_decay` is AdamW's, for
    matrices only: norms and biases have none; `betas` are its decay rates. The learning rate rises linearly over
    `warmup` (a share of the run) or `warmup_steps`, then falls to 0 linearly or along a cosine, or stays constant
    (`scheduler`). `micro_batch_tokens` is a memory limit in padded tokens and does not change the optimisation; nor
    does `layout`: `shared` computes the common prompt of a question's examples once (`auto`: if the student supports
    it). `attention: flex` is FlexAttention, for GPUs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    learning_rate: float = Field(5e-5, gt=0, le=1e30)
    weight_decay: float = Field(0.0, ge=0, le=10)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    scheduler: Scheduler = "linear"
    warmup: float = Field(0.0, ge=0, lt=1)
    warmup_steps: int | None = Field(None, ge=0, le=10**9)
    max_grad_norm: float = Field(1.0, gt=0, le=1e12)
    batch_records: int = Field(16, ge=1, le=10**6)
    micro_batch_tokens: int = Field(4096, ge=1, le=10**9)
    max_target_tokens: int = Field(256, ge=1, le=10**6)
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    layout: LayoutChoice = "auto"
    attention: Literal["sdpa", "flex"] = "sdpa"
    evaluations: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.25, 0.5, 0.75, 1.0)
    eval_every: int | None = Field(None, ge=1, le=10**9)
    select: Select = "best"
    checkpoint_seconds: float = Field(300.0, ge=0, le=1e9)

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        if self.warmup and self.warmup_steps is not None:
            raise ValueError("warmup (a share) and warmup_steps are both set; set warmup=0 or warmup_steps=null")
        return self

    def evaluation_due(self, done: int, steps: int) -> float | None:
        """The share of a run of `steps` that an evaluation after `done` of them is for; None if none is due."""
        if self.eval_every is not None:
            return done / steps if done % self.eval_every == 0 or done == steps else None
        return {max(1, round(share * steps)): share for share in self.evaluations}.get(done)

    def evaluation_count(self, steps: int) -> int:
        """How often a run of `steps` is evaluated."""
        if self.eval_every is not None:
            return steps // self.eval_every + (steps % self.eval_every > 0)
        return len({max(1, round(share * steps)) for share in self.evaluations})
