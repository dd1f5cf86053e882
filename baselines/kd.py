"""Word-level knowledge distillation: the student learns the teacher's distribution over every token of the answer.

L = (1 - alpha) * CE(y) + alpha * mean over target tokens of D(p, q), p the teacher's and q the student's distribution
after the same words. Papers: Hinton et al., arXiv:1503.02531; for language models as in MiniLLM's baseline
(arXiv:2306.08543, appendix B.1: alpha 0.5, forward KL). Which D is a setting: with `skew_forward_kl` and
`skew_reverse_kl` it is DistiLLM's loss (arXiv:2402.03898) on the data set's answers, with `jsd` GKD's
(arXiv:2306.13649) with lambda 0, with `adaptive_kl` AKL (arXiv:2404.02657).
Differences: the released code of MiniLLM's baseline logs -sum p log q, which is no divergence; here D is one and falls
to 0. No code that was read multiplies by T^2; `temperature_squared` does.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from tinyllm_bench.data.prompts import LABEL, Ask
from tinyllm_bench.data.records import Annotation, Example, TaskRecord
from tinyllm_bench.learn.divergences import DivergenceConfig, divergence_of
from tinyllm_bench.learn.losses import channel_sums, cross_entropy_of
from tinyllm_bench.learn.method import Method, MethodConfig, Needs, Step, TeacherSignal, Term, choose_teacher

if TYPE_CHECKING:
    from tinyllm_bench.learn.batching import Batch
    from tinyllm_bench.models.lm import LM


class KdConfig(MethodConfig):
    """Settings: teacher, if several are given; alpha weighs the divergence, 1 - alpha the cross-entropy."""

    teacher: str | None = None
    alpha: float = Field(0.5, ge=0, le=1)
    divergence: DivergenceConfig = DivergenceConfig()


class Kd(Method):
    """Learn the gold answer, and the teacher's distribution on the way to it."""

    paper = "arXiv:1503.02531"
    Config = KdConfig

    def needs(self) -> Needs:
        """The teacher's distributions, in the student's vocabulary."""
        return Needs(signal="live", same_tokenizer=True)

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The one teacher: the only one given, or `method.kd.teacher`."""
        return (choose_teacher("kd", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The gold answer."""
        return [ask.example(record, LABEL, ask.label_target(record))]

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """(1 - alpha) * CE + alpha * D, both from one pass of the student."""
        assert teacher is not None
        alpha = self.config.alpha
        divergence = divergence_of(teacher.on(batch), self.config.divergence, vocabulary=teacher.vocabulary)
        label_sums, sums = channel_sums(batch, student, [cross_entropy_of(batch), divergence])
        return [Term(channel, 1.0, (1 - alpha) * label_sums[channel] + alpha * sums[channel]) for channel in sums]


METHOD = Kd
