"""`?adapter=FOLDER`: a LoRA adapter (peft) merged into the model of a spec, so that other code sees a plain model.

The folder is one that peft's `save_pretrained` wrote. The base model that its config names is ignored: the spec says
what it is merged into, and every tensor must fit there. The tokenizer is the base model's; one in the adapter's folder
is not read.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_json, write_json
from tinyllm_bench.models.files import ADAPTER_CONFIG, linked_folder, read_object
from tinyllm_bench.models.specs import ModelSpec

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
# Where the adapter comes from, and whether it is being trained: none of it changes the merged weights.
_INFORMATION = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
# peft cannot merge these: copied layers share one weight, and an activated adapter acts on some tokens only.
_NOT_MERGEABLE = ("layer_replication", "alora_invocation_tokens")


def adapter_folder(spec: ModelSpec) -> Path:
    """The folder of a spec's adapter."""
    assert spec.adapter is not None
    return Path(spec.adapter).expanduser()


def check_adapter(spec: ModelSpec) -> Path:
    """The weight file of a spec's adapter; nothing is loaded.

    Raises:
        UserError: folder, config or weights missing, pickled weights, an adapter that is not LoRA or cannot be merged.
    """
    settings = _settings(spec)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{spec.text}: the adapter is of type {kind!r}; allowed: LORA; train a LoRA adapter")
    for name in _NOT_MERGEABLE:
        if settings.get(name):
            raise UserError(
                f"{spec.text}: the adapter uses {name}={settings[name]!r} and cannot be merged; train one without it"
            )
    folder = adapter_folder(spec)
    if (folder / ADAPTER_WEIGHTS).is_file():
        return folder / ADAPTER_WEIGHTS
    if (folder / _PICKLED).is_file():
        raise UserError(
            f"{spec.text}: {folder} has only pickled weights ({_PICKLED}), which can run code when they are read; "
            "safetensors only: load it once where you trust it and save_pretrained it again"
        )
    raise UserError(
        f"{spec.text}: {folder} has no {ADAPTER_WEIGHTS}; give the folder that peft's save_pretrained wrote"
    )


def adapter_settings(spec: ModelSpec) -> dict[str, Any]:
    """The adapter's config without settings that do not change the merged weights, such as the base model's path.

    Raises:
        UserError: folder or config missing or damaged.
    """
    return {name: value for name, value in _settings(spec).items() if name not in _INFORMATION}


def _settings(spec: ModelSpec) -> dict[str, Any]:
    folder = adapter_folder(spec)
    if not folder.is_dir():
        raise UserError(
            f"{spec.text}: no such adapter folder: {folder}; give a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} "
            "(an adapter of the hub must be downloaded first)"
        )
    if not (folder / ADAPTER_CONFIG).is_file():
        whole = (folder / "config.json").is_file()
        fix = f"it is a whole model: write dir:{folder}" if whole else "give the folder that save_pretrained wrote"
        raise UserError(f"{spec.text}: {folder} has no {ADAPTER_CONFIG}; {fix}")
    return read_object(spec.text, folder / ADAPTER_CONFIG)


def save_adapter(wrapped: PeftModel, folder: Path) -> None:
    """Write the adapters of a model that peft wraps, before they are merged, as a folder for `?adapter=`.

    The path of the base model, which peft would write, and peft's model card are left out: they are set when the
    folder is published.
    """
    shutil.rmtree(folder, ignore_errors=True)
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)  # else peft sends a request to the hub
    for file in folder.iterdir():
        if file.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            file.unlink()
    settings = read_json(folder / ADAPTER_CONFIG)
    write_json(folder / ADAPTER_CONFIG, {**settings, "base_model_name_or_path": None})
    (folder / ADAPTER_WEIGHTS).chmod(0o644)  # safetensors lets the owner alone read it


