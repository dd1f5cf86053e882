"""A teacher's distributions over given responses, cached on disk: the top-k tokens and the mass of all others.

Per response token: `k` ids (int32), their log-probabilities, the log of the mass outside them, and the log-probability
of the response's own token, which may be outside (float16, or float32 if that must be exact). Each of these columns is
a memory-mapped file; `index.jsonl` says which rows belong to which response and is written last, so that rows which a
killed process left behind are never read and are overwritten. A response's key is the digest of the teacher, of the
prompt's ids and of the scored ids: equal content is stored once, and a changed prompt is another response.

A cache is for one teacher with one set of settings; a run with others is refused with what differs. Forward KL and skew
KL can be trained from it. Reverse KL cannot unless k is the vocabulary, because it needs the teacher's probability
wherever the student has some. On-policy methods cannot use it: their texts change with every step.
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
from tinyllm_bench.generation.top_k import ResponseDistributions, ScoredResponse, response_digest

FORMAT = 1
Precision = Literal["float16", "float32"]
_HEADER, _INDEX = "header.json", "index.jsonl"


@dataclass(frozen=True, kw_only=True)
class LogitCacheHeader:
    """Everything that determines a distribution besides the ids.

    teacher: the model's identity (`models.identity`) or any JSON that represents it; tokenizer and template:
    digests; vocabulary: entries of a distribution; softcap: the teacher's soft cap of logits.
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
        for name in ("temperature", "softcap"):  # 1 and 1.0 must give the same digest
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
        """The default folder of such a cache."""
        return cache_root() / "logits" / digest(asdict(self))[:16]


class _Entry(NamedTuple):
    """The rows of a response: the first, and their number."""

    start: int
    tokens: int


