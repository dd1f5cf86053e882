"""What a model spec stands for, as digests of files: nothing is loaded, and renaming a folder changes nothing."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinyllm_bench.base.files import digest, digest_file, read_json
from tinyllm_bench.models.adapters import adapter_settings, check_adapter
from tinyllm_bench.models.load import spec_folder
from tinyllm_bench.models.specs import ModelSpec, without_adapter

_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def model_identity(spec: ModelSpec, runs: Path) -> Any:
    """What a spec stands for: digests of a local model's files, a bundled model's manifest, else the spec's text.

    An adapter stands beside its base model, as digests of its weights and settings; its folder is no part of it.

    Raises:
        UserError: everything `check_adapter` refuses.
    """
    if spec.adapter is not None:
        return {"base": model_identity(without_adapter(spec), runs), "adapter": _adapter(spec)}
    if spec.kind == "gguf":
        return [spec.layers, _digests((Path(spec.location).expanduser(),))]
    folder = spec_folder(spec, runs=runs)
    if folder is None or spec.kind == "run":  # a run's id is a digest of all that made it; it may not be there yet
        return spec.text
    if spec.kind == "bundled":
        return [spec.layers, read_json(folder / "manifest.json")]
    return [spec.layers, _digests(sorted(file for pattern in _FILES for file in folder.glob(pattern)))]


def _adapter(spec: ModelSpec) -> dict[str, str]:
    weights = check_adapter(spec)
    return {"weights": _digest(weights, weights.stat().st_mtime_ns), "settings": digest(adapter_settings(spec))}


def _digests(files: Sequence[Path]) -> dict[str, str]:
    return {file.name: _digest(file, file.stat().st_mtime_ns) for file in files}


@lru_cache(maxsize=256)
def _digest(file: Path, changed: int) -> str:
    return digest_file(file)
