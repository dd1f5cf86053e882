"""From a model spec to weights and a tokenizer in memory, and back to a folder.

Weights are safetensors (or GGUF, dequantised); pickled weights and model code from a hub are refused.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import digest, read_json
from tinyllm_bench.models.adapters import apply_adapter, check_adapter
from tinyllm_bench.models.bundled import MANIFEST, bundled_folder, is_fetched
from tinyllm_bench.models.files import check_safetensors, file_digest, model_files, only, read_object
from tinyllm_bench.models.hub import at_hand, check_listed, hub_config, hub_folder
from tinyllm_bench.models.specs import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")
RUNS = Path("runs")
# T5 attends by relative distance and has no hard limit; this is what lm-eval assumes for such models.
RELATIVE_POSITIONS_LIMIT = 2048


class Loaded(NamedTuple):
    """A model in evaluation mode and its tokenizer; the tokenizer always has a pad token."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"


def spec_folder(spec: ModelSpec, *, runs: Path = RUNS) -> Path | None:
    """The folder that holds the weights of a `dir:`, `bundled:` or `run:` spec; None for the other kinds."""
    if spec.kind == "dir":
        return Path(spec.location).expanduser()
    if spec.kind == "bundled":
        return bundled_folder(spec.location)
    return runs / spec.location / "student" if spec.kind == "run" else None


def check_spec(spec: ModelSpec, *, runs: Path = RUNS) -> None:
    """Refuse a model that cannot be loaded, without loading it; reads small files and the heads of large ones.

    Raises:
        UserError: everything that `files.model_files` and `check_adapter` refuse; damaged safetensors; a bundled model
            that is not fetched; the student of a run that is not what its training left; a hub model that can be had
            neither from the cache nor from the hub.
    """
    if spec.adapter is not None:
        check_safetensors(spec.text, [check_adapter(spec)])
    if spec.kind == "gguf":
        _check_gguf(spec)
    elif spec.kind == "hf":
        folder = at_hand(spec)
        if folder is None:
            check_listed(spec)
        else:
            _check_files(spec, model_files(spec.text, folder))
    elif spec_folder(spec, runs=runs) is not None:
        _check_files(spec, files_of(spec, runs=runs))


def files_of(spec: ModelSpec, *, runs: Path = RUNS) -> dict[str, Path]:
    """Every file that loading a model on this machine reads, by its path in the model's folder; adapters apart.

    Of a hub model these are files of the cache.

    Raises:
        UserError: as `check_spec`, but that weights are not opened; a hub model that is not in the cache.
    """
    if spec.kind == "gguf":
        _check_gguf(spec)
        file = Path(spec.location).expanduser()
        return {file.name: file}
    if spec.kind == "bundled" and not is_fetched(spec.location):
        raise UserError(f"{spec.text} is not in the cache; run: tinyllm-bench fetch {spec.location}")
    folder = hub_folder(spec, weights=True) if spec.kind == "hf" else spec_folder(spec, runs=runs)
    assert folder is not None
    found = model_files(spec.text, folder)
    if spec.kind == "bundled":  # what came later is not the bundled model's
        fetched = read_json(folder / MANIFEST)["files"]
        return {name: file for name, file in found.items() if name in fetched}
    if spec.kind == "run":
        _check_run(spec, found, folder.parent)
    return found


def _check_files(spec: ModelSpec, files: Mapping[str, Path]) -> None:
    check_safetensors(spec.text, [file for name, file in files.items() if name.endswith(".safetensors")])


def _check_run(spec: ModelSpec, files: Mapping[str, Path], folder: Path) -> None:
    """A run is known by its id, so its student must be what its training saved."""
    result = folder / "train" / "result.json"
    saved = read_json(result).get("student_files") if result.is_file() else None
    if saved is None or saved != {name: file_digest(file) for name, file in files.items()}:
        raise UserError(
            f"{spec.text}: {folder / 'student'} is not what the training of this run saved ({result} says);"
            f" name another model by its folder: dir:{folder / 'student'}"
        )


def is_encoder_decoder(spec: ModelSpec, *, runs: Path = RUNS) -> bool:
    """Whether a model reads with an encoder and writes with a decoder; False where its configuration cannot be had."""
    if spec.kind == "hf":
        config = hub_config(spec)
    else:
        folder = spec_folder(spec, runs=runs)
        there = folder is not None and (folder / "config.json").is_file()
        config = read_object(spec.text, folder / "config.json") if folder is not None and there else None
    return config is not None and bool(config.get("is_encoder_decoder", False))


def _check_gguf(spec: ModelSpec) -> None:
    file = Path(spec.location).expanduser()
    if not file.is_file():
        raise UserError(f"{spec.text}: no such file: {file}; give the path of a .gguf file")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{spec.text}: {file} is not a GGUF file; give the path of a .gguf file")


def load_model(spec: ModelSpec, *, dtype: str = "float32", device: str = "cpu", runs: Path = RUNS) -> Loaded:
    """Load a decoder-only or encoder-decoder model and its tokenizer.

    The pad token is set to EOS where the tokenizer has none (`pad_is_eos` tells), generation defaults are greedy, and
    `?layers=` keeps the named layers only; `?adapter=` is then merged into them.

    Raises:
        UserError: everything `check_spec` refuses; an API or recorded teacher, which has no weights; an unknown dtype;
            weights that do not fill the model; a layer that the model does not have; an adapter that does not fit.
    """
    import torch
    from transformers import AutoTokenizer

    if not spec.has_weights:
        raise UserError(f"{spec.text} has no weights to load; name a model with hf:, dir:, gguf:, bundled: or run:")
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    check_spec(spec, runs=runs)
    with opened(spec, runs) as (name, where), quiet(), readable(spec):
        model = _load_weights(spec, name, where, getattr(torch, dtype))
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
        settle(spec, model, tokenizer)
    if spec.adapter is not None:
        model = apply_adapter(model, spec)
    module: Any = model
    return Loaded(module.to(device).eval(), tokenizer)


