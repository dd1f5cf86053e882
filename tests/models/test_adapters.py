"""LoRA adapters: the merged model is peft's, nothing is ignored silently, content and not place is identity."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.experiment.runs import one_cell, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import canonical_json
from tinyllm_bench.experiment.predict import Engines, StudentEvaluator
from tinyllm_bench.leaderboard.public import machine_paths, public_text
from tinyllm_bench.leaderboard.record import load_record
from tinyllm_bench.models.adapters import ADAPTER_WEIGHTS
from tinyllm_bench.models.files import ADAPTER_CONFIG as CONFIG
from tinyllm_bench.models.identity import model_identity
from tinyllm_bench.models.load import Loaded, check_spec, load_model, save_model, weights_digest
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teachers.teacher import _why_not_vllm, live_key
from tinyllm_bench.testing import tiny_models

IDS = torch.arange(2, 40).reshape(2, 19)


def spec(text: str) -> ModelSpec:
    return parse_spec(text, role="teacher")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def adapter(folder: Path, base: Any, *, seed: int = 1, **settings: Any) -> Any:
    """A trained-looking adapter of a model, saved by peft; returns peft's own, unmerged model."""
    from peft import LoraConfig, get_peft_model

    options = {"r": 4, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        wrapped: Any = get_peft_model(base, LoraConfig(**options))
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped.eval()


@pytest.fixture
def base(tiny_llama: Any, tmp_path: Path) -> Path:
    return tiny_models.saved(tiny_llama, tmp_path / "base")


@pytest.fixture
def lora(tiny_llama: Any, tmp_path: Path) -> Path:
    adapter(tmp_path / "lora", tiny_llama[0])
    return tmp_path / "lora"


def changed(folder: Path, **settings: Any) -> None:
    result = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**result, **settings}))


# --- the model ---


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": "all-linear", "lora_alpha": 3, "use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"up_proj": 2}, "bias": "all", "modules_to_save": ["norm"]},
    ],
)
def test_the_merged_model_computes_what_peft_s_own_does(base: Path, tmp_path: Path, settings: dict) -> None:
    unmerged = adapter(tmp_path / "lora", tiny_models.tiny_llama()[0], **settings)
    loaded = load_model(spec(f"dir:{base}?adapter={tmp_path / 'lora'}"))
    assert type(loaded.model).__name__ == "LlamaForCausalLM" and not hasattr(loaded.model, "peft_config")
    assert not any("lora" in name for name in loaded.model.state_dict())
    torch.testing.assert_close(logits(loaded.model), logits(unmerged), atol=1e-5, rtol=1e-5)
    assert (logits(loaded.model) - logits(tiny_models.tiny_llama()[0])).abs().max() > 0.1


