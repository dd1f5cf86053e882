"""Files that survive a crash: written aside and renamed, checksummed line by line, digested."""

import codecs
import fcntl
import hashlib
import json
import os
import shutil
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
from tinyllm_bench.base.reading import read_bytes, strict_json


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
    """Write a file so that a reader sees the old content or the new, never a part.

    It is written aside first, into a file that is locked while its writer lives; those of killed writers in the same
    folder are removed on the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_files(path.parent)
    handle, temporary = _locked_temporary(path)
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


_ASIDE = ".writing"  # how the name of a file ends that is being written
_FOLDER_LOCK = ".owner"  # lies in a temporary folder and is locked while its owner lives
_UNLOCKED_SECONDS = (
    3600.0  # a temporary folder without that file is somebody's that died making it, once it is this old
)


def _locked_temporary(path: Path) -> tuple[int, str]:
    """A new file beside `path`, and its open handle, which holds its lock."""
    while True:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=_ASIDE)
        _try_lock(handle)
        if os.path.exists(temporary):
            return handle, temporary
        os.close(handle)  # another process swept it in the moment before it was locked


def _try_lock(handle: int) -> bool:
    """Whether a file's lock is ours now; never where the file system has no locks. The system frees it at our end."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is_abandoned(lock: Path) -> bool:
    """Whether nobody alive holds a file's lock."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return _try_lock(handle)
    finally:
        os.close(handle)


def _sweep_files(folder: Path) -> None:
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.endswith(_ASIDE) and entry.name.startswith(".") and _is_abandoned(Path(entry.path)):
                Path(entry.path).unlink(missing_ok=True)


@contextmanager
def temporary_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder of this process that is removed at the end: by us, or by the next that makes one of the same `name`.

    `parent` is the system's folder for temporary files by default. Folders of processes that live, and of other users,
    are left alone.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _sweep_folders(parent, f"{name}-")
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{name}-"))
        with suppress(FileNotFoundError):  # another process swept the folder in the moment before it was locked
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


def _sweep_folders(parent: Path, prefix: str) -> None:
    with suppress(OSError):
        for entry in list(os.scandir(parent)):
            if not entry.name.startswith(prefix) or not entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError):
                state, lock = entry.stat(follow_symlinks=False), Path(entry.path) / _FOLDER_LOCK
                unlocked = not lock.exists() and time.time() - state.st_mtime > _UNLOCKED_SECONDS
                if state.st_uid == os.getuid() and (unlocked or _is_abandoned(lock)):
                    shutil.rmtree(entry.path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path | Traversable) -> str:
    """The text of a file that people may have written: UTF-8, without the byte order mark that some editors put first.

    Line ends stay as they are.

    Raises:
        UserError: no such file, not a file, not readable, or of another encoding; one line that names it and the fix.
    """
    if isinstance(path, Path):
        return decode(read_bytes(path), str(path))
    try:
        return decode(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise UserError(f"file not found: {path}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # begins like UTF-16's, so it is looked for first
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def decode(data: bytes, where: str) -> str:
    """UTF-8 bytes as text; `where` names them in the error.

    Raises:
        UserError: another encoding, named where its mark or its zero bytes tell which.
    """
    other = next((name for mark, name in _OTHER_MARKS.items() if data.startswith(mark)), None)
    if other is None and b"\0" in data[:2]:  # text begins with ASCII: as UTF-16 one of its two bytes is zero
        other = "UTF-16"
    if other is not None:
        raise UserError(f"{where} is {other} text, and UTF-8 is wanted; save it as UTF-8 (iconv -f {other} -t UTF-8)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{where}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 (truncated, or another encoding such as"
            " Latin-1 or Windows-1252?); save it as UTF-8"
        ) from None


def parse_json(text: str, *, line: int | None = None) -> Any:
    """The value of a JSON text that people may have written; `line` is its number where it is a line of a file.

    Raises:
        ValueError: as `strict_json`, but for NaN and Infinity, in a few words that say where.
    """
    try:
        return strict_json(text, infinite=True)
    except ValueError as error:
        told = str(error)
        where = told if line is None else f"line {line}" if told.startswith("line ") else f"line {line}: {told}"
        raise ValueError(f"not valid JSON ({where})") from None


def json_lines(text: str) -> Iterator[Any]:
    """The values of JSON lines. A line ends at a newline and at nothing else: texts may hold any other character.

    Blank lines are passed over, and the byte order marks of files that were joined.

    Raises:
        ValueError: as `parse_json`, with the line's number.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.removeprefix("\ufeff").strip(" \t\r"):
            yield parse_json(line, line=number)


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a user error that names it."""
    text = read_text(path)
    try:
        return strict_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): truncated or edited?") from None


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


def check_writable(place: Path, what: str, *, file: bool = False) -> None:
    """Refuse a folder (or a file) that cannot be written, before any work is done for it; nothing is left there.

    Args:
        place: It need not exist; then what it would lie in is tried.
        what: The option or variable that names it, for the error.
        file: It is a file that will be written into its folder.

    Raises:
        UserError: a file for a folder or the reverse, a dangling link, no permission, a disk that takes nothing.
    """
    if file and place.is_dir():
        raise UserError(f"{what} {place} is a folder; name a file")
    folder = place.absolute().parent if file else place.absolute()
    try:
        while not folder.exists():
            if folder.is_symlink():
                raise UserError(f"{what} {place} cannot be written: {folder} is a link to nowhere; name another place")
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(place, error, what) from None


def cannot_write(place: Path | str, error: OSError, what: str = "") -> UserError:
    """The one line of a file or folder that the system does not let us write (or read)."""
    reason = error.strerror or str(error) or type(error).__name__
    where = str(place) if error.filename in (None, str(place)) else f"{place} ({error.filename})"
    return UserError(f"{what} {where}: {reason.lower()}; name a place that can be written".strip())


def cache_root() -> Path:
    """`$TINYLLM_BENCH_CACHE`, by default `~/.cache/tinyllm_bench`."""
    return Path(os.environ.get("TINYLLM_BENCH_CACHE") or Path.home() / ".cache" / "tinyllm_bench")