def apply_adapter(model: PreTrainedModel, spec: ModelSpec) -> PreTrainedModel:
    """Merge the adapter of a spec into a model on the CPU, in place; all weights are trainable afterwards.

    Raises:
        UserError: tensors of the adapter that fit no module of the model, or modules without their tensors; weights
            that are not finite; an adapter that changes one of two modules that share a weight.
    """
    import torch
    from peft import LoraConfig, PeftModel

    files = {ADAPTER_CONFIG: adapter_folder(spec) / ADAPTER_CONFIG, ADAPTER_WEIGHTS: check_adapter(spec)}
    shared, tied = _sharing(model), model.config.tie_word_embeddings
    with linked_folder(files) as links, _user_errors(spec):
        folder = str(links)
        config = LoraConfig.from_pretrained(folder)
        config.inference_mode = True
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # peft initialises before it reads weights
            warnings.simplefilter("ignore")  # they are about shared weights, which are checked here
            wrapped = PeftModel(model, config)
            if changed := _adapted(model, shared):
                raise UserError(
                    f"{spec.text}: the adapter changes {changed}, which shares its weight with another module, and"
                    " merging would change both; untie them in the base model or train an adapter without it"
                )
            result = wrapped.load_adapter(folder, "default", torch_device="cpu")
            # peft only reports what did not fit; such a model would pass for the adapted one.
            unplaced, missing = sorted(result.unexpected_keys), sorted(result.missing_keys)
            hint = "give the base model (and layers) that the adapter was trained on"
            if unplaced:
                raise UserError(
                    f"{spec.text}: {len(unplaced)} tensors of the adapter fit no module of the model, such as "
                    f"{unplaced[0]}; {hint}"
                )
            if missing:
                raise UserError(
                    f"{spec.text}: the adapter is missing {len(missing)} tensors for modules that its config names,"
                    f" such as {missing[0]}; {hint}"
                )
            merged: Any = wrapped.merge_and_unload(safe_merge=True)
    merged.config.tie_word_embeddings = tied  # peft changes it for T5, whose untied head is stored as tied
    return merged.requires_grad_(True)  # peft froze the weights


def add_adapters(model: PreTrainedModel, *, r: int, alpha: int, dropout: float, target_modules: str | list[str]) -> Any:
    """Add trainable LoRA adapters to a model, in place; the arguments are named as the settings of `student.lora`.

    Raises:
        UserError: target modules that the model does not have, or that share their weight with another module: merged
            adapters would change both.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    kind = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    setting = f"student.lora.target_modules={target_modules!r}"
    shared = _sharing(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about shared weights, which are checked here
            settings = LoraConfig(
                r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=target_modules, task_type=kind
            )
            wrapped = get_peft_model(model, settings)
    except (ValueError, TypeError, re.error) as error:
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{setting}: {line}; all-linear takes every linear layer but the head") from error
    if changed := _adapted(model, shared):
        raise UserError(
            f"{setting}: {changed} shares its weight with another module, and an adapter merged into one would change"
            " both; name other modules, or all-linear, which leaves the head out"
        )
    return wrapped


def _sharing(model: PreTrainedModel) -> dict[str, Any]:
    """The modules, by name, that share a parameter with another one, such as an embedding table with the head."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.rpartition(".")[0])
    return {name: model.get_submodule(name) for names in owners.values() if len(names) > 1 for name in names}


def _adapted(model: PreTrainedModel, shared: Mapping[str, Any]) -> str | None:
    """The first of the modules with a shared weight that peft has wrapped; merging would change the others, too."""
    return min((name for name, module in shared.items() if model.get_submodule(name) is not module), default=None)


@contextmanager
def _user_errors(spec: ModelSpec) -> Iterator[None]:
    """Turn exceptions of peft about an adapter into one line for the user."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # as in `load.user_errors`
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        line = next((line for line in lines if line.startswith("size mismatch")), lines[0])
        raise UserError(f"{spec.text}: the adapter cannot be merged into this model: {line}") from error
