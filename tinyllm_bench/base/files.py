"""Files: read so that none can hang, fill the memory or end in a traceback; written so that they survive a crash.

A run's folder, a board, a data set and a settings file may come from anyone. What is not a regular file (a pipe, a
device), too large, a link out of its folder, not UTF-8 or not JSON is refused in one line that names it. Files are
written to a temporary file and renamed; logs carry a checksum on every line.
"""

import codecs
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyllm_bench.base.errors import UserError

MAX_BYTES = 1 << 30  # of any file that is read whole
_MAX_YAML_CHARACTERS = 1 << 19  # characters: our largest is a tenth of it, and the parser is slow
_MAX_YAML_NODES = 100_000  # of a YAML text, an anchor counted wherever it is used
_MAX_DIGITS = 40
_TEMPORARY_SUFFIX = ".writing"  # suffix of a file that is being written
_FOLDER_LOCK = ".owner"  # a file in a temporary folder that is locked while its owner lives
_UNLOCKED_SECONDS = 3600.0  # after this age a temporary folder without that file is abandoned: its maker died
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # starts like UTF-16's, so it is tested first
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def canonical_json(value: Any) -> str:
    """The canonical JSON text of a value: sorted keys, no spaces, non-ASCII characters unescaped."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading ----------------------------------------------------------------------------------------------------------


def read_bytes(path: str | Path, *, max_bytes: int = MAX_BYTES, inside: Path | None = None) -> bytes:
    """A regular file's bytes.

    Args:
        path: The file.
        max_bytes: The largest size that is read.
        inside: A folder that must contain the file, links followed.

    Raises:
        UserError: not found, not a regular file, larger than `max_bytes`, outside of `inside`, or not readable.
    """
    try:
        if inside is not None:
            check_inside(path, inside)
        _check_regular(path, os.stat(path))  # before it is opened: opening a device may do something
        # Not blocking: between the two calls a pipe may have taken its place.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            state = os.fstat(file.fileno())
            _check_regular(path, state)
            data = b"" if state.st_size > max_bytes else file.read(max_bytes + 1)
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if state.st_size > max_bytes or len(data) > max_bytes:
        size = max(state.st_size, len(data))
        raise UserError(
            f"{path} holds {size / 1e6:,.1f} MB, more than the {max_bytes / 1e6:,.1f} MB that are read here"
        )
    return data


def _check_regular(path: str | Path, state: os.stat_result) -> None:
    if not stat.S_ISREG(state.st_mode):
        what = "a folder" if stat.S_ISDIR(state.st_mode) else "not a regular file (a pipe or a device)"
        raise UserError(f"{path} is {what}; name a file")


def check_inside(path: str | Path, folder: Path) -> None:
    """Check that a file or folder lies inside `folder`, links followed.

    Raises:
        UserError: a link leads out of it.
    """
    try:
        within = Path(path).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, RuntimeError):  # a link that leads to itself
        within = False
    if not within:
        raise UserError(f"{path} is a link that leads out of {folder}; put the file itself there")


def read_text(path: Path | Traversable) -> str:
    """The text of a UTF-8 file, without the byte order mark that some editors write; line ends are unchanged.

    Raises:
        UserError: as `read_bytes`, or another encoding.
    """
    if isinstance(path, Path):
        return decode(read_bytes(path), str(path))
    try:
        return decode(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def decode(data: bytes, where: str) -> str:
    """UTF-8 bytes as text; `where` names them in the error.

    Raises:
        UserError: another encoding, which is named where a byte order mark or zero bytes identify it.
    """
    other = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
    if other is None and b"\0" in data[:2]:  # text begins with ASCII: as UTF-16 one of its two bytes is zero
        other = "UTF-16"
    if other is not None:
        raise UserError(f"{where} is {other} text and must be UTF-8; save it as UTF-8 (iconv -f {other} -t UTF-8)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 (truncated, or another encoding such as"
            " Latin-1 or Windows-1252?); save it as UTF-8"
        ) from None


def parse_json(text: str, *, line: int | None = None) -> Any:
    """`strict_json`, but with NaN and Infinity, for data sets; `line` is the number of the line, for the error.

    Raises:
        ValueError: as `strict_json`, in a few words that say where.
    """
    try:
        return strict_json(text, infinite=True)
    except ValueError as error:
        problem = str(error)
        where = (
            problem if line is None else f"line {line}" if problem.startswith("line ") else f"line {line}: {problem}"
        )
        raise ValueError(f"not valid JSON ({where})") from None


def json_lines(text: str) -> Iterator[Any]:
    """The values of JSON lines. Only a newline ends a line: texts may contain other line separators.

    Blank lines are skipped, and so are byte order marks inside concatenated files.

    Raises:
        ValueError: as `parse_json`, with the line's number.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.removeprefix("\ufeff").strip(" \t\r"):
            yield parse_json(line, line=number)