def test_an_encoder_decoder_takes_one_too(tiny_t5: Any, tmp_path: Path) -> None:
    folder = tiny_models.saved(tiny_t5, tmp_path / "t5")
    unmerged = adapter(tmp_path / "lora", tiny_t5[0], target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    merged = load_model(spec(f"dir:{folder}?adapter={tmp_path / 'lora'}")).model
    with torch.no_grad():
        ours, theirs = (m(IDS, decoder_input_ids=IDS[:, :4]).logits for m in (merged, unmerged))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    loaded = load_model(spec(f"dir:{folder}?adapter={tmp_path / 'lora'}"))
    assert loaded.model.config.to_dict() == load_model(spec(f"dir:{folder}")).model.config.to_dict()
    save_model(loaded, tmp_path / "merged")
    assert weights_digest(load_model(spec(f"dir:{tmp_path / 'merged'}")).model) == weights_digest(merged)


def test_student_and_teacher_get_each_their_own_adapter(base: Path, tmp_path: Path) -> None:
    expected = {}
    for seed, name in enumerate(("student", "teacher"), 1):
        expected[name] = logits(adapter(tmp_path / name, tiny_models.tiny_llama()[0], seed=seed))
    result = {
        role: logits(load_model(parse_spec(f"dir:{base}?adapter={tmp_path / role}", role=role)).model)
        for role in ("student", "teacher")
    }
    for role in result:
        torch.testing.assert_close(result[role], expected[role], atol=1e-5, rtol=1e-5)
    assert (result["student"] - result["teacher"]).abs().max() > 0.1


def test_layers_are_kept_first_and_the_adapter_is_of_what_is_left(base: Path, tmp_path: Path, lora: Path) -> None:
    cut = load_model(spec(f"dir:{base}?layers=1:2:1")).model
    unmerged = adapter(tmp_path / "cut", cut)
    both = load_model(spec(f"dir:{base}?layers=1:2:1&adapter={tmp_path / 'cut'}")).model
    assert both.config.num_hidden_layers == 1
    torch.testing.assert_close(logits(both), logits(unmerged), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"4 tensors of the adapter fit no module.*layers\.1\..*and layers"):
        load_model(spec(f"dir:{base}?layers=1:2:1&adapter={lora}"))


def test_the_merged_model_is_an_ordinary_one(base: Path, tmp_path: Path, lora: Path) -> None:
    from peft import LoraConfig, get_peft_model

    before = torch.random.get_rng_state()
    loaded = load_model(spec(f"dir:{base}?adapter={lora}"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    save_model(Loaded(*loaded), tmp_path / "merged")
    again = load_model(spec(f"dir:{tmp_path / 'merged'}"))
    assert weights_digest(again.model) == weights_digest(loaded.model)
    assert weights_digest(load_model(spec(f"dir:{base}?adapter={lora}")).model) == weights_digest(loaded.model)
    get_peft_model(loaded.model, LoraConfig(target_modules="all-linear"))  # a student may be trained with LoRA again


def test_the_dtype_is_the_asked_one(base: Path, lora: Path) -> None:
    model = load_model(spec(f"dir:{base}?adapter={lora}"), dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    exact = load_model(spec(f"dir:{base}?adapter={lora}")).model
    assert (logits(model).float() - logits(exact)).abs().max() < 0.5


def test_the_base_that_the_adapter_names_is_information_only(base: Path, lora: Path) -> None:
    before = weights_digest(load_model(spec(f"dir:{base}?adapter={lora}")).model)
    changed(lora, base_model_name_or_path="no/such-model", revision="nowhere")
    assert weights_digest(load_model(spec(f"dir:{base}?adapter={lora}")).model) == before


@pytest.mark.slow
def test_each_role_s_own_adapter_is_honoured_through_the_pipeline(base: Path, tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("student", "teacher", "other")}
    for seed, folder in enumerate(folders.values(), 1):
        adapter(folder, tiny_models.tiny_llama()[0], seed=seed)
    named = f"student.model=dir:{base}?adapter={folders['student']}", "teacher.init=null"
    teachers = {name: f"teacher.model=dir:{base}?adapter={folder}" for name, folder in folders.items()}
    with pytest.raises(UserError, match="teacher and student are the same weights"):
        one_cell(base, *named, teachers["student"], method="kd")
    cells = [one_cell(base, *named, teachers[name], method="kd") for name in ("teacher", "other")]
    assert len({cell.run_id for cell in cells}) == 2
    runs = tmp_path / "runs"
    records = [load_record(outcome.folder) for outcome in run_all(cells, runs)]
    adapted = load_model(spec(f"dir:{base}?adapter={folders['student']}")).model
    students = [record.student for record in records if record.student is not None]
    assert [student.initial_digest for student in students] == [weights_digest(adapted)] * 2
    assert len({student.digest for student in students}) == 2, "two teachers' adapters teach two things"
    assert not any(list(machine_paths(record.model_dump(mode="json"))) for record in records)
    assert [record.teachers[0].spec for record in records] == ["dir:base?adapter=teacher", "dir:base?adapter=other"]


# --- where a plain folder is handed on ---


def test_vllm_is_given_no_base_model_in_the_place_of_the_adapted_one(base: Path, lora: Path, tmp_path: Path) -> None:
    place: Any = SimpleNamespace(runs=tmp_path)
    for text in (f"dir:{base}?adapter={lora}", f"hf:someone/model?adapter={lora}"):
        assert _why_not_vllm(spec(text), place, installed=True) == "is not a whole model folder"
    assert _why_not_vllm(spec(f"dir:{base}"), place, installed=True) is None


def test_an_adapted_student_is_saved_for_vllm(base: Path, lora: Path, tmp_path: Path) -> None:
    cell: Any = SimpleNamespace(runs=tmp_path)
    adapted = spec(f"dir:{base}?adapter={lora}")
    evaluator = StudentEvaluator(cell, adapted, Engines(), tmp_path / "scratch")
    evaluator.__dict__["loaded"] = load_model(adapted)
    assert evaluator._folder() == tmp_path / "scratch"
    found = load_model(spec(f"dir:{tmp_path / 'scratch'}")).model
    assert weights_digest(found) == weights_digest(evaluator.loaded.model)
    assert StudentEvaluator(cell, spec(f"dir:{base}"), Engines(), tmp_path / "none")._folder() == base


def test_one_model_with_two_adapters_is_two_teachers() -> None:
    keys = [live_key(spec(f"bundled:smollm2-135m{more}")) for more in ("", "?adapter=runs/Law", "?adapter=runs/med/")]
    assert keys == ["smollm2-135m", "smollm2-135m-law", "smollm2-135m-med"]


# --- what does not fit ---


def refused(text: str) -> str:
    with pytest.raises(UserError) as error:
        load_model(spec(text))
    assert "\n" not in str(error.value) and text in str(error.value)
    return str(error.value)


def renamed(folder: Path, old: str, new: str, *, layer: str = "") -> None:
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    save_file(
        {name.replace(old, new) if layer in name else name: tensor for name, tensor in tensors.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )


def test_peft_itself_takes_an_adapter_without_a_fitting_tensor(base: Path, lora: Path) -> None:
    """Why the fit is checked: peft gives the unchanged model, and no more than a warning."""
    from peft import PeftModel

    renamed(lora, "model.layers", "decoder.blocks")
    plain = load_model(spec(f"dir:{base}")).model
    before = logits(plain)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        ignored = PeftModel.from_pretrained(plain, lora)
    assert torch.equal(logits(ignored), before)
    message = refused(f"dir:{base}?adapter={lora}")
    assert "8 tensors of the adapter fit no module" in message and "decoder.blocks" in message


def test_one_tensor_that_does_not_fit_is_enough(base: Path, lora: Path) -> None:
    renamed(lora, "q_proj", "qq_proj", layer="layers.1.")
    assert "2 tensors of the adapter fit no module" in refused(f"dir:{base}?adapter={lora}")


def test_a_module_without_its_tensors_is_refused(base: Path, lora: Path) -> None:
    tensors = {name: tensor for name, tensor in load_file(lora / ADAPTER_WEIGHTS).items() if "layers.1.mlp" not in name}
    save_file(tensors, lora / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    assert "is missing 2 tensors for modules" in refused(f"dir:{base}?adapter={lora}")


def test_modules_that_the_model_does_not_have_are_refused(base: Path, lora: Path) -> None:
    changed(lora, target_modules=["query"])
    assert "cannot be merged into this model: Target modules" in refused(f"dir:{base}?adapter={lora}")


def test_another_width_is_refused(base: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "wide", tiny_models.tiny_llama(intermediate_size=192)[0])
    assert "size mismatch" in refused(f"dir:{base}?adapter={tmp_path / 'wide'}")


def test_more_layers_are_refused(base: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "deep", tiny_models.tiny_llama(num_hidden_layers=3)[0])
    assert "4 tensors of the adapter fit no module" in refused(f"dir:{base}?adapter={tmp_path / 'deep'}")


def test_weights_that_are_no_numbers_are_refused(base: Path, lora: Path) -> None:
    tensors = load_file(lora / ADAPTER_WEIGHTS)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, lora / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    assert "NaNs" in refused(f"dir:{base}?adapter={lora}")


@pytest.mark.parametrize("settings", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
@pytest.mark.filterwarnings("ignore:Model")
def test_a_table_that_is_also_the_head_cannot_be_changed_alone(base: Path, tmp_path: Path, settings: dict) -> None:
    adapter(tmp_path / "head", tiny_models.tiny_llama()[0], **settings)
    assert "shares its weight with another module" in refused(f"dir:{base}?adapter={tmp_path / 'head'}")
    pair = tiny_models.tiny_llama(tie_word_embeddings=False)
    untied = tiny_models.saved(pair, tmp_path / "untied")
    unmerged = adapter(tmp_path / "free", pair[0], **settings)
    merged = load_model(spec(f"dir:{untied}?adapter={tmp_path / 'free'}")).model
    torch.testing.assert_close(logits(merged), logits(unmerged), atol=1e-5, rtol=1e-5)


# --- refusals, before anything is loaded ---


def refusal(text: str) -> str:
    with pytest.raises(UserError) as error:
        check_spec(spec(text))
    assert "\n" not in str(error.value) and text in str(error.value)
    with pytest.raises(UserError):
        load_model(spec(text))
    return str(error.value)


def test_a_missing_folder_is_named(base: Path, tmp_path: Path) -> None:
    assert f"no such adapter folder: {tmp_path}/none" in refusal(f"dir:{base}?adapter={tmp_path}/none")


def test_a_whole_model_is_no_adapter_and_an_adapter_no_model(base: Path, lora: Path) -> None:
    assert f"no {CONFIG}; it is a whole model: write dir:{base}" in refusal(f"dir:{base}?adapter={base}")
    assert f"is an adapter; name its base model first: BASE?adapter={lora}" in refusal(f"dir:{lora}")


def test_a_folder_without_config_is_refused(base: Path, lora: Path) -> None:
    (lora / CONFIG).unlink()
    assert f"has no {CONFIG}; give the folder" in refusal(f"dir:{base}?adapter={lora}")


def test_a_damaged_config_is_refused(base: Path, lora: Path) -> None:
    for text in ("{", "[]"):
        (lora / CONFIG).write_text(text)
        assert "is damaged" in refusal(f"dir:{base}?adapter={lora}")


def test_pickled_weights_are_refused_with_the_reason(base: Path, lora: Path) -> None:
    (lora / ADAPTER_WEIGHTS).rename(lora / "adapter_model.bin")
    message = refusal(f"dir:{base}?adapter={lora}")
    assert "can run code when they are read; safetensors only" in message


def test_missing_and_truncated_weights_are_refused(base: Path, lora: Path) -> None:
    weights = lora / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in refusal(f"dir:{base}?adapter={lora}")
    weights.unlink()
    assert f"has no {ADAPTER_WEIGHTS}" in refusal(f"dir:{base}?adapter={lora}")


def test_what_is_not_lora_or_cannot_be_merged_is_refused(base: Path, lora: Path) -> None:
    changed(lora, layer_replication=[[0, 2], [1, 2]])
    assert "layer_replication=[[0, 2], [1, 2]] and cannot be merged" in refusal(f"dir:{base}?adapter={lora}")
    changed(lora, layer_replication=None, alora_invocation_tokens=[5])
    assert "alora_invocation_tokens=[5] and cannot be merged" in refusal(f"dir:{base}?adapter={lora}")
    changed(lora, peft_type="IA3")
    assert "of type 'IA3'; allowed: LORA" in refusal(f"dir:{base}?adapter={lora}")


# --- identity ---


def test_identity_is_the_adapter_s_content_and_not_its_place(base: Path, lora: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = model_identity(spec(f"dir:{base}?adapter={lora}"), runs)
    copy = shutil.copytree(lora, tmp_path / "elsewhere" / "copy")
    moved = shutil.copytree(base, tmp_path / "elsewhere" / "base")
    changed(copy, base_model_name_or_path="/some/other/place")
    assert model_identity(spec(f"dir:{moved}?adapter={copy}"), runs) == first
    assert first["base"] == model_identity(spec(f"dir:{base}"), runs) != first
    assert str(tmp_path) not in canonical_json(first)

    changed(copy, lora_alpha=99)
    assert model_identity(spec(f"dir:{base}?adapter={copy}"), runs) != first
    adapter(tmp_path / "other", tiny_models.tiny_llama()[0], seed=2)
    assert model_identity(spec(f"dir:{base}?adapter={tmp_path / 'other'}"), runs) != first
    cut = model_identity(spec(f"dir:{base}?layers=0:1:1&adapter={lora}"), runs)
    assert cut != first and cut["adapter"] == first["adapter"]


@pytest.mark.parametrize("start", ["hf:someone/model@main", "run:4f1c09", "gguf:{gguf}"])
def test_no_place_enters_identity_or_a_published_spec(start: str, lora: Path, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    start = start.format(gguf=tmp_path / "x.gguf")
    result = model_identity(spec(f"{start}?layers=0:2:1&adapter={lora}"), tmp_path)
    assert str(tmp_path) not in canonical_json(result)
    assert result["base"] == model_identity(spec(f"{start}?layers=0:2:1"), tmp_path)
    assert str(tmp_path) not in public_text(spec(f"{start}?adapter={lora}").text)


def test_identity_of_a_missing_adapter_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such adapter folder"):
        model_identity(spec(f"hf:someone/model?adapter={tmp_path}/none"), tmp_path)
