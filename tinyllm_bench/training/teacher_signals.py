"""White-box teachers: distributions at a batch's target positions, from a model in memory or from a cache.

Shape suffixes: N target positions, H hidden size, V vocabulary, K top-k tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.top_k import ResponseDistributions, ScoredResponse, response_digest, top_k
from tinyllm_bench.models.lm import LM
from tinyllm_bench.training.batching import Batch
from tinyllm_bench.training.divergences import Dense, TopK
from tinyllm_bench.training.logit_cache import LogitCache


class Distributions:
    """A teacher's distributions at all target positions of one batch, computed chunk by chunk.

    logits: gives those of some target positions.
    """

    def __init__(self, logits: Callable[[slice], Tensor]) -> None:
        self._logits = logits

    @torch.no_grad()
    def rows(self, rows: slice) -> Dense:
        """Log-probabilities at some target positions, float32 at least."""
        return Dense(torch.log_softmax(self._logits(rows), dim=-1))


class InMemoryTeacher:
    """A teacher in memory that shares the student's tokenizer and runs on the same batches.

    vocabulary: the tokenizer's size; logits beyond it are padding.
    """

    def __init__(self, lm: LM, *, vocabulary: int | None = None) -> None:
        self.lm = lm.eval().requires_grad_(False)
        self.vocabulary = vocabulary
        self.parameters = sum(p.numel() for p in lm.parameters())

    @torch.no_grad()
    def on(self, batch: Batch) -> Distributions:
        """Distributions in the order of the batch's target positions; hidden states are stored, logits are not."""
        hidden_NH = self.lm.target_hidden_states(batch)

        def logits(rows: slice) -> Tensor:
            logits_NV = self.lm.logits(hidden_NH[rows])
            return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()

        return Distributions(logits)


class CachedTeacher:
    """A teacher's cached distributions over the student's training responses; its weights are not loaded."""

    lm = None

    def __init__(self, cache: LogitCache) -> None:
        self.cache = cache
        self.vocabulary: int | None = cache.header.vocabulary
        self.parameters = 0

    def on(self, batch: Batch) -> TopK:
        """The top-k tokens and the mass of the rest, in the order of the batch's target positions.

        Raises:
            UserError: a response that is not cached.
        """
        responses = [
            self.cache.distributions_for(item.record_id, response_digest(item.prompt, item.target))
            for item in batch.items
        ]
        device = batch.target_ids_N.device
        ids_NK, logp_NK, tail_N, _ = (torch.cat(column).to(device) for column in zip(*responses, strict=True))
        return TopK(ids_NK, logp_NK, tail_N)


@torch.no_grad()
def score_responses(teacher: InMemoryTeacher, batch: Batch, k: int) -> list[ScoredResponse]:
    """The teacher's top-k tokens at every target position of a batch, and the mass of all others, by example."""
    distributions, chunks = teacher.on(batch), []
    for rows in teacher.lm.chunks(len(batch.target_ids_N)):
        logp_NV = distributions.rows(rows).logp_NV[:, : teacher.vocabulary].log_softmax(-1)
        gold_N = logp_NV.gather(1, batch.target_ids_N[rows, None])[:, 0]
        chunks.append(ResponseDistributions(*top_k(logp_NV, k), gold_N))
    columns = [torch.cat(column).cpu() for column in zip(*chunks, strict=True)]
    item_N = batch.item_N.cpu()
    return [
        ScoredResponse(
            item.record_id,
            item.prompt,
            item.target,
            ResponseDistributions(*(column[item_N == number] for column in columns)),
        )
        for number, item in enumerate(batch.items)
    ]


def check_same_family(student: LM, teacher: LM) -> None:
    """Refuse a teacher that cannot run on the student's batches.

    Raises:
        UserError: one of the two is an encoder-decoder and the other is not.
    """
    if student.encoder_decoder != teacher.encoder_decoder:
        kinds: Any = {True: "an encoder-decoder", False: "decoder-only"}
        raise UserError(
            f"the teacher is {kinds[teacher.encoder_decoder]} and the student {kinds[student.encoder_decoder]}: they"
            " cannot run on the same batch; choose both of one family"
        )
