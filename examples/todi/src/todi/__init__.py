"""ToDi: word-level distillation in which every entry of the vocabulary has its own mix of forward and reverse KL.

Paper: Jung, Yoon, Kim, Lee, "ToDi: Token-wise Distillation via Fine-Grained Divergence Control", EMNLP 2025,
arXiv:2505.16297. With p the teacher's and q the student's probability of entry i after the same words:

    w_i = sigmoid(log(p_i / q_i)) = p_i / (p_i + q_i)                       no gradient goes through it
    D   = sum over i of  w_i * p_i log(p_i / q_i) + (1 - w_i) * q_i log(q_i / p_i)
    L   = (1 - alpha) * CE(y) + alpha * mean over target tokens of D

Forward KL pulls up what the student underestimates, reverse KL pushes down what it overestimates; w gives each entry
the one that it needs. Since w_i p_i - (1 - w_i) q_i = p_i - q_i, the value of D is KL(p|q) + KL(q|p); its gradient is
not that of this sum, because w is held fixed.

The formulas were checked against the released code, github.com/jungseongryong/ToDi at 37e9bec
(`code/criterions/various_divergence.py`, `compute_ToDi`), which also has the mix with CE (`kd_rate`) and the
temperature on both sides without a factor of its square. The numbers of the paper's equations were not seen.

Differences: y is the gold answer of a question, not an instruction's response; a vocabulary with padded rows is cut to
the tokenizer's size on both sides, where the released code compares all rows.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from tinyllm_bench import (
    LABEL,
    Annotation,
    Ask,
    Example,
    Method,
    MethodConfig,
    Needs,
    PerPosition,
    Step,
    TaskRecord,
    TeacherSignal,
    Term,
    channel_sums,
    choose_teacher,
    cross_entropy_of,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch

__all__ = ["ToDi", "ToDiConfig", "todi_N"]


def todi_N(logits_NV: Tensor, logp_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """D per position in nats, differentiable in the student's logits; `logp_NV` are the teacher's log-probabilities.

    Entries that either side holds impossible (-inf) count nothing, as in the released code. Float64 stays, else
    float32. Shapes: N target positions, V vocabulary.
    """
    wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logq_NV = torch.log_softmax(wide_NV / temperature, -1)
    logp_NV = torch.log_softmax(logp_NV.detach().to(wide_NV.dtype) / temperature, -1)
    nowhere_NV = logq_NV.isinf() | logp_NV.isinf()
    ratio_NV = logp_NV.masked_fill(nowhere_NV, 0) - logq_NV.masked_fill(nowhere_NV, 0)
    weight_NV = torch.sigmoid(ratio_NV.detach())
    forward_NV, reverse_NV = logp_NV.exp() * ratio_NV, -logq_NV.exp() * ratio_NV
    return (weight_NV * forward_NV + (1 - weight_NV) * reverse_NV).sum(-1)


class ToDiConfig(MethodConfig):
    """Settings: teacher, if several are given; alpha weighs D, 1 - alpha the cross-entropy."""

    teacher: str | None = None
    alpha: float = Field(0.5, gt=0, le=1)  # with 0 it would be `finetune`, and a teacher read for nothing
    temperature: float = Field(2.0, ge=0.01, le=100)


class ToDi(Method):
    """Learn the gold answer, and the teacher's distribution on the way to it, entry by entry."""

    paper = "arXiv:2505.16297"
    Config = ToDiConfig

    def needs(self) -> Needs:
        """Every token's probability: reverse KL asks for it where the student is likely and the teacher is not."""
        return Needs(signal="live", same_tokenizer=True)

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The one teacher: the only one given, or `method.todi.teacher`."""
        return (choose_teacher("todi", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The gold answer."""
        return [ask.example(record, LABEL, ask.label_target(record))]

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """(1 - alpha) * CE + alpha * D, both from one pass of the student."""
        assert teacher is not None
        alpha = self.config.alpha
        losses = [cross_entropy_of(batch), self._divergence(batch, teacher)]
        labels, sums = channel_sums(batch, student, losses)
        return [Term(channel, 1.0, (1 - alpha) * labels[channel] + alpha * sums[channel]) for channel in sums]

    def _divergence(self, batch: "Batch", teacher: TeacherSignal) -> PerPosition:
        found, size = teacher.on(batch), teacher.vocabulary

        def per_position(logits_NV: Tensor, rows: slice) -> Tensor:
            return todi_N(logits_NV[:, :size], found.rows(rows).logp_NV[:, :size], self.config.temperature)

        return per_position
