"""Distilling Step-by-Step: the label and one teacher's rationale as two tasks of one student.

Paper (arXiv:2305.02301): L = L_label + lambda * L_rationale, lambda = 1. The released code
(google-research/distilling-step-by-step at ef94426) has alpha * L_label + (1 - alpha) * L_rationale with alpha = 0.5,
which is `label_weight: 0.5, rationale_weight: 0.5` here. In the paper the teacher does not see the gold answer;
recorded rationales whose teacher saw it are marked `gold_visible`, and so is the row.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

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
    choose_teacher,
    label_and_rationales,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch


class DssConfig(MethodConfig):
    """Settings: teacher, if several are given; the weights of the two losses, 0 to leave one out."""

    teacher: str | None = None
    label_weight: float = Field(1.0, ge=0, le=1e6)
    rationale_weight: float = Field(1.0, ge=0, le=1e6)

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not self.label_weight and not self.rationale_weight:
            raise ValueError("label_weight and rationale_weight are both 0: there is nothing to learn; set one above 0")
        return self


class Dss(Method):
    """Train on the gold answer and one teacher's rationale."""

    paper = "arXiv:2305.02301"
    Config = DssConfig

    def needs(self) -> Needs:
        """Rationales, unless their weight is 0."""
        return Needs(annotations=frozenset({"rationale"} if self.config.rationale_weight else ()))

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The only teacher given, or `method.dss.teacher`; none if the weight of rationales is 0."""
        if not self.config.rationale_weight:
            return ()
        return (choose_teacher("dss", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The label, and the rationale if there is a usable one; nothing whose weight is 0."""
        return [
            example for example in label_and_rationales(record, annotations, ask) if self._weight(example.channel) > 0
        ]

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """Weighted cross-entropies of label and rationale."""
        sums = channel_cross_entropy(batch, student)
        return [Term(channel, self._weight(channel), total) for channel, total in sums.items()]

    def _weight(self, channel: str) -> float:
        return self.config.label_weight if channel == LABEL else self.config.rationale_weight


METHOD = Dss
