"""Mixed Distillation: rationales (CoT) and programs (PoT) of one teacher in one student, combined when it answers.

Paper: arXiv:2312.10730 (EMNLP 2024 Findings, 2024.findings-emnlp.91). Only its abstracts were read: two abilities
are distilled into one model by multi-task learning; one path, or several of both kinds, answer. Loss weights, prompts,
filters, numbers of samples, temperature and the treatment of ties are ours, and so is everything in
mixed_distillation.yaml that says so.

L = sum over modes m of lambda_m * (token mean of cross-entropy over the mode's targets in the mini-batch), lambda
renormalised over the modes that are there. One mean over all tokens would give programs, about three times shorter, a
quarter of the weight.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tinyllm_bench import (
    COT,
    LABEL,
    POT,
    Annotation,
    Ask,
    Decoding,
    Example,
    Method,
    MethodConfig,
    Needs,
    Policy,
    ScoringMode,
    Step,
    TaskRecord,
    TeacherSignal,
    Term,
    channel_cross_entropy,
    choose_teacher,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch

_NEEDS: dict[str, frozenset[Literal["rationale", "program", "response"]]] = {
    COT: frozenset({"rationale"}),
    POT: frozenset({"program"}),
    LABEL: frozenset(),
}


class MixedDistillationConfig(MethodConfig):
    """Settings.

    cot_weight, pot_weight, label_weight: lambda of each mode, 0 for a mode that is not taught; balance: `paired` takes
    questions that have a target in every mode, `union` all; sampling: `paired` keeps a question's targets in one
    mini-batch, `mixed` shuffles them apart. The rest only decides how a trained student is read: policy; n_cot, n_pot:
    sampled texts of a vote; report_all: sample for every policy and report each; ensemble: two students, each taught
    one mode with half of the budget, vote together.
    """

    teacher: str | None = None
    cot_weight: float = Field(0.5, ge=0, le=1e6)
    pot_weight: float = Field(0.5, ge=0, le=1e6)
    label_weight: float = Field(0.0, ge=0, le=1e6)
    balance: Literal["union", "paired"] = "union"
    sampling: Literal["paired", "mixed"] = "paired"
    policy: Policy = "vote"
    n_cot: int = Field(5, ge=1, le=1000)
    n_pot: int = Field(5, ge=1, le=1000)
    temperature: float = Field(0.7, ge=0.01, le=100)
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int = Field(256, ge=1, le=10**6)
    report_all: bool = True
    ensemble: bool = False

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        needed = {"single_cot": (COT,), "single_pot": (POT,), "pot_then_cot": (COT, POT)}.get(self.policy, ())
        weights = {COT: self.cot_weight, POT: self.pot_weight}
        if not any(weights.values()):
            raise ValueError("cot_weight and pot_weight are both 0: there is nothing to answer with; set one above 0")
        for channel in needed:
            if not weights[channel]:
                raise ValueError(f"policy {self.policy} needs {channel}_weight above 0")
        if self.ensemble and not all(weights.values()):
            raise ValueError("ensemble needs cot_weight and pot_weight above 0")
        return self


class MixedDistillation(Method):
    """Learn a teacher's rationales and programs."""

    paper = "arXiv:2312.10730"
    Config = MixedDistillationConfig
    reading_settings = frozenset(
        {"policy", "n_cot", "n_pot", "temperature", "top_p", "max_new_tokens", "report_all", "ensemble"}
    )

    @property
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """The student writes; nothing is ranked."""
        return ("generate",)

    @property
    def scatters(self) -> bool:
        """Whether a question's targets are shuffled apart."""
        return self.config.sampling == "mixed"

    def _weights(self) -> dict[str, float]:
        config = self.config
        weights = {COT: config.cot_weight, POT: config.pot_weight, LABEL: config.label_weight}
        return {channel: weight for channel, weight in weights.items() if weight > 0}

    def needs(self) -> Needs:
        """Rationales, programs or both, as the modes are taught."""
        return Needs(annotations=frozenset().union(*(_NEEDS[channel] for channel in self._weights())))

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The one teacher: the only one given, or `method.mixed_distillation.teacher`."""
        return (choose_teacher("mixed_distillation", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """One example for each mode that is taught and has a usable text, several where the teacher gave several."""
        by_kind = {COT: "rationale", POT: "program"}
        texts = {
            channel: [a for a in annotations if a.kind == kind]
            for channel, kind in by_kind.items()
            if channel in self._weights()
        }
        if self.config.balance == "paired" and not all(texts.values()):
            return []
        found = [
            ask.example(record, channel, a.text, ends=not a.is_cut) for channel, said in texts.items() for a in said
        ]
        if LABEL in self._weights():
            found.append(ask.example(record, LABEL, ask.label_target(record)))
        return found

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """lambda_m * CE_m, lambda renormalised over the modes of the whole mini-batch."""
        weights = self._weights()
        total = sum(weights[channel] for channel, tokens in step.tokens.items() if tokens > 0)
        sums = channel_cross_entropy(batch, student)
        return [Term(channel, weights[channel] / total, sums[channel]) for channel in sums]

    def decoding(self) -> Decoding:
        """Paths of the modes that are taught, and the policy that decides."""
        config = self.config
        channels = tuple(channel for channel in self._weights() if channel != LABEL)
        apart: tuple[dict[str, Any], ...] = ({"pot_weight": 0.0, "policy": "single_cot"},)
        apart += ({"cot_weight": 0.0, "policy": "single_pot"},)
        return Decoding(
            channels=channels,
            policy=config.policy,
            samples={COT: config.n_cot, POT: config.n_pot},
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            every=config.report_all,
            members=tuple({**one, "ensemble": False} for one in apart) if config.ensemble else (),
        )


METHOD = MixedDistillation
