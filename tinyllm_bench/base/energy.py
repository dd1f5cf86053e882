"""Energy where the machine tells: counters of NVIDIA GPUs, or of the processor's package (Linux powercap).

A counter is of the whole device: what else runs on it is counted too.
"""

from pathlib import Path
from typing import Any

_PACKAGES = "/sys/class/powercap/intel-rapl:?"


class EnergyMeter:
    """Joules since the last reading. `since_last` is None where no counter can be read."""

    def __init__(self) -> None:
        self._last = joules()

    def since_last(self) -> float | None:
        """Joules since this was called last, or since the meter was made."""
        before, self._last = self._last, joules()
        if before is None or self._last is None or self._last < before:  # a full counter starts anew
            return None
        return round(self._last - before, 3)


def joules() -> float | None:
    """The counters' sum in joules: of all GPUs where there are some, else of the processor."""
    gpus = _gpus()
    return gpus if gpus is not None else _packages()


def _packages() -> float | None:
    try:
        files = [folder / "energy_uj" for folder in sorted(Path("/").glob(_PACKAGES.lstrip("/")))]
        counts = [int(file.read_text(encoding="utf-8")) for file in files]
    except (OSError, ValueError):
        return None
    return sum(counts) / 1e6 if counts else None


def _gpus() -> float | None:
    try:
        import pynvml as nvml
    except ImportError:
        return None
    library: Any = nvml
    try:
        library.nvmlInit()
        devices = [library.nvmlDeviceGetHandleByIndex(n) for n in range(library.nvmlDeviceGetCount())]
        return sum(library.nvmlDeviceGetTotalEnergyConsumption(device) for device in devices) / 1e3 if devices else None
    except library.NVMLError:
        return None
