"""MiniLLM: reverse KL on the student's own texts, by policy gradient.

Paper: Gu et al., arXiv:2306.08543 (sections 2.2 and 2.3, algorithm 1), known to us from reading notes that agree; its
released code: microsoft/LMOps `minillm/` at 4f2a9de. Two phases: the student is fine-tuned first (`student.init`, the
weights with the lowest validation loss), then it samples texts from alpha p + (1 - alpha) q (equation 4) and learns
L = Single + Long + L_PT:
  Single  exact KL(q | p) at every sampled position (equation 3), not weighed with w_t (`weigh_single` does), since the
          weight leaves its expectation unchanged; the released code leaves it out as well.
  Long    PPO's clipped policy gradient of the mean log-ratio *after* t (equation 6); rho_t = q / p~, the weight of the
          current step (equation 5) and the clip's ratio in one; the q of p~ is read anew by the pass that trains.
  L_PT    cross-entropy on plain text (channel `plain`), where `data.plain_text` names some.
`parity: released_code` takes that code's values where the paper says otherwise: it counts r_t in its own return, with
gamma 0.95, divided by the undiscounted number of tokens, whitened, log-ratios cut at 50 (it divides them by 0.5, then
cuts at 100; the scale itself is lost in the whitening), half of L_PT from the teacher. As there, nothing is dropped out
and without a text there is no L_PT. What that code trains with are settings of `train`, not of the method: its scripts
have `scheduler: constant` (LLaMA and Qwen2.5: cosine), `warmup_steps: 100`, `betas: [0.9, 0.95]`,
`weight_decay: 1.0e-6`, `max_grad_norm: 1.0`.
It still differs from that code: whitening sees no padding and a whole round; losses are means over a mini-batch, not
means of processes' means; norms and biases have no weight decay; a warm-up's first step is not at 0; no fp16; no second
generation is made for the log.
On-policy distillation (sampled tokens only, as in the Thinking Machines cookbook) is single_weight 0, teacher_mix 0,
gamma 0, include_current true, length_normalize false, epsilon null, inner_epochs 1.
Weights are selected on the task's validation score: reverse KL still falls when a student is broken (table 4).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from tinyllm_bench import (
    LABEL,
    PLAIN,
    Annotation,
    Ask,
    DivergenceConfig,
    Example,
    Method,
    MethodConfig,
    Needs,
    PerPosition,
    Response,
    ScoringMode,
    Step,
    TaskRecord,
    TeacherSignal,
    Term,
    channel_sums,
    choose_teacher,
    clipped_policy_loss_NT,
    cross_entropy_N,
    cross_entropy_of,
    divergence_of,
    importance_log_weight_NT,
    named,
    probe,
    response_examples,
    returns_NT,
    rewards_NT,
    sample_texts,
    scoring_modes_for,
    whitened_NT,
    with_sampled_text,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch, Encoded, Group

RELEASED_CODE = {
    "gamma": 0.95,
    "include_current": True,
    "discount_length": False,
    "whiten": True,
    "reward_limit": 50.0,  # there log-ratios are divided by 0.5 (`--reward-scaling`) before they are cut at 100
    "plain_kd": 0.5,
}


class MinillmConfig(MethodConfig):
    """Settings; defaults are the paper's, those of the released code under `parity: released_code`.

    group_size: mini-batches of one round of rollouts; inner_epochs: passes over it; teacher_mix: alpha of the sampler;
    gamma, length_normalize, include_current, discount_length: the return (`training/policy_gradient.py`); reward_limit:
    cut of a token's log-ratio; whiten: advantages to mean 0 and variance 1; epsilon: PPO's clip, null for none;
    plain_weight: weight of L_PT; plain_kd: the share of it that is KL to the teacher.
    """

    teacher: str | None = None
    parity: Literal["paper", "released_code"] = "paper"
    teacher_mix: float = Field(0.2, ge=0, lt=1)
    group_size: int = Field(4, ge=1, le=10**4)
    inner_epochs: int = Field(4, ge=1, le=1000)
    max_new_tokens: int = Field(256, ge=1, le=10**6)
    epsilon: float | None = Field(0.2, gt=0, le=1e6)
    gamma: float = Field(1.0, ge=0, le=1)
    length_normalize: bool = True
    include_current: bool = False
    discount_length: bool = True
    reward_limit: float | None = Field(None, gt=0, le=1e6)
    whiten: bool = False
    single_weight: float = Field(1.0, ge=0, le=1e6)
    weigh_single: bool = False
    plain_weight: float = Field(1.0, ge=0, le=1e6)
    plain_kd: float = Field(0.0, ge=0, le=1)
    response: Response = "answer"

    @model_validator(mode="before")
    @classmethod
    def _as_released(cls, given: Any) -> Any:
        is_parity = isinstance(given, Mapping) and given.get("parity") == "released_code"
        return {**RELEASED_CODE, **given} if is_parity else given


class _Round(NamedTuple):
    """A round's texts, right-padded: log p, log q and the mask, each (N, T)."""

    logp_NT: Tensor
    logq_NT: Tensor
    mask_NT: Tensor


