"""Word-level knowledge distillation: the student learns the teacher's distribution over every token of the response.

L = (1 - alpha) * CE(y) + alpha * mean over target tokens of D(p, q), p the teacher's and q the student's distribution
after the same words. Papers: Hinton et al., arXiv:1503.02531; for language models as in MiniLLM's baseline
(arXiv:2306.08543, appendix B.1: alpha 0.5, forward KL). Which D is a setting: with `skew_forward_kl` and
`skew_reverse_kl` it is DistiLLM's loss (arXiv:2402.03898) on the data set's answers, with `jsd` GKD's
(arXiv:2306.13649) with lambda 0, with `adaptive_kl` AKL (arXiv:2404.02657).
y is the gold answer, a rationale and the gold answer, or what the teacher answers (`response`; the last is what the
released scripts of MiniLLM call SeqKD: teacher text and word-level KD).
A teacher with another tokenizer is read through `cross_tokenizer` (`tinyllm_bench/training/cross_losses.py`); the
divergence is then that method's own.
Differences: the released code of MiniLLM's baseline logs -sum p log q, which is no divergence; here D is one and falls
to 0. No code that was read multiplies by T^2; `temperature_squared` does.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from tinyllm_bench import (
    Annotation,
    Ask,
    CrossTokenizer,
    DivergenceConfig,
    Example,
    Method,
    MethodConfig,
    Needs,
    Reading,
    Response,
    Step,
    TaskRecord,
    TeacherSignal,
    Term,
    annotations_for,
    channel_sums,
    check_one_divergence,
    choose_teacher,
    cross_entropy_of,
    divergence_from,
    readings_for,
    response_examples,
    signal_for,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch


class KdConfig(MethodConfig):
    """Settings: teacher, if several are given; alpha weighs the divergence, 1 - alpha the cross-entropy."""

    teacher: str | None = None
    alpha: float = Field(0.5, ge=0, le=1)
    divergence: DivergenceConfig = DivergenceConfig()
    response: Response = "answer"
    cross_tokenizer: CrossTokenizer = "none"

    @model_validator(mode="after")
    def _one_divergence(self) -> Self:
        check_one_divergence(self.cross_tokenizer, changed=self.divergence != DivergenceConfig())
        return self


class Kd(Method):
    """Learn a response, and the teacher's distribution on the way to it."""

    paper = "arXiv:1503.02531"
    Config = KdConfig

    @property
    def readings(self) -> tuple[Reading, ...]:
        """A student that writes rationales is asked for text."""
        return readings_for(self.config.response)

    def needs(self) -> Needs:
        """The teacher's distributions, and the texts that responses are made of."""
        config = self.config
        return Needs(
            annotations=annotations_for(config.response),
            signal=signal_for(config.divergence, config.cross_tokenizer),
            same_tokenizer=config.cross_tokenizer == "none",
        )

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The one teacher: the only one given, or `method.kd.teacher`."""
        return (choose_teacher("kd", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The response."""
        return response_examples(record, annotations, ask, self.config.response)

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """(1 - alpha) * CE + alpha * D, both from one pass of the student."""
        assert teacher is not None
        config = self.config
        divergence = divergence_from(teacher, batch, config.divergence, config.cross_tokenizer, step.note)
        losses = [cross_entropy_of(batch), divergence]
        label_sums, sums = channel_sums(batch, student, losses, whole_items=config.cross_tokenizer != "none")
        return [Term(c, 1.0, (1 - config.alpha) * label_sums[c] + config.alpha * sums[c]) for c in sums]


METHOD = Kd
