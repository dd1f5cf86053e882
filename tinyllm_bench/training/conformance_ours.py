"""Our own losses in the calling convention of the conformance kit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Batch, Collator
from tinyllm_bench.training.divergences import Dense, DivergenceConfig, TopK, divergence_N
from tinyllm_bench.training.losses import cross_entropy_N
from tinyllm_bench.training.policy_gradient import (
    clipped_policy_loss_NT,
    importance_log_weight_NT,
    returns_NT,
    whitened_NT,
)


def ours(
    kind: str, student_logits: Any, teacher_logits: Any, mask: Tensor | None, options: Mapping[str, Any]
) -> Tensor:
    """Answer any vector of the kit; see `conformance` for the convention."""
    if kind in ("returns", "whiten"):
        assert mask is not None
        return _over_texts(kind, mask, options)
    if kind in ("importance_weight", "ppo_clip"):
        return _policy_NT(kind, student_logits, options)[mask].sum() / options["tokens"]
    batch = _batch(options) if mask is None else None
    student_NV = _at_targets(student_logits, mask, batch)
    if kind == "cross_entropy":
        assert batch is not None
        values_N = cross_entropy_N(student_NV, batch.target_ids_N)
    else:
        teacher = _top_k(options["top_k"], mask) if "top_k" in options else _dense(teacher_logits, mask, batch)
        values_N = divergence_N(student_NV, teacher, _config(kind, options), vocabulary=options.get("vocabulary"))
    return values_N.sum() / options["tokens"]


def _over_texts(kind: str, mask: Tensor, options: Mapping[str, Any]) -> Tensor:
    if kind == "whiten":
        return whitened_NT(_numbers(options["values"]), mask)
    rewards_NT = _numbers(options["rewards"])
    return returns_NT(rewards_NT, mask, gamma=options["gamma"], length_normalize=options["length_normalize"])


def _policy_NT(kind: str, logits_NTV: Tensor, options: Mapping[str, Any]) -> Tensor:
    actions_NT = torch.tensor(options["actions"])
    new_NT = logits_NTV.log_softmax(-1).gather(-1, actions_NT[..., None])[..., 0]
    old_NT, teacher_NT = _numbers(options["old_log_probs"]), _numbers(options["teacher_log_probs"])
    log_ratio_NT = importance_log_weight_NT(new_NT, old_NT, teacher_NT, options["alpha"])
    if kind == "importance_weight":
        return log_ratio_NT.exp()
    return clipped_policy_loss_NT(log_ratio_NT, _numbers(options["advantages"]), epsilon=options["epsilon"])


def _numbers(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _config(kind: str, options: Mapping[str, Any]) -> DivergenceConfig:
    settings = {name: options[name] for name in DivergenceConfig.model_fields if name in options}
    return DivergenceConfig(**{**settings, "kind": kind})


def _batch(options: Mapping[str, Any]) -> Batch:
    """Through the collator that training uses, so that its shift and its padding are what is tested."""
    texts = zip(options["input_ids"], options["prompt_lengths"], options["lengths"], strict=True)
    items = [Encoded("vector", "label", tuple(ids[:start]), tuple(ids[start:end]), False) for ids, start, end in texts]
    collator = Collator(encoder_decoder=False, pad_id=options["pad_id"])
    return collator.collate(collator.rows(items))


def _at_targets(logits_BTV: Tensor, mask: Tensor | None, batch: Batch | None) -> Tensor:
    return logits_BTV[mask] if batch is None else logits_BTV[batch.target_row_N, batch.target_position_N]


def _dense(logits_BTV: Tensor, mask: Tensor | None, batch: Batch | None) -> Dense:
    return Dense(_at_targets(logits_BTV, mask, batch).log_softmax(-1))


def _top_k(kept: Any, mask: Tensor | None) -> TopK:
    def gathered(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[place[name] for place in row] for row in kept], dtype=dtype)[mask]

    return TopK(gathered("ids", torch.int32), gathered("log_probs", torch.float64), gathered("tail", torch.float64))
