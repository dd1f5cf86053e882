"""Lists and data reports for the terminal."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tinyllm_bench.base.errors import unknown_name
from tinyllm_bench.cli.output import echo


def _methods() -> list[dict[str, Any]]:
    from tinyllm_bench.base.plugins import load_method, working

    found = [(name, load_method(name)) for name in working("method")]
    return [
        {"name": name, "paper": kind.paper, "about": (kind.__doc__ or "").partition("\n")[0]} for name, kind in found
    ]


def _tasks() -> list[dict[str, Any]]:
    from tinyllm_bench.base.plugins import load_task, working

    infos = [load_task(name) for name in working("task")]
    return [
        {
            "name": info.name,
            "title": info.title,
            "sizes": "/".join(str(size) for size in info.sizes.values()),
            "readings": ", ".join(info.readings),
        }
        for info in infos
    ]


def _models() -> list[dict[str, Any]]:
    from tinyllm_bench.models.bundled import NAMES, is_fetched

    fetched = [{"name": f"bundled:{name}", "state": "fetched" if is_fetched(name) else "not fetched"} for name in NAMES]
    kinds = [{"name": kind, "state": "any"} for kind in ("hf:OWNER/NAME@REVISION", "dir:FOLDER", "gguf:FILE")]
    return [*fetched, *kinds]


def _presets() -> list[dict[str, Any]]:
    from tinyllm_bench.experiment.request import load_preset, preset_names

    return [{"name": name, "about": load_preset(name).about} for name in preset_names()]


def _plugins() -> list[dict[str, Any]]:
    import tinyllm_bench.models.specs  # noqa: F401  (its kinds of spec are names that no plugin may take)
    from tinyllm_bench.base.plugins import KINDS, broken_files, outside, state

    found = [plugin for kind in KINDS for plugin in outside(kind)]
    rows = [
        {"kind": one.kind, "name": one.name, "package": one.package, "version": one.version, "state": state(one)}
        for one in found
    ]
    unread = broken_files().items()
    return rows + [
        {"kind": "file", "name": file.stem, "package": file.name, "version": "", "state": why} for file, why in unread
    ]


_LISTS = {"methods": _methods, "tasks": _tasks, "models": _models, "presets": _presets, "plugins": _plugins}


def print_list(what: str, *, as_json: bool) -> None:
    """Print one of the lists."""
    if what not in _LISTS:
        raise unknown_name("list", what, _LISTS)
    _print(_LISTS[what](), as_json=as_json)


def _print(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from tabulate import tabulate

    echo(tabulate(rows, headers="keys") if rows else "none")


def print_check(data_dir: str | None) -> int:
    """Check the release folder task by task; 2 when something is wrong."""
    from tinyllm_bench.data.checks import check_release
    from tinyllm_bench.data.sources import find_source

    source = find_source("release", data_dir)
    lines = check_release(source.folder or "")
    for line in lines:
        echo(line.text)
    return 0 if all(line.ok for line in lines) else 2


def print_info(task: str, data_dir: str | None, *, sample: bool, as_json: bool) -> None:
    """Facts about tasks and their data."""
    from tinyllm_bench.data.checks import task_facts
    from tinyllm_bench.data.sources import find_source
    from tinyllm_bench.experiment.request import expand

    source = find_source("sample", None) if sample else find_source("auto", data_dir)
    rows = [asdict(task_facts(source, name)) for name in expand("task", task.split(","))]
    if as_json:
        _print(rows, as_json=True)
        return
    for row in rows:
        echo("\n".join(f"{key}: {value}" for key, value in row.items()) + "\n")
