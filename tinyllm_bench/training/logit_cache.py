"""A teacher's distributions over given responses, cached on disk: the top-k tokens and the mass of all others.

Per response token: `k` ids (int32), their log-probabilities, the log of the mass outside them, and the log-probability
of the response's own token, which may be outside (float16, or float32 where that must be exact). Numbers lie in one
file per kind and are memory-mapped; `index.jsonl` says which rows are which response's and is written last, so what a
killed process left behind is never read and is overwritten. A response's key is the digest of the teacher, of the
ids it read and of the ids it scored: equal content is stored once, and a changed prompt is another response.

One cache serves one teacher read in one way; a run that reads it otherwise is refused with what differs. Forward KL and
skew KL train from it. Reverse KL does not unless k is the vocabulary, because it needs the teacher's probability
wherever the student has some. On-policy methods cannot use it: what they score changes with every step.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import (
    append_checked,
    cache_root,
    canonical_json,
    digest,
    locked,
    read_checked,
    read_json,
    write_json,
)
from tinyllm_bench.base.provenance import packages
from tinyllm_bench.generation.top_k import Rows, Scored, response_digest

FORMAT = 1
Precision = Literal["float16", "float32"]
_HEADER, _INDEX = "header.json", "index.jsonl"


@dataclass(frozen=True, kw_only=True)
class Header:
    """All that decides a distribution besides the ids.

    teacher: the model's identity (`models.identity`) or any JSON that represents it; tokenizer and template:
    digests; vocabulary: entries of a distribution; softcap: of the logits, as the teacher has it.
    """

    teacher: Any
    tokenizer: str
    template: str
    vocabulary: int
    k: int
    temperature: float = 1.0
    softcap: float | None = None
    precision: Precision = "float16"

    def __post_init__(self) -> None:
        for name in ("temperature", "softcap"):  # 1 and 1.0 are one cache
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else float(value))
        if not 1 <= self.k <= self.vocabulary:
            raise UserError(f"logit cache: k={self.k}; allowed: 1 to {self.vocabulary}, the teacher's vocabulary")
        if not self.temperature > 0:
            raise UserError(f"logit cache: temperature={self.temperature}; it must be above 0")
        if self.precision not in get_args(Precision):
            raise unknown_name("precision of a logit cache", self.precision, get_args(Precision))

    @property
    def bytes_per_token(self) -> int:
        """Bytes on disk of one response token, without the index."""
        number = np.dtype(self.precision).itemsize
        return self.k * (4 + number) + 2 * number

    @property
    def folder(self) -> Path:
        """Where such a cache lies by default."""
        return cache_root() / "logits" / digest(asdict(self))[:16]


class _Entry(NamedTuple):
    start: int
    tokens: int


class LogitCache:
    """The cached distributions of one teacher, in one folder."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder, self.header = folder, header
        self._entries: dict[str, _Entry] = {}
        self._named: dict[tuple[str, str], str] = {}
        self._maps: dict[str, Any] = {}
        self._state: tuple[int, int] | None = (-1, 0)
        self._identity = digest(asdict(header))
        self._load()

    @classmethod
    def create(cls, header: Header, folder: Path | None = None) -> "LogitCache":
        """The cache of a header, new or existing.

        Raises:
            UserError: another cache lies in the folder.
        """
        folder = folder or header.folder
        with locked(folder / _INDEX):
            if not (folder / _HEADER).exists():
                write_json(folder / _HEADER, {"format": FORMAT, **asdict(header), "versions": packages()})
        return cls.open(folder, header)

    @classmethod
    def open(cls, folder: Path, expected: Header | None = None) -> "LogitCache":
        """The cache that lies in a folder.

        Raises:
            UserError: there is none, it is damaged, or it was made for something else; versions of packages may differ.
        """
        card = read_json(folder / _HEADER)
        fields = Header.__dataclass_fields__
        if not isinstance(card, dict) or card.get("format") != FORMAT or not fields.keys() <= card.keys():
            raise UserError(
                f"{folder / _HEADER} is no header of a logit cache of format {FORMAT}; make the cache again"
            )
        header = Header(**{name: card[name] for name in fields})
        if expected is not None:
            _refuse_other(folder, asdict(header), asdict(expected))
        return cls(folder, header)

    @property
    def tokens(self) -> int:
        """Response tokens in the cache."""
        return sum(entry.tokens for entry in self._entries.values())

    @property
    def responses(self) -> int:
        """Responses in the cache."""
        return len(self._entries)

    def add(self, scored: Iterable[Scored]) -> int:
        """Store distributions; returns how many responses were new. Several processes may add to one cache.

        Raises:
            UserError: rows that do not fit the response or the cache.
        """
        responses = list(scored)
        for one in responses:
            check_rows(one, k=self.header.k, vocabulary=self.header.vocabulary)
        with locked(self.folder / _INDEX):
            self._load()
            lines, arrays, entries, start = [], [], dict(self._entries), self._end()
            for one in responses:
                name = (one.record_id, response_digest(one.prompt, one.response))
                key = digest([self._identity, name[1]])
                if key not in entries:
                    entries[key] = _Entry(start, len(one.response))
                    arrays.append(one.rows)
                    start += len(one.response)
                elif name in self._named:
                    continue
                lines.append([key, *name, *entries[key]])
            self._write(arrays)
            if lines:
                append_checked(self.folder / _INDEX, lines)
            self._index_lines(lines)
        return len(arrays)

    def has(self, record_id: str, response: str) -> bool:
        """Whether the distributions over a record's response are cached, by its `response_digest`."""
        return (record_id, response) in self._named

    def rows_for(self, record_id: str, response: str) -> Rows:
        """The distributions over a record's response, by its `response_digest`.

        Raises:
            UserError: they are not cached.
        """
        if (record_id, response) not in self._named:
            self._load()  # another process may have added it
        key = self._named.get((record_id, response))
        if key is None:
            raise UserError(
                f"{self.folder}: no distributions over this response of {record_id!r} (digest {response[:12]});"
                " the prompt, the response or the tokenizer changed, or the cache is not complete: fill it first"
            )
        entry = self._entries[key]
        columns = {kind: self._map(kind)[entry.start : entry.start + entry.tokens] for kind in self._kinds()}
        return Rows(
            torch.from_numpy(columns["ids"].astype(np.int64)),
            *(torch.from_numpy(columns[kind].astype(np.float32)) for kind in ("logp", "tail", "gold")),
        )

    def _kinds(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of one row of each file; little-endian wherever it is written."""
        number = np.dtype(self.header.precision).newbyteorder("<").str
        wide, narrow = (self.header.k,), ()
        return {"ids": ("<i4", wide), "logp": (number, wide), "tail": (number, narrow), "gold": (number, narrow)}

    def _file(self, kind: str) -> Path:
        return self.folder / f"{kind}.{self._kinds()[kind][0].lstrip('<')}"

    def _map(self, kind: str) -> Any:
        if kind not in self._maps:
            dtype, shape = self._kinds()[kind]
            self._maps[kind] = np.memmap(self._file(kind), dtype=dtype, mode="r", shape=(self._end(), *shape))
        return self._maps[kind]

    def _end(self) -> int:
        """First row that belongs to no response."""
        return max((entry.start + entry.tokens for entry in self._entries.values()), default=0)

    def _write(self, arrays: Sequence[Rows]) -> None:
        """Rows behind the last that the index names; what a killed process left there is cut off."""
        if not arrays:
            return
        for kind, (dtype, shape) in self._kinds().items():
            column = {"ids": 0, "logp": 1, "tail": 2, "gold": 3}[kind]
            data = b"".join(plain_bytes(rows[column], dtype) for rows in arrays)
            with open(self._file(kind), "ab") as file:
                file.truncate(self._end() * np.dtype(dtype).itemsize * math.prod(shape))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def _load(self) -> None:
        """Read the index again if another process added to it."""
        index = self.folder / _INDEX
        if self._state == _state(index):
            return
        self._index_lines(read_checked(index))
        for kind, (dtype, shape) in self._kinds().items():
            size = self._end() * np.dtype(dtype).itemsize * math.prod(shape)
            if size and (not self._file(kind).exists() or self._file(kind).stat().st_size < size):
                raise UserError(
                    f"{self._file(kind)} is shorter than its index says; delete {self.folder} and fill it again"
                )

    def _index_lines(self, lines: Iterable[Any]) -> None:
        self._state = _state(self.folder / _INDEX)  # before reading: what is added meanwhile is read next time
        for key, record_id, response, start, tokens in lines:
            self._entries[key] = _Entry(start, tokens)
            self._named[record_id, response] = key
        self._maps.clear()


def _state(file: Path) -> tuple[int, int] | None:
    if not file.exists():
        return None
    return file.stat().st_size, file.stat().st_mtime_ns


def _refuse_other(folder: Path, actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if canonical_json(actual[name]) != canonical_json(value):
            raise UserError(
                f"{folder}: this cache was made with {name} = {actual[name]!r}, this run has {value!r}; use the cache"
                " that was made for this run, or fill one in another folder"
            )


def check_rows(one: Scored, *, k: int, vocabulary: int) -> None:
    """Refuse rows that do not fit the response or the cache, or are no log-probabilities."""
    wide = (len(one.response), k)
    shapes = [tuple(part.shape) for part in one.rows]
    if not one.response or shapes != [wide, wide, wide[:1], wide[:1]]:
        raise UserError(
            f"distributions over a response of {one.record_id!r} have the shapes {shapes}; needed: ids and logp"
            f" {wide}, tail and gold {wide[:1]}, of at least one token"
        )
    low, high = int(one.rows.ids_NK.min()), int(one.rows.ids_NK.max())
    if low < 0 or high >= vocabulary:
        raise UserError(
            f"distributions over a response of {one.record_id!r} name the ids {low} to {high}; allowed: 0 to"
            f" {vocabulary - 1}"
        )
    if any(bool((part > 1e-3).any() or part.isnan().any()) for part in one.rows[1:]):
        raise UserError(f"distributions over a response of {one.record_id!r} are no log-probabilities (NaN or > 0)")


def plain_bytes(part: Tensor, dtype: str) -> bytes:
    """Numbers as the file holds them; what float16 cannot hold becomes -inf, as the log of a probability of zero."""
    numbers = part.detach().cpu()
    numbers = numbers if dtype == "<i4" else numbers.double().clamp_max(0.0)
    with np.errstate(over="ignore"):
        return numbers.numpy().astype(dtype).tobytes()
