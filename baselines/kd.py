"""Word-level knowledge distillation: the student matches the teacher's distribution at every token of the response.

L = (1 - alpha) * CE(y) + alpha * mean over target tokens of D(p, q), where p is the teacher's and q the student's
distribution given the same prefix. Papers: Hinton et al., arXiv:1503.02531; for language models as in MiniLLM's
baseline (arXiv:2306.08543, appendix B.1: alpha 0.5, forward KL). D is a setting: `skew_forward_kl` and
`skew_reverse_kl` give DistiLLM's loss (arXiv:2402.03898) on the data set's answers, `jsd` is GKD (arXiv:2306.13649)
with lambda 0, `adaptive_kl` is AKL (arXiv:2404.02657).
y (`response`) is the gold answer, a rationale followed by the gold answer, or the teacher's own answer. The last is
what the released scripts of MiniLLM call SeqKD: teacher text and word-level KD.
Both means are over all target tokens of a mini-batch, as in MiniLLM's released baseline, or with `average: sequence`
over each text's tokens and then over texts, as in GKD's paper.
`cross_tokenizer` allows a teacher with another tokenizer and replaces the divergence by a loss of its own
(`tinyllm_bench/training/cross_losses.py`).
Differences: the released code of MiniLLM's baseline minimises -sum p log q, whose minimum is not 0; D's is. None of the
released code multiplies by T^2; `temperature_squared` does.
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
    """Settings: teacher, if several are given; alpha, the weight of the divergence (1 - alpha that of cross-entropy);
    average: mean over all target tokens (`token`), or over each text's tokens and then over texts (`sequence`)."""

    teacher: str | None = None
    alpha: float = Field(0.5, ge=0, le=1)
    divergence: DivergenceConfig = DivergenceConfig()
    average: Average = "token"
    response: Response = "answer"
    cross_tokenizer: CrossTokenizer = "none"

    @model_validator(mode="after")
    def _check_cross_tokenizer(self) -> Self:
        check_one_divergence(self.cross_tokenizer, changed=self.divergence != DivergenceConfig())
        return self


class Kd(Method):
    """Train on a response and on the teacher's distribution at each of its tokens."""

    paper = "arXiv:1503.02531"
    Config = KdConfig

    @property
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """Only `generate` for a student that writes rationales."""
        return scoring_modes_for(self.config.response)

    def needs(self) -> Needs:
        """The teacher's distributions, unless alpha is 0, and the texts that responses are made of."""
        config = self.config
        if config.alpha == 0:
            return Needs(annotations=annotations_for(config.response))
        return Needs(
            annotations=annotations_for(config.response),
            signal=signal_for(config.divergence, config.cross_tokenizer),
            same_tokenizer=config.cross_tokenizer == "none",
        )

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The only teacher given, or `method.kd.teacher`; none with alpha 0 and the gold answer."""
        if self.config.alpha == 0 and self.config.response == "answer":
            return ()
        return (choose_teacher("kd", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The response."""
        return response_examples(record, annotations, ask, self.config.response)

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """(1 - alpha) * CE + alpha * D, both from one forward pass of the student."""
        config = self.config
        weights, losses = [], []
        if config.alpha < 1:
            weights.append(1 - config.alpha)
            losses.append(cross_entropy_of(batch))
        if config.alpha > 0:
            assert teacher is not None
            weights.append(config.alpha)
            losses.append(divergence_from(teacher, batch, config.divergence, config.cross_tokenizer, step.note))
        # losses of a cross-tokenizer teacher are computed over whole texts
        whole_items = config.alpha > 0 and config.cross_tokenizer != "none"
        sums = channel_sums(batch, student, averaged(losses, batch, config.average), whole_items=whole_items)
        return [
            Term(
                channel,
                1.0,
                sum(weight * by_channel[channel] for weight, by_channel in zip(weights, sums, strict=True)),
                per=config.average,
            )
            for channel in batch.channels
        ]


METHOD = Kd
