"""From a model spec to weights and a tokenizer in memory, and back to a folder.

Weights are safetensors (or GGUF, dequantised); pickled weights and model code from a hub are refused. `load_shape` is a
model without its weights: what can be known of it before anything large is read.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import digest, read_json
from tinyllm_bench.models.adapters import apply_adapter, check_adapter
from tinyllm_bench.models.bundled import MANIFEST, bundled_folder, is_fetched
from tinyllm_bench.models.files import cached_file_digest, check_safetensors, linked_folder, model_files, read_object
from tinyllm_bench.models.hub import available_folder, check_listed, hub_config, hub_folder
from tinyllm_bench.models.specs import Layers, ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
DTYPES = ("float32", "bfloat16", "float16")
RUNS = Path("runs")
# T5 attends by relative distance and has no hard limit; this is what lm-eval assumes for such models.
RELATIVE_POSITIONS_LIMIT = 2048
_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # config lists with one entry per layer


class Loaded(NamedTuple):
    """A model in evaluation mode and its tokenizer; the tokenizer always has a pad token."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


# --- the files of a spec ----------------------------------------------------------------------------------------------


def spec_folder(spec: ModelSpec, *, runs: Path = RUNS) -> Path | None:
    """The folder that holds the weights of a `dir:`, `bundled:` or `run:` spec; None for the other kinds."""
    if spec.kind == "dir":
        return Path(spec.location).expanduser()
    if spec.kind == "bundled":
        return bundled_folder(spec.location)
    return runs / spec.location / "student" if spec.kind == "run" else None


def check_spec(spec: ModelSpec, *, runs: Path = RUNS) -> None:
    """Check that a model can be loaded, without loading it; reads small files and the headers of large ones.

    Raises:
        UserError: everything that `files.model_files` and `check_adapter` refuse; damaged safetensors; a bundled model
            that is not fetched; the student of a run that changed after its training; a hub model that is neither in
            the cache nor available from the hub.
    """
    if spec.adapter is not None:
        check_safetensors(spec.text, [check_adapter(spec)])
    if spec.kind == "gguf":
        _check_gguf(spec)
    elif spec.kind == "hf":
        folder = available_folder(spec)
        if folder is None:
            check_listed(spec)
        else:
            check_safetensors(spec.text, _weights(model_files(spec.text, folder)))
    elif spec_folder(spec, runs=runs) is not None:
        check_safetensors(spec.text, _weights(files_of(spec, runs=runs)))


def _weights(files: Mapping[str, Path]) -> list[Path]:
    return [file for name, file in files.items() if name.endswith(".safetensors")]


def _check_gguf(spec: ModelSpec) -> None:
    file = Path(spec.location).expanduser()
    if not file.is_file():
        raise UserError(f"{spec.text}: no such file: {file}; give the path of a .gguf file")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{spec.text}: {file} is not a GGUF file; give the path of a .gguf file")


def files_of(spec: ModelSpec, *, runs: Path = RUNS) -> dict[str, Path]:
    """Every file that loading a model reads, by its path in the model's folder, without adapters.

    Files of a hub model are in the local cache.

    Raises:
        UserError: as `check_spec`, except that weights are not opened; a hub model that is not in the cache.
    """
    if spec.kind == "gguf":
        _check_gguf(spec)
        file = Path(spec.location).expanduser()
        return {file.name: file}
    if spec.kind == "bundled" and not is_fetched(spec.location):
        raise UserError(f"{spec.text} is not in the cache; run: tinyllm-bench fetch {spec.location}")
    folder = hub_folder(spec, weights=True) if spec.kind == "hf" else spec_folder(spec, runs=runs)
    assert folder is not None
    files = model_files(spec.text, folder)
    if spec.kind == "bundled":  # without files that were added later
        fetched = read_json(folder / MANIFEST)["files"]
        return {name: file for name, file in files.items() if name in fetched}
    if spec.kind == "run":  # a run is identified by its id, so its student must be what its training saved
        result = folder.parent / "train" / "result.json"
        saved = read_json(result).get("student_files") if result.is_file() else None
        if saved is None or saved != {name: cached_file_digest(file) for name, file in files.items()}:
            raise UserError(
                f"{spec.text}: {folder} is not what the training of this run saved ({result} says);"
                f" name another model by its folder: dir:{folder}"
            )
    return files


