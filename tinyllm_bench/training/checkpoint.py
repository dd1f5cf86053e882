"""Checkpoints without pickle: tensors in safetensors, the rest as JSON, the manifest written last.

A folder `checkpoints/step-<n>` is complete only if its `manifest.json` exists; training resumes from the newest one.
"""

import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
    """The trainer's state in a checkpoint, besides tensors.

    sums: (sum, count) of the method's measurements; rollout_cost: cost of the last rollout in the limit's unit.
    """

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
        """As JSON for a checkpoint's manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "State":
        """The state that `to_json` wrote."""
        return TypeAdapter(cls).validate_python(state)


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained parameters, on the CPU."""
    return {name: p.detach().cpu().clone().contiguous() for name, p in module.named_parameters() if p.requires_grad}


def load_trainable(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load parameters of `trainable_state`; names must match exactly."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if parameters.keys() != state.keys():
        raise ValueError(f"checkpoint holds other parameters: {sorted(parameters.keys() ^ state.keys())[:3]}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors atomically: to a temporary name, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    save_file(tensors, temporary)
    temporary.replace(path)


class RandomState(NamedTuple):
    """The state of the Python, NumPy and torch generators: tensors, and the rest as JSON."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def random_state() -> RandomState:
    """The current state of the generators."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    for device in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        tensors[f"cuda{device}"] = torch.cuda.get_rng_state(device)
    return RandomState(tensors, {"python": [version, list(numbers), gauss], "numpy": [kind, *(float(x) for x in rest)]})


def restore_random_state(state: RandomState) -> None:
    """Set the generators to a state of `random_state`."""
    tensors, values = state
    version, numbers, gauss = values["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, position, has_gauss, cached = values["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(tensors["torch"])
    for name, tensor in tensors.items():
        if name.startswith("cuda"):
            torch.cuda.set_rng_state(tensor, int(name[4:]))


def save_checkpoint(folder: Path, *, step: int, module: nn.Module, optimizer: Optimizer, state: State) -> None:
    """Write a checkpoint and delete older ones."""
    checkpoint = folder / f"step-{step:08d}"
    shutil.rmtree(checkpoint, ignore_errors=True)
    optimizer_state = optimizer.state_dict()
    optimizer_tensors = {
        f"{index}|{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, values in optimizer_state["state"].items()
        for key, value in values.items()
    }
    random_tensors, random_values = random_state()
    parts = {"weights": trainable_state(module), "optimizer": optimizer_tensors, "random": random_tensors}
    for name, tensors in parts.items():
        save_tensors(checkpoint / f"{name}.safetensors", tensors)
    manifest = {
        "step": step,
        "param_groups": optimizer_state["param_groups"],
        "random": random_values,
        "state": state.to_json(),
        "digests": {name: digest_file(checkpoint / f"{name}.safetensors") for name in parts},
    }
    write_json(checkpoint / "manifest.json", manifest)
    for other in folder.glob("step-*"):
        if other != checkpoint:
            shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(folder: Path, *, module: nn.Module, optimizer: Optimizer) -> tuple[int, State] | None:
    """Restore the newest complete and undamaged checkpoint; None if there is none.

    Returns:
        The number of steps done, and the trainer's state.
    """
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        if not (checkpoint / "manifest.json").exists():
            continue
        manifest = read_json(checkpoint / "manifest.json")
        digests = manifest["digests"].items()
        if any(digest_file(checkpoint / f"{name}.safetensors") != expected for name, expected in digests):
            continue
        groups = [{**group, "betas": tuple(group["betas"])} for group in manifest["param_groups"]]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in optimizer.param_groups]:
            continue  # written by an earlier version, which grouped parameters differently
        load_trainable(module, load_file(checkpoint / "weights.safetensors"))
        optimizer_state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in load_file(checkpoint / "optimizer.safetensors").items():
            index, key = name.split("|")
            optimizer_state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
        restore_random_state(RandomState(load_file(checkpoint / "random.safetensors"), manifest["random"]))
        return manifest["step"], State.from_json(manifest["state"])
    return None


def remove_checkpoints(folder: Path) -> None:
    """Delete what only an unfinished training needs: checkpoints with optimizer state, and the best weights."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for best in folder.glob("best-*.safetensors"):
        best.unlink()


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the generators afterwards: code inside may seed them, as lm-eval does."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch before a student's new parameters are initialised."""
    random.seed(seed)
    set_seed(seed)


def add_sums(into: Sums, more: Mapping[str, tuple[float, float]]) -> None:
    """Add sums and counts by name."""
    for name, (total, count) in more.items():
        old_total, old_count = into.get(name, (0.0, 0.0))
        into[name] = (old_total + total, old_count + count)


def means_of(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Means by name, sorted by name; without those whose count is 0."""
    return {name: total / count for name, (total, count) in sorted(sums.items()) if count}
