"""Mixed Distillation: rationales (CoT) and programs (PoT) of one teacher in one student, combined at inference.

Paper: arXiv:2312.10730 (EMNLP 2024 Findings, 2024.findings-emnlp.91). Only its abstracts were read: both abilities are
distilled into one model by multi-task learning, which answers by one reasoning path or by several of both kinds. Loss
weights, prompts, filters, numbers of samples, temperature and tie-breaking are ours, and so is everything in
mixed_distillation.yaml that says so.

L = sum over modes m of lambda_m * (token mean of cross-entropy over the mode's targets in the mini-batch), with lambda
renormalised over the modes present. One mean over all tokens would give programs, which are about three times shorter,
a quarter of the weight.
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

# The kind of annotation that a mode's targets are.
KINDS: dict[str, Literal["rationale", "program"]] = {COT: "rationale", POT: "program"}


class MixedDistillationConfig(MethodConfig):
    """Settings.

    cot_weight, pot_weight, label_weight: lambda of each mode, 0 to leave it out; balance: `paired` takes only questions
    with a target in every mode, `union` all; sampling: `paired` keeps a question's targets in one mini-batch, `mixed`
    shuffles them independently. The others concern inference only. policy: how an answer is chosen; n_cot, n_pot:
    sampled texts of a vote; report_all: sample for every policy and report each; ensemble: a vote of two students,
    each trained on one mode with half of the budget.
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
    def _check_policy(self) -> Self:
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
    """Train on a teacher's rationales and programs."""

    paper = "arXiv:2312.10730"
    Config = MixedDistillationConfig
    inference_settings = frozenset(
        {"policy", "n_cot", "n_pot", "temperature", "top_p", "max_new_tokens", "report_all", "ensemble"}
    )

    @property
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """Answers are generated, never ranked."""
        return ("generate",)

    @property
    def shuffles_examples(self) -> bool:
        """Whether a question's targets are shuffled independently of each other."""
        return self.config.sampling == "mixed"

    def _weights(self) -> dict[str, float]:
        config = self.config
        weights = {COT: config.cot_weight, POT: config.pot_weight, LABEL: config.label_weight}
        return {channel: weight for channel, weight in weights.items() if weight > 0}

    def needs(self) -> Needs:
        """Rationales, programs or both, as the weights say."""
        weights = self._weights()
        return Needs(annotations=frozenset(kind for channel, kind in KINDS.items() if channel in weights))

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The only teacher given, or `method.mixed_distillation.teacher`."""
        return (choose_teacher("mixed_distillation", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """An example for every usable text of a trained mode; a teacher may give several of one kind."""
        weights = self._weights()
        texts = {
            channel: [annotation for annotation in annotations if annotation.kind == kind]
            for channel, kind in KINDS.items()
            if channel in weights
        }
        if self.config.balance == "paired" and not all(texts.values()):
            return []
        examples = [
            ask.example(record, channel, annotation.text, ends=not annotation.is_cut)
            for channel, of_channel in texts.items()
            for annotation in of_channel
        ]
        if LABEL in weights:
            examples.append(ask.example(record, LABEL, ask.label_target(record)))
        return examples

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """lambda_m * CE_m, with lambda renormalised over the modes that the whole mini-batch has."""
        weights = self._weights()
        total = sum(weights[channel] for channel, tokens in step.tokens.items() if tokens > 0)
        sums = channel_cross_entropy(batch, student)
        return [Term(channel, weights[channel] / total, sums[channel]) for channel in sums]

    def decoding(self) -> Decoding:
        """Sampled texts of the trained modes, and the policy that chooses the answer."""
        config = self.config
        single_mode: tuple[dict[str, Any], ...] = (
            {"pot_weight": 0.0, "policy": "single_cot", "ensemble": False},
            {"cot_weight": 0.0, "policy": "single_pot", "ensemble": False},
        )
        return Decoding(
            channels=tuple(channel for channel in self._weights() if channel != LABEL),
            policy=config.policy,
            samples={COT: config.n_cot, POT: config.n_pot},
            temperature=config.temperature,
            top_p=config.top_p,
            max_new_tokens=config.max_new_tokens,
            every=config.report_all,
            members=single_mode if config.ensemble else (),
        )


METHOD = MixedDistillation
