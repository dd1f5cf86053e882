"""ToDi: word-level distillation in which every vocabulary entry has its own mix of forward and reverse KL.

Paper: Jung, Yoon, Kim, Lee, "ToDi: Token-wise Distillation via Fine-Grained Divergence Control", EMNLP 2025,
arXiv:2505.16297. With p the teacher's and q the student's probability of entry i given the same prefix:

    w_i = sigmoid(log(p_i / q_i)) = p_i / (p_i + q_i)                       without gradient
    D   = sum over i of  w_i * p_i log(p_i / q_i) + (1 - w_i) * q_i log(q_i / p_i)
    L   = (1 - alpha) * CE(y) + alpha * mean over target tokens of D

Forward KL raises what the student underestimates, reverse KL lowers what it overestimates; w gives each entry the one
that it needs. Since w_i p_i - (1 - w_i) q_i = p_i - q_i, the value of D is KL(p|q) + KL(q|p); its gradient is
not that of this sum, because w is held fixed.

The formulas were checked against the released code, github.com/jungseongryong/ToDi at 37e9bec
(`code/criterions/various_divergence.py`, `compute_ToDi`), which also has the mix with CE (`kd_rate`) and the
temperature on both sides without a factor of its square. The paper's equation numbers are not known.

Differences: y is the gold answer of a question, not an instruction's response; a padded vocabulary is cut to the
tokenizer's size on both sides, while the released code compares all entries.
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

    Entries that are impossible (-inf) on either side are left out, as in the released code. Float64 stays, else
    float32. Shapes: N target positions, V vocabulary.
    """
    wide_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logq_NV = torch.log_softmax(wide_NV / temperature, -1)
    logp_NV = torch.log_softmax(logp_NV.detach().to(wide_NV.dtype) / temperature, -1)
    impossible_NV = logq_NV.isinf() | logp_NV.isinf()
    log_ratio_NV = logp_NV.masked_fill(impossible_NV, 0) - logq_NV.masked_fill(impossible_NV, 0)
    weight_NV = torch.sigmoid(log_ratio_NV.detach())
    forward_NV, reverse_NV = logp_NV.exp() * log_ratio_NV, -logq_NV.exp() * log_ratio_NV
    return (weight_NV * forward_NV + (1 - weight_NV) * reverse_NV).sum(-1)


class ToDiConfig(MethodConfig):
    """Settings: teacher, if several are given; alpha, the weight of D (1 - alpha that of cross-entropy); temperature of
    both sides."""

    teacher: str | None = None
    alpha: float = Field(0.5, gt=0, le=1)  # with 0 it would be `finetune`, with a teacher that is not used
    temperature: float = Field(2.0, ge=0.01, le=100)


class ToDi(Method):
    """Train on the gold answer and on the teacher's distribution at each of its tokens."""

    paper = "arXiv:2505.16297"
    Config = ToDiConfig

    def needs(self) -> Needs:
        """Every token's probability: reverse KL needs it also where the teacher's is small."""
        return Needs(signal="live", same_tokenizer=True)

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The only teacher given, or `method.todi.teacher`."""
        return (choose_teacher("todi", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The gold answer."""
        return [ask.example(record, LABEL, ask.label_target(record))]

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """(1 - alpha) * CE + alpha * D, both from one forward pass of the student."""
        assert teacher is not None
        alpha, temperature = self.config.alpha, self.config.temperature
        distributions, size = teacher.on(batch), teacher.vocabulary

        def divergence(logits_NV: Tensor, rows: slice) -> Tensor:
            return todi_N(logits_NV[:, :size], distributions.rows(rows).logp_NV[:, :size], temperature)

        ce, d = channel_sums(batch, student, [cross_entropy_of(batch), divergence])
        return [Term(channel, 1.0, (1 - alpha) * ce[channel] + alpha * d[channel]) for channel in d]
