"""Log-probabilities of continuations, with all continuations of one context as branches of one sequence.

Shape suffixes: N target positions, V vocabulary, M continuations.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Batch, Collator, micro_batches
from tinyllm_bench.training.losses import cross_entropy_N


def continuation_logprobs(
    lm: LM, collator: Collator, requests: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int
) -> list[tuple[float, bool]]:
    """(sum of token log-probabilities in nats, whether greedy decoding would write it) of each (context, continuation).

    Both are token ids. A batch holds at most the padded tokens of the `batch_size` longest sequences. The values are
    lm-eval's own up to rounding: every continuation sees its context and itself.
    """
    by_context: dict[tuple[int, ...], list[Encoded]] = {}
    for number, (context, continuation) in enumerate(requests):
        item = Encoded(str(number), "continuation", tuple(context), tuple(continuation), False)
        by_context.setdefault(item.prompt, []).append(item)
    groups = [collator.rows(items) for items in by_context.values()]
    longest = max((row.width for rows in groups for row in rows), default=0)
    found: dict[int, tuple[float, bool]] = {}
    device = next(lm.parameters()).device
    limit = batch_size * longest
    for rows in micro_batches(groups, max_tokens=limit, keep_groups=False, pack=collator.packs):
        batch = collator.collate(rows).to(device)

        logprob_M, missed_M = lm(batch, partial(_sums, batch)).tolist()
        for item, logprob, missed in zip(batch.items, logprob_M, missed_M, strict=True):
            found[int(item.record_id)] = (logprob, missed == 0)
    return [found[number] for number in range(len(requests))]


def _sums(batch: Batch, logits_NV: Tensor, chunk: slice) -> Tensor:
    """(2, M): each continuation's log-probability, and how many of its tokens are not the likeliest."""
    ids_N = batch.target_ids_N[chunk]
    logprob_N = -cross_entropy_N(logits_NV, ids_N)
    missed_N = (logits_NV.argmax(-1) != ids_N).to(logprob_N.dtype)
    sums_2M = torch.zeros(2, len(batch.items), dtype=logprob_N.dtype, device=ids_N.device)
    return sums_2M.index_add(1, batch.item_N[chunk], torch.stack([logprob_N, missed_N]))
