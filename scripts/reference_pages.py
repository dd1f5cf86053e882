"""Writes docs/reference/: the command line from its own definition, the settings from their models, presets and YAML.

`python scripts/reference_pages.py` rewrites both pages; `tests/test_documentation.py` fails when they have drifted.
"""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from tinyllm_bench.base.config import allowed

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
MARK = "<!-- written by scripts/reference_pages.py; edits are lost -->"


def cell(text: str) -> str:
    """Text that may stand in a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table; nothing without rows."""
    if rows:
        yield from ("", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}")
        yield from (f"| {' | '.join(map(cell, row))} |" for row in rows)


# --- the command line -------------------------------------------------------------------------------------------------


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name, in the order in which the help names them."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    for name, one in sorted((inner or {}).items()):
        yield from _commands(one, f"{path} {name}")


def _shown_default(parameter: Any) -> str:
    if parameter.required:
        return "needed"
    value = parameter.default
    if value is None or callable(value) or type(value).__name__ == "Sentinel":
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _parameter(parameter: Any) -> tuple[str, str, str]:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        name = f"`{parameter.name.upper()}`" + (" ..." if parameter.nargs == -1 else "")
    else:
        name = ", ".join(f"`{one}`" for one in names)
    return name, _shown_default(parameter), parameter.help or ""


def cli_page() -> str:
    """The page of all commands."""
    import typer

    from tinyllm_bench.cli.app import app

    lines = [
        *("# Commands", MARK, ""),
        "Every command takes `--help`. [Settings](settings.md) are written behind the options as `key=value`.",
        "",
        "Exit status: 0 done, 1 a cell failed or a check does not hold, 2 the request was wrong and nothing was",
        "started, 3 interrupted; run the same command again to resume.",
    ]
    for path, command in _commands(typer.main.get_command(app), "tinyllm-bench"):
        shown = [one for one in command.params if one.name != "help" and not getattr(one, "hidden", False)]
        lines += ["", f"## {path.removeprefix('tinyllm-bench ')}", "", inspect.cleandoc(command.help or "")]
        lines += table(("argument or option", "default", "what it is"), [_parameter(one) for one in shown])
    return "\n".join([*lines, ""])


# --- settings ---------------------------------------------------------------------------------------------------------


def inner_model(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a group of settings, also behind `| None`."""
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((one for one in candidates if inspect.isclass(one) and issubclass(one, BaseModel)), None)


def _value(value: Any) -> str:
    if value is PydanticUndefined:
        return "needed"
    if isinstance(value, str) and "\n" in value:
        return f"`{json.dumps(value)}`"
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, width=float("inf"), sort_keys=False)
    return f"`{text.removesuffix('...' + chr(10)).strip()}`"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _about(model: type[BaseModel]) -> list[str]:
    return ["", inspect.cleandoc(model.__doc__ or "")]


def _groups(model: type[BaseModel], prefix: str, presets: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A heading, the model's own words and a table; then the groups inside it."""
    rows, deeper = [], []
    for name, field in model.model_fields.items():
        key, found = f"{prefix}{name}", inner_model(field)
        default = field.get_default(call_default_factory=True)
        if found is not None:
            deeper.append((key, found))
        if found is None or default is None:
            set_by = "<br>".join(
                f"{preset}: {_value(values[key])}" for preset, values in presets.items() if key in values
            )
            rows.append((f"`{key}`", allowed(field.annotation, field.metadata), _value(default), set_by))
    if prefix:
        yield from ("", f"## {prefix.removesuffix('.')}", *_about(model))
    yield from table(("setting", "allowed", "default", "presets"), rows)
    for key, found in deeper:
        yield from _groups(found, f"{key}.", presets)


def _method(name: str) -> Iterator[str]:
    from tinyllm_bench.base.plugins import load_method, method_defaults

    model, text = load_method(name).Config, method_defaults(name)
    values = yaml.safe_load(text) or {}
    comments = dict(re.findall(r"^ *(\w+):[^#\n]*#\s*(.+)$", text, flags=re.MULTILINE))  # beside each key
    own = values.get("method", {})
    yield from ("", f"### method.{name}", *_about(model)[: 2 if model.model_fields else 0])
    rows = [
        (
            f"`{key}`",
            allowed(field.annotation, field.metadata),
            _value(own.get(key, field.default)),
            comments.get(key, ""),
        )
        for key, field in model.model_fields.items()
    ]
    yield from table(("setting", "allowed", "default", "source"), rows)
    if not rows:
        yield from ("", "No settings of its own.")
    rest = _flat({key: value for key, value in values.items() if key != "method"})
    if rest:
        shown = ", ".join(f"`{key}={_value(value).strip('`')}`" for key, value in rest.items())
        yield from ("", f"Settings outside its group that come with the method: {shown}.")


def settings_page() -> str:
    """The page of all settings."""
    from tinyllm_bench.base.plugins import folder
    from tinyllm_bench.experiment.request import load_preset, preset_names
    from tinyllm_bench.experiment.settings import BenchConfig
    from tinyllm_bench.training.divergences import DivergenceConfig

    built_in = sorted(one.name[:-3] for one in folder("method").iterdir() if re.fullmatch(r"[a-z]\w*\.py", one.name))
    lines = [
        *("# Settings", MARK, ""),
        "Every setting can be given behind a command as `key=value`; the value is read by the kind below. Later layers",
        "win: the default below, the method's YAML file, the preset, its parts for the task and the method, its",
        "variant, `--config FILE`, and `key=value`. `--show-config` prints every value with the layer that set it. An",
        "unknown key is an error that",
        "names the nearest one.",
        "",
        "The column *presets* holds what a preset sets for every cell; some set more for single tasks or methods.",
        *_groups(BenchConfig, "", {name: _flat(load_preset(name).config) for name in preset_names()}),
        *("", "## Settings of methods", ""),
        "`method.KEY=VALUE` reaches every chosen method that has the setting, `method.NAME.KEY=VALUE` one of them.",
    ]
    for name in built_in:
        lines += _method(name)
    lines += ["", "### divergence", *_about(DivergenceConfig)]
    rows = [
        (f"`divergence.{key}`", allowed(field.annotation, field.metadata), _value(field.default))
        for key, field in DivergenceConfig.model_fields.items()
    ]
    return "\n".join([*lines, *table(("setting", "allowed", "default"), rows), ""])


def pages() -> dict[Path, str]:
    """Each file of the reference with its text."""
    return {FOLDER / "cli.md": cli_page(), FOLDER / "settings.md": settings_page()}


def main() -> None:
    """Rewrite the reference in place."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
