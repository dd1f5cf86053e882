"""An in-memory transformers model as an lm-eval LM, decoder-only or T5.

lm-eval's `HFLM` is used as it is, except where it would change the model or the question without saying so: it ties
weights of a model handed over, cuts prompts that are too long, adds the encoder's length to the number of tokens a T5
may write, and never stops a T5 at a stop text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tinyllm_bench.training.layout import LayoutChoice


def hf_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    device: str,
    add_bos: bool | None = None,
    layout: LayoutChoice = "auto",
    cut_tokens: int | None = None,
) -> LM:
    """Wrap a model for lm-eval; it is moved to `device`, otherwise unchanged (mode, weights, embedding size).

    `add_bos`: None = the tokenizer decides by itself; True = the BOS token leads every prompt; False = no special token
    is added to a prompt. `layout`: whether the options of a question are scored as branches of one sequence.
    `cut_tokens` cuts every prompt of a generation behind so many. The result has `finished`, a mapping prompt ->
    `Finish`, and `layout`, what was chosen and why.

    Raises:
        UserError: `add_bos` without a BOS token; later, from scoring: a prompt longer than the model's limit.
    """
    from tinyllm_bench.evaluation.memory_lm import InMemoryLM

    if add_bos and tokenizer.bos_token is None:
        raise UserError("add_bos=True, but the tokenizer has no BOS token; allowed here: add_bos=None or False")
    model.to(device)  # type: ignore[arg-type]
    with _untouched(model):
        return InMemoryLM(model, tokenizer, batch_size, add_bos, layout, cut_tokens)


def lm_eval_ids(lm: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The token ids with which lm-eval scores a continuation: (context ids, continuation ids)."""
    return lm._encode_pair(context, continuation)


@contextmanager
def _untouched(model: Any) -> Iterator[None]:
    """Keep weights (HFLM ties them, which would overwrite a T5's own output head), mode and log as they are."""
    mode, logger = model.training, logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of any model in memory
    model.tie_weights = lambda *_, **__: None
    try:
        yield
    finally:
        del model.tie_weights
        model.train(mode)
        logger.setLevel(level)


def check_length(name: str, tokens: int, limit: int) -> None:
    """Refuse a prompt that the model cannot read whole; lm-eval would cut its beginning off."""
    if tokens > limit:
        raise UserError(
            f"{name}: {tokens} tokens (prompt and answer) are more than the model's limit of {limit}; nothing but the "
            "context is ever cut: lower data.max_context_words or the number of shots, or take a model that reads more"
        )


def names_of(requests: Sequence[Any]) -> list[str]:
    """What to call each lm-eval request in an error: the record's id, else the prompt's last words."""
    return [str((request.doc or {}).get("id") or f"…{request.args[0][-60:]!r}") for request in requests]
