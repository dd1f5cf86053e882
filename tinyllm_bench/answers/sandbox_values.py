"""Plain data that may enter or leave the sandbox: exact types, and caps on every size."""

import json
import keyword
from typing import Any

MAX_BITS = 1024
MAX_STRING = 4096  # characters
MAX_ITEMS = 64  # of one list or dict
MAX_DEPTH = 3
MAX_JSON = 128 * 1024  # characters


def unplain(value: object, depth: int = 0) -> str | None:
    """Why a value is not plain data within the caps, in a few words; None if it is."""
    kind = type(value)
    if value is None or kind in (bool, float):
        return None
    if kind is int:
        return f"an int of more than {MAX_BITS} bits" if _bits(value) > MAX_BITS else None
    if kind is str:
        return f"a string of more than {MAX_STRING} characters" if len(str(value)) > MAX_STRING else None
    if kind not in (list, dict):
        return f"a value of type {kind.__name__}"
    return _unplain_items(value, depth)


def _bits(value: Any) -> int:
    return int(value.bit_length())


def _unplain_items(value: Any, depth: int) -> str | None:
    if depth >= MAX_DEPTH:
        return f"nested more than {MAX_DEPTH} deep"
    if len(value) > MAX_ITEMS:
        return f"more than {MAX_ITEMS} items"
    parts = [*value, *value.values()] if type(value) is dict else list(value)
    if type(value) is dict and any(type(key) is not str for key in value):
        return "a key that is not a string"
    return next((why for part in parts if (why := unplain(part, depth + 1))), None)


def read_value(text: object) -> tuple[Any, str | None]:
    """Read the JSON that a worker sent, trusting nothing: `(value, None)` or `(None, what is wrong)`.

    A worker that a program has taken over can send anything.
    """
    if type(text) is not str:
        return None, f"the worker sent a {type(text).__name__}"
    if len(text) > MAX_JSON:
        return None, f"more than {MAX_JSON} characters of JSON"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {type(error).__name__}"
    why = unplain(value)
    return (None, why) if why else (value, None)


def is_name(name: object) -> bool:
    """Whether a program may be given, or asked for, a variable of this name."""
    return type(name) is str and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
