"""Which layout a model can take: shared prompts where it computes the same with them, separate sequences elsewhere.

transformers hands a mask of four dimensions to a model unchecked, and a model that ignores it, or the positions, raises
no error; so a model is believed only after a comparison on a few random tokens.
"""

import random
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Collator
from tinyllm_bench.training.layout import MIN_SHARED, Layout, LayoutChoice

_MASKABLE = ("sdpa", "eager", "flex_attention")
# Largest difference of a logit, in parts of the largest logit: rounding of float32, and of 16 bits through many layers.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_COARSE = 3e-2


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
    kinds = getattr(config, "layer_types", None) or []
    if any(kind != "full_attention" for kind in kinds) or (not kinds and getattr(config, "sliding_window", None)):
        return f"model type {config.model_type!r} has layers that do not attend to the whole text"
    if config._attn_implementation not in _MASKABLE:
        return f"attention {config._attn_implementation!r} takes no mask of four dimensions"
    if not _same_logits(lm, collator):
        return f"model type {config.model_type!r} computes other values with a shared prompt than without"
    return None


def _dropout(model: nn.Module) -> float:
    """The largest dropout rate that training would use: of dropout layers, and of attention that drops by itself."""
    layers = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    attention = [float(getattr(module, "attention_dropout", 0.0) or 0.0) for module in model.modules()]
    return max([0.0, *layers, *attention])


def _probe(vocabulary: int) -> list[Encoded]:
    """Two levels of sharing: three examples of one context, two of which go on with the same words."""
    draw = random.Random(0)
    context, more, *ends = ([draw.randrange(vocabulary) for _ in range(n)] for n in (MIN_SHARED, 4, 5, 7, 6))
    prompts = sorted(([*context, *ends[0]], [*context, *more, *ends[1]], [*context, *more, *ends[2]]))
    return [Encoded("probe", "probe", tuple(ids[:-2]), tuple(ids[-2:]), False) for ids in prompts]


@torch.no_grad()
def _same_logits(lm: LM, collator: Collator) -> bool:
    was_training = lm.training
    lm.eval()
    plain: Any = lm.plain
    items = _probe(int(plain.config.get_text_config().vocab_size))
    found: list[Tensor] = []
    for layout in ("separate", "shared"):
        laid: Collator = replace(collator, layout=layout)
        batch = laid.collate(laid.rows(items)).to(next(lm.parameters()).device)
        found.append(lm(batch, lambda logits_NV, rows: logits_NV).float())
    lm.train(was_training)
    separate_NV, shared_NV = found
    limit = _TOLERANCE.get(plain.dtype, _COARSE) * float(separate_NV.abs().max())
    return bool((separate_NV - shared_NV).abs().max() <= limit)
