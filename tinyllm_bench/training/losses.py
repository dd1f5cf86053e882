"""Losses per target position and their sums per channel; only the trainer divides.

Shape suffixes: N target positions, V vocabulary, C channels, L losses.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

# A loss per target position of a chunk: (logits_NV, the chunk's rows among the batch's target positions) -> loss_N.
PerPosition = Callable[[Tensor, slice], Tensor]

if TYPE_CHECKING:
    from tinyllm_bench.models.lm import LM
    from tinyllm_bench.training.batching import Batch
    from tinyllm_bench.training.method import Average


def cross_entropy_N(logits_NV: Tensor, target_ids_N: Tensor) -> Tensor:
    """Token cross-entropy in nats: `-log softmax(logits)[target]`, in float32 at least."""
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    return functional.cross_entropy(logits_NV, target_ids_N, reduction="none")


def channel_cross_entropy(batch: "Batch", student: "LM") -> dict[str, Tensor]:
    """Sum of token cross-entropies per channel of a batch (scalars, differentiable in the student).

    The token mean over a mini-batch's channel is `CE(S(x, p_c), y_c)` of TinyLLM (arXiv:2402.04616, equations for L_A
    and L_Tm) as its released code computes it (Hugging Face's mean over target tokens).
    """
    return channel_sums(batch, student, [cross_entropy_of(batch)])[0]


def cross_entropy_of(batch: "Batch") -> PerPosition:
    """Token cross-entropy as a loss per position."""
    return lambda logits_NV, rows: cross_entropy_N(logits_NV, batch.target_ids_N[rows])


def averaged(losses: Sequence[PerPosition], batch: "Batch", per: "Average") -> list[PerPosition]:
    """Losses per position for terms `per` token (unchanged) or per sequence: divided by the example's target tokens, so
    that their sum is the sum of the examples' means."""
    if per == "token":
        return list(losses)
    lengths_N = torch.bincount(batch.item_N)[batch.item_N]

    def by_length(loss: PerPosition) -> PerPosition:
        return lambda logits_NV, rows: loss(logits_NV, rows) / lengths_N[rows]

    return [by_length(loss) for loss in losses]


def channel_sums(
    batch: "Batch", student: "LM", losses: Sequence[PerPosition], *, whole_items: bool = False
) -> list[dict[str, Tensor]]:
    """Sums per channel of several losses per position, in one forward pass of the student.

    whole_items: a position's loss depends on others of its example, so that no example may be split between chunks.
    """

    def per_chunk(logits_NV: Tensor, rows: slice) -> Tensor:
        values_LN = torch.stack([loss(logits_NV, rows) for loss in losses])
        sums_LC = torch.zeros(len(losses), len(batch.channels), dtype=values_LN.dtype, device=values_LN.device)
        return sums_LC.index_add(1, batch.channel_N[rows], values_LN)

    item_starts = (batch.item_N.diff().nonzero()[:, 0] + 1).tolist() if whole_items else ()
    sums_LC = student(batch, per_chunk, borders=item_starts)
    return [dict(zip(batch.channels, sums_C.unbind(), strict=True)) for sums_C in sums_LC.unbind()]
