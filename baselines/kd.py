"""Word-level knowledge distillation: the student learns the teacher's distribution over every token of the response.

L = (1 - alpha) * CE(y) + alpha * mean over target tokens of D(p, q), p the teacher's and q the student's distribution
after the same words. Papers: Hinton et al., arXiv:1503.02531; for language models as in MiniLLM's baseline
(arXiv:2306.08543, appendix B.1: alpha 0.5, forward KL). Which D is a setting: with `skew_forward_kl` and
`skew_reverse_kl` it is DistiLLM's loss (arXiv:2402.03898) on the data set's answers, with `jsd` GKD's
(arXiv:2306.13649) with lambda 0, with `adaptive_kl` AKL (arXiv:2404.02657).
y is the gold answer, a rationale and the gold answer, or what the teacher answers (`response`; the last is what the
released scripts of MiniLLM call SeqKD: teacher text and word-level KD).
Both means are over all target tokens of a mini-batch, as in MiniLLM's released baseline; with `average: sequence` over
each text's tokens and then over texts, as GKD's paper has it.
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
    Average,
    CrossTokenizer,
    DivergenceConfig,
    Example,
    Method,
    MethodConfig,
    Needs,
    Response,
    ScoringMode,
    Step,
    TaskRecord,
    TeacherSignal,
    Term,
    annotations_for,
    averaged,
    channel_sums,
    check_one_divergence,
    choose_teacher,
    cross_entropy_of,
    divergence_from,
    response_examples,
    scoring_modes_for,
    signal_for,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch


class KdConfig(MethodConfig):
    """Settings: teacher, if several are given; alpha weighs the divergence, 1 - alpha the cross-entropy; average:
    the mean of both, over all target tokens, or over a text's tokens and then over texts."""

    teacher: str | None = None
    alpha: float = Field(0.5, ge=0, le=1)
    divergence: DivergenceConfig = DivergenceConfig()
    average: Average = "token"
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
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """A student that writes rationales is asked for text."""
        return scoring_modes_for(self.config.response)

    def needs(self) -> Needs:
        """The teacher's distributions, where they have a weight, and the texts that responses are made of."""
        config = self.config
        if config.alpha == 0:
            return Needs(annotations=annotations_for(config.response))
        return Needs(
            annotations=annotations_for(config.response),
            signal=signal_for(config.divergence, config.cross_tokenizer),
            same_tokenizer=config.cross_tokenizer == "none",
        )

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The one teacher: the only one given, or `method.kd.teacher`; none with alpha 0 and the gold answer."""
        if self.config.alpha == 0 and self.config.response == "answer":
            return ()
        return (choose_teacher("kd", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The response."""
        return response_examples(record, annotations, ask, self.config.response)

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """(1 - alpha) * CE + alpha * D, both from one pass of the student."""
        config, parts, crosses = self.config, [], False
        if config.alpha < 1:
            parts.append((1 - config.alpha, cross_entropy_of(batch)))
        if config.alpha > 0:
            assert teacher is not None
            divergence = divergence_from(teacher, batch, config.divergence, config.cross_tokenizer, step.note)
            parts.append((config.alpha, divergence))
            crosses = config.cross_tokenizer != "none"
        weights, losses = zip(*parts, strict=True)
        found = channel_sums(batch, student, averaged(losses, batch, config.average), whole_items=crosses)
        totals = {c: sum(w * sums[c] for w, sums in zip(weights, found, strict=True)) for c in batch.channels}
        return [Term(channel, 1.0, total, per=config.average) for channel, total in totals.items()]


METHOD = Kd
