"""Layered configuration: every value knows the layer it came from; unknown keys are errors with the nearest name.

Order, later wins: model default < method YAML < preset < preset's task part < preset's method part < preset's variant
of a method < `--config` file < `key=value`. A value of the command line is parsed by the declared type of its setting,
not by YAML's rules: `#2` and `1:30` remain texts, and `true` is not a number.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import read_text, strict_yaml
from tinyllm_bench.base.secrets import SECRET_REFUSED, holds_secret, redacted

_MAX_NUMBER = 1e30  # the largest number, also in settings of plugins; most settings have tighter bounds


class Layer(NamedTuple):
    """A named set of nested values, e.g. `Layer("preset cpu", {"train": {"learning_rate": 1e-4}})`."""

    name: str
    values: Mapping[str, Any]


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A YAML mapping; anything else is a user error that names the file."""
    return _mapping(text, where, yaml.SafeLoader)


def _mapping(text: str, where: str, loader: type[yaml.SafeLoader]) -> dict[str, Any]:
    try:
        values = strict_yaml(text, loader)
    except ValueError as error:
        raise UserError(f"{where} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a mapping of settings, not {type(values).__name__}")
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping."""
    if not path.exists():
        raise UserError(f"config file not found: {path}")
    return parse_yaml(read_text(path), str(path))


class RawText(str):
    """A value as the user typed it; the declared type of its setting decides how it is parsed."""

    __slots__ = ()


class _SettingsLoader(yaml.SafeLoader):
    """Leaves plain values unparsed, except null and `<<`: YAML would read 010 as 8 and 1:30 as 90."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag.endswith((":null", ":merge"))]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _raw_text(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return RawText(node.value) if node.style is None else str(node.value)


_SettingsLoader.add_constructor("tag:yaml.org,2002:str", _raw_text)


def read_settings(path: Path) -> dict[str, Any]:
    """A user's YAML file of settings; its plain values are `RawText`, like those of the command line."""
    return _mapping(read_text(path), str(path), _SettingsLoader)


def parse_assignments(texts: Iterable[str]) -> dict[str, Any]:
    """`["train.learning_rate=1e-4"]` as nested values, each `RawText`; `resolve` parses them by the settings' types."""
    nested: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        path = key.split(".")
        if not equals or not all(path):
            raise UserError(f"{_short(text)} is not a setting; write key=value, e.g. train.learning_rate=1e-4")
        group: Any = nested
        for depth, part in enumerate(path[:-1], start=1):
            group[part] = group = group_of(group.get(part, {}), ".".join(path[:depth]))
            if not isinstance(group, dict):
                raise UserError(f"{key}: {part!r} is a value already, not a group of settings")
        group[path[-1]] = RawText(value)
    return nested


def group_of(value: Any, path: str) -> Any:
    """The mapping of a raw text `{...}`; every other value is returned unchanged.

    Raises:
        UserError: the text is not a valid mapping.
    """
    if isinstance(value, RawText) and value.startswith("{"):
        return _parse_flow(value, path)
    return value


def _parse_flow(text: RawText, path: str) -> Any:
    """A list or mapping in YAML's flow style. Its plain texts are `RawText`; anchors, tags and comments are refused."""
    invalid = UserError(
        f"{_short(f'{path}={text}')}: the value is not valid YAML; put a text with special characters in quotes"
    )
    try:
        node = yaml.BaseLoader(text).get_single_node()  # first, because it refuses what is nested too deep
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.BaseLoader)):
            raise invalid
        if node is None or node.end_mark.index != len(text.rstrip()):  # a comment follows
            raise invalid
        return _node_value(node, invalid)
    except (yaml.YAMLError, RecursionError):
        raise invalid from None


