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

MOST_BYTES = 256 * 10**6  # of any file that is read whole
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
        if inside is not None and not Path(path).resolve().is_relative_to(Path(inside).resolve()):
            raise UserError(f"{path} is a link that leads out of {inside}; put the file itself there")
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


def _check_regular(path: str | Path, state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        what = "a folder" if stat.S_ISDIR(state.st_mode) else "no regular file (a pipe or a device)"
        raise UserError(f"{path} is {what}; name a file")


def strict_json(data: bytes | str) -> Any:
    """The value of a JSON text in which every reader finds the same: nothing that only some of them accept.

    Raises:
        ValueError: in a few words what is wrong: no UTF-8, no JSON, a key that stands twice, NaN or Infinity, a number
            with more than 40 digits or beyond a float, half a character (a lone surrogate), nested too deep.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        found = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_real
        )
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


def read_strict_json(path: str | Path, *, most: int = MOST_BYTES, inside: Path | None = None) -> Any:
    """The value of a JSON file, as `read_bytes` and `strict_json` read it.

    Raises:
        UserError: as these; it names the file.
    """
    data = read_bytes(path, most=most, inside=inside)
    try:
        return strict_json(data)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): truncated or edited?") from None
