"""The identity of a model: digests of its files, which do not change when a folder is renamed; nothing is loaded."""

from pathlib import Path
from typing import Any

from tinyllm_bench.base.files import digest, read_json
from tinyllm_bench.models.adapters import adapter_settings, check_adapter
from tinyllm_bench.models.files import cached_file_digest, weight_files
from tinyllm_bench.models.hub import at_commit, cached_folder
from tinyllm_bench.models.load import files_of, spec_folder
from tinyllm_bench.models.specs import ModelSpec, without_adapter


def model_identity(spec: ModelSpec, runs: Path) -> Any:
    """The identity of a model: digests of every file of a local model that is read, a bundled model's manifest, the
    commit of a hub model, a run's id (loading compares its student with what its training saved).

    An adapter is listed beside its base model, with digests of its weights and settings; its folder does not count.

    Raises:
        UserError: everything `check_adapter` and `files_of` refuse.
    """
    if spec.adapter is not None:
        return {"base": model_identity(without_adapter(spec), runs), "adapter": _adapter(spec)}
    if spec.kind == "hf":
        return at_commit(spec).text
    if spec.kind in ("dir", "gguf"):
        return [spec.layers, {name: cached_file_digest(file) for name, file in files_of(spec, runs=runs).items()}]
    if spec.kind == "bundled":
        folder = spec_folder(spec, runs=runs)
        assert folder is not None
        return [spec.layers, read_json(folder / "manifest.json")]
    return spec.text  # a run's id is a digest of everything that decides it; the run may not exist yet


def same_weights(a: ModelSpec, b: ModelSpec, runs: Path) -> bool:
    """Whether two specs name the same model: the same spelling, or the same weights with the same layers.

    Tokenizers and settings beside the weights are not compared. A hub model is compared by its files if they are in the
    local cache, else by its spelling.
    """
    if a.text == b.text:
        return True
    if (a.kind == "gguf") != (b.kind == "gguf"):  # a GGUF is dequantised
        return False
    files = [_weights(spec, runs) for spec in (a, b)]
    if not all(files) or sorted(f.stat().st_size for f in files[0]) != sorted(f.stat().st_size for f in files[1]):
        return False
    if _layers(a, files[0][0].parent) != _layers(b, files[1][0].parent):
        return False
    adapters = [None if spec.adapter is None else _adapter(spec) for spec in (a, b)]
    if adapters[0] != adapters[1]:
        return False
    return sorted(map(cached_file_digest, files[0])) == sorted(map(cached_file_digest, files[1]))


def _weights(spec: ModelSpec, runs: Path) -> list[Path]:
    """The files of a model's weights on this machine; empty if it is not here."""
    if spec.kind == "gguf":
        return [Path(spec.location).expanduser()]
    folder = spec_folder(spec, runs=runs)
    if spec.kind == "hf":
        folder = cached_folder(spec)
    if folder is None or not folder.is_dir():
        return []
    return [folder / name for name in weight_files(spec.text, folder) if (folder / name).is_file()]


def _layers(spec: ModelSpec, folder: Path) -> tuple[int, ...] | None:
    """The layers that a spec keeps, None for all of them; `?layers=0:30:1` of 30 layers means all."""
    if spec.layers is None:
        return None
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    count = next(
        (config[key] for key in ("num_hidden_layers", "num_layers", "n_layer") if key in config), spec.layers[1]
    )
    layers = tuple(range(*slice(*spec.layers).indices(count)))
    return None if layers == tuple(range(count)) else layers


def _adapter(spec: ModelSpec) -> dict[str, str]:
    return {"weights": cached_file_digest(check_adapter(spec)), "settings": digest(adapter_settings(spec))}
