"""A model without its weights: what can be known of it before anything large is read."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.load import RUNS, Loaded, check_spec, location_of, quiet, readable, set_pad
from tinyllm_bench.models.specs import ModelSpec


def load_skeleton(spec: ModelSpec, *, runs: Path = RUNS) -> Loaded:
    """A model without its weights, on torch's meta device: its configuration, shapes and tokenizer.

    It tells what `load_model` would make of the same spec (layers, parameters, special tokens, limits) in about a
    second and can compute nothing. Adapters are left out. Of a hub model, its small files are fetched.

    Raises:
        UserError: as `load_model`, but for what only the weights can tell.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

    if spec.kind in ("api", "replay"):
        raise UserError(f"{spec.text} has no weights to load; name a model with hf:, dir:, gguf:, bundled: or run:")
    check_spec(spec, runs=runs)
    name, where = location_of(spec, runs)
    with quiet(), readable(spec):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        family: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            model = family.from_config(config)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
        with suppress(OSError):  # a model without the file takes what its configuration says
            model.generation_config = GenerationConfig.from_pretrained(name, **where)
    set_pad(spec, model, tokenizer)
    if spec.layers is not None:
        from tinyllm_bench.models.layers import keep_layers

        keep_layers(model, spec.layers)
    return Loaded(model.eval(), tokenizer)
