"""Packs: teachers' cached texts as one file with their provenance, to be checked and merged elsewhere.

The file is zstandard-compressed JSONL. Its first line holds the teachers, the number of texts, and their digest; every
other line is one text. Each text's key is computed again from its teacher, prompt and sampling when it is read.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import zstandard
from pydantic import BaseModel, ConfigDict, ValidationError

from tinyllm_bench import __version__
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import cache_root, canonical_json, digest, write_bytes
from tinyllm_bench.teachers.cache import CachedText, TextCache, check_row, texts_folder, today

SUFFIX = ".jsonl.zst"
_MAX_LINE = 1 << 24  # bytes of a text with its prompt: a few kilobytes can unpack to any size
_SHORT_NAME = re.compile(r"[^\W_][^/\\\x00-\x1f]*")  # it becomes a folder, which must not lead out of the cache


class PackedTeacher(BaseModel):
    """A teacher of a pack: its short name, its identity, and the number of its texts."""

    model_config = ConfigDict(frozen=True)

    name: str
    identity: dict[str, Any]
    texts: int


class PackHeader(BaseModel):
    """The first line of a pack; `digest` is the SHA-256 (hex) of all that follows it, uncompressed."""

    model_config = ConfigDict(frozen=True)

    format: Literal["tinyllm-bench-texts"]
    version: Literal[1]
    teachers: tuple[PackedTeacher, ...]
    texts: int
    digest: str
    tinyllm_bench: str
    created: str


class ImportResult(NamedTuple):
    """The result of an import: the pack's header, and how many of its texts were new to the cache."""

    header: PackHeader
    new: int


def cached_teachers() -> dict[str, list[Path]]:
    """The folders of cached texts by the teacher's short name; models of one name have a folder each."""
    folders: dict[str, list[Path]] = {}
    for file in sorted((cache_root() / "annotations").glob("*/*/teacher.json")):
        folders.setdefault(file.parent.parent.name, []).append(file.parent)
    return folders


def pack(teachers: Sequence[str | Path], to: Path, *, private: Callable[[Any], Iterable[str]]) -> PackHeader:
    """Write the texts of teachers, given by name or folder, into one file, in the order of their keys.

    `private` finds the strings in a value that must not leave this machine (its paths); a teacher's identity that holds
    one is refused, because the keys depend on it.

    Raises:
        UserError: a teacher has no texts, its identity holds a path of this machine, or the file has another suffix.
    """
    if not to.name.endswith(SUFFIX):
        raise UserError(f"{to}: a pack is named *{SUFFIX}, such as {to.name.split('.')[0] or 'texts'}{SUFFIX}")
    caches = [TextCache.open(folder) for folder in dict.fromkeys(_folders(teachers))]
    for cache in caches:
        if paths := list(private({"name": cache.name, "identity": cache.teacher})):
            raise UserError(
                f"teacher {cache.name} is identified by a path of this machine ({paths[0]}), which a pack must not"
                " contain; serve it under another name and annotate again"
            )
    return _write(caches, to)


def _folders(teachers: Sequence[str | Path]) -> Iterator[Path]:
    known = cached_teachers()
    for teacher in teachers:
        if (Path(teacher) / "teacher.json").exists():
            yield Path(teacher).resolve()
        elif str(teacher) in known:
            yield from (folder.resolve() for folder in known[str(teacher)])
        else:
            raise unknown_name("teacher with cached texts", str(teacher), known)


def _write(caches: Sequence[TextCache], to: Path) -> PackHeader:
    """The texts are compressed while they are digested; the header, known last, is a frame of its own before them."""
    sha, body, counts = hashlib.sha256(), io.BytesIO(), [0] * len(caches)
    with zstandard.ZstdCompressor().stream_writer(body, closefd=False) as packer:
        for number, cache in enumerate(caches):
            for row in cache.rows():
                line = f"{canonical_json({**row, 'teacher': number})}\n".encode()
                sha.update(line)
                packer.write(line)
                counts[number] += 1
    if not sum(counts):
        raise UserError(f"no texts are cached of {', '.join(cache.name for cache in caches) or 'no teacher'}")
    header = PackHeader(
        format="tinyllm-bench-texts",
        version=1,
        teachers=tuple(
            PackedTeacher(name=cache.name, identity=dict(cache.teacher), texts=count)
            for cache, count in zip(caches, counts, strict=True)
        ),
        texts=sum(counts),
        digest=sha.hexdigest(),
        tinyllm_bench=__version__,
        created=today(),
    )
    first = f"{canonical_json(header.model_dump())}\n".encode()
    write_bytes(to, zstandard.ZstdCompressor().compress(first) + body.getvalue())
    return header


def import_pack(file: Path) -> ImportResult:
    """Add a pack's texts to the cache; nothing is added of a damaged one, nor where another text has a key already.

    Raises:
        UserError: the file is no pack, truncated or edited, or the cache holds other texts under the same keys.
    """
    header = read_header(file)
    for cache, rows in _by_shard(file, header):  # a first pass, because a pack may prove wrong at its very end
        cache.check_identity()
        cache.check_conflicts(rows, cache.read(cache.shard(rows[0]["key"])))
    return ImportResult(header, sum(cache.merge(rows) for cache, rows in _by_shard(file, header)))


