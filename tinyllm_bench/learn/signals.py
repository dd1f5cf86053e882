"""White-box teachers: distributions at a batch's target positions, made chunk by chunk.

Shape suffixes: N target positions, H hidden size, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.learn.batching import Batch
from tinyllm_bench.learn.divergences import Dense
from tinyllm_bench.models.lm import LM


class Distributions:
    """A teacher's distributions at all target positions of one batch; only the part that is asked for is made."""

    def __init__(self, make: Callable[[slice], Tensor]) -> None:
        self._make = make

    @torch.no_grad()
    def rows(self, rows: slice) -> Dense:
        """Log-probabilities of some target positions, float32 at least."""
        return Dense(torch.log_softmax(self._make(rows), dim=-1))


class InMemoryTeacher:
    """A teacher in memory that shares the student's tokenizer and reads the very batch that the student reads.

    `vocabulary` is the tokenizer's size: rows beyond it are padding, on either side.
    """

    def __init__(self, lm: LM, *, vocabulary: int | None = None) -> None:
        self.lm = lm.eval().requires_grad_(False)
        self.vocabulary = vocabulary

    @torch.no_grad()
    def on(self, batch: Batch) -> Distributions:
        """Distributions in the order of the batch's target positions; hidden states are kept, logits are not."""
        hidden_NH = self.lm.at_targets(batch)

        def make(rows: slice) -> Tensor:
            logits_NV = self.lm.logits(hidden_NH[rows])
            return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()

        return Distributions(make)


def check_same_family(student: LM, teacher: LM) -> None:
    """Refuse a teacher that cannot read the student's batches.

    Raises:
        UserError: one is an encoder-decoder and the other is not.
    """
    if student.encoder_decoder != teacher.encoder_decoder:
        kinds: Any = {True: "an encoder-decoder", False: "decoder-only"}
        raise UserError(
            f"the teacher is {kinds[teacher.encoder_decoder]} and the student {kinds[student.encoder_decoder]}: they"
            " cannot read the same batch; choose both of one family"
        )
