"""MiniLLM: reverse KL on the student's own texts, by policy gradient.

Paper: Gu et al., arXiv:2306.08543 (sections 2.2 and 2.3, algorithm 1), known from third parties' notes, which agree;
released code: microsoft/LMOps `minillm/` at 4f2a9de. Two phases: the student is fine-tuned first (`student.init`, the
weights with the lowest validation loss), then it samples texts from p~ = alpha p + (1 - alpha) q (equation 4) and
minimises L = L_Single + L_Long + L_PT:
  L_Single  exact KL(q | p) at every sampled position (equation 3). It is not weighted by w_t, which leaves its
            expectation unchanged; nor is it in the released code (`single_step_importance_weights` does weight it).
  L_Long    PPO's clipped policy gradient of the mean log-ratio *after* t (equation 6). rho_t = q / p~ is both the
            importance weight of the current step (equation 5) and the ratio that is clipped; the q in p~ is recomputed
            by the forward pass of training.
  L_PT      cross-entropy on plain text (channel `plain`), if `data.plain_text` names some.
`parity: released_code` takes that code's values where the paper differs: r_t counts in its own return, with gamma 0.95,
divided by the undiscounted number of tokens; advantages are whitened; log-ratios are clipped at 50 (there divided by
0.5, then clipped at 100; whitening loses the scale itself); half of L_PT is KL to the teacher. As there, dropout is off
and L_PT needs plain text. The optimiser settings of that code's scripts are settings of `train`: `scheduler: constant`
(cosine for LLaMA and Qwen2.5), `warmup_steps: 100`, `betas: [0.9, 0.95]`, `weight_decay: 1.0e-6`, `max_grad_norm: 1.0`.
Remaining differences from that code: whitening excludes padding and covers a whole round; losses are means over a
mini-batch, not means of the processes' means; norms and biases have no weight decay; the first warm-up step is not at
0; no fp16; texts are not generated a second time for logging.
On-policy distillation on sampled tokens only (as in the Thinking Machines cookbook) is single_step_weight 0,
teacher_mix 0, gamma 0, include_current true, length_normalize false, epsilon null, inner_epochs 1.
Checkpoints are selected by the task's validation score: reverse KL still falls when a student is broken (table 4).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

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
    keyed_examples,
    response_examples,
    returns_NT,
    rewards_NT,
    sample_diagnostics,
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
    "reward_limit": 50.0,  # there log-ratios are divided by 0.5 (`--reward-scaling`) before they are clipped at 100
    "kd_ratio": 0.5,
}


class MinillmConfig(MethodConfig):
    """Settings; defaults are the paper's, or the released code's with `parity: released_code`.

    group_size: mini-batches per round of rollouts; inner_epochs: passes over it; teacher_mix: alpha of the sampler;
    gamma, length_normalize, include_current, discount_length: the return (`training/policy_gradient.py`); reward_limit:
    clip of a token's log-ratio; whiten: advantages to mean 0 and variance 1; epsilon: PPO's clip, null for none;
    single_step_weight: weight of L_Single; single_step_importance_weights: weight it by w_t too; lm_coef: weight of
    L_PT; kd_ratio: the share of L_PT that is KL to the teacher.
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
    single_step_weight: float = Field(1.0, ge=0, le=1e6)
    single_step_importance_weights: bool = False
    lm_coef: float = Field(1.0, ge=0, le=1e6)
    kd_ratio: float = Field(0.0, ge=0, le=1)
    response: Response = "answer"

    @model_validator(mode="before")
    @classmethod
    def _apply_parity(cls, given: Any) -> Any:
        is_parity = isinstance(given, Mapping) and given.get("parity") == "released_code"
        return {**RELEASED_CODE, **given} if is_parity else given


