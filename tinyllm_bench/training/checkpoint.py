"""Checkpoints without pickle: tensors in safetensors, the rest as JSON, the manifest written last.

A folder `checkpoints/step-<n>` is complete only when its `manifest.json` exists; the newest complete one counts.
"""

import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from tinyllm_bench.base.events import Evaluation
from tinyllm_bench.base.files import digest_file, read_json, write_json

Sums = dict[str, tuple[float, float]]


@dataclass(kw_only=True)
class State:
    """What a checkpoint holds of a run besides weights; `sums` are (sum, count) of the method's measurements,
    `rollout_cost` what the last round's rollout took of the limit's unit."""

    evaluations: list[Evaluation] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    records: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    flops: float = 0.0
    tokens_by_channel: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    rollout_tokens: int = 0
    rollout_seconds: float = 0.0
    rollout_cost: float = 0.0
    start: Evaluation | None = None
    sums: Sums = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the manifest of a checkpoint holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "State":
        """The state that `to_json` wrote."""
        return TypeAdapter(cls).validate_python(state)


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that training changes, on the CPU."""
    return {name: p.detach().cpu().clone().contiguous() for name, p in module.named_parameters() if p.requires_grad}


def load_trainable(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Put parameters of `trainable_state` back; names must match exactly."""
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if own.keys() != state.keys():
        raise ValueError(f"checkpoint holds other parameters: {sorted(own.keys() ^ state.keys())[:3]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a temporary name and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    save_file(tensors, temporary)
    temporary.replace(path)


def _optimizer_parts(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    state = optimizer.state_dict()
    tensors = {
        f"{index}|{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    return tensors, state["param_groups"]


def _restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("|")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of the python, numpy and torch generators: byte tensors and JSON."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        tensors[f"cuda{device}"] = torch.cuda.get_rng_state(device)
    return tensors, {"python": [version, list(numbers), gauss], "numpy": [kind, *(float(x) for x in rest)]}


def restore_random_state(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """Put the generators back where `random_state` found them."""
    version, numbers, gauss = plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, position, has_gauss, cached = plain["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(tensors["torch"])
    for name, tensor in tensors.items():
        if name.startswith("cuda"):
            torch.cuda.set_rng_state(tensor, int(name[4:]))


def save_checkpoint(folder: Path, *, step: int, module: nn.Module, optimizer: Optimizer, state: State) -> None:
    """Write one checkpoint and drop the older ones."""
    place = folder / f"step-{step:08d}"
    shutil.rmtree(place, ignore_errors=True)
    optimizer_tensors, groups = _optimizer_parts(optimizer)
    random_tensors, random_plain = random_state()
    parts = {"weights": trainable_state(module), "optimizer": optimizer_tensors, "random": random_tensors}
    for name, tensors in parts.items():
        save_tensors(place / f"{name}.safetensors", tensors)
    digests = {name: digest_file(place / f"{name}.safetensors") for name in parts}
    plain = {"step": step, "param_groups": groups, "random": random_plain, "state": state.to_json(), "digests": digests}
    write_json(place / "manifest.json", plain)
    for old in folder.glob("step-*"):
        if old != place:
            shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path, *, module: nn.Module, optimizer: Optimizer) -> tuple[int, State] | None:
    """Restore the newest complete and undamaged checkpoint of such an optimizer; None when there is none.

    Returns:
        The step it was taken after, and the trainer's state.
    """
    for place in sorted(folder.glob("step-*"), reverse=True):
        if not (place / "manifest.json").exists():
            continue
        manifest = read_json(place / "manifest.json")
        if any(digest_file(place / f"{name}.safetensors") != want for name, want in manifest["digests"].items()):
            continue
        if _sizes(manifest["param_groups"]) != _sizes(optimizer.param_groups):
            continue  # of an earlier version, which grouped parameters otherwise
        load_trainable(module, load_file(place / "weights.safetensors"))
        groups = [{**group, "betas": tuple(group["betas"])} for group in manifest["param_groups"]]
        _restore_optimizer(optimizer, load_file(place / "optimizer.safetensors"), groups)
        restore_random_state(load_file(place / "random.safetensors"), manifest["random"])
        return manifest["step"], State.from_json(manifest["state"])
    return None


def _sizes(groups: list[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def remove_checkpoints(folder: Path) -> None:
    """Drop what only an unfinished training needs: checkpoints with optimizer state, and the best weights."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for best in folder.glob("best-*.safetensors"):
        best.unlink()


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Whatever runs inside may seed the generators (lm-eval does); afterwards they are as they were before."""
    tensors, plain = random_state()
    try:
        yield
    finally:
        restore_random_state(tensors, plain)


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch before a student's new parameters are made."""
    random.seed(seed)
    set_seed(seed)


def add_sums(into: Sums, more: Mapping[str, tuple[float, float]]) -> None:
    """Add sums and counts by name."""
    for name, (total, count) in more.items():
        old_total, old_count = into.get(name, (0.0, 0.0))
        into[name] = (old_total + total, old_count + count)


def means_of(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Means by name, in the order of names; what was never counted is left out."""
    return {name: total / count for name, (total, count) in sorted(sums.items()) if count}
