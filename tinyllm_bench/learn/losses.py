"""Losses: pure functions that return sums; only the trainer divides.

Shape suffixes: N target positions, V vocabulary, C channels.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from tinyllm_bench.learn.batching import Batch
    from tinyllm_bench.models.lm import LM


def cross_entropy_N(logits_NV: Tensor, target_ids_N: Tensor) -> Tensor:
    """Token cross-entropy in nats: `-log softmax(logits)[target]`, in float32 at least."""
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return functional.cross_entropy(logits_NV, target_ids_N, reduction="none")


def channel_cross_entropy(batch: "Batch", student: "LM") -> dict[str, Tensor]:
    """Sum of token cross-entropies per channel of a batch (scalars, differentiable in the student).

    The token mean over a mini-batch's channel is `CE(S(x, p_c), y_c)` of TinyLLM (arXiv:2402.04616, equations for L_A
    and
    L_Tm) as its released code computes it (Hugging Face's mean over target tokens).
    """

    def per_chunk(logits_NV: Tensor, rows: slice) -> Tensor:
        losses_N = cross_entropy_N(logits_NV, batch.target_ids_N[rows])
        sums_C = torch.zeros(len(batch.channels), dtype=losses_N.dtype, device=losses_N.device)
        return sums_C.index_add(0, batch.channel_N[rows], losses_N)

    sums_C = student(batch, per_chunk)
    return dict(zip(batch.channels, sums_C.unbind(), strict=True))
