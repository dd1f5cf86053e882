"""Files that somebody else may have written, read so that none of them can hang, fill the memory or end in a traceback.

A run's folder, a board and a settings file come from people we do not know: what is no regular file (a pipe, a device),
too large, a link out of its folder, no UTF-8 or no strict JSON is refused in one line that names it.
"""

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from tinyllm_bench.base.errors import UserError

MOST_BYTES = 1 << 30  # of any file that is read whole
_MOST_YAML = 1 << 19  # characters: our largest is a tenth of it, and the parser is slow
_MOST_NODES = 100_000  # of a YAML text, an anchor counted wherever it is used
_MOST_DIGITS = 40


def read_bytes(path: str | Path, *, most: int = MOST_BYTES, inside: Path | None = None) -> bytes:
    """A regular file's bytes.

    Args:
        path: The file.
        most: So many bytes at most.
        inside: A folder that the file must lie in also when links are followed.

    Raises:
        UserError: not there, no regular file, larger than `most`, outside of `inside`, or not readable.
    """
    try:
        if inside is not None:
            check_inside(path, inside)
        _check_regular(path, os.stat(path))  # before it is opened: opening a device may do something
        # Not blocking: between the two calls a pipe may have taken its place.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            state = os.fstat(file.fileno())
            _check_regular(path, state)
            data = b"" if state.st_size > most else file.read(most + 1)
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if state.st_size > most or len(data) > most:
        size = max(state.st_size, len(data))
        raise UserError(f"{path} holds {size / 1e6:,.1f} MB, more than the {most / 1e6:,.1f} MB that are read here")
    return data


def check_inside(path: str | Path, folder: Path) -> None:
    """Do nothing for a file or folder that lies in a folder also when links are followed.

    Raises:
        UserError: it leads out of it.
    """
    try:
        within = Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError):  # a link that leads to itself
        within = False
    if not within:
        raise UserError(f"{path} is a link that leads out of {folder}; put the file itself there")


def _check_regular(path: str | Path, state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        what = "a folder" if stat.S_ISDIR(state.st_mode) else "no regular file (a pipe or a device)"
        raise UserError(f"{path} is {what}; name a file")


def strict_json(data: bytes | str, *, infinite: bool = False) -> Any:
    """The value of a JSON text in which every reader finds the same: nothing that only some of them accept.

    Python writes NaN and Infinity; `infinite` takes them too.

    Raises:
        ValueError: in a few words what is wrong: no UTF-8, no JSON, a key that stands twice, NaN or Infinity, a number
            with more than 40 digits or beyond a float, half a character (a lone surrogate), nested too deep.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        other: dict[str, Any] = {} if infinite else {"parse_constant": _constant, "parse_float": _real}
        found = json.loads(text, object_pairs_hook=_object, parse_int=_integer, **other)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}") from None
    except UnicodeDecodeError:
        raise ValueError("no UTF-8 text") from None
    except UnicodeEncodeError:
        raise ValueError("half a character, such as a lone \\ud800") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:40]!r} stands twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    found = float(digits)
    if not math.isfinite(found):
        raise ValueError(f"the number {digits[:20]} is too large")
    return found


def strict_yaml(text: str, loader: Any = None) -> Any:
    """The value of a YAML text, as safe loading makes it.

    Args:
        text: The text.
        loader: A subclass of `yaml.SafeLoader` with constructors of its own.

    Raises:
        ValueError: in one line what is wrong: no YAML, half a million characters or more, a key that stands twice,
            anchors that unfold to more than 100,000 values or to themselves, nested too deep, a value that is none.
    """
    import yaml

    if len(text) > _MOST_YAML:
        raise ValueError(f"{len(text):,} characters, more than the {_MOST_YAML:,} that are read here")
    try:
        made = (loader or yaml.SafeLoader)(text)
        try:
            node = made.get_single_node()
            if node is None:
                return None
            if _nodes(node, {}) > _MOST_NODES:
                raise ValueError(f"its anchors unfold to more than {_MOST_NODES:,} values")
            return made.construct_document(node)
        finally:
            made.dispose()
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (yaml.YAMLError, ValueError, ArithmeticError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())[:400]) from None


def _nodes(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for; what is counted already is not walked through again."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise ValueError("an anchor holds itself")
        return known[id(node)]
    known[id(node)] = -1
    parts = node.value if isinstance(node.value, list) else []
    if parts and isinstance(parts[0], tuple):
        keys = [key.value for key, _ in parts if isinstance(key.value, str)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{twice[:40]!r} stands twice, remove one (line {node.start_mark.line + 1})")
        parts = [part for pair in parts for part in pair]
    known[id(node)] = 1 + sum(_nodes(part, known) for part in parts)
    return known[id(node)]
