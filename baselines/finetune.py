"""Label-only fine-tuning: the baseline that every distillation method must beat.

L = CE(S(x, p_A), A), the token mean of the cross-entropy on the gold answer ("full fine-tuning" in TinyLLM,
arXiv:2402.04616, which is TinyLLM with alpha = 0).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyllm_bench import (
    LABEL,
    Annotation,
    Ask,
    Example,
    Method,
    Step,
    TaskRecord,
    TeacherSignal,
    Term,
    channel_cross_entropy,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch


class Finetune(Method):
    """Train on the gold answer alone."""

    paper = "arXiv:2402.04616, full fine-tuning"

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The gold answer."""
        return [ask.example(record, LABEL, ask.label_target(record))]

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """Cross-entropy on the gold answer."""
        return [Term(channel, 1.0, total) for channel, total in channel_cross_entropy(batch, student).items()]


METHOD = Finetune
