"""From a model spec to weights and a tokenizer in memory, and back to a folder.

Weights are safetensors (or GGUF, dequantised); pickled weights and model code from a hub are refused.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import digest
from tinyllm_bench.models.adapters import CONFIG as ADAPTER_CONFIG
from tinyllm_bench.models.adapters import apply_adapter, check_adapter
from tinyllm_bench.models.bundled import bundled_folder, is_fetched
from tinyllm_bench.models.specs import ModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")
RUNS = Path("runs")
# T5 attends by relative distance and has no hard limit; this is what lm-eval assumes for such models.
RELATIVE_POSITIONS_LIMIT = 2048
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


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
    """Refuse a model that cannot be loaded, without loading it; reads file headers only.

    Raises:
        UserError: folder or file missing, no config, no or damaged safetensors, a bundled model that is not fetched,
            a hub model that can be had neither from the cache nor from the hub; everything `check_adapter` refuses.
    """
    if spec.adapter is not None:
        _check_safetensors(spec, check_adapter(spec))
    if spec.kind == "bundled" and not is_fetched(spec.location):
        raise UserError(f"{spec.text} is not in the cache; run: tinyllm-bench fetch {spec.location}")
    folder = spec_folder(spec, runs=runs)
    if folder is not None:
        _check_folder(spec, folder)
    elif spec.kind == "gguf":
        _check_gguf(spec)
    elif spec.kind == "hf":
        _check_hub(spec)


def is_encoder_decoder(spec: ModelSpec, *, runs: Path = RUNS) -> bool:
    """Whether a model reads with an encoder and writes with a decoder; False where its configuration cannot be had."""
    folder = spec_folder(spec, runs=runs)
    file = _hub_config(spec.location, spec.revision) if spec.kind == "hf" else folder and folder / "config.json"
    return file is not None and bool(json.loads(file.read_text()).get("is_encoder_decoder", False))


@lru_cache(maxsize=64)
def _hub_config(name: str, revision: str | None) -> Path | None:
    """A hub model's `config.json`, of the cache or of the hub; None where neither can be had: `check_spec` says why."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except (OSError, ValueError, HfHubHTTPError):
        return None


def _check_folder(spec: ModelSpec, folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(
            f"{spec.text}: no such folder: {folder}; give a Hugging Face folder (config.json, *.safetensors)"
        )
    if not (folder / "config.json").is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{spec.text}: {folder} is an adapter; name its base model first: BASE?adapter={folder}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{spec.text}: {folder} has no config.json; give the folder that save_pretrained wrote")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights and any(any(folder.glob(pattern)) for pattern in _PICKLED):
        raise UserError(
            f"{spec.text}: {folder} has only pickled weights; safetensors only: load it once where you trust it "
            "and save_pretrained it again"
        )
    if not weights:
        raise UserError(
            f"{spec.text}: {folder} has no weights; needs *.safetensors beside config.json (save_pretrained makes both)"
        )
    for shard in _named_in_index(folder):
        if not (folder / shard).is_file():
            raise UserError(f"{spec.text}: {folder} lacks {shard}, which its index names; copy or fetch it again")
    for file in weights:
        _check_safetensors(spec, file)


def _named_in_index(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        raise UserError(f"{index} is damaged; copy or fetch the model again") from None


def _check_safetensors(spec: ModelSpec, file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):  # checks the header against the file's length
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{spec.text}: {file} is truncated or damaged ({error}); copy or fetch it again") from None


def _check_gguf(spec: ModelSpec) -> None:
    file = Path(spec.location).expanduser()
    if not file.is_file():
        raise UserError(f"{spec.text}: no such file: {file}; give the path of a .gguf file")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{spec.text}: {file} is not a GGUF file; give the path of a .gguf file")


def _check_hub(spec: ModelSpec) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    def cached(name: str) -> bool:
        return isinstance(try_to_load_from_cache(spec.location, name, revision=spec.revision), str)

    if cached("config.json") and (cached("model.safetensors") or cached("model.safetensors.index.json")):
        return
    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{spec.text} is not in the local Hugging Face cache and HF_HUB_OFFLINE is set; unset it, or download the "
            "model elsewhere and name it as dir:FOLDER, or use bundled:smollm2-135m"
        )
    _ask_hub(spec)


def _ask_hub(spec: ModelSpec) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(spec.location, revision=spec.revision, timeout=10)
    except GatedRepoError:
        raise UserError(f"{spec.text} is gated; accept its terms on the hub and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"{spec.text}: the hub has no such model or revision; check hf:OWNER/NAME@REVISION") from None
    except Exception as error:  # whatever the connection does, the answer to the user is the same
        raise UserError(
            f"{spec.text} is not in the local cache and the hub cannot be reached ({type(error).__name__}); "
            "use dir:FOLDER or bundled:smollm2-135m"
        ) from None
    names = [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in names):
        raise UserError(f"{spec.text}: this repository has no *.safetensors; safetensors only: choose another revision")


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
    name, where = location_of(spec, runs)
    with quiet(), readable(spec):
        model = _load_weights(spec, name, where, getattr(torch, dtype))
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **where)
    settle(spec, model, tokenizer)
    if spec.adapter is not None:
        model = apply_adapter(model, spec)
    module: Any = model
    return Loaded(module.to(device).eval(), tokenizer)


def settle(spec: ModelSpec, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    """What is done to every model that is opened: its pad token, greedy generation, the layers that its spec names."""
    _set_pad(spec, model, tokenizer)
    _plain_generation(model, tokenizer)
    if spec.layers is not None:
        from tinyllm_bench.models.layers import keep_layers

        keep_layers(model, spec.layers)


def location_of(spec: ModelSpec, runs: Path) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes: a name or folder, and the keyword arguments that say where in it."""
    if spec.kind == "hf":
        return spec.location, {"revision": spec.revision or "main"}
    if spec.kind == "gguf":
        file = Path(spec.location).expanduser().resolve()
        return str(file.parent), {"gguf_file": file.name}
    folder = spec_folder(spec, runs=runs)
    assert folder is not None
    return str(folder), {"local_files_only": True}


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
    """Without the progress bars of transformers: ours says what goes on."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def readable(spec: ModelSpec) -> Iterator[None]:
    """Turn what transformers raises about a model's files into one line for the user."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{spec.text} cannot be loaded: {line}") from error


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
    """Keep the token ids of a model's generation defaults and drop its sampling: all decoding is ours to say."""
    from transformers import GenerationConfig

    old = model.generation_config
    eos = old.eos_token_id if old is not None and old.eos_token_id is not None else tokenizer.eos_token_id
    bos = old.bos_token_id if old is not None else None
    start = getattr(model.config, "decoder_start_token_id", None)
    model.generation_config = GenerationConfig(
        eos_token_id=eos, bos_token_id=bos, pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=start
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
