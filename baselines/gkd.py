"""Generalized knowledge distillation: the teacher's distributions on the student's own texts and on the data set's.

L = (1 - lambda) E_(x,y)~D [D(p, q)] + lambda E_x~D, y~q [D(p, q)], without a gradient through the sampling of y.
Paper: Agarwal et al., arXiv:2306.13649: D is the generalized JSD(beta), lambda in {0, 0.5, 1}, texts are sampled at
temperature 1, and the student starts from supervised fine-tuning.
Each question's text is the student's own with probability lambda (`lmbda`, as in TRL), decided by a seed of its own;
TRL decides once per batch and process.
D of a text is the mean over its tokens, as in the paper (equation 2): `average: sequence`, where every text counts the
same. `average: token` is the mean over all tokens of a mini-batch (TRL: of a micro-batch on one process).
With lambda 0 it is `kd` with alpha 1, the same divergence and the same `average`, to the byte.
Scale: JSD(beta) falls to 0 with beta and with 1 - beta; `divergence.normalize` divides that out (see
`DivergenceConfig`). TRL and Liger take beta 0 and 1 as forward and reverse KL: set `divergence.kind` for these.
Special cases: forward KL and lambda < 1 is ImitKD; reverse KL and lambda 1 is on-policy distillation with full
distributions (TRL's MiniLLM trainer without its policy gradient); skew KL is DistiLLM (arXiv:2402.03898) without its
adaptive schedule and replay buffer, which are not implemented.
A teacher with another tokenizer reads the sampled text in its own tokens, aligned with the sampled ids.
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
    bernoulli,
    channel_sums,
    check_one_divergence,
    choose_teacher,
    divergence_from,
    keyed_examples,
    response_examples,
    sample_diagnostics,
    sample_texts,
    scoring_modes_for,
    signal_for,
    with_sampled_text,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch, Group


class GkdConfig(MethodConfig):
    """Settings: lmbda, the share of responses that the student samples; average: mean over each text's tokens and then
    over texts (`sequence`), or over all target tokens (`token`); temperature of sampling, not of the loss;
    max_new_tokens of a sampled text."""

    teacher: str | None = None
    lmbda: float = Field(0.5, ge=0, le=1)
    divergence: DivergenceConfig = DivergenceConfig(kind="jsd")
    average: Average = "sequence"
    temperature: float = Field(1.0, ge=0.01, le=100)
    max_new_tokens: int = Field(64, ge=1, le=10**6)
    response: Response = "answer"
    cross_tokenizer: CrossTokenizer = "none"

    @model_validator(mode="after")
    def _check_cross_tokenizer(self) -> Self:
        check_one_divergence(self.cross_tokenizer, changed=self.divergence != DivergenceConfig(kind="jsd"))
        return self


class Gkd(Method):
    """Train on the teacher's distributions over texts that the student samples."""

    paper = "arXiv:2306.13649"
    Config = GkdConfig

    @property
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """Only `generate` for a student that writes rationales."""
        return scoring_modes_for(self.config.response)

    def needs(self) -> Needs:
        """The teacher itself if the student samples, else its distributions over given responses."""
        config = self.config
        signal = "on_policy" if config.lmbda else signal_for(config.divergence, config.cross_tokenizer)
        same = config.cross_tokenizer == "none"
        return Needs(annotations=annotations_for(self._given), signal=signal, same_tokenizer=same)

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The only teacher given, or `method.gkd.teacher`."""
        return (choose_teacher("gkd", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The data set's response."""
        return response_examples(record, annotations, ask, self._given)

    @property
    def _given(self) -> Response:
        """The response where the student does not sample; with lambda 1 only its prompt counts, which is the same."""
        return "answer" if self.config.lmbda == 1 else self.config.response

    def rollout(self, groups: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step) -> "list[Group]":
        """Replace the responses by the student's own, each question's with probability lambda."""
        assert teacher is not None
        on_policy = [bernoulli(step.seed_of(group.key), self.config.lmbda) for group in groups]
        examples = keyed_examples([group for group, is_sampled in zip(groups, on_policy, strict=True) if is_sampled])
        texts = sample_texts(
            [item.prompt for _, item in examples],
            student,
            seeds=[step.seed_of(key) for key, _ in examples],
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            vocabulary=teacher.vocabulary,
        )
        sampled = iter([with_sampled_text(item, text) for (_, item), text in zip(examples, texts, strict=True)])
        return [
            group._replace(items=tuple(next(sampled) for _ in group.items)) if is_sampled else group
            for group, is_sampled in zip(groups, on_policy, strict=True)
        ]

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """D(p, q) at the target tokens, sampled or given."""
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
        if teacher is None or not self.is_on_policy:
            return {}
        limit = self.config.max_new_tokens
        return sample_diagnostics(groups, student, teacher, channel=LABEL, step=step, max_new_tokens=limit)


METHOD = Gkd