def _node_value(node: Any, invalid: UserError) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [_node_value(item, invalid) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        mapping = {str(_node_value(key, invalid)): _node_value(value, invalid) for key, value in node.value}
        if len(mapping) < len(node.value):
            raise invalid  # a duplicate key
        return mapping
    if node.tag != "tag:yaml.org,2002:str":
        raise invalid
    return RawText(node.value) if node.style is None else node.value


def as_assignments(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Nested or dotted settings as texts for `parse_assignments`, groups before their members.

    A text that would be parsed as something else (`null`, a list, a mapping, a quoted text) is quoted. A mapping is
    split into its keys, unless a key cannot be part of a dotted name.
    """
    texts = [text for key, value in settings.items() for text in _assignments(key, value)]
    return tuple(sorted(texts, key=lambda text: text.partition("=")[0].count(".")))


def _assignments(key: str, value: Any) -> Iterator[str]:
    if not isinstance(key, str) or not key or "=" in key:
        raise UserError(f"{key!r} is not the name of a setting; write it as train.learning_rate")
    if (
        isinstance(value, Mapping)
        and value
        and all(isinstance(name, str) and name and not set(name) & {".", "="} for name in value)
    ):
        for name, inner in value.items():
            yield from _assignments(f"{key}.{name}", inner)
        return
    if isinstance(value, str):
        special = value in ("null", "true", "false") or value[:1] in tuple("[{'\"") or not value.isprintable()
        yield f"{key}=" + (_dump(value, default_style='"') if special else value)
        return
    try:
        text = _dump(_plain(value), default_flow_style=True)
    except yaml.YAMLError:
        raise UserError(
            f"{key}={value!r}: a setting is a number, a text, a list, a mapping, true, false or None"
        ) from None
    yield f"{key}={text}"


def _dump(value: Any, **style: Any) -> str:
    text: str = yaml.safe_dump(value, width=10**9, allow_unicode=True, sort_keys=False, **style)
    return text.removesuffix("\n").removesuffix("\n...")


def _plain(value: Any) -> Any:
    """Tuples as lists and paths as texts, for YAML."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


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
        _refuse_secrets(layer.values, layer.name)
        _merge(merged, layer.values, layer.name, model, "", origin)
    try:
        return Resolved(model.model_validate(merged), origin)
    except ValidationError as error:
        raise _refusal(model, error, origin) from None


def _refusal(model: type[BaseModel], error: ValidationError, origin: Mapping[str, str]) -> UserError:
    """The error for the first invalid value: where it was set, and what is allowed."""
    first = error.errors()[0]
    names: list[str] = []
    parts, field = list(first["loc"]), None
    group: type[BaseModel] | None = model
    while parts and group is not None and parts[0] in group.model_fields:
        names.append(str(parts.pop(0)))
        field, group = group.model_fields[names[-1]], _inner_model(group, names[-1])
    key = ".".join(names)
    # a value given for a whole group has an origin of its own; the group's settings keep theirs from lower layers
    inside = (layer for path, layer in origin.items() if path.startswith(f"{key}."))
    layer = origin.get(key) or next(inside, "the settings")
    if first["type"] == "missing" and group is None and field is not None and not parts:
        return UserError(f"{key} is missing ({layer}); allowed: {allowed(field.annotation, field.metadata)}")
    value = f"{key}={_short(first['input'])} ({layer})"
    if field is None or first["type"] in ("value_error", "literal_error"):
        return UserError(f"{value}: {first['msg'].removeprefix('Value error, ').lower()}")
    words = allowed(field.annotation, field.metadata)
    return UserError(f"{value}: allowed: {words}" + f", as {key}.NAME=VALUE" * ("group" in words.split()))


_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "anything"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def allowed(kind: Any, metadata: Sequence[Any] = ()) -> str:
    """The values that a setting of a type accepts, in words, with pydantic's bounds."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        extra = [part for field in inner[1:] for part in getattr(field, "metadata", [field])]
        return allowed(inner[0], [*metadata, *extra])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(allowed(member, metadata if member in (int, float) else ()) for member in inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"list of {len(inner)}: {', '.join(allowed(item) for item in inner)}"
    if origin in (list, tuple):
        return f"list of {allowed(inner[0])}"
    if origin is dict:
        return f"mapping from {allowed(inner[0])} to {allowed(inner[1])}"
    if _is_model(kind):
        return "group"
    bounds = [
        f"{word} {getattr(bound, name):g}"
        for bound in metadata
        for name, word in _BOUNDS.items()
        if hasattr(bound, name)
    ]
    return f"{_WORDS.get(kind, getattr(kind, '__name__', str(kind)))} {' and '.join(bounds)}".strip()


def _short(value: Any, limit: int = 100) -> str:
    text = repr(value)
    text = redacted(text)  # before it is cut: half a secret would not be detected
    return text if len(text) <= limit else f"{text[:limit]}..."


def _refuse_secrets(values: Any, layer: str, path: str = "") -> None:
    """Check that no setting holds a key or a password: settings are written into the folders of runs.

    Raises:
        UserError: one does; the message names it without its value.
    """
    if isinstance(values, Mapping):
        for key, value in values.items():
            if isinstance(key, str):
                _refuse_secrets(key, layer, path or "a setting's name")
            _refuse_secrets(value, layer, f"{path}.{key}" if path else str(key))
    elif isinstance(values, list | tuple | set):
        for value in values:
            _refuse_secrets(value, layer, path)
    elif isinstance(values, str) and holds_secret(values):
        raise UserError(f"{path} ({layer}) {SECRET_REFUSED}")


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
        if model is not None:
            value = _typed(value, model.model_fields[key].annotation, path, layer)
        if isinstance(value, Mapping) and inner is not None:
            current = into.get(key)
            into[key] = current if isinstance(current, dict) else {}
            _merge(into[key], value, layer, inner, f"{path}.", origin)
        else:
            into[key] = value
            origin[path] = layer


def _typed(value: Any, annotation: Any, path: str, layer: str) -> Any:
    """A value with raw texts parsed by the declared type of its setting, inside lists and mappings too.

    Whether the value is allowed is checked by the model.
    """
    kinds = _kinds(annotation)
    if isinstance(value, RawText):
        value = _parse_text(value, kinds, path)
    if isinstance(value, RawText):
        return str(value)
    if isinstance(value, Mapping):
        if any(_is_model(kind) for kind in kinds):
            return value  # `_merge` descends into it
        (inside,) = next((get_args(kind)[1:] for kind in kinds if get_origin(kind) is dict), (Any,))
        return {name: _typed(member, inside, f"{path}.{name}", layer) for name, member in value.items()}
    if isinstance(value, list):
        listed = next((get_args(kind) for kind in kinds if get_origin(kind) in (list, tuple)), (Any, ...))
        each = listed if len(listed) == len(value) and ... not in listed else (listed[0],) * len(value)
        return [
            _typed(item, kind, f"{path}.{index}", layer)
            for index, (item, kind) in enumerate(zip(value, each, strict=False))
        ]
    if isinstance(value, bool) and bool not in kinds and not {int, float}.isdisjoint(kinds):
        raise UserError(f"{path}={str(value).lower()} ({layer}): must be a number")
    if isinstance(value, int | float) and not abs(value) <= _MAX_NUMBER:  # nan is not, either
        raise UserError(f"{path}={_short(value)} ({layer}): must be a finite number, at most {_MAX_NUMBER:g}")
    return value


def _parse_text(text: RawText, kinds: Sequence[Any], path: str) -> Any:
    """The value of a raw text for a setting of these types; `RawText` if it remains a text."""
    listed = any(get_origin(kind) in (list, tuple, dict) or _is_model(kind) for kind in kinds)
    if text == "null" and type(None) in kinds:
        return None
    if text[:1] in ("[", "{") and (listed or Any in kinds):
        return _parse_flow(text, path)
    if len(text) > 1 and text[0] in "'\"" and text[-1] == text[0]:
        try:
            return str(_parse_flow(text, path))
        except UserError:
            return text  # a text that happens to start and end with a quote
    if str in kinds or any(text in get_args(kind) for kind in kinds if get_origin(kind) is Literal):
        return text
    if Any in kinds and text in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[text]
    if text.isascii() and not {int, float, Any}.isdisjoint(kinds):
        for number in (int, float):
            try:
                value = number(text)
            except ValueError:
                continue
            if value == 0 and re.match("[^eE]*[1-9]", text):
                raise UserError(f"{path}={_short(str(text))}: closer to 0 than a number can be; write 0")
            return value
    return text


def _kinds(annotation: Any) -> list[Any]:
    """The members of a union, without what `Annotated` adds."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [kind for member in get_args(annotation) for kind in _kinds(member)]
    return [annotation]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _inner_model(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """The config model of a field, also of `Model | None`."""
    kinds = [] if model is None else _kinds(model.model_fields[key].annotation)
    return next((kind for kind in kinds if _is_model(kind)), None)


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