class LogitCache:
    """The cached distributions of one teacher, in one folder."""

    def __init__(self, folder: Path, header: LogitCacheHeader) -> None:
        self.folder, self.header = folder, header
        self._entries: dict[str, _Entry] = {}  # by the digest of the content
        self._keys: dict[tuple[str, str], str] = {}  # that digest by record id and response digest
        self._columns: dict[str, Any] = {}  # memory maps
        self._index_version: tuple[int, int] | None = (-1, 0)  # of no file, so that the index is read
        self._identity = digest(asdict(header))
        self._load()

    @classmethod
    def create(cls, header: LogitCacheHeader, folder: Path | None = None) -> "LogitCache":
        """The cache with a header, new or existing.

        Raises:
            UserError: the folder holds a cache with another header.
        """
        folder = folder or header.folder
        with locked(folder / _INDEX):
            if not (folder / _HEADER).exists():
                write_json(folder / _HEADER, {"format": FORMAT, **asdict(header), "versions": packages()})
        return cls.open(folder, header)

    @classmethod
    def open(cls, folder: Path, expected: LogitCacheHeader | None = None) -> "LogitCache":
        """The existing cache in a folder. Versions of packages may differ from those that it was filled with.

        Raises:
            UserError: there is none, it is damaged, or its header is not the expected one.
        """
        content = read_json(folder / _HEADER)
        fields = LogitCacheHeader.__dataclass_fields__
        if not isinstance(content, dict) or content.get("format") != FORMAT or not fields.keys() <= content.keys():
            raise UserError(
                f"{folder / _HEADER} is not the header of a logit cache of format {FORMAT}; delete {folder} and fill"
                " it again"
            )
        header = LogitCacheHeader(**{name: content[name] for name in fields})
        for name, value in asdict(expected).items() if expected is not None else ():
            actual = getattr(header, name)
            if canonical_json(actual) != canonical_json(value):
                raise UserError(
                    f"{folder}: this cache was filled with {name} = {actual!r}, this run has {value!r}; use the cache"
                    " of this run, or fill one in another folder"
                )
        return cls(folder, header)

    @property
    def tokens(self) -> int:
        """Response tokens in the cache."""
        return sum(entry.tokens for entry in self._entries.values())

    @property
    def responses(self) -> int:
        """Responses in the cache."""
        return len(self._entries)

    def add(self, scored: Iterable[ScoredResponse]) -> int:
        """Store distributions; returns how many responses were new. Several processes may add to one cache.

        Raises:
            UserError: rows that do not fit the response or the cache.
        """
        responses = list(scored)
        for response in responses:
            check_distributions(response, k=self.header.k, vocabulary=self.header.vocabulary)
        with locked(self.folder / _INDEX):
            self._load()
            lines, new_rows, entries, end = [], [], dict(self._entries), self._end()
            for response in responses:
                name = (response.record_id, response_digest(response.prompt, response.response))
                key = digest([self._identity, name[1]])
                if key not in entries:
                    entries[key] = _Entry(end, len(response.response))
                    new_rows.append(response.distributions)
                    end += len(response.response)
                elif name in self._keys:
                    continue
                lines.append([key, *name, *entries[key]])
            if new_rows:
                self._append_rows(new_rows)
            if lines:
                append_checked(self.folder / _INDEX, lines)
            self._add_to_index(lines)
        return len(new_rows)

    def has(self, record_id: str, response: str) -> bool:
        """Whether the distributions over a record's response are cached; `response` is its `response_digest`."""
        return (record_id, response) in self._keys

    def distributions_for(self, record_id: str, response: str) -> ResponseDistributions:
        """The distributions over a record's response; `response` is its `response_digest`.

        Raises:
            UserError: they are not cached.
        """
        if (record_id, response) not in self._keys:
            self._load()  # another process may have added it
        key = self._keys.get((record_id, response))
        if key is None:
            raise UserError(
                f"{self.folder}: no distributions over this response of {record_id!r} (digest {response[:12]});"
                " the prompt, the response or the tokenizer changed, or the cache is not complete: fill it first"
            )
        entry = self._entries[key]
        columns = {name: self._column(name)[entry.start : entry.start + entry.tokens] for name in self._row_types()}
        return ResponseDistributions(
            torch.from_numpy(columns["ids"].astype(np.int64)),
            *(torch.from_numpy(columns[name].astype(np.float32)) for name in ("logp", "tail", "gold")),
        )

    def _row_types(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The type and shape of a row of each column, in the order of `ResponseDistributions`; little-endian on all
        machines.
        """
        number = np.dtype(self.header.precision).newbyteorder("<").str
        top_k = (self.header.k,)
        return {"ids": ("<i4", top_k), "logp": (number, top_k), "tail": (number, ()), "gold": (number, ())}

    def _file(self, column: str) -> Path:
        return self.folder / f"{column}.{self._row_types()[column][0].lstrip('<')}"

    def _column(self, name: str) -> Any:
        if name not in self._columns:
            dtype, shape = self._row_types()[name]
            self._columns[name] = np.memmap(self._file(name), dtype=dtype, mode="r", shape=(self._end(), *shape))
        return self._columns[name]

    def _end(self) -> int:
        """The first row that belongs to no response."""
        return max((entry.start + entry.tokens for entry in self._entries.values()), default=0)

    def _append_rows(self, new_rows: Sequence[ResponseDistributions]) -> None:
        """Write rows after the last one in the index; rows that a killed process left there are cut off."""
        for number, (column, (dtype, shape)) in enumerate(self._row_types().items()):
            data = b"".join(plain_bytes(rows[number], dtype) for rows in new_rows)
            with open(self._file(column), "ab") as file:
                file.truncate(self._end() * np.dtype(dtype).itemsize * math.prod(shape))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def _load(self) -> None:
        """Read the index again if another process added to it."""
        if self._index_version == self._current_index_version():
            return
        self._add_to_index(read_checked(self.folder / _INDEX))
        for column, (dtype, shape) in self._row_types().items():
            size = self._end() * np.dtype(dtype).itemsize * math.prod(shape)
            file = self._file(column)
            if size and (not file.exists() or file.stat().st_size < size):
                raise UserError(f"{file} is shorter than its index says; delete {self.folder} and fill it again")

    def _add_to_index(self, lines: Iterable[Any]) -> None:
        # taken before the lines are read: what is added meanwhile is read next time
        self._index_version = self._current_index_version()
        for key, record_id, response, start, tokens in lines:
            self._entries[key] = _Entry(start, tokens)
            self._keys[record_id, response] = key
        self._columns.clear()

    def _current_index_version(self) -> tuple[int, int] | None:
        """Size and time of the index file; None if there is none."""
        file = self.folder / _INDEX
        return (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else None


def check_distributions(scored: ScoredResponse, *, k: int, vocabulary: int) -> None:
    """Refuse rows that do not fit the response or the cache, or are not log-probabilities."""
    shape = (len(scored.response), k)
    shapes = [tuple(column.shape) for column in scored.distributions]
    if not scored.response or shapes != [shape, shape, shape[:1], shape[:1]]:
        raise UserError(
            f"distributions over a response of {scored.record_id!r} have the shapes {shapes}; needed: ids and logp"
            f" {shape}, tail and gold {shape[:1]}, of at least one token"
        )
    low, high = int(scored.distributions.ids_NK.min()), int(scored.distributions.ids_NK.max())
    if low < 0 or high >= vocabulary:
        raise UserError(
            f"distributions over a response of {scored.record_id!r} name the ids {low} to {high}; allowed: 0 to"
            f" {vocabulary - 1}"
        )
    if any(bool((column > 1e-3).any() or column.isnan().any()) for column in scored.distributions[1:]):
        raise UserError(f"distributions over a response of {scored.record_id!r} are not log-probabilities (NaN or > 0)")


def plain_bytes(column: Tensor, dtype: str) -> bytes:
    """Numbers as the file stores them; log-probabilities that float16 cannot represent become -inf."""
    numbers = column.detach().cpu()
    numbers = numbers if dtype == "<i4" else numbers.double().clamp_max(0.0)
    with np.errstate(over="ignore"):
        return numbers.numpy().astype(dtype).tobytes()