class Minillm(Method):
    """Learn to write what the teacher finds likely."""

    paper = "arXiv:2306.08543"
    Config = MinillmConfig

    @property
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """A student that writes rationales is asked for text."""
        return scoring_modes_for(self.config.response)

    @property
    def group_size(self) -> int:
        """Mini-batches per round of rollouts."""
        return self.config.group_size

    @property
    def inner_epochs(self) -> int:
        """Passes over one round."""
        return self.config.inner_epochs

    def needs(self) -> Needs:
        """The teacher itself, and plain text where L_PT counts; no response is ever read, since all are sampled."""
        return Needs(signal="on_policy", same_tokenizer=True, plain_text=self.config.plain_weight > 0)

    @property
    def reads_teacher(self) -> bool:
        """For Single, and for the share of L_PT that is KL; what Long needs is computed while texts are sampled."""
        return self.config.single_weight > 0 or (self.config.plain_weight > 0 and self.config.plain_kd > 0)

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The one teacher: the only one given, or `method.minillm.teacher`."""
        return (choose_teacher("minillm", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The data set's answer; only its prompt is kept, the rollout writes another response."""
        return response_examples(record, annotations, ask, "answer")

    def rollout(self, group: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step) -> "list[Group]":
        """Sample every response again, and give each of its tokens an advantage."""
        assert teacher is not None
        items = [(key, item) for key, item in named(group) if item.channel == LABEL]
        sampled = sample_texts(
            [item.prompt for _, item in items],
            student,
            seeds=[step.seed_of(key) for key, _ in items],
            max_new_tokens=self.config.max_new_tokens,
            teacher=teacher.lm,
            teacher_share=self.config.teacher_mix,
            vocabulary=teacher.vocabulary,
        )
        tokens = sum(len(one.ids) for one in sampled)
        step.note("rollout_length", tokens, len(sampled))
        step.note("rollout_reverse_kl", sum(sum(one.kl) for one in sampled), tokens)
        group = _replaced(group, [with_sampled_text(item, one) for (_, item), one in zip(items, sampled, strict=True)])
        group = step.reread(group)
        texts = [item for one in group for item in one.items if item.channel == LABEL]
        advantages_NT = self._advantages(_padded(texts), step).tolist()
        return _replaced(
            group,
            [
                item._replace(rollout={**item.rollout, "advantage": tuple(row[: len(item.target)])})
                for item, row in zip(texts, advantages_NT, strict=True)
            ],
        )

    def _advantages(self, texts: _Round, step: Step) -> Tensor:
        config = self.config
        found_NT = returns_NT(
            rewards_NT(texts.logp_NT, texts.logq_NT, texts.mask_NT, limit=config.reward_limit),
            texts.mask_NT,
            gamma=config.gamma,
            length_normalize=config.length_normalize,
            include_current=config.include_current,
            discount_length=config.discount_length,
        )
        return whitened_NT(found_NT, texts.mask_NT, all_reduce=step.all_reduce) if config.whiten else found_NT

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """Long + single_weight * Single of sampled texts, and L_PT of plain ones."""
        assert teacher is not None
        config, size = self.config, teacher.vocabulary
        has_plain = PLAIN in batch.channels
        single = kept = None
        if config.single_weight or (has_plain and config.plain_kd):
            found = teacher.on(batch)
            single = divergence_of(found, DivergenceConfig(kind="reverse_kl"), vocabulary=size)
            kept = divergence_of(found, DivergenceConfig(kind="forward_kl"), vocabulary=size)
        losses = [self._sampled_loss(batch, single if config.single_weight else None, size)]
        if has_plain:
            losses += [cross_entropy_of(batch), *([kept] if kept and config.plain_kd else [])]
        sampled, *plain = channel_sums(batch, student, losses)
        terms = [Term(channel, 1.0, total) for channel, total in sampled.items() if channel != PLAIN]
        if plain:
            shares = (1 - config.plain_kd, config.plain_kd)
            total = torch.stack([share * sums[PLAIN] for share, sums in zip(shares, plain, strict=False)]).sum()
            terms.append(Term(PLAIN, config.plain_weight, total))
        return terms

    def _sampled_loss(self, batch: "Batch", single: PerPosition | None, vocabulary: int | None) -> PerPosition:
        config = self.config
        logq_N, logp_N, advantages_N = (batch.rollout_N(name) for name in ("logq", "logp", "advantage"))

        def per_position(logits_NV: Tensor, rows: slice) -> Tensor:
            new_N = -cross_entropy_N(logits_NV[:, :vocabulary], batch.target_ids_N[rows])
            ratio_N = importance_log_weight_NT(new_N, logq_N[rows], logp_N[rows], config.teacher_mix)
            epsilon = float("inf") if config.epsilon is None else config.epsilon
            long_N = clipped_policy_loss_NT(ratio_N, advantages_N[rows], epsilon=epsilon)
            if single is None:
                return long_N
            weights_N = config.single_weight * (ratio_N.detach().exp() if config.weigh_single else 1.0)
            return long_N + weights_N * single(logits_NV, rows)

        return per_position

    def probe(
        self, groups: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step
    ) -> Mapping[str, float]:
        """Reverse KL, length and distinct-n of the student's own texts, without the teacher's share."""
        assert teacher is not None
        return probe(groups, student, teacher, channel=LABEL, step=step, max_new_tokens=self.config.max_new_tokens)


def _replaced(group: "list[Group]", sampled: "Sequence[Encoded]") -> "list[Group]":
    """The groups with these as their examples of channel `label`, in order."""
    texts = iter(sampled)
    return [
        one._replace(items=tuple(next(texts) if item.channel == LABEL else item for item in one.items)) for one in group
    ]


def _padded(texts: "Sequence[Encoded]") -> _Round:
    width = max((len(item.target) for item in texts), default=1)

    def rows(kind: str) -> Tensor:
        found = [[*item.rollout[kind], *([0.0] * (width - len(item.target)))] for item in texts]
        return torch.tensor(found, dtype=torch.float64).reshape(len(texts), width)

    mask = [[1.0] * len(item.target) + [0.0] * (width - len(item.target)) for item in texts]
    return _Round(rows("logp"), rows("logq"), torch.tensor(mask, dtype=torch.float64).reshape(len(texts), width))


METHOD = Minillm
