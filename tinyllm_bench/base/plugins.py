"""Methods and tasks by name: the only place that imports by a computed name.

A built-in's file name is its name; other people's come by entry point (`tinyllm_bench.methods`, `tinyllm_bench.tasks`)
and may not take a built-in's name.
"""

import importlib
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import ModuleType
from typing import Any

from tinyllm_bench.base.errors import UserError, unknown_name

_HOMES = {"method": "tinyllm_bench.baselines", "task": "tinyllm_bench.tasks"}


def folder(kind: str) -> Traversable:
    """The folder of the built-in methods or tasks, in a checkout or in an installed wheel."""
    return files(_HOMES[kind])


def _built_in(kind: str) -> set[str]:
    names = (entry.name for entry in folder(kind).iterdir())
    return {name[:-3] for name in names if name.endswith(".py") and not name.startswith("_")}


def _outside(kind: str) -> dict[str, EntryPoint]:
    return _entry_points(f"tinyllm_bench.{kind}s", tuple(sys.path))


@lru_cache(maxsize=16)
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Looking through every installed package takes 20 ms: once for an import path, not with every name."""
    return {point.name: point for point in entry_points(group=group)}


def names(kind: str) -> list[str]:
    """Every name of a kind (`method` or `task`), built in or installed by others."""
    return sorted(_built_in(kind) | set(_outside(kind)))


def outside(kind: str) -> list[EntryPoint]:
    """Entry points of other people's packages, sorted by name."""
    return sorted(_outside(kind).values(), key=lambda point: point.name)


def _load(kind: str, name: str) -> Any:
    built_in, outside = _built_in(kind), _outside(kind)
    if name in built_in:
        if name in outside:
            point = outside[name]
            raise UserError(f"{kind} {name!r} of package {point.value!r} has a built-in's name; rename its entry point")
        return importlib.import_module(f"{_HOMES[kind]}.{name}")
    if name in outside:
        try:
            return outside[name].load()
        except Exception as error:
            raise UserError(f"{kind} {name!r} ({outside[name].value}) does not load: {error!r}") from error
    raise unknown_name(kind, name, built_in | set(outside))


def load_method(name: str) -> Any:
    """The `Method` class of a name: attribute `METHOD` of `baselines/<name>.py`, or what an entry point names.

    Raises:
        UserError: unknown name (with the nearest one), a plugin that does not load or that takes a built-in's name.
    """
    found = _load("method", name)
    return found.METHOD if isinstance(found, ModuleType) else found


def load_task(name: str) -> Any:
    """The `TaskInfo` of a name: attribute `TASK` of `tasks/<name>.py`, or what an entry point names."""
    found = _load("task", name)
    return found.TASK if isinstance(found, ModuleType) else found


def method_defaults(name: str) -> str:
    """The text of `<method>.yaml` beside a built-in method; empty for a method that has none."""
    file = folder("method") / f"{name}.yaml"
    return file.read_text() if file.is_file() else ""