def settle(spec: ModelSpec, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """What is done to every model that is opened: its pad token, greedy generation, the layers that its spec names."""
    for named in (model.config, tokenizer):
        named.name_or_path = ""  # a folder that is gone
    _set_pad(spec, model, tokenizer)
    _plain_generation(model, tokenizer)
    if spec.layers is not None:
        from tinyllm_bench.models.layers import keep_layers

        keep_layers(model, spec.layers)


@contextmanager
def opened(spec: ModelSpec, runs: Path, *, weights: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `from_pretrained` takes: a folder with the files that are read and no others, and more keyword arguments.

    Without `weights`, a hub model's small files only.

    Raises:
        UserError: as `files_of`.
    """
    if spec.kind == "hf" and not weights:
        files = model_files(spec.text, hub_folder(spec, weights=False), weights=False)
    else:
        files = files_of(spec, runs=runs)
    with only(files) as folder:
        yield (
            str(folder),
            {"local_files_only": True, **({"gguf_file": next(iter(files))} if spec.kind == "gguf" else {})},
        )


def family_of(config: Any) -> Any:
    """The class of transformers that makes a model of this configuration: decoder-only, or T5-like."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _load_weights(spec: ModelSpec, name: str, where: dict[str, Any], dtype: Any) -> "PreTrainedModel":
    from transformers import AutoConfig, GgufConfig

    family = family_of(AutoConfig.from_pretrained(name, trust_remote_code=False, **where))
    how: dict[str, Any] = (
        {"quantization_config": GgufConfig(dequantize=True)} if spec.kind == "gguf" else {"use_safetensors": True}
    )
    model, info = family.from_pretrained(
        name, dtype=dtype, trust_remote_code=False, output_loading_info=True, **how, **where
    )
    if info["missing_keys"]:  # transformers would fill these with random numbers
        missing = sorted(info["missing_keys"])
        raise UserError(
            f"{spec.text}: the weights lack {len(missing)} tensors, such as {missing[0]}; "
            "give a whole model; an adapter is named behind it: ?adapter=FOLDER"
        )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain numbers now
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports of transformers: ours says what goes on, and what does not fit."""
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
def readable(spec: ModelSpec) -> Iterator[None]:
    """Turn what transformers raises about a model's files into one line for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the files are somebody's, and what they make transformers raise may be anything
        line = next(iter(str(error).strip().split("\n")), "")
        kind = "" if line and isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__} "
        raise UserError(f"{spec.text} cannot be loaded: {kind}{line}".strip()) from error


def _set_pad(spec: ModelSpec, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
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


def pad_is_eos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether padding uses the end-of-text token, by the model's own choice or because it had no pad token."""
    return tokenizer.pad_token_id == tokenizer.eos_token_id


def _plain_generation(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """Keep the token ids of a model's generation defaults and drop its sampling: all decoding is ours to say.

    Texts end at the configuration's end tokens and at the tokenizer's, which is the one that students learn. Named
    here, both hold wherever the model writes: evaluation, rollouts, teachers, a saved student in anybody's `generate`.
    """
    from transformers import GenerationConfig

    old = model.generation_config
    said = getattr(old, "eos_token_id", None)
    ends = dict.fromkeys([tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])])
    eos = [token for token in ends if token is not None]
    bos = old.bos_token_id if old is not None else None
    start = getattr(model.config, "decoder_start_token_id", None)
    model.generation_config = GenerationConfig(
        eos_token_id=eos if len(eos) > 1 else eos[0],
        bos_token_id=bos,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=start,
    )


def needs_bos(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether prompts must begin with `<bos>` that the tokenizer does not add: Gemma's GGUF tokenizers."""
    if not str(model.config.model_type).startswith("gemma") or tokenizer.bos_token_id is None:
        return False
    return tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]


def max_input_tokens(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> int:
    """The most tokens that model and tokenizer take in one text."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is None:
        return RELATIVE_POSITIONS_LIMIT
    return min(int(positions), int(tokenizer.model_max_length))


def parameter_count(model: "PreTrainedModel") -> int:
    """Parameters of the model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weights_digest(model: "PreTrainedModel") -> str:
    """SHA-256 (hex) over name, dtype, shape and bytes of every tensor in order of names, tied tensors once."""
    import torch

    total, seen = hashlib.sha256(), set()
    for name, tensor in sorted(model.state_dict().items()):
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 (hex) of everything that turns text into ids: vocabulary, rules, special tokens, chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else sorted(tokenizer.get_vocab().items())
    if isinstance(rules, dict):  # the last call's padding and truncation are state, not identity
        rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    return digest({"rules": rules, "special": special, "chat": tokenizer.chat_template})


def save_model(loaded: Loaded, folder: Path) -> None:
    """Write model (safetensors) and tokenizer as an ordinary Hugging Face folder; it appears whole or not at all.

    transformers 5 stores T5's untied head as `tie_word_embeddings: true, scale_decoder_outputs: false`; it reads this
    back right, readers before version 5 do not.
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
