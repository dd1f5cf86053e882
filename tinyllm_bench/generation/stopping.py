"""Where a generated text ends: end tokens, and stop texts that may take several tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The token ids that end a text of this model."""
    said = getattr(model.generation_config, "eos_token_id", None)
    ends = set(said) if isinstance(said, list) else {said}
    return {token for token in ends | {tokenizer.eos_token_id} if token is not None}


def trim(ids: Sequence[int], ends: set[int]) -> tuple[list[int], bool]:
    """New tokens before the first end token, and whether there was one."""
    for position, token in enumerate(ids):
        if token in ends:
            return list(ids[:position]), True
    return list(ids), False


def cut_at_stop(tokenizer: Any, ids: list[int], stops: Sequence[str]) -> int | None:
    """How many tokens it took until a stop text was complete; None if none is there."""
    text = tokenizer.decode(ids)
    if not any(stop in text for stop in stops):
        return None
    return next(n for n in range(1, len(ids) + 1) if any(stop in tokenizer.decode(ids[:n]) for stop in stops))


class StopTexts(StoppingCriteria):
    """Ends each row of a batch at its own first stop text.

    lm-eval's criterion ends a batch only when every row has written the same stop text, so that one row that ends with
    its end token makes all the others run to the limit.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], start: int) -> None:
        self._tokenizer, self._stops, self._start = tokenizer, stops, start
        # a token holds a byte or more, so this many reach back over a stop text however it is split
        self._reach = max(len(stop.encode()) for stop in stops) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows are done: bool, (batch,)."""
        tails = self._tokenizer.batch_decode(input_ids[:, self._start :][:, -self._reach :])
        done = [any(stop in tail for stop in self._stops) for tail in tails]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def stop_criteria(tokenizer: Any, stops: Sequence[str], start: int) -> Any:
    """`generate`'s `stopping_criteria` for stop texts; `start` is the position of the first new token."""
    texts = [stop for stop in stops if stop]
    return StoppingCriteriaList([StopTexts(tokenizer, texts, start)] if texts else [])
