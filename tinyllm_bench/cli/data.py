"""`list`, `fetch` and `data`: the names that the command line accepts, bundled models, and the data sets."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from tinyllm_bench.base.errors import unknown_name
from tinyllm_bench.base.files import cache_root, check_writable
from tinyllm_bench.cli.options import AsJson, DataDir, Tasks
from tinyllm_bench.cli.output import echo, echo_rows


def list_(
    what: Annotated[str, typer.Argument(help="methods, tasks, models, presets or plugins")], as_json: AsJson = False
) -> None:
    """List methods, tasks, models, presets or plugins."""
    lists = {"methods": _methods, "tasks": _tasks, "models": _models, "presets": _presets, "plugins": _plugins}
    if what not in lists:
        raise unknown_name("list", what, lists)
    echo_rows(lists[what](), as_json=as_json)


def _methods() -> list[dict[str, Any]]:
    from tinyllm_bench.base.plugins import load_method, loadable_names

    methods = [(name, load_method(name)) for name in loadable_names("method")]
    return [
        {"name": name, "paper": method.paper, "about": (method.__doc__ or "").partition("\n")[0]}
        for name, method in methods
    ]


def _tasks() -> list[dict[str, Any]]:
    from tinyllm_bench.base.plugins import load_task, loadable_names

    return [
        {
            "name": task.name,
            "title": task.title,
            "sizes": "/".join(str(size) for size in task.sizes.values()),
            "scoring_modes": ", ".join(task.scoring_modes),
        }
        for task in map(load_task, loadable_names("task"))
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
    from tinyllm_bench.base.plugins import KINDS, broken_files, external, status

    installed = [
        {
            "kind": plugin.kind,
            "name": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
            "state": status(plugin),
        }
        for kind in KINDS
        for plugin in external(kind)
    ]
    broken = [
        {"kind": "file", "name": file.stem, "package": file.name, "version": "", "state": reason}
        for file, reason in broken_files().items()
    ]
    return installed + broken


def fetch(
    name: Annotated[str, typer.Argument(help="A bundled model: smollm2-135m or gemma3-270m.")],
) -> None:
    """Download a bundled model and check its SHA-256."""
    from tinyllm_bench.models.bundled import fetch as fetch_model
    from tinyllm_bench.models.load import convert_gguf

    check_writable(cache_root(), "the cache, TINYLLM_BENCH_CACHE")
    folder = fetch_model(name, log=echo, convert=convert_gguf)
    echo(f"bundled:{name} is ready ({folder})")


def data_check(data_dir: DataDir = None) -> int:
    """Check the released data: files, row counts, digests and rationales. Status 2 if anything is wrong."""
    from tinyllm_bench.data.checks import check_release
    from tinyllm_bench.data.sources import find_source

    lines = check_release(find_source("release", data_dir).folder or "")
    for line in lines:
        echo(line.text)
    return 0 if all(line.ok for line in lines) else 2


def data_info(
    task: Tasks = "all",
    data_dir: DataDir = None,
    sample: Annotated[bool, typer.Option("--sample", help="Describe the sample data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print licence, source, sizes, chance and majority accuracy, and text lengths of data sets."""
    from tinyllm_bench.data.checks import task_facts
    from tinyllm_bench.data.sources import find_source
    from tinyllm_bench.experiment.request import expand

    source = find_source("sample", None) if sample else find_source("auto", data_dir)
    rows = [asdict(task_facts(source, name)) for name in expand("task", task.split(","))]
    if as_json:
        echo_rows(rows, as_json=True)
        return
    for row in rows:
        echo("\n".join(f"{key}: {value}" for key, value in row.items()) + "\n")
