"""What a logit cache keeps of a response: the most likely tokens at every position, and the mass of all others.

Shape suffixes: N response tokens, V vocabulary, K kept entries.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest

# A mass below this cannot be told from rounding where it is one less a sum.
_ROUNDING = 1e-6


class Rows(NamedTuple):
    """Distributions at the tokens of one response, in nats; `tail_N` is -inf where nothing is left outside."""

    ids_NK: Tensor
    logp_NK: Tensor
    tail_N: Tensor
    gold_N: Tensor


class Scored(NamedTuple):
    """A response and the teacher's distributions over it; prompt and response are what it read and scored, in ids."""

    record_id: str
    prompt: Sequence[int]
    response: Sequence[int]
    rows: Rows


def response_digest(prompt: Sequence[int], response: Sequence[int]) -> str:
    """Digest of the ids that a teacher reads and of those that it scores."""
    return digest([list(map(int, prompt)), list(map(int, response))])


def top_k(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k most likely ids, their log-probabilities (sorted downwards), and the log of the mass of all others.

    The tail is summed over the others themselves, in float32 at least: 1 - sum of the kept would lose it where it is
    small. It is -inf where nothing is left.
    """
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    logp_NK, ids_NK = logp_NV.topk(k, dim=-1)
    tail_N = logp_NV.scatter(-1, ids_NK, -math.inf).logsumexp(-1)
    return ids_NK, logp_NK, tail_N


def tail_of(logp_NK: Tensor) -> Tensor:
    """Log of the mass outside of kept entries, where only these are known: log(1 - sum of their probabilities).

    -inf where they sum to 1 to a millionth: less than that cannot be told from rounding.
    """
    logp_NK = logp_NK if logp_NK.dtype == torch.float64 else logp_NK.float()
    left_N = -torch.expm1(logp_NK.double().logsumexp(-1))
    return torch.where(left_N > _ROUNDING, left_N, 0.0).log().to(logp_NK.dtype)


def check_rows(one: Scored, *, k: int, vocabulary: int) -> None:
    """Refuse rows that do not fit the response or the cache, or are no log-probabilities."""
    wide = (len(one.response), k)
    shapes = [tuple(part.shape) for part in one.rows]
    if not one.response or shapes != [wide, wide, wide[:1], wide[:1]]:
        raise UserError(
            f"distributions over a response of {one.record_id!r} have the shapes {shapes}; needed: ids and logp"
            f" {wide}, tail and gold {wide[:1]}, of at least one token"
        )
    low, high = int(one.rows.ids_NK.min()), int(one.rows.ids_NK.max())
    if low < 0 or high >= vocabulary:
        raise UserError(
            f"distributions over a response of {one.record_id!r} name the ids {low} to {high}; allowed: 0 to"
            f" {vocabulary - 1}"
        )
    if any(bool((part > 1e-3).any() or part.isnan().any()) for part in one.rows[1:]):
        raise UserError(f"distributions over a response of {one.record_id!r} are no log-probabilities (NaN or > 0)")


def plain_bytes(part: Tensor, dtype: str) -> bytes:
    """Numbers as they lie on disk; what float16 cannot hold becomes -inf, as the log of a probability of zero."""
    numbers = part.detach().cpu()
    numbers = numbers if dtype == "<i4" else numbers.double().clamp_max(0.0)
    with np.errstate(over="ignore"):
        return numbers.numpy().astype(dtype).tobytes()
