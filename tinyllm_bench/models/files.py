"""Which files of a model folder are read: they are chosen and checked before anything is opened.

transformers opens whatever a folder has: an index may name pickled shards (which torch then loads) or files outside the
folder, and an adapter beside a model is applied silently. So the loader is given a folder of links to exactly the files
chosen here (`linked_folder`). The same list is a model's identity.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import decode, digest_file, parse_json, read_bytes

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
# Configuration, generation configuration, tokenizer files and chat templates; never code.
_SMALL = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
_TEMPLATES = "additional_chat_templates"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_BYTES = 256 << 20  # of a file without weights; the largest tokenizers need a tenth of it
_LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "n_layers")
_MAX_LAYERS = 10_000  # each is built before a weight is read
_FIX = "safetensors only: load it once where you trust it and save_pretrained it again"


def is_small(name: str) -> bool:
    """Whether a file of a model folder, by its path there, is one of those read besides the weights."""
    folder, _, file = name.rpartition("/")
    if folder:
        return folder == _TEMPLATES and file.endswith(".jinja")
    read = any(fnmatchcase(file, pattern) for pattern in _SMALL)
    return read and file != ADAPTER_CONFIG and (file == INDEX or not file.endswith(".index.json"))


def weight_files(where: str, folder: Path) -> list[str]:
    """Names of a folder's weight files, present or not: one file, or those that its index names.

    Raises:
        UserError: no weights, pickled ones alone, an index that is damaged or names anything but safetensors of this
            folder. `where` is what the error calls the model.
    """
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if not (folder / INDEX).is_file():
        if any(any(folder.glob(pattern)) for pattern in _PICKLED):
            raise UserError(
                f"{where}: {folder} has only pickled weights, which can run code when they are read; {_FIX}"
            )
        raise UserError(
            f"{where}: {folder} has no weights that are read; needs *.safetensors ({WEIGHTS}, or what {INDEX} names)"
        )
    index = read_object(where, folder / INDEX)
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise UserError(f"{where}: {folder / INDEX} is damaged; copy or fetch the model again")
    shards = sorted(set(named.values()))
    for shard in shards:
        if shard != Path(shard).name or not shard.endswith(".safetensors"):
            raise UserError(
                f"{where}: {folder / INDEX} names {shard!r}; allowed: *.safetensors of the same folder; {_FIX}"
            )
    return shards


def model_files(where: str, folder: Path, *, weights: bool = True) -> dict[str, Path]:
    """Every file of a model folder that is read, by its path in the folder; only small JSON files are opened.

    Without `weights`, only the small files, which are enough for a model's shape.

    Raises:
        UserError: as `weight_files`; a missing folder, config or shard; a config that names other weights or code.
    """
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder: {folder}; give a Hugging Face folder (config.json, *.safetensors)")
    if (folder / ADAPTER_CONFIG).is_file():
        if not (folder / CONFIG).is_file():
            raise UserError(f"{where}: {folder} is an adapter; name its base model first: BASE?adapter={folder}")
        raise UserError(
            f"{where}: {folder} holds a model and an adapter ({ADAPTER_CONFIG}), and it is not clear whether both are"
            f" meant; move the adapter to a folder of its own and write dir:{folder}?adapter=FOLDER"
        )
    if not (folder / CONFIG).is_file():
        raise UserError(f"{where}: {folder} has no {CONFIG}; give the folder that save_pretrained wrote")
    _check_config(where, read_object(where, folder / CONFIG))
    heavy = weight_files(where, folder) if weights else []
    for name in heavy:
        if not (folder / name).is_file():
            raise UserError(f"{where}: {folder} has no {name}, which its index names; copy or fetch it again")
    candidates = sorted([*folder.iterdir(), *(folder / _TEMPLATES).glob("*.jinja")])
    names = [str(file.relative_to(folder)) for file in candidates if file.is_file()]
    small = [name for name in names if is_small(name) and (name != INDEX or WEIGHTS not in heavy)]
    for name in small:
        if (size := (folder / name).stat().st_size) > _MAX_BYTES:
            raise UserError(
                f"{where}: {folder / name} holds {size / 1e6:,.0f} MB, more than the {_MAX_BYTES >> 20} MiB of any"
                " file beside the weights; copy or fetch it again"
            )
    return {name: folder / name for name in [*small, *heavy]}


def read_object(where: str, file: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        UserError: it holds anything else.
    """
    try:
        # Not strict: some published configurations hold Infinity.
        value = parse_json(decode(read_bytes(file, max_bytes=_MAX_BYTES), str(file)))
    except ValueError as error:
        raise UserError(f"{where}: {file} is damaged ({error}); copy or fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: {file} is damaged (no JSON object); copy or fetch it again")
    return value


def _check_config(where: str, config: Mapping[str, Any]) -> None:
    """Refuse a configuration that would make transformers load other weights or code, or build endless layers."""
    for name in _LAYERS:
        if name in config and not (type(config[name]) is int and 0 < config[name] <= _MAX_LAYERS):
            raise UserError(
                f"{where}: its {CONFIG} says {name}={str(config[name])[:40]}; allowed: 1 to {_MAX_LAYERS:,}; copy or"
                " fetch it again"
            )
    if "transformers_weights" in config:
        raise UserError(f"{where}: its {CONFIG} names other weights (transformers_weights); name them {WEIGHTS}")
    for name, value in _settings(config):
        # transformers would fetch such an attention kernel, compiled code, from the hub
        if name.endswith("_implementation") and isinstance(value, str) and "/" in value:
            raise UserError(
                f"{where}: its {CONFIG} names code of the hub ({name}={value!r}); remove it: code is never run"
            )
    if "auto_map" in config:
        from transformers import CONFIG_MAPPING

        if config.get("model_type") not in CONFIG_MAPPING:
            raise UserError(
                f"{where}: model type {config.get('model_type')!r} needs code of its own (auto_map), which is never"
                " run; take a model that transformers itself knows"
            )


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of a configuration and of nested ones."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from ((str(name), leaf) for leaf in (inner.values() if isinstance(inner, dict) else [inner]))
            yield from _settings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _settings(inner)


def check_safetensors(where: str, files: Iterable[Path]) -> None:
    """Check by their headers that files are complete safetensors.

    Raises:
        UserError: a truncated or damaged file, or one that is larger than what this process may map.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="numpy"):  # checks the header against the file's length
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{where}: {file} is truncated or damaged ({error}); copy or fetch it again") from None
        except MemoryError:
            size = file.stat().st_size / 1e9
            raise UserError(
                f"{where}: {file} holds {size:,.1f} GB, more than this process may map; raise its limit (ulimit -v), or"
                " name a smaller model"
            ) from None


@contextmanager
def linked_folder(files: Mapping[str, Path]) -> Iterator[Path]:
    """A temporary folder of links to these files and nothing else."""
    with tempfile.TemporaryDirectory(prefix="tinyllm-bench-model-") as folder:
        for name, file in files.items():
            link = Path(folder) / name
            link.parent.mkdir(exist_ok=True)
            os.symlink(file.resolve(), link)
        yield Path(folder)


def cached_file_digest(file: Path) -> str:
    """SHA-256 (hex) of a file, cached until the file changes."""
    state = file.stat()
    return _digest(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _digest(file: Path, changed: int, size: int) -> str:
    return digest_file(file)
