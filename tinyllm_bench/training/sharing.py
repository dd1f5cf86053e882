"""Which layout a model can take: shared prompts where it computes the same with them, separate sequences elsewhere.

transformers hands a mask of four dimensions to a model unchecked, and a model that ignores it, or the positions, raises
no error; so a model is believed only after a comparison on random tokens, of two questions in one row. A comparison
that fails says no: reading apart is always right. It is as long as what it must find: a layer that attends to the last
256 tokens alone is right on shorter texts.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Collator
from tinyllm_bench.training.layout import MIN_SHARED, Layout, LayoutChoice, side_by_side

_MASKABLE = ("sdpa", "eager", "flex_attention")
# Largest difference of a logit, in parts of the largest logit: rounding of float32, and of 16 bits through many layers.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_COARSE = 3e-2
_WHOLE = ("full_attention", "global")
# Settings by whose names models tell how far a layer attends, and the longest that is tried.
_WINDOW = re.compile(r"window|local|chunk_size|block_size|attention_span")
_LONGEST_TRIED = 4096


def choose_layout(lm: LM, collator: Collator, asked: LayoutChoice, *, training: bool) -> tuple[Layout, str | None]:
    """The layout to use, and why it is not `shared` where the model cannot take that.

    Raises:
        UserError: `shared` was asked for and cannot be had.
    """
    if asked == "separate":
        return "separate", "asked for"
    reason = why_separate(lm, collator, training=training)
    if reason is None:
        return "shared", None
    if asked == "shared":
        raise UserError(f"layout=shared: {reason}; use auto or separate")
    return "separate", reason


def why_separate(lm: LM, collator: Collator, *, training: bool) -> str | None:
    """Why this model must read every example as a sequence of its own; None if it may share prompts."""
    config: Any = lm.plain.config
    if training and (drop := _dropout(lm.plain)):
        return f"the student trains with dropout {drop:g}, which would be drawn once for all examples of a question"
    if lm.encoder_decoder:
        return None
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or []
    if any(kind not in _WHOLE for kind in kinds) or (not kinds and getattr(config, "sliding_window", None)):
        return f"model type {config.model_type!r} has layers that do not attend to the whole text"
    window = max(_windows(config), default=0)
    if window > _LONGEST_TRIED:
        return f"model type {config.model_type!r} may attend to {window} tokens at most, too many to try it"
    if config._attn_implementation not in _MASKABLE:
        return f"attention {config._attn_implementation!r} takes no mask of four dimensions"
    try:
        same = _same_logits(lm, collator, window)
    except Exception as error:  # whatever a model does with inputs that it does not know
        line = next(iter(str(error).strip().splitlines()), "")
        return f"model type {config.model_type!r} fails with a shared prompt ({type(error).__name__}: {line[:200]})"
    return None if same else f"model type {config.model_type!r} computes other values with a shared prompt than without"


def _windows(config: Any) -> Iterator[int]:
    """How far layers may attend, by every setting whose name speaks of it and that is below the longest text."""
    config = config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or _LONGEST_TRIED + 1
    for name, value in config.to_dict().items():
        sliding = name == "sliding_window"  # looked at before: no layer of these types has one
        if _WINDOW.search(name) and not sliding and type(value) is int and 1 < value < longest:
            yield value


def _dropout(model: nn.Module) -> float:
    """The largest dropout rate that training would use: of dropout layers, and of attention that drops by itself."""
    layers = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    attention = [getattr(module, "attention_dropout", 0.0) for module in model.modules()]  # a layer in some types
    return max([0.0, *layers, *(rate for rate in attention if isinstance(rate, float))])


def _probe(vocabulary: int, context_tokens: int, seed: int) -> list[Encoded]:
    """Two levels of sharing: three examples of one context, two of which go on with the same words."""
    draw = random.Random(seed)
    context, more, *ends = ([draw.randrange(vocabulary) for _ in range(n)] for n in (context_tokens, 4, 5, 7, 6))
    prompts = sorted(([*context, *ends[0]], [*context, *more, *ends[1]], [*context, *more, *ends[2]]))
    return [Encoded("probe", "probe", tuple(ids[:-2]), tuple(ids[-2:]), False) for ids in prompts]


@torch.no_grad()
def _same_logits(lm: LM, collator: Collator, window: int) -> bool:
    """Whether logits are the same with a question's prompt shared and another question in the same row."""
    was_training = lm.training
    lm.eval()
    plain: Any = lm.plain
    vocabulary = int(plain.config.get_text_config().vocab_size)
    questions = [_probe(vocabulary, size, seed) for seed, size in enumerate((MIN_SHARED + window, MIN_SHARED))]
    found: list[Tensor] = []
    try:
        for layout in ("separate", "shared"):
            laid: Collator = replace(collator, layout=layout)
            rows = [row for items in questions for row in laid.rows(items)]
            batch = laid.collate([side_by_side(rows)] if layout == "shared" else rows)
            found.append(lm(batch.to(next(lm.parameters()).device), lambda logits_NV, rows: logits_NV).float())
    finally:
        lm.train(was_training)
    separate_NV, shared_NV = found
    limit = _TOLERANCE.get(plain.dtype, _COARSE) * float(separate_NV.abs().max())
    return bool((separate_NV - shared_NV).abs().max() <= limit)