def strict_json(data: bytes | str, *, infinite: bool = False) -> Any:
    """The value of a JSON text that every reader understands the same way: nothing that only some parsers accept.

    `infinite` accepts NaN and Infinity, which Python writes.

    Raises:
        ValueError: in a few words what is wrong: not UTF-8, not JSON, a duplicate key, NaN or Infinity, a number with
            more than 40 digits or beyond a float, half a character (a lone surrogate), nested too deep.
    """

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            duplicate = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {duplicate[:40]!r} appears twice")
        return values

    def refuse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON number")

    def integer(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"the number {digits[:20]} is too large")
        return value

    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        finite: dict[str, Any] = {} if infinite else {"parse_constant": refuse_constant, "parse_float": real}
        value = json.loads(text, object_pairs_hook=unique_keys, parse_int=integer, **finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}") from None
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate (half a character), such as \\ud800") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        UserError: as `read_text`, or anything that `strict_json` refuses.
    """
    text = read_text(path)
    try:
        return strict_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): truncated or edited?") from None


def strict_yaml(text: str, loader: Any = None) -> Any:
    """The value of a YAML text, as safe loading makes it.

    Args:
        text: The text.
        loader: A subclass of `yaml.SafeLoader` with constructors of its own.

    Raises:
        ValueError: in one line what is wrong: no YAML, half a million characters or more, a duplicate key,
            anchors that unfold to more than 100,000 values or to themselves, nested too deep, a value that is none.
    """
    import yaml

    if len(text) > _MAX_YAML_CHARACTERS:
        raise ValueError(f"{len(text):,} characters, more than the {_MAX_YAML_CHARACTERS:,} that are read here")
    try:
        parser = (loader or yaml.SafeLoader)(text)
        try:
            node = parser.get_single_node()
            if node is None:
                return None
            if _count_values(node, {}) > _MAX_YAML_NODES:
                raise ValueError(f"its anchors unfold to more than {_MAX_YAML_NODES:,} values")
            return parser.construct_document(node)
        finally:
            parser.dispose()
    except RecursionError:
        raise ValueError("nested too deep") from None
    except (yaml.YAMLError, ValueError, ArithmeticError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())[:400]) from None


def _count_values(node: Any, counts: dict[int, int]) -> int:
    """How many values a YAML node unfolds to; `counts` holds the nodes counted so far, -1 for those in progress."""
    if id(node) in counts:
        if counts[id(node)] < 0:
            raise ValueError("an anchor holds itself")
        return counts[id(node)]
    counts[id(node)] = -1
    parts = node.value if isinstance(node.value, list) else []
    if parts and isinstance(parts[0], tuple):
        keys = [key.value for key, _ in parts if isinstance(key.value, str)]
        if len(set(keys)) < len(keys):
            duplicate = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{duplicate[:40]!r} appears twice, remove one (line {node.start_mark.line + 1})")
        parts = [part for pair in parts for part in pair]
    counts[id(node)] = 1 + sum(_count_values(part, counts) for part in parts)
    return counts[id(node)]


# --- writing ----------------------------------------------------------------------------------------------------------


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part.

    The data go to a temporary file beside it, which is locked while its writer lives, and are renamed. Temporary files
    of killed writers in the same folder are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        for entry in list(os.scandir(path.parent)):
            if (
                entry.name.endswith(_TEMPORARY_SUFFIX)
                and entry.name.startswith(".")
                and _is_abandoned(Path(entry.path))
            ):
                Path(entry.path).unlink(missing_ok=True)
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY_SUFFIX)
        _try_lock(handle)
        if os.path.exists(temporary):
            break
        os.close(handle)  # another process removed it in the moment before it was locked
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)  # before the lock is given up
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def temporary_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder that is removed at the end; after a crash, by the next call with the same `name`.

    `parent` defaults to the system's folder for temporary files. Folders of living processes and of other users are
    left alone.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    prefix = f"{name}-"
    _remove_abandoned_folders(parent, prefix)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        with suppress(FileNotFoundError):  # another process removed the folder in the moment before it was locked
            handle = os.open(folder / _FOLDER_LOCK, os.O_CREAT | os.O_RDWR, 0o600)
            _try_lock(handle)
            if (folder / _FOLDER_LOCK).exists():
                break
            os.close(handle)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def _remove_abandoned_folders(parent: Path, prefix: str) -> None:
    with suppress(OSError):
        for entry in list(os.scandir(parent)):
            if not entry.name.startswith(prefix) or not entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError):
                state, lock = entry.stat(follow_symlinks=False), Path(entry.path) / _FOLDER_LOCK
                unlocked = not lock.exists() and time.time() - state.st_mtime > _UNLOCKED_SECONDS
                if state.st_uid == os.getuid() and (unlocked or _is_abandoned(lock)):
                    shutil.rmtree(entry.path, ignore_errors=True)


def _try_lock(handle: int) -> bool:
    """Try to lock an open file; False also where the file system has no locks. The system frees it when we end."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is_abandoned(lock: Path) -> bool:
    """Whether no living process holds a file's lock."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _try_lock(handle)
    finally:
        os.close(handle)


def checked_line(row: Any) -> str:
    """A row as a line with its checksum: `crc32 (8 hex) TAB json NEWLINE`."""
    text = canonical_json(row)
    return f"{zlib.crc32(text.encode()):08x}\t{text}\n"


def append_checked(path: Path, rows: Iterable[Any]) -> None:
    """Append rows to a checksummed JSONL file and flush them to the disk.

    A partial last line, left by a crash, is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            whole = size == 0 or file.read(1) == b"\n"
        if not whole:
            data = path.read_bytes()
            write_bytes(path, data[: data.rfind(b"\n") + 1])
    with path.open("ab") as file:
        file.write("".join(checked_line(row) for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def read_checked(path: Path) -> Iterator[Any]:
    """Rows of a checksummed JSONL file, without a partial last line.

    Raises:
        UserError: damage anywhere else.
    """
    if not path.exists():
        return
    lines = read_bytes(path).split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        check, _, text = line.partition(b"\t")
        if f"{zlib.crc32(text):08x}".encode() != check:
            raise UserError(f"{path}, line {number}: checksum does not match; delete the file to make it again")
        try:
            yield strict_json(text)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is not valid JSON ({error}); delete the file to make it again"
            ) from None


# --- locks and locations ----------------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file beside `path`, so that two processes do not write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        yield


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """`locked` without waiting; yields whether the lock was acquired. The system frees it when its holder is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path) + ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def check_writable(place: Path, what: str, *, file: bool = False) -> None:
    """Check that a folder (or a file) can be written, before any work is done for it; nothing is left there.

    Args:
        place: It need not exist; its nearest existing parent is tried.
        what: The option or variable that names it, for the error.
        file: `place` is a file rather than a folder.

    Raises:
        UserError: a file for a folder or the reverse, a dangling link, no permission, a full or read-only disk.
    """
    if file and place.is_dir():
        raise UserError(f"{what} {place} is a folder; name a file")
    folder = place.absolute().parent if file else place.absolute()
    try:
        while not folder.exists():
            if folder.is_symlink():
                raise UserError(
                    f"{what} {place} cannot be written: {folder} is a link to nowhere; name another location"
                )
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(place, error, what) from None


def cannot_write(place: Path | str, error: OSError, what: str = "") -> UserError:
    """The error for a file or folder that the system does not let us write (or read)."""
    reason = error.strerror or str(error) or type(error).__name__
    where = str(place) if error.filename in (None, str(place)) else f"{place} ({error.filename})"
    return UserError(f"{what} {where}: {reason.lower()}; name a writable location".strip())


def cache_root() -> Path:
    """`$TINYLLM_BENCH_CACHE`, by default `~/.cache/tinyllm_bench`."""
    return Path(os.environ.get("TINYLLM_BENCH_CACHE") or Path.home() / ".cache" / "tinyllm_bench")
