"""ScoringMode `leaderboards/reported/*.yaml`: numbers keep the digits they were printed with, mistakes are one line."""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_text
from tinyllm_bench.base.reading import strict_yaml
from tinyllm_bench.leaderboard.reported import (
    Column,
    LeftOut,
    Reported,
    ReportedFile,
    ReportedRow,
    ReportedTable,
    Setting,
    Source,
)


class _Loader(yaml.SafeLoader):
    """Keeps a number's printed digits."""


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal:
    try:
        return Decimal(node.value)
    except InvalidOperation:
        problem = f"{node.value!r} is not a decimal number, write it as printed"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def reported_folder() -> Path:
    """Where the values that ship with the project lie, in a checkout or inside the installed package."""
    package = Path(__file__).parents[1]
    inside = package / "reported"
    return inside if inside.is_dir() else package.parent / "leaderboards" / "reported"


def load_reported(folder: Path) -> Reported:
    """Read and check every `*.yaml` of a folder, in the order of their names.

    Raises:
        UserError: no such folder, broken YAML, an unknown or missing key, a value of the wrong kind, a table id or a
            model that stands in two files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no reported values at {folder}; give a folder with one YAML file a paper")
    files = {file: _load_file(file) for file in sorted(folder.glob("*.yaml"))}
    home: dict[str, Path] = {}
    models: dict[str, str] = {}
    for file, content in files.items():
        for table in content.tables:
            if table.id in home:
                raise UserError(f"{file}: tables[{table.id}].id stands in {home[table.id]} too; choose another id")
            home[table.id] = file
        for name, hub in content.models.items():
            if models.setdefault(name, hub) != hub:
                raise UserError(f"{file}: models.{name} is {models[name]} in another file; make them agree")
    return Reported(
        tables=tuple(table for content in files.values() for table in content.tables),
        models=models,
        left_out=tuple(one for content in files.values() for one in content.left_out),
    )


def _load_file(file: Path) -> ReportedFile:
    try:
        raw = strict_yaml(read_text(file), _Loader)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from None
    try:
        return ReportedFile.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{file}: {_first_problem(error, raw)}") from None


_MODELS: dict[str, type[BaseModel]] = {
    "tables": ReportedTable,
    "rows": ReportedRow,
    "source": Source,
    "setting": Setting,
    "columns": Column,
    "left_out": LeftOut,
}


def _first_problem(error: ValidationError, raw: Any) -> str:
    """Place, what is wrong there and the fix; our own messages carry their fix."""
    first = error.errors(include_url=False)[0]
    place = _place(first["loc"], raw)
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if first["type"] == "extra_forbidden":
        inside = next((_MODELS[str(part)] for part in reversed(first["loc"][:-1]) if part in _MODELS), ReportedFile)
        return f"{place} is no key here; allowed: {', '.join(inside.model_fields)}"
    fix = {
        "missing": "; add it, null where there is none",
        "string_type": "; put it in quotes",
        "string_pattern_mismatch": "; write it like that, in quotes",
        "value_error": "",
    }.get(first["type"], "; correct the value")
    return f"{place}: {message}{fix}" if place else f"{message}{fix}"


def _place(loc: Sequence[int | str], raw: Any) -> str:
    """`tables[main].rows[Label, student].values.X`: list items by name instead of by number."""
    parts: list[str] = []
    for part in loc:
        if isinstance(part, int):
            raw = raw[part] if isinstance(raw, list) and part < len(raw) else None
            named = raw if isinstance(raw, dict) else {}
            name = ", ".join(str(named[key]) for key in ("id", "label", "student") if named.get(key))
            parts[-1] += f"[{name or part}]"
        else:
            raw = raw.get(part) if isinstance(raw, dict) else None
            parts.append(part)
    return ".".join(parts)
