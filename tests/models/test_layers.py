"""`?layers=`: the result equals a model that was built from only the chosen layers."""

import pytest
import torch

from tests.models.test_load import greedy, logits, spec
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.load import load_model, save_model
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.testing.tiny_models import saved
from tinyllm_bench.testing.tiny_models import tiny_llama as make_llama
from tinyllm_bench.testing.tiny_models import tiny_t5 as make_t5

CHOSEN = (1, 4, 2)  # layers 1 and 3 of 5


def renamed(weights, prefix):
    """The state dict of a model with only the chosen layers of `prefix`."""
    kept = {f"{prefix}{old}.": f"{prefix}{new}." for new, old in enumerate(range(*CHOSEN))}
    result = {}
    for name, tensor in weights.items():
        if not name.startswith(prefix):
            result[name] = tensor
        for old, new in kept.items():
            if name.startswith(old):
                result[name.replace(old, new, 1)] = tensor
    return result


def check_same(loaded, expected, tokenizer, tmp_path):
    assert torch.equal(logits(loaded.model, tokenizer), logits(expected, tokenizer))
    assert greedy(*loaded) == greedy(expected, tokenizer)
    assert greedy(*loaded) == greedy(*loaded, use_cache=False)
    save_model(loaded, tmp_path / "saved")
    again = load_model(spec(f"dir:{tmp_path / 'saved'}"))
    assert torch.equal(logits(*again), logits(*loaded))
    assert greedy(*again) == greedy(*loaded)


def test_llama(tmp_path):
    whole, tokenizer = make_llama(num_hidden_layers=5)
    expected, _ = make_llama(num_hidden_layers=2)
    expected.load_state_dict(renamed(whole.state_dict(), "model.layers."))
    folder = saved((whole, tokenizer), tmp_path / "whole")
    loaded = load_model(spec(f"dir:{folder}?layers=1:4:2"))
    assert loaded.model.config.num_hidden_layers == 2
    check_same(loaded, expected, tokenizer, tmp_path)


def test_t5_keeps_the_relative_position_table_of_the_first_layer(tmp_path):
    whole, tokenizer = make_t5(num_layers=5, num_decoder_layers=5)
    expected, _ = make_t5()
    weights = whole.state_dict()
    for stack in ("encoder", "decoder"):
        table = weights[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        weights = renamed(weights, f"{stack}.block.")
        weights[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = table
    expected.load_state_dict(weights)
    folder = saved((whole, tokenizer), tmp_path / "whole")
    loaded = load_model(spec(f"dir:{folder}?layers=1:4:2"))
    assert (loaded.model.config.num_layers, loaded.model.config.num_decoder_layers) == (2, 2)
    check_same(loaded, expected, tokenizer, tmp_path)


def test_gemma_keeps_each_layers_kind_of_attention(tmp_path):
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    tokenizer = make_llama()[1]
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]

    def make(layer_types):
        config = Gemma3TextConfig(
            hidden_size=64,
            num_hidden_layers=len(layer_types),
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=128,
            vocab_size=384,
            sliding_window=4,
            initializer_range=0.2,
            layer_types=layer_types,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
        return Gemma3ForCausalLM(config).eval()

    whole, expected = make(kinds), make([kinds[0], kinds[2], kinds[4]])
    weights = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("model.layers.")}
    for new, old in enumerate((0, 2, 4)):
        start = f"model.layers.{old}."
        weights |= {
            f"model.layers.{new}.{name.removeprefix(start)}": tensor
            for name, tensor in whole.state_dict().items()
            if name.startswith(start)
        }
    expected.load_state_dict(weights)
    folder = saved((whole, tokenizer), tmp_path / "whole")
    loaded = load_model(spec(f"dir:{folder}?layers=0:5:2"))
    assert loaded.model.config.layer_types == [kinds[0], kinds[2], kinds[4]]
    check_same(loaded, expected, tokenizer, tmp_path)


def test_a_layer_that_the_model_lacks_is_refused(tiny_llama_dir, tiny_t5_dir):
    with pytest.raises(UserError, match="only 2 layers"):
        load_model(spec(f"dir:{tiny_llama_dir}?layers=0:3"))
    with pytest.raises(UserError, match="only 2 layers"):
        load_model(parse_spec(f"dir:{tiny_t5_dir}?layers=0:4:2", role="student"))
