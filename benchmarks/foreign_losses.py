"""Losses of other libraries in the calling convention of the conformance kit.

`tinyllm-bench conformance --against benchmarks.foreign_losses:NAME` in the checkout, NAME one of:

- `trl`: TRL's GKD loss, `GKDTrainer.generalized_jsd_loss` (WHY was written for 1.16.0);
- `liger`: liger-kernel's chunked JSD, `LigerFusedLinearJSDLoss`, with an identity head for its logits (0.8.5);
- `huggingface`: transformers' causal language model loss, the cross-entropy of most trainers.

This project needs neither TRL nor liger-kernel; install them beside it (`pip install --target`) to try. Each function
gets what its signature takes, and nothing is corrected. What it has no argument for is `not offered`, except that the
padded rows of a vocabulary are passed as a model gives them. `WHY` explains each disagreement.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Options = Mapping[str, Any]
_ENDS = {"forward_kl": 0.0, "reverse_kl": 1.0}  # both libraries take beta 0 and 1 as the plain divergences
_ROWS = "takes no vocabulary size: rows without a token get probability and change the gradients of the others"
_NAN = "log-probabilities of -inf are subtracted from each other, which is NaN; nothing masks them"

WHY: dict[str, dict[str, str]] = {
    "trl": {
        "vocabulary_padding": _ROWS,
        "vocabulary_padding_reverse": _ROWS,
        "vocabulary_sizes_differ": "tensors of two vocabulary sizes are subtracted, which raises",
        "vocabulary_sizes_differ_reverse": "tensors of two vocabulary sizes are subtracted, which raises",
        "impossible_forward_kl": _NAN,
        "impossible_reverse_kl": _NAN,
        "impossible_jsd": _NAN,
    },
    "liger": {
        "accumulation": "divides by the tokens of its own micro-batch; there is no argument for those of all",
        "accumulation_reverse": "divides by the tokens of its own micro-batch; there is no argument for those of all",
        "vocabulary_padding": _ROWS,
        "vocabulary_padding_reverse": _ROWS,
        "vocabulary_sizes_differ": "pads the student's missing rows with logit 0, which is a probability and not none",
        "vocabulary_sizes_differ_reverse": "pads the student only: a student with more rows than the teacher raises",
        "impossible_forward_kl": _NAN,
        "impossible_reverse_kl": _NAN,
        "impossible_jsd": _NAN,
    },
    "huggingface": {},
}


def trl(
    kind: str, student_logits: Tensor | None, teacher_logits: Tensor | None, mask: Tensor | None, options: Options
) -> Tensor:
    """TRL's `generalized_jsd_loss`."""
    from trl.experimental.gkd import GKDTrainer

    beta = _beta(kind, mask, options)
    assert mask is not None
    return GKDTrainer.generalized_jsd_loss(
        student_logits,
        teacher_logits,
        labels=torch.where(mask, 0, -100),
        beta=beta,
        temperature=options.get("temperature", 1.0),
        num_items_in_batch=options["tokens"],
    )


def liger(
    kind: str, student_logits: Tensor | None, teacher_logits: Tensor | None, mask: Tensor | None, options: Options
) -> Tensor:
    """liger-kernel's `LigerFusedLinearJSDLoss`, soft loss alone."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    beta = _beta(kind, mask, options)
    assert student_logits is not None and teacher_logits is not None and mask is not None
    tau = options.get("temperature", 1.0)
    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, temperature=tau, compiled=False, chunk_size=2
    )
    student_NV, teacher_NV = student_logits.flatten(0, 1), teacher_logits.flatten(0, 1)
    heads = [torch.eye(logits.shape[-1], dtype=logits.dtype) for logits in (student_NV, teacher_NV)]
    return loss(student_NV, heads[0], teacher_NV, heads[1], torch.where(mask, 0, -100).flatten())


def huggingface(
    kind: str, student_logits: Tensor | None, teacher_logits: Tensor | None, mask: Tensor | None, options: Options
) -> Tensor:
    """transformers' `ForCausalLMLoss`, which shifts by itself; labels are the ids, with -100 outside the response."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    if kind != "cross_entropy":
        raise NotImplementedError("only cross-entropy")
    assert student_logits is not None
    labels = torch.tensor(options["input_ids"])
    for row, start, end in zip(labels, options["prompt_lengths"], options["lengths"], strict=True):
        row[:start] = -100
        row[end:] = -100
    tokens = torch.tensor(options["tokens"])
    return ForCausalLMLoss(student_logits, labels, student_logits.shape[-1], num_items_in_batch=tokens)


def _beta(kind: str, mask: Tensor | None, options: Options) -> float:
    if kind not in (*_ENDS, "jsd"):
        raise NotImplementedError(f"no {kind}")
    if mask is None:
        raise NotImplementedError("the shift is done by its trainer, not by its loss")
    for name in ("top_k", "temperature_squared", "normalize"):
        if options.get(name):
            raise NotImplementedError(f"no {name}")
    return _ENDS.get(kind, options.get("beta", 0.5))
