"""`new method NAME` and `new task NAME`: a small package that installs, runs and passes its own tests."""

import importlib.util
import keyword
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tinyllm_bench import __version__
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import check_writable
from tinyllm_bench.cli.output import echo

Name = Annotated[str, typer.Argument(help="Name on the command line and of the package, in snake_case.")]
Folder = Annotated[Path, typer.Option("--to", help="Folder to create the package's folder in.")]

_FILES = {  # template -> where it goes; {name} is filled in
    "method": {
        "pyproject.toml": "pyproject.toml",
        "method_readme.md": "README.md",
        "method.py": "src/{name}/__init__.py",
        "method.yaml": "src/{name}/{name}.yaml",
        "method_test.py": "tests/test_{name}.py",
    },
    "task": {
        "pyproject.toml": "pyproject.toml",
        "task_readme.md": "README.md",
        "task.py": "src/{name}/__init__.py",
        "sample.jsonl": "src/{name}/samples/{name}.jsonl",
        "task_test.py": "tests/test_{name}.py",
    },
}


def new_method(name: Name, to: Folder = Path(".")) -> None:
    """Create a package with a distillation method of your own and a passing test."""
    make_package("method", name, to)


def new_task(name: Name, to: Folder = Path(".")) -> None:
    """Create a package with a task of your own, sample data and a passing test."""
    make_package("task", name, to)


def make_package(kind: Literal["method", "task"], name: str, to: Path) -> None:
    """Write the files of a package, and print how to install and run it.

    Raises:
        UserError: the name is not a Python name or is taken, or the folder exists.
    """
    from tinyllm_bench.base.plugins import names

    folder = to / name
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(f"{kind} name {name!r}: must be a Python name in snake_case, such as my_{kind}")
    if name in names(kind):
        raise UserError(f"{kind} {name!r} already exists (`tinyllm-bench list {kind}s`); choose another name")
    if folder.exists():
        raise UserError(f"{folder} already exists; choose another name, or another folder with --to DIR")
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:
        raise UserError(f"a Python package {name!r} is already installed ({spec.origin}); choose another name")
    check_writable(folder, "--to")

    class_name = "".join(part.capitalize() for part in name.split("_"))
    for template, place in _FILES[kind].items():
        file = folder / place.format(name=name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            _render(template, kind=kind, name=name, class_name=class_name, version=__version__), encoding="utf-8"
        )
    shown = str(folder) if folder.is_absolute() else f"./{folder}"  # without ./ pip would read it as a package's name
    echo(f"wrote {shown}")
    install, tested = shlex.quote(f"{shown}[test]"), shlex.quote(shown)
    echo(_render("next.txt", kind=kind, name=name, install=install, folder=tested), nl=False)


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    text = (files("tinyllm_bench.cli") / "scaffold" / f"{template}.j2").read_text(encoding="utf-8")
    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return jinja.from_string(text).render(values)
