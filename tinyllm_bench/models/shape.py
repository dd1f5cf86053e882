"""A model without its weights: what can be known of it before anything large is read."""

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.load import RUNS, Loaded, check_spec, family_of, opened, quiet, readable, settle
from tinyllm_bench.models.specs import ModelSpec


def load_shape(spec: ModelSpec, *, dtype: str = "float32", runs: Path = RUNS) -> Loaded:
    """A model on torch's meta device: its configuration, shapes and tokenizer; parameters have a size and no value.

    It tells what `load_model` would make of the same spec (layers, parameters, special tokens, limits) in about a
    second and can compute nothing. Adapters are left out. Of a hub model, its small files are fetched.

    Raises:
        UserError: as `load_model`, as far as it can be told without the weights.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    if not spec.has_weights:
        raise UserError(f"{spec.text} has no weights to load; name a model with hf:, dir:, gguf:, bundled: or run:")
    check_spec(spec, runs=runs)
    with opened(spec, runs, weights=False) as (name, where), quiet(), readable(spec):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
        with torch.device("meta"):
            model = family_of(config).from_config(config, dtype=getattr(torch, dtype))
            if not getattr(config, "scale_decoder_outputs", True):  # a T5 whose head is a table of its own
                model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        with suppress(OSError):  # a model without the file takes what its configuration says
            model.generation_config = GenerationConfig.from_pretrained(name, **where)
        settle(spec, model, tokenizer)
    return Loaded(model.eval(), tokenizer)


def check_targets(spec: ModelSpec, targets: str | Sequence[str], *, runs: Path = RUNS) -> None:
    """Refuse names of modules for LoRA that a model does not have, as peft looks for them; a text is an expression.

    A model that cannot be had now is looked at when it is loaded.

    Raises:
        UserError: a name or expression that no linear or embedding module has.
    """
    if targets == "all-linear":
        return
    try:
        modules = _adaptable(spec, runs)
    except UserError:
        return
    if not targets:
        raise UserError('student.lora.target_modules=[]: name at least one module, or write "all-linear"')
    for target in [targets] if isinstance(targets, str) else targets:
        try:
            whole = isinstance(targets, str)
            found = [n for n in modules if (re.fullmatch(target, n) if whole else f".{n}".endswith(f".{target}"))]
        except re.error as error:
            raise UserError(f"student.lora.target_modules={target!r} is no regular expression: {error}") from None
        if not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in modules}))
            raise UserError(f"student.lora.target_modules: {spec.text} has no module {target!r}; it has {known}")


@lru_cache(maxsize=16)
def _adaptable(spec: ModelSpec, runs: Path) -> tuple[str, ...]:
    """Names of the modules that peft can adapt."""
    import torch
    from transformers.pytorch_utils import Conv1D

    model = load_shape(spec, runs=runs).model
    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    return tuple(name for name, module in model.named_modules() if isinstance(module, kinds))
