"""Generalized knowledge distillation: the teacher's distributions over the student's own texts and the data set's.

L = (1 - lambda) E_(x,y)~D [D(p, q)] + lambda E_x~D, y~q [D(p, q)], without a gradient through the sampling of y.
Paper: Agarwal et al., arXiv:2306.13649: D is the generalized JSD(beta), lambda in {0, 0.5, 1}, texts sampled at
temperature 1, and the student starts from supervised fine-tuning. Each question's text is the student's with
probability lambda, from a seed of its own (TRL decides once per batch and process).
D of a text is the mean over its tokens, as the paper defines it (equation 2): `average: sequence`, where every text
counts the same. `average: token` is the mean over all tokens of a mini-batch; TRL has it, of a micro-batch and process.
With lambda 0 it is `kd` with alpha 1, the same divergence and the same `average`, to the byte.
Scale: JSD(beta) falls to 0 with beta and with 1 - beta; `divergence.normalize` divides that out (see
`DivergenceConfig`). TRL and Liger read beta 0 and 1 as forward and reverse KL: set `divergence.kind` for these.
Special cases: ImitKD (forward KL, lambda < 1); with lambda 1 and reverse KL, on-policy distillation with every token's
probability (TRL's MiniLLM trainer without its policy part); with skew KL, DistiLLM (arXiv:2402.03898) without its
adaptive schedule and replay buffer, which are not built.
With another tokenizer the teacher reads the sampled text in its own tokens, aligned with the sampled ids.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from tinyllm_bench import (
    LABEL,
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
    divergence_from,
    happens,
    named,
    probe,
    response_examples,
    sample_texts,
    scoring_modes_for,
    signal_for,
    with_sampled_text,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch, Group


class GkdConfig(MethodConfig):
    """Settings: student_share is lambda; average: the mean of the loss, over a text's tokens and then over texts, or
    over all tokens; temperature is that of sampling, never of the loss; max_new_tokens bounds a sampled text."""

    teacher: str | None = None
    student_share: float = Field(0.5, ge=0, le=1)
    divergence: DivergenceConfig = DivergenceConfig(kind="jsd")
    average: Average = "sequence"
    temperature: float = Field(1.0, ge=0.01, le=100)
    max_new_tokens: int = Field(64, ge=1, le=10**6)
    response: Response = "answer"
    cross_tokenizer: CrossTokenizer = "none"

    @model_validator(mode="after")
    def _one_divergence(self) -> Self:
        check_one_divergence(self.cross_tokenizer, changed=self.divergence != DivergenceConfig(kind="jsd"))
        return self


class Gkd(Method):
    """Learn the teacher's distributions where the student itself goes."""

    paper = "arXiv:2306.13649"
    Config = GkdConfig

    @property
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """A student that writes rationales is asked for text."""
        return scoring_modes_for(self.config.response)

    def needs(self) -> Needs:
        """The teacher itself where the student samples, else its distributions over given responses."""
        config = self.config
        signal = "on_policy" if config.student_share else signal_for(config.divergence, config.cross_tokenizer)
        same = config.cross_tokenizer == "none"
        return Needs(annotations=annotations_for(self._given), signal=signal, same_tokenizer=same)

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The one teacher: the only one given, or `method.gkd.teacher`."""
        return (choose_teacher("gkd", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The data set's response."""
        return response_examples(record, annotations, ask, self._given)

    @property
    def _given(self) -> Response:
        """What is trained where the student does not sample; with lambda 1 only its prompt is, which all share."""
        return "answer" if self.config.student_share == 1 else self.config.response

    def rollout(self, group: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step) -> "list[Group]":
        """Replace a share lambda of the responses by the student's own."""
        assert teacher is not None
        chosen = [happens(step.seed_of(one.key), self.config.student_share) for one in group]
        items = named([one for one, is_sampled in zip(group, chosen, strict=True) if is_sampled])
        sampled = sample_texts(
            [item.prompt for _, item in items],
            student,
            seeds=[step.seed_of(key) for key, _ in items],
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            vocabulary=teacher.vocabulary,
        )
        made = iter([with_sampled_text(item, text) for (_, item), text in zip(items, sampled, strict=True)])
        return [
            one._replace(items=tuple(next(made) for _ in one.items)) if is_sampled else one
            for one, is_sampled in zip(group, chosen, strict=True)
        ]

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """D(p, q) per target token, sampled or given."""
        assert teacher is not None
        config = self.config
        divergence = divergence_from(teacher, batch, config.divergence, config.cross_tokenizer, step.note)
        losses = averaged([divergence], batch, config.average)
        (sums,) = channel_sums(batch, student, losses, whole_items=config.cross_tokenizer != "none")
        return [Term(channel, 1.0, total, per=config.average) for channel, total in sums.items()]

    def probe(
        self, groups: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step
    ) -> Mapping[str, float]:
        """Reverse KL, length and distinct-n of the student's own texts."""
        if teacher is None or not self.rolls:
            return {}
        return probe(groups, student, teacher, channel=LABEL, step=step, max_new_tokens=self.config.max_new_tokens)


METHOD = Gkd
