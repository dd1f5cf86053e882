"""Top-k distributions over a response: the most probable tokens at every position, and the mass of all others.

Shape suffixes: N response tokens, V vocabulary, K entries of the top k.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tinyllm_bench.base.files import digest

# A mass computed as 1 minus a sum cannot be distinguished from rounding below this.
_ROUNDING = 1e-6


class ResponseDistributions(NamedTuple):
    """Distributions at the tokens of one response, in nats; `tail_N` is -inf where nothing is left outside."""

    ids_NK: Tensor
    logp_NK: Tensor
    tail_N: Tensor
    gold_N: Tensor


class ScoredResponse(NamedTuple):
    """A response and the teacher's distributions over it; `prompt` and `response` are token ids."""

    record_id: str
    prompt: Sequence[int]
    response: Sequence[int]
    distributions: ResponseDistributions


def response_digest(prompt: Sequence[int], response: Sequence[int]) -> str:
    """Digest of a prompt's ids and of the response's ids that are scored."""
    return digest([list(map(int, prompt)), list(map(int, response))])


def top_k(logits_NV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k most probable ids, their log-probabilities (sorted downwards), and the log of the mass of all others.

    The tail is summed over the others themselves, in float32 at least: 1 minus the sum of the top k would lose it where
    it is small. It is -inf where nothing is left.
    """
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logp_NV = torch.log_softmax(logits_NV, dim=-1)
    logp_NK, ids_NK = logp_NV.topk(k, dim=-1)
    tail_N = logp_NV.scatter(-1, ids_NK, -math.inf).logsumexp(-1)
    return ids_NK, logp_NK, tail_N


def tail_of(logp_NK: Tensor) -> Tensor:
    """Log of the mass outside of the top k, where only these are known: log(1 - sum of their probabilities).

    -inf where they sum to 1 within a millionth: less than that cannot be distinguished from rounding.
    """
    logp_NK = logp_NK if logp_NK.dtype == torch.float64 else logp_NK.float()
    left_N = -torch.expm1(logp_NK.double().logsumexp(-1))
    return torch.where(left_N > _ROUNDING, left_N, 0.0).log().to(logp_NK.dtype)
