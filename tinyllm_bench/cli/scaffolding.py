"""`new method NAME` and `new task NAME`: a small package that installs, runs and passes its own tests."""

import importlib.util
import keyword
import re
import shlex
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import typer

from tinyllm_bench import __version__
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import check_writable
from tinyllm_bench.cli.output import echo

Kind = Literal["method", "task"]
Name = Annotated[str, typer.Argument(help="Its name on the command line, and the package's: snake_case.")]
Folder = Annotated[Path, typer.Option("--to", help="The folder that the package's folder is made in.")]

_FILES: dict[Kind, dict[str, str]] = {  # template -> where it goes; {name} is filled in
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

new_app = typer.Typer(help="Start a package of your own.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(new_app, name="new")


@new_app.command("method")
def new_method(name: Name, to: Folder = Path(".")) -> None:
    """Write a package with a method of your own and a test that passes."""
    _tell("method", name, make_package("method", name, to))


@new_app.command("task")
def new_task(name: Name, to: Folder = Path(".")) -> None:
    """Write a package with a task of your own, its sample and a test that passes."""
    _tell("task", name, make_package("task", name, to))


def _tell(kind: Kind, name: str, folder: Path) -> None:
    place = str(folder) if folder.is_absolute() else f"./{folder}"  # bare, pip would look for it elsewhere
    words = {"kind": kind, "name": name, "install": shlex.quote(f"{place}[test]"), "folder": shlex.quote(place)}
    echo(f"wrote {place}")
    echo(_rendered("next.txt", words), nl=False)


def make_package(kind: Kind, name: str, to: Path) -> Path:
    """Write the files of a package and return its folder.

    Raises:
        UserError: a name that is no name, or is taken, or a folder that is there.
    """
    folder = to / name
    _check_name(kind, name, folder)
    check_writable(folder, "--to")
    values = {
        "kind": kind,
        "name": name,
        "class_name": "".join(part.capitalize() for part in name.split("_")),
        "version": __version__,
    }
    for template, place in _FILES[kind].items():
        file = folder / place.format(name=name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_rendered(template, values))
    return folder


def _rendered(template: str, values: Mapping[str, str]) -> str:
    from jinja2 import Environment, StrictUndefined

    text = (files("tinyllm_bench.cli") / "scaffold" / f"{template}.j2").read_text()
    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    return jinja.from_string(text).render(values)


def _check_name(kind: Kind, name: str, folder: Path) -> None:
    from tinyllm_bench.base.plugins import names

    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UserError(f"{kind} name {name!r}: a Python name in snake_case is needed, such as my_{kind}")
    if name in names(kind):
        raise UserError(f"{kind} {name!r} is there already (`tinyllm-bench list {kind}s`); choose another name")
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another name, or another folder with --to DIR")
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:
        raise UserError(f"a Python package {name!r} is installed already ({spec.origin}); choose another name")
