"""Layered configuration: every value knows the layer it came from; unknown keys are errors with the nearest name.

Order, later wins: model default < method YAML < preset < preset's task part < preset's method part < `--config` file <
`key=value`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import read_text


class Layer(NamedTuple):
    """A named set of nested values, e.g. `Layer("preset cpu", {"train": {"learning_rate": 1e-4}})`."""

    name: str
    values: Mapping[str, Any]


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping; anything else is a user error that names the file."""
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a mapping of settings, not {type(values).__name__}")
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping."""
    if not path.exists():
        raise UserError(f"config file not found: {path}")
    return parse_yaml(read_text(path), str(path))


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """`["train.learning_rate=1e-4"]` as nested values; each value is read as YAML (numbers, null, lists)."""
    nested: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or key.startswith("."):
            raise UserError(f"{text!r} is not a setting; write key=value, e.g. train.learning_rate=1e-4")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"{text!r}: the value is not valid YAML") from None
        _put(nested, key.split("."), _number(parsed))
    return nested


def as_assignments(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Nested or dotted settings as the texts that `parse_assignments` reads, groups before what lies in them.

    A mapping is taken apart into its keys; one with keys that a dotted name cannot hold stays one value.
    """
    texts = [text for key, value in settings.items() for text in _assigned(key, value)]
    return tuple(sorted(texts, key=lambda text: text.partition("=")[0].count(".")))


def _assigned(key: str, value: Any) -> Iterator[str]:
    if not isinstance(key, str) or not key or "=" in key:
        raise UserError(f"{key!r} is not the name of a setting; write it as train.learning_rate")
    if isinstance(value, Mapping) and value and all(_is_part(name) for name in value):
        for name, inner in value.items():
            yield from _assigned(f"{key}.{name}", inner)
        return
    try:
        text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    except yaml.YAMLError:
        raise UserError(
            f"{key}={value!r}: a setting is a number, a text, a list, a mapping, true, false or None"
        ) from None
    yield f"{key}=" + text.removesuffix("\n").removesuffix("\n...")


def _is_part(name: Any) -> bool:
    return isinstance(name, str) and bool(name) and not set(name) & {".", "="}


def _plain(value: Any) -> Any:
    """Tuples as lists and paths as texts: YAML knows neither."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-4` as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _put(nested: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        nested = nested.setdefault(part, {})
        if not isinstance(nested, dict):
            raise UserError(f"{'.'.join(path)}: {part!r} is a value already, not a group of settings")
    nested[path[-1]] = value


class Resolved(NamedTuple):
    """A validated model, and for each dotted key the layer that set it (keys not listed are defaults)."""

    config: Any
    origin: Mapping[str, str]


def resolve(model: type[BaseModel], layers: Iterable[Layer]) -> Resolved:
    """Merge layers into a config model.

    Raises:
        UserError: an unknown key (with the nearest one), or a value of the wrong kind (with what is allowed).
    """
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for layer in layers:
        _merge(merged, layer.values, layer.name, model, "", origin)
    try:
        return Resolved(model.model_validate(merged), origin)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        where = origin.get(key, "the settings")
        raise UserError(f"{key}={first['input']!r} ({where}): {first['msg'].lower()}") from None


def _merge(
    into: dict[str, Any],
    values: Mapping[str, Any],
    layer: str,
    model: type[BaseModel] | None,
    prefix: str,
    origin: dict[str, str],
) -> None:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if model is not None and key not in model.model_fields:
            raise unknown_name(f"setting ({layer})", path, (f"{prefix}{name}" for name in model.model_fields))
        inner = _inner_model(model, key)
        if isinstance(value, Mapping) and inner is not None:
            current = into.get(key)
            into[key] = current if isinstance(current, dict) else {}
            _merge(into[key], value, layer, inner, f"{path}.", origin)
        else:
            into[key] = value
            origin[path] = layer


def _inner_model(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """The config model of a field, also behind `| None`."""
    if model is None:
        return None
    annotation = model.model_fields[key].annotation
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def flatten(config: BaseModel) -> dict[str, Any]:
    """Dotted keys and plain values of a config, in the model's order."""
    flat: dict[str, Any] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            flat.update({f"{name}.{key}": inner for key, inner in flatten(value).items()})
        else:
            flat[name] = value
    return flat