def _by_shard(file: Path, header: PackHeader) -> Iterator[tuple[TextCache, list[CachedText]]]:
    caches = [TextCache(texts_folder(t.name, t.identity), t.identity) for t in header.teachers]
    for (number, _), group in groupby(_rows(file, header), key=lambda item: (item[0], item[1]["key"][0])):
        yield caches[number], [row for _, row in group]


class TextSummary(NamedTuple):
    """The texts of one teacher, cached or packed; `identity` is a digest of the teacher's.

    Tokens and seconds are sums.
    """

    teacher: str
    identity: str
    texts: int
    tokens_in: int
    tokens_out: int
    seconds: float
    engine: str
    prompts: str
    tinyllm_bench: str
    made: str


def summaries(what: str | Path | None = None) -> list[TextSummary]:
    """A summary for each teacher of a pack, of a name, of a folder, or of the whole cache.

    Raises:
        UserError: `what` is none of these, or it is damaged.
    """
    if what is not None and Path(what).is_file():
        header = read_header(Path(what))
        groups = groupby(_rows(Path(what), header), key=itemgetter(0))
        teachers = ((header.teachers[number], group) for number, group in groups)
        return [_summary(t.name, t.identity, (row for _, row in group)) for t, group in teachers]
    folders = _folders([what] if what is not None else [*cached_teachers()])
    caches = [TextCache.open(folder) for folder in folders]
    return [_summary(cache.name, cache.teacher, cache.rows()) for cache in caches]


def _summary(name: str, identity: Mapping[str, Any], rows: Iterable[CachedText]) -> TextSummary:
    texts = tokens_in = tokens_out = 0
    seconds = 0.0
    engines, prompts, versions, dates = set[str](), set[str](), set[str](), set[str]()
    for row in rows:
        texts += 1
        tokens_in += row["tokens_in"]
        tokens_out += row["tokens_out"]
        seconds += row["seconds"]
        engines.add(row["engine"])
        prompts.add(str(row["made"].get("prompts")))
        versions.add(str(row["made"].get("tinyllm_bench")))
        dates.add(str(row["made"].get("date")))
    return TextSummary(
        teacher=name,
        identity=digest(identity)[:16],
        texts=texts,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        seconds=round(seconds, 2),
        engine=", ".join(sorted(engines)),
        prompts=", ".join(sorted(prompts)),
        tinyllm_bench=", ".join(sorted(versions)),
        made=" to ".join(sorted({min(dates), max(dates)})) if dates else "",
    )


# --- reading -------------------------------------------------------------------------------------------------------


def read_header(file: Path) -> PackHeader:
    """The first line of a pack.

    Raises:
        UserError: the file cannot be read, or is no pack of a known version.
    """
    with closing(_lines(file)) as lines:
        first = next(lines, b"")
    try:
        header = PackHeader.model_validate_json(first, strict=True)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        why = f"its {field} is not what this version reads" if field else "its first line is not a header"
        raise UserError(f"{file} is not a pack of texts: {why}; make one with `teachers pack`") from None
    for teacher in header.teachers:
        if not _SHORT_NAME.fullmatch(teacher.name) or not teacher.name.isprintable():
            raise UserError(
                f"{file}: {teacher.name!r} is not a teacher's short name; the pack was edited, get it again"
            )
    return header


def _rows(file: Path, header: PackHeader) -> Iterator[tuple[int, CachedText]]:
    """Each text with its teacher's number: checked one by one, and their count and digest at the end."""
    sha, counts, last = hashlib.sha256(), [0] * len(header.teachers), (-1, "")
    with closing(_lines(file)) as lines:
        next(lines, b"")
        for line in lines:
            sha.update(line)
            number, row = _parse(line, header, str(file))
            if (number, row["key"]) <= last:
                raise UserError(f"{file}: {row['key'][:12]} is out of order; the pack was edited, get it again")
            last = (number, row["key"])
            counts[number] += 1
            if counts[number] > header.teachers[number].texts:
                raise UserError(f"{file} was edited: it holds more texts than its first line says; get it again")
            yield number, row
    if counts != [teacher.texts for teacher in header.teachers] or sha.hexdigest() != header.digest:
        raise UserError(
            f"{file} was truncated or edited: {sum(counts)} of {header.texts} texts were read and their digest is"
            f" {sha.hexdigest()[:12]}, not {header.digest[:12]}; get it again"
        )


def _parse(line: bytes, header: PackHeader, where: str) -> tuple[int, CachedText]:
    try:
        row = json.loads(line)
        if f"{canonical_json(row)}\n".encode() != line:  # also refuses JSON that is not in canonical form
            raise ValueError
        number = row.pop("teacher")
        if type(number) is not int or number < 0:
            raise ValueError
        identity = header.teachers[number].identity
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        raise UserError(
            f"{where} was truncated or edited: a line is not a text of its teachers; get it again"
        ) from None
    return number, check_row(row, identity, where, fix="get the pack again")


def _lines(file: Path) -> Generator[bytes, None, None]:
    if file.exists() and not file.is_file():
        raise UserError(f"{file} is not a file; name a pack of texts, such as texts{SUFFIX}")
    try:
        with file.open("rb") as raw:
            unpacked = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
            while line := unpacked.readline(_MAX_LINE + 1):
                if len(line) > _MAX_LINE:
                    raise UserError(f"{file} is not a pack of texts: a line is longer than {_MAX_LINE} bytes")
                yield line
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}") from None
    except zstandard.ZstdError as error:
        raise UserError(f"{file} is not a pack of texts, or damaged ({error}); make one with `teachers pack`") from None
