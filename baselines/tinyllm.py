"""TinyLLM: the label and one rationale per teacher, any number of teachers, a weight per teacher.

Paper (arXiv:2402.04616): L = L_A + sum_m alpha^m L_Tm, with L_A = CE(S(Q, O, p_A), A) and L_Tm = CE(S(Q, O, p_m), R^m).
Released code (YikunHan42/TinyLLM at 9f5bebe, model_utils.py:42-49): gamma * CE_pred + alpha * CE_t5 + beta * CE_llama,
all weights 1.
Differences: the released code trains on empty rationales (prompt to end of text); here a missing or rejected rationale
has no loss term. Each cross-entropy is the token mean over the whole mini-batch, not over a micro-batch.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, model_validator

from tinyllm_bench import (
    LABEL,
    Annotation,
    Ask,
    Example,
    Method,
    MethodConfig,
    Needs,
    Step,
    TaskRecord,
    TeacherSignal,
    Term,
    channel_cross_entropy,
    check_teacher_names,
    label_and_rationales,
    rationale_channel,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch

Weight = Annotated[float, Field(ge=0, le=1e6)]


class TinyllmConfig(MethodConfig):
    """Settings: gamma, the weight of the label; alpha, the weight of each teacher: one number for all, or a mapping
    from teacher key to weight (1 for teachers that it leaves out).
    """

    gamma: Weight = 1.0
    alpha: Weight | dict[str, Weight] = 1.0

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not self.gamma and self.alpha == 0:
            raise ValueError("gamma and alpha are both 0: there is nothing to learn; set one above 0")
        return self


class Tinyllm(Method):
    """Train on the gold answer and on every teacher's rationale."""

    paper = "arXiv:2402.04616"
    Config = TinyllmConfig

    def needs(self) -> Needs:
        """Rationales, unless alpha is 0."""
        return Needs(annotations=frozenset() if self.config.alpha == 0 else frozenset({"rationale"}))

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """Every given teacher whose weight is not 0; a weight for a teacher that is not given is an error."""
        if isinstance(self.config.alpha, dict):
            check_teacher_names("tinyllm", self.config.alpha, teachers)
        return tuple(key for key in super().uses(teachers) if self._weight(rationale_channel(key)) > 0)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The label, and one example per teacher with a usable rationale; nothing whose weight is 0."""
        return [
            example for example in label_and_rationales(record, annotations, ask) if self._weight(example.channel) > 0
        ]

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """gamma * CE of the label + sum over teachers m of alpha^m * CE of the rationale."""
        sums = channel_cross_entropy(batch, student)
        return [Term(channel, self._weight(channel), total) for channel, total in sums.items()]

    def _weight(self, channel: str) -> float:
        if channel == LABEL:
            return self.config.gamma
        alpha = self.config.alpha
        return alpha.get(channel.removeprefix(rationale_channel("")), 1.0) if isinstance(alpha, dict) else alpha


METHOD = Tinyllm