class Minillm(Method):
    """Train on the student's own texts to write what the teacher finds likely."""

    paper = "arXiv:2306.08543"
    Config = MinillmConfig

    @property
    def scoring_modes(self) -> tuple[ScoringMode, ...]:
        """Only `generate` for a student that writes rationales."""
        return scoring_modes_for(self.config.response)

    @property
    def group_size(self) -> int:
        """Mini-batches per round of rollouts."""
        return self.config.group_size

    @property
    def inner_epochs(self) -> int:
        """Passes over a round."""
        return self.config.inner_epochs

    def needs(self) -> Needs:
        """The teacher itself, and plain text if L_PT has a weight; no responses, since all are sampled."""
        return Needs(signal="on_policy", same_tokenizer=True, plain_text=self.config.lm_coef > 0)

    @property
    def loss_uses_teacher(self) -> bool:
        """Whether L_Single or the KL of L_PT is computed; the teacher's part of L_Long comes from sampling."""
        return self.config.single_step_weight > 0 or (self.config.lm_coef > 0 and self.config.kd_ratio > 0)

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The only teacher given, or `method.minillm.teacher`."""
        return (choose_teacher("minillm", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The data set's answer, of which only the prompt is used: the rollout replaces the response."""
        return response_examples(record, annotations, ask, "answer")

    def rollout(self, groups: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step) -> "list[Group]":
        """Sample a response to every prompt, and give each of its tokens an advantage (algorithm 1)."""
        assert teacher is not None
        config = self.config
        # teacher-mixed sampling (equation 4)
        examples = [(key, item) for key, item in keyed_examples(groups) if item.channel == LABEL]
        texts = sample_texts(
            [item.prompt for _, item in examples],
            student,
            seeds=[step.seed_of(key) for key, _ in examples],
            max_new_tokens=config.max_new_tokens,
            teacher=teacher.lm,
            teacher_share=config.teacher_mix,
            vocabulary=teacher.vocabulary,
        )
        tokens = sum(len(text.ids) for text in texts)
        step.note("rollout_length", tokens, len(texts))
        step.note("rollout_reverse_kl", sum(sum(text.kl) for text in texts), tokens)
        sampled = [with_sampled_text(item, text) for (_, item), text in zip(examples, texts, strict=True)]
        groups = step.recompute_logq(_with_label_items(groups, sampled))
        # advantages: the mean reward r = log p - log q of the tokens that follow (equation 6)
        items = [item for group in groups for item in group.items if item.channel == LABEL]
        logp_NT = _padded_NT([item.rollout["logp"] for item in items])
        logq_NT = _padded_NT([item.rollout["logq"] for item in items])
        mask_NT = _padded_NT([[1.0] * len(item.target) for item in items])
        advantages_NT = returns_NT(
            rewards_NT(logp_NT, logq_NT, mask_NT, limit=config.reward_limit),
            mask_NT,
            gamma=config.gamma,
            length_normalize=config.length_normalize,
            include_current=config.include_current,
            discount_length=config.discount_length,
        )
        if config.whiten:
            advantages_NT = whitened_NT(advantages_NT, mask_NT, all_reduce=step.all_reduce)
        return _with_label_items(
            groups,
            [
                item._replace(rollout={**item.rollout, "advantage": tuple(advantages_T[: len(item.target)])})
                for item, advantages_T in zip(items, advantages_NT.tolist(), strict=True)
            ],
        )

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """L_Long + single_step_weight * L_Single of sampled texts, and lm_coef * L_PT of plain ones."""
        assert teacher is not None
        config, vocabulary = self.config, teacher.vocabulary
        has_plain = PLAIN in batch.channels
        reverse_kl = forward_kl = None
        if config.single_step_weight or (has_plain and config.kd_ratio):
            distributions = teacher.on(batch)
            reverse_kl = divergence_of(distributions, DivergenceConfig(kind="reverse_kl"), vocabulary=vocabulary)
            forward_kl = divergence_of(distributions, DivergenceConfig(kind="forward_kl"), vocabulary=vocabulary)
        losses = [self._policy_loss(batch, reverse_kl if config.single_step_weight else None, vocabulary)]
        if has_plain:
            losses += [cross_entropy_of(batch), *([forward_kl] if forward_kl and config.kd_ratio else [])]
        policy, *plain = channel_sums(batch, student, losses)
        terms = [Term(channel, 1.0, total) for channel, total in policy.items() if channel != PLAIN]
        if plain:
            shares = (1 - config.kd_ratio, config.kd_ratio)
            total = torch.stack([share * sums[PLAIN] for share, sums in zip(shares, plain, strict=False)]).sum()
            terms.append(Term(PLAIN, config.lm_coef, total))
        return terms

    def _policy_loss(self, batch: "Batch", single_step: PerPosition | None, vocabulary: int | None) -> PerPosition:
        """L_Long + single_step_weight * L_Single per position; single_step: the reverse KL, None to leave it out."""
        config = self.config
        logq_N, logp_N, advantages_N = (batch.rollout_N(name) for name in ("logq", "logp", "advantage"))

        def per_position(logits_NV: Tensor, rows: slice) -> Tensor:
            logq_new_N = -cross_entropy_N(logits_NV[:, :vocabulary], batch.target_ids_N[rows])
            log_ratio_N = importance_log_weight_NT(logq_new_N, logq_N[rows], logp_N[rows], config.teacher_mix)
            epsilon = float("inf") if config.epsilon is None else config.epsilon
            loss_N = clipped_policy_loss_NT(log_ratio_N, advantages_N[rows], epsilon=epsilon)
            if single_step is None:
                return loss_N
            w_N = log_ratio_N.detach().exp() if config.single_step_importance_weights else 1.0
            return loss_N + config.single_step_weight * w_N * single_step(logits_NV, rows)

        return per_position

    def probe(
        self, groups: "list[Group]", student: "LM", teacher: TeacherSignal | None, step: Step
    ) -> Mapping[str, float]:
        """Reverse KL, length and distinct-n of the student's own texts, sampled without the teacher's share."""
        assert teacher is not None
        limit = self.config.max_new_tokens
        return sample_diagnostics(groups, student, teacher, channel=LABEL, step=step, max_new_tokens=limit)


def _with_label_items(groups: "list[Group]", items: "Sequence[Encoded]") -> "list[Group]":
    """The groups with their examples of channel `label` replaced, in order."""
    remaining = iter(items)
    return [
        group._replace(items=tuple(next(remaining) if item.channel == LABEL else item for item in group.items))
        for group in groups
    ]


def _padded_NT(rows: Sequence[Sequence[float]]) -> Tensor:
    """Numbers per token of texts, right-padded with 0; (0, 1) if there are no texts."""
    width = max(map(len, rows), default=1)
    padded = [[*row, *([0.0] * (width - len(row)))] for row in rows]
    return torch.tensor(padded, dtype=torch.float64).reshape(len(rows), width)


METHOD = Minillm
