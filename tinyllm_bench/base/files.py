"""Files that survive a crash: written aside and renamed, checksummed line by line, digested."""

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tinyllm_bench.base.errors import UserError


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8 kept."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a user error that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not valid JSON (no text): truncated or edited?") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON (line {error.lineno}): truncated or edited?") from None


def checked_line(row: Any) -> str:
    """One JSONL line that carries its own checksum: `crc32 (8 hex) TAB json NEWLINE`."""
    text = canonical_json(row)
    return f"{zlib.crc32(text.encode()):08x}\t{text}\n"


def append_checked(path: Path, rows: Iterable[Any]) -> None:
    """Append rows to a checksummed JSONL file and flush them to the disk.

    A half line that a crash left at the end is cut off first, so that the new rows start on a line of their own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _cut_half_line(path)
    with path.open("ab") as file:
        file.write("".join(checked_line(row) for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def _cut_half_line(path: Path) -> None:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    data = path.read_bytes()
    write_bytes(path, data[: data.rfind(b"\n") + 1])


def read_checked(path: Path) -> Iterator[Any]:
    """Rows of a checksummed JSONL file; a half last line is dropped, damage anywhere else is an error."""
    if not path.exists():
        return
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        check, _, text = line.partition(b"\t")
        if f"{zlib.crc32(text):08x}".encode() != check:
            raise UserError(f"{path}, line {number}: checksum does not match; delete the file to make it again")
        yield json.loads(text)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock beside `path`, so that two processes do not write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        yield


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """`locked` without waiting: whether the lock is held now. The system frees it when its holder is killed."""
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


def cache_root() -> Path:
    """`$TINYLLM_BENCH_CACHE`, by default `~/.cache/tinyllm_bench`."""
    return Path(os.environ.get("TINYLLM_BENCH_CACHE") or Path.home() / ".cache" / "tinyllm_bench")
