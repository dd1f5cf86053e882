"""What of a model folder is read: only what was looked at before, and all of it is in the identity."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.experiment.runs import one_cell, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.files import model_files
from tinyllm_bench.models.identity import model_identity
from tinyllm_bench.models.load import check_spec, load_model, load_shape, weights_digest
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.testing.tiny_models import saved, tiny_llama


def spec(folder: Path) -> ModelSpec:
    return parse_spec(f"dir:{folder}", role="student")


def refusal(folder: Path) -> str:
    messages = []
    for opened in (check_spec, load_model, load_shape, lambda one: model_identity(one, folder)):
        with pytest.raises(UserError) as refused:
            opened(spec(folder))
        messages.append(str(refused.value))
    assert len(set(messages)) == 1 and "\n" not in messages[0]
    return messages[0]


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


class Opened:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.fixture
def folder(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama_dir, tmp_path / "model")


@pytest.fixture
def shards(tiny_llama: Any, tmp_path: Path) -> Path:
    model, tokenizer = tiny_llama
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    return tmp_path / "shards"


def named_in_index(folder: Path, name: str) -> None:
    """The index of a folder names another file for its first tensor."""
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"][min(index["weight_map"])] = name
    file.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name", ["pytorch_model-00001.bin", "../w.safetensors", "/w.safetensors", "sub/w.safetensors", ".."]
)
def test_an_index_names_safetensors_of_its_folder_and_nothing_else(shards: Path, tmp_path: Path, name: str) -> None:
    (shards / "sub").mkdir()
    for place in (shards, shards / "sub", tmp_path):
        torch.save({}, place / "pytorch_model-00001.bin")
        shutil.copy(next(shards.glob("*.safetensors")), place / "w.safetensors")
    named_in_index(shards, name)
    assert f"names {name!r}; allowed: *.safetensors of the same folder" in refusal(shards)


def test_no_pickle_is_opened_whatever_lies_in_the_folder(folder: Path, tmp_path: Path) -> None:
    before = model_identity(spec(folder), tmp_path)
    digest = weights_digest(load_model(spec(folder)).model)
    for name in ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(Opened(tmp_path / "opened")))
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))  # the one whole file counts
    assert weights_digest(load_model(spec(folder)).model) == digest
    assert model_identity(spec(folder), tmp_path) == before
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    + ["additional_chat_templates/tools.jinja", "added_tokens.json", "special_tokens_map.json", "merges.txt"],
)
def test_every_file_that_is_read_is_in_the_identity(folder: Path, tmp_path: Path, name: str) -> None:
    before = model_identity(spec(folder), tmp_path)
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text((file.read_text() if file.exists() else "{}") + " ")
    assert model_identity(spec(folder), tmp_path) != before


def test_other_weights_beside_a_model_s_own_change_nothing(folder: Path, tmp_path: Path) -> None:
    before = model_identity(spec(folder), tmp_path)
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert model_identity(spec(folder), tmp_path) == before
    assert "consolidated.safetensors" not in model_files("m", folder)


def test_shards_are_read_and_each_is_in_the_identity(shards: Path, tmp_path: Path) -> None:
    before = model_identity(spec(shards), tmp_path)
    assert {file.name for file in shards.glob("*.safetensors")} < set(before[1])
    assert weights_digest(load_model(spec(shards)).model) == weights_digest(tiny_llama()[0])


def test_a_model_with_an_adapter_in_it_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert "holds a model and an adapter" in refusal(folder)


def test_code_of_the_folder_or_of_the_hub_is_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass M: pass\n")
    mapped = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "modeling.M")
    changed(folder / "config.json", auto_map=mapped)
    changed(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling.M", None]})
    load_model(spec(folder))  # transformers knows the type itself
    changed(folder / "config.json", model_type="mine")
    assert "model type 'mine' needs code of its own (auto_map), which is never run" in refusal(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [{"attn_implementation": "me/kernel"}, {"text_config": {"_attn_implementation": "me/kernel"}}]
    + [{"attn_implementation": {"": "me/kernel"}}],
)
def test_a_configuration_that_names_code_of_the_hub_is_refused(folder: Path, value: dict[str, Any]) -> None:
    changed(folder / "config.json", **value)
    assert "names code of the hub" in refusal(folder)


def test_a_configuration_that_names_other_weights_is_refused(folder: Path) -> None:
    changed(folder / "config.json", transformers_weights="other.safetensors")
    assert "names other weights" in refusal(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_damaged_configuration_is_one_line(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert "config.json is damaged" in refusal(folder)


def test_a_gguf_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tinyllm_bench.models.load import pretrained_source

    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pretrained_source(parse_spec(f"gguf:{tmp_path}/x.gguf", role="student"), tmp_path) as (folder, where):
        assert [file.name for file in Path(folder).iterdir()] == ["x.gguf"] and where["gguf_file"] == "x.gguf"


def test_a_run_s_student_must_be_what_its_training_saved(folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (first,) = run_all([one_cell(folder, runs=runs)], runs)
    run = parse_spec(f"run:{first.folder.name}", role="student")
    check_spec(run, runs=runs)
    load_model(run, runs=runs)
    saved(tiny_llama(seed=7), first.folder / "student")
    for opened in (check_spec, load_model):
        with pytest.raises(UserError, match="is not what the training of this run saved"):
            opened(run, runs=runs)


# --- files that are damaged, endless or odd ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 10**5, "nested too deep"),
        ("[]", "no JSON object"),
        ('{"a": 1, "a": 2}', "appears twice"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ("\xff", "not UTF-8"),
    ],
)
def test_a_configuration_that_is_no_object_is_refused_with_the_reason(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert words in refusal(folder)


@pytest.mark.parametrize("count", [10**9, 0, -1, "2", None, 2.5, True, [2]])
def test_a_number_of_layers_that_no_model_has_is_refused_before_they_are_built(folder: Path, count: Any) -> None:
    changed(folder / "config.json", num_hidden_layers=count)
    assert f"num_hidden_layers={count}; allowed: 1 to 10,000" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"num_attention_heads": 7}),
        ("config.json", {"quantization_config": 3}),
        ("config.json", {"text_config": 3}),
        ("config.json", {"rope_scaling": {"rope_type": "nosuch"}}),
        ("generation_config.json", {"eos_token_id": [[1]]}),
        ("generation_config.json", {"pad_token_id": "x"}),
        ("tokenizer_config.json", {"pad_token": []}),
        ("tokenizer_config.json", {"eos_token": None}),
    ],
)
def test_a_value_that_transformers_cannot_use_is_one_line(folder: Path, name: str, values: dict[str, Any]) -> None:
    changed(folder / name, **values)
    try:
        load_model(spec(folder))
    except UserError as refused:
        assert "\n" not in str(refused)


def test_infinity_in_a_configuration_is_read(folder: Path) -> None:
    changed(folder / "config.json", time_step_limit=[0.0, float("inf")])
    assert "config.json" in model_files("here", folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "config.json"])
def test_a_file_beside_the_weights_that_fills_the_memory_is_refused(folder: Path, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.truncate(1 << 40)
    assert "MB" in refusal(folder) and name in refusal(folder)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer_config.json", "[" * 10**5),
        ("tokenizer_config.json", "[]"),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"type": "BPE", "vocab": 3, "merges": []}}'),
    ],
)
def test_whatever_transformers_raises_is_one_line(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)
    for opened in (load_model, load_shape):
        with pytest.raises(UserError, match="cannot be loaded: ") as refused:
            opened(spec(folder))
        assert "\n" not in str(refused.value)


def test_transformers_reports_nothing_of_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "\x1b[31mred": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(spec(folder))
    output = capsys.readouterr()
    assert "\x1b" not in output.out + output.err


def test_weights_that_do_not_fit_into_the_process_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError("Cannot allocate memory")

    monkeypatch.setattr("safetensors.safe_open", no_memory)
    with pytest.raises(UserError, match=r"model.safetensors holds .* GB, more than this process may map; raise") as one:
        check_spec(spec(folder))
    assert "\n" not in str(one.value)