def is_encoder_decoder(spec: ModelSpec, *, runs: Path = RUNS) -> bool:
    """Whether a model is an encoder-decoder; False if its configuration is not available."""
    if spec.kind == "hf":
        config = hub_config(spec)
    else:
        folder = spec_folder(spec, runs=runs)
        present = folder is not None and (folder / "config.json").is_file()
        config = read_object(spec.text, folder / "config.json") if folder is not None and present else None
    return config is not None and bool(config.get("is_encoder_decoder", False))


# --- loading ----------------------------------------------------------------------------------------------------------


def load_model(spec: ModelSpec, *, dtype: str = "float32", device: str = "cpu", runs: Path = RUNS) -> Loaded:
    """Load a decoder-only or encoder-decoder model and its tokenizer.

    The pad token is set to EOS if the tokenizer has none (see `pad_is_eos`), generation defaults are greedy,
    `?layers=` selects layers, and `?adapter=` is then merged into them.

    Raises:
        UserError: everything `check_spec` refuses; an API or recorded teacher, which has no weights; an unknown dtype;
            weights that do not fill the model; a layer that the model does not have; an adapter that does not fit.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, GgufConfig

    _check_has_weights(spec)
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    check_spec(spec, runs=runs)
    with pretrained_source(spec, runs) as (name, where), quiet(), user_errors(spec):
        family = family_of(AutoConfig.from_pretrained(name, trust_remote_code=False, **where))
        source: dict[str, Any] = (
            {"quantization_config": GgufConfig(dequantize=True)} if spec.kind == "gguf" else {"use_safetensors": True}
        )
        model, info = family.from_pretrained(
            name, dtype=getattr(torch, dtype), trust_remote_code=False, output_loading_info=True, **source, **where
        )
        if info["missing_keys"]:  # transformers would fill these with random numbers
            missing = sorted(info["missing_keys"])
            raise UserError(
                f"{spec.text}: the weights are missing {len(missing)} tensors, such as {missing[0]}; "
                "give a whole model; an adapter follows it: ?adapter=FOLDER"
            )
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config  # the weights are plain numbers now
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
        _prepare(spec, model, tokenizer)
    if spec.adapter is not None:
        model = apply_adapter(model, spec)
    module: Any = model
    return Loaded(module.to(device).eval(), tokenizer)


def _check_has_weights(spec: ModelSpec) -> None:
    if not spec.has_weights:
        raise UserError(f"{spec.text} has no weights to load; name a model with hf:, dir:, gguf:, bundled: or run:")


@contextmanager
def pretrained_source(spec: ModelSpec, runs: Path, *, weights: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """The arguments of `from_pretrained`: a folder with exactly the files that are read, and keyword arguments.

    Without `weights`, a hub model's small files only.

    Raises:
        UserError: as `files_of`.
    """
    if spec.kind == "hf" and not weights:
        files = model_files(spec.text, hub_folder(spec, weights=False), weights=False)
    else:
        files = files_of(spec, runs=runs)
    with linked_folder(files) as folder:
        yield (
            str(folder),
            {"local_files_only": True, **({"gguf_file": next(iter(files))} if spec.kind == "gguf" else {})},
        )


def family_of(config: Any) -> Any:
    """The transformers auto class for a model of this configuration: decoder-only, or T5-like."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _prepare(spec: ModelSpec, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Prepare a model that was just opened: pad token, greedy generation defaults, and the layers that its spec names.

    Raises:
        UserError: a tokenizer without an end-of-text token, or with more entries than the model has embeddings.
    """
    for owner in (model.config, tokenizer):
        owner.name_or_path = ""  # a temporary folder
    if tokenizer.eos_token_id is None:
        raise UserError(f"{spec.text}: its tokenizer has no end-of-text token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    if len(tokenizer) > rows:
        raise UserError(
            f"{spec.text}: its tokenizer has {len(tokenizer)} entries but the model only {rows} embedding rows; "
            "give the tokenizer that belongs to the model"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    _plain_generation(model, tokenizer)
    if spec.layers is not None:
        keep_layers(model, spec.layers)


def _plain_generation(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Keep the token ids of a model's generation defaults and drop its sampling settings.

    Texts end at the configuration's end tokens and at the tokenizer's, which is the one that students learn. Set here,
    both apply wherever the model generates: evaluation, rollouts, teachers, `generate` of a saved student.
    """
    from transformers import GenerationConfig

    old = model.generation_config
    own = getattr(old, "eos_token_id", None)
    ends = dict.fromkeys([tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])])
    eos = [token for token in ends if token is not None]
    bos = old.bos_token_id if old is not None else None
    start = getattr(model.config, "decoder_start_token_id", None)
    model.generation_config = GenerationConfig(
        eos_token_id=eos if len(eos) > 1 else eos[0],
        bos_token_id=bos,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=start,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports of transformers; this project shows its own."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def user_errors(spec: ModelSpec) -> Iterator[None]:
    """Turn exceptions of transformers about a model's files into one line for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # anybody's files can make transformers raise anything
        line = next(iter(str(error).strip().split("\n")), "")
        kind = "" if line and isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__} "
        raise UserError(f"{spec.text} cannot be loaded: {kind}{line}".strip()) from error


# --- without weights --------------------------------------------------------------------------------------------------


def load_shape(spec: ModelSpec, *, dtype: str = "float32", runs: Path = RUNS) -> Loaded:
    """A model on torch's meta device: configuration, shapes and tokenizer; parameters have a size and no value.

    It has the layers, parameters, special tokens and limits that `load_model` would give, in about a second, and
    cannot compute. Adapters are left out. Of a hub model, only the small files are fetched.

    Raises:
        UserError: as `load_model`, as far as it can be known without the weights.
    """
    import torch
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    _check_has_weights(spec)
    check_spec(spec, runs=runs)
    with pretrained_source(spec, runs, weights=False) as (name, where), quiet(), user_errors(spec):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
        with torch.device("meta"):
            model = family_of(config).from_config(config, dtype=getattr(torch, dtype))
            if not getattr(config, "scale_decoder_outputs", True):  # a T5 whose head is not tied
                model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
        with suppress(OSError):  # without the file, defaults come from the configuration
            model.generation_config = GenerationConfig.from_pretrained(name, **where)
        _prepare(spec, model, tokenizer)
    return Loaded(model.eval(), tokenizer)


def check_targets(spec: ModelSpec, targets: str | Sequence[str], *, runs: Path = RUNS) -> None:
    """Check that a model has the target modules of LoRA, matched as peft does; a single text is an expression.

    A model that is not available yet is checked when it is loaded.

    Raises:
        UserError: a name or expression that no linear or embedding module matches.
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
            matching = [n for n in modules if (re.fullmatch(target, n) if whole else f".{n}".endswith(f".{target}"))]
        except re.error as error:
            raise UserError(f"student.lora.target_modules={target!r} is not a regular expression: {error}") from None
        if not matching:
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


# --- some layers of a model -------------------------------------------------------------------------------------------


def keep_layers(model: "PreTrainedModel", layers: Layers) -> None:
    """Keep some layers of a model, in place; an encoder-decoder keeps them in both stacks.

    The config and each layer's index (its position in the key-value cache) are updated, so that the result is the model
    that its config describes.

    Raises:
        UserError: a layer that the model does not have, or a model type whose layers are not known.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        _keep_in_t5(model, layers)
    else:
        _keep_in_decoder(model, layers)


def _keep_in_decoder(model: Any, layers: Layers) -> None:
    body = getattr(model, "model", None)
    if body is None or not hasattr(body, "layers"):
        raise UserError(
            f"?layers= does not work for model type {model.config.model_type!r}: only Llama-like models and T5"
        )
    chosen = _chosen(layers, len(body.layers), "model")
    body.layers = _take(body.layers, chosen)
    for key in _PER_LAYER:
        entries = getattr(model.config, key, None)
        if entries is not None:
            setattr(model.config, key, [entries[index] for index in chosen])
    model.config.num_hidden_layers = len(chosen)


def _keep_in_t5(model: Any, layers: Layers) -> None:
    if not hasattr(getattr(model, "encoder", None), "block"):
        raise UserError(
            f"?layers= does not work for model type {model.config.model_type!r}: only Llama-like models and T5"
        )
    for stack, field in ((model.encoder, "num_layers"), (model.decoder, "num_decoder_layers")):
        chosen = _chosen(layers, len(stack.block), field.removeprefix("num_").replace("_", " "))
        first = stack.block[0].layer[0].SelfAttention
        stack.block = _take(stack.block, chosen)
        new_first = stack.block[0].layer[0].SelfAttention
        if new_first is not first:  # the stack's only relative position table lives in its first layer
            new_first.relative_attention_bias = first.relative_attention_bias
            new_first.has_relative_attention_bias = True
        setattr(model.config, field, len(chosen))
        stack.config.num_layers = len(chosen)  # each T5 stack holds a config of its own


def _chosen(layers: Layers, have: int, what: str) -> list[int]:
    """The indices of the layers to keep."""
    if layers[1] > have:
        text = ":".join(str(part) for part in layers)
        raise UserError(
            f"?layers={text}: the {what} has only {have} layers (0 to {have - 1}); STOP may be at most {have}"
        )
    return list(range(*layers))


def _take(stack: Any, chosen: list[int]) -> Any:
    """The chosen modules as a new list, with new indices."""
    from torch import nn

    layers = nn.ModuleList([stack[index] for index in chosen])
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if getattr(module, "layer_idx", None) is not None:
                setattr(module, "layer_idx", index)  # noqa: B010 (torch types every attribute as a tensor)
    return layers


# --- facts of a loaded model ------------------------------------------------------------------------------------------


def pad_is_eos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether padding uses the end-of-text token: the model's own choice, or set because it had no pad token."""
    return tokenizer.pad_token_id == tokenizer.eos_token_id


def needs_bos(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether prompts need a `<bos>` that the tokenizer does not add (Gemma's GGUF tokenizers)."""
    if not str(model.config.model_type).startswith("gemma") or tokenizer.bos_token_id is None:
        return False
    return tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]


def max_input_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """The maximal length of an input in tokens, of model and tokenizer."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return RELATIVE_POSITIONS_LIMIT
    return min(int(positions), int(tokenizer.model_max_length))


def parameter_count(model: "PreTrainedModel") -> int:
    """Number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_digest(model: "PreTrainedModel") -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of every tensor in order of names, tied tensors once."""
    import torch

    total, seen = hashlib.sha256(), set()
    for name, tensor in sorted(model.state_dict().items()):
        memory = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and memory in seen:
            continue
        seen.add(memory)
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 (hex) of all that determines token ids: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(rules, dict):  # the last call's padding and truncation are state, not identity
        rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return digest({"rules": rules, "special": special, "chat": tokenizer.chat_template})


# --- saving -----------------------------------------------------------------------------------------------------------


def save_model(loaded: Loaded, folder: Path) -> None:
    """Write model (safetensors) and tokenizer as an ordinary Hugging Face folder, atomically.

    transformers 5 stores T5's untied head as `tie_word_embeddings: true, scale_decoder_outputs: false`; it reads this
    correctly, versions before 5 do not.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    with quiet():
        loaded.model.save_pretrained(partial)
    loaded.tokenizer.save_pretrained(partial)
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer."""
    save_model(load_model(ModelSpec("gguf", str(gguf), None, None, None, f"gguf:{gguf}")), folder)
