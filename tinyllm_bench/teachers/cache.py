"""The cache of one teacher's texts: found by their requests, stored as they arrive, shared by many processes.

A text's key is the digest of all that decides it, so that a changed prompt is another text and nothing is ever stale.
Keys are spread over 16 checksummed files, the shards, by their first hex digit. A process that writes into a shard
holds its lock, which the system releases when the process is killed: at most the texts that were being written at that
moment are lost.
"""

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from tinyllm_bench import __version__
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import AnnotationFailed, AnnotationProgress, Report
from tinyllm_bench.base.files import (
    append_checked,
    cache_root,
    digest,
    locked,
    read_checked,
    read_json,
    try_locked,
    write_json,
)
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest, TextGenerator
from tinyllm_bench.teachers.prompts import PROMPTS_VERSION

POLL_SECONDS = 0.1  # between two looks at shards that other processes hold
_DELETE_SHARD = "delete the file to have its texts generated again"
_RESUMES = "What was annotated is cached; the same command resumes."


# --- one cached text -------------------------------------------------------------------------------------------------


class CachedText(TypedDict):
    """One text and the exact request for it, a row of a shard.

    `seconds` is its share of the wall time; `made` the versions of the prompts' wording and of this package, and the
    date (UTC).
    """

    key: str
    prompt: str
    sampling: Mapping[str, Any]
    seed: int
    text: str
    tokens_in: int
    tokens_out: int
    finish: str
    seconds: float
    engine: str
    made: Mapping[str, Any]


_FIELD_TYPES: Mapping[str, Any] = {
    "key": str,
    "prompt": str,
    "sampling": dict,
    "seed": int,
    "text": str,
    "tokens_in": int,
    "tokens_out": int,
    "finish": str,
    "seconds": int | float,
    "engine": str,
    "made": dict,
}


def text_key(teacher: Mapping[str, Any], request: GenerationRequest) -> str:
    """The key of a text: SHA-256 (hex) of the teacher's identity, the prompt and how the text is sampled."""
    return _key(teacher, request.prompt, asdict(request.sampling), request.seed)


def _key(teacher: Mapping[str, Any], prompt: str, sampling: Mapping[str, Any], seed: int) -> str:
    return digest({"teacher": teacher, "prompt": prompt, "sampling": sampling, "seed": seed})


def check_row(row: Any, teacher: Mapping[str, Any], where: str, *, fix: str) -> CachedText:
    """The row as a `CachedText`, if it is complete and belongs under its key. `fix` is what the error advises.

    Raises:
        UserError: other fields or types, or a prompt, sampling or teacher that do not give its key.
    """
    if not isinstance(row, dict) or row.keys() != _FIELD_TYPES.keys():
        raise UserError(f"{where}: a row does not have the fields of this version; {fix}")
    wrong = [n for n, kind in _FIELD_TYPES.items() if not isinstance(row[n], kind) or isinstance(row[n], bool)]
    if wrong or _key(teacher, row["prompt"], row["sampling"], row["seed"]) != row["key"]:
        why = f"its {wrong[0]} is of the wrong type" if wrong else "its key is not that of its teacher and prompt"
        raise UserError(f"{where}: row {str(row['key'])[:12]} was edited: {why}; {fix}")
    return cast(CachedText, row)


def differ(first: CachedText, second: CachedText) -> bool:
    """Whether two rows hold different texts; when and where they were generated does not matter."""
    return (first["text"], first["finish"]) != (second["text"], second["finish"])


def today() -> str:
    """The date (UTC)."""
    return datetime.now(UTC).date().isoformat()


# --- the cache -------------------------------------------------------------------------------------------------------


def texts_folder(name: str, teacher: Mapping[str, Any]) -> Path:
    """The folder of a teacher's cached texts; models with the same name and different identities have one each."""
    return cache_root() / "annotations" / name / digest(teacher)[:16]


class TextCache:
    """The cached texts of one teacher. `teacher` is its identity: all that decides a text besides the request."""

    def __init__(self, folder: Path, teacher: Mapping[str, Any]) -> None:
        self.folder = folder
        self.teacher = teacher
        self.name = folder.parent.name

    @classmethod
    def open(cls, folder: Path) -> "TextCache":
        """The existing cache in a folder.

        Raises:
            UserError: there is none.
        """
        return cls(folder, _read_identity(folder / "teacher.json"))

    def shard(self, key: str) -> Path:
        """The file of a text."""
        return self.folder / f"{key[0]}.jsonl"

    def rows(self) -> Iterator[CachedText]:
        """All texts, in the order of their keys; an incomplete line that a crash left behind is no text."""
        for digit in "0123456789abcdef":
            yield from (row for _, row in sorted(self.read(self.folder / f"{digit}.jsonl").items()))

    def read(self, shard: Path, keys: Container[str] | None = None) -> dict[str, CachedText]:
        """The texts of one shard by their keys, or those of `keys`; each is checked.

        Raises:
            UserError: a line is damaged, a row was edited, or two texts have one key.
        """
        rows: dict[str, CachedText] = {}
        for row in read_checked(shard):
            if keys is not None and isinstance(row, dict) and str(row.get("key")) not in keys:
                continue
            checked = check_row(row, self.teacher, str(shard), fix=_DELETE_SHARD)
            if differ(rows.setdefault(checked["key"], checked), checked):
                raise UserError(f"{shard}: two texts of the key {checked['key'][:12]}; {_DELETE_SHARD}")
        return rows

    def lookup(self, requests: Sequence[GenerationRequest]) -> dict[str, CachedText]:
        """Key to row of the requests whose texts are cached; nothing is generated or written."""
        self.check_identity()
        return _Fill(self, requests, lambda event: None).rows

    def fill(
        self,
        requests: Sequence[GenerationRequest],
        open_generator: Callable[[], TextGenerator],
        *,
        on_error: Literal["stop", "skip"],
        report: Report,
    ) -> dict[str, CachedText]:
        """Key to row of every request, after the missing texts were generated; the generator is opened only for these.

        Several processes may fill one cache: each text is generated once.

        Raises:
            UserError: the teacher is not available, or failed where `on_error` is `stop`; the texts it generated before
                stay cached. With `skip`, failed requests are reported and have no row, and so have all that are left
                when it fails for good.
        """
        self.check_identity()
        fill = _Fill(self, requests, report)
        if fill.missing:
            self.write_identity()
            fill.run(open_generator, on_error)
        return fill.rows

    def merge(self, rows: Iterable[CachedText]) -> int:
        """Add texts that were generated elsewhere, all of one shard; returns how many of them were new.

        Raises:
            UserError: another text is cached under the key of one of them; then none is added.
        """
        new = list(rows)
        if not new:
            return 0
        shard = self.shard(new[0]["key"])
        assert all(self.shard(row["key"]) == shard for row in new)
        self.write_identity()
        with locked(shard):
            cached = self.read(shard)
            self.check_conflicts(new, cached)
            added = {row["key"]: row for row in new if row["key"] not in cached}
            if added:
                append_checked(shard, added.values())
        return len(added)

    def check_conflicts(self, rows: Iterable[CachedText], cached: Mapping[str, CachedText]) -> None:
        """Refuse texts that differ from the cached ones of their keys, as from the same model on another machine.

        Raises:
            UserError: one differs.
        """
        conflicts = [row["key"][:12] for row in rows if row["key"] in cached and differ(cached[row["key"]], row)]
        if conflicts:
            raise UserError(
                f"{len(conflicts)} texts differ from those cached in {self.shard(conflicts[0])} (the first is"
                f" {conflicts[0]}); set TINYLLM_BENCH_CACHE to a folder of its own for them, or delete that file"
            )

    def write_identity(self) -> None:
        """Write the teacher's identity into `teacher.json`, or check it where that file exists.

        Raises:
            UserError: the folder holds the texts of another teacher.
        """
        file = self.folder / "teacher.json"
        if not file.exists():
            with locked(file):
                if not file.exists():
                    made = {"created": today(), "tinyllm_bench": __version__}
                    write_json(file, {"identity": self.teacher, **made})
        self.check_identity()

    def check_identity(self) -> None:
        """Check that `teacher.json`, if there is one, names this teacher.

        Raises:
            UserError: the folder holds the texts of another teacher.
        """
        file = self.folder / "teacher.json"
        if file.exists() and digest(_read_identity(file)) != digest(self.teacher):
            raise UserError(f"{self.folder} holds the texts of another teacher (its teacher.json); delete or move it")


def _read_identity(file: Path) -> Mapping[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("identity"), dict):
        raise UserError(f"{file} does not name the identity of a teacher: edited? Delete or move its folder")
    return dict(content["identity"])


class _Fill:
    """One call of `fill`: the rows so far, the requests whose texts are missing, and those that failed."""

    def __init__(self, cache: TextCache, requests: Sequence[GenerationRequest], report: Report) -> None:
        self.cache = cache
        self.rows: dict[str, CachedText] = {}
        self.failed: dict[str, str] = {}
        self.missing: dict[Path, dict[str, GenerationRequest]] = {}
        self._report = report
        self._read_state: dict[Path, tuple[int, ...] | None] = {}
        for request in requests:
            key = text_key(cache.teacher, request)
            self.missing.setdefault(cache.shard(key), {})[key] = request
        for shard in list(self.missing):
            self._read(shard)
        self._cached_before = len(self.rows)
        self._total = sum(map(len, self.missing.values()))

    def run(self, open_generator: Callable[[], TextGenerator], on_error: Literal["stop", "skip"]) -> None:
        """Generate the missing texts of free shards, batch by batch; wait for those that other processes generate."""
        with ExitStack() as opened:
            closed, generator = open_generator(), None
            while self.missing:
                with ExitStack() as locks:
                    batch = self._claim(locks, closed.batch)
                    if batch and generator is None:  # the others may have generated everything meanwhile
                        generator = opened.enter_context(closed)
                    if batch and generator is not None:
                        self._generate(generator, batch, on_error)
                if not batch and self.missing:
                    time.sleep(POLL_SECONDS)
        if self.failed:
            first = next(iter(self.failed.values()))
            self._report(AnnotationFailed(self.cache.name, len(self.failed), self._total, reason=first))

    def _claim(self, locks: ExitStack, batch: int) -> dict[str, GenerationRequest]:
        """Lock free shards until enough texts for a batch are missing in them; these are ours to generate."""
        before = len(self.rows)
        claimed: dict[str, GenerationRequest] = {}
        for shard in sorted(self.missing):
            if len(claimed) < batch and locks.enter_context(try_locked(shard)):
                self._read(shard)
                claimed.update(self.missing.get(shard, {}))
        if len(self.rows) > before:
            self._report_progress()
        return dict(list(claimed.items())[:batch])

    def _read(self, shard: Path) -> None:
        """Take the rows of a shard, unless it is unchanged since it was read or written here."""
        state = _file_state(shard)
        if state != self._read_state.get(shard):
            for key, row in self.cache.read(shard, self.missing[shard]).items():
                self._store(key, row)
            self._read_state[shard] = state

    def _store(self, key: str, row: CachedText) -> None:
        self.rows[key] = row
        self._close(key)

    def _close(self, key: str) -> None:
        shard = self.cache.shard(key)
        del self.missing[shard][key]
        if not self.missing[shard]:
            del self.missing[shard]

    def _generate(
        self, generator: TextGenerator, batch: Mapping[str, GenerationRequest], on_error: Literal["stop", "skip"]
    ) -> None:
        """Generate one batch; all its answers are stored before a failure ends the run."""
        unanswered, keys = dict(batch), list(batch)
        try:
            for index, answer in generator.generate(list(batch.values())):
                key = keys[index]
                request = unanswered.pop(key)
                if isinstance(answer, FailedRequest):
                    self._fail([key], answer.reason)
                    continue
                shard = self.cache.shard(key)
                row = _new_row(key, request, answer, engine=generator.engine)
                append_checked(shard, [row])
                self._read_state[shard] = _file_state(shard)
                self._store(key, row)
                self._report_progress()
        except UserError as error:
            if on_error == "stop":
                raise UserError(f"{str(error).rstrip('.')}. {_RESUMES}") from error
            unanswered = {key: request for requests in self.missing.values() for key, request in requests.items()}
            self._fail(unanswered, str(error))
            return
        self._fail(unanswered, "no answer came")
        if self.failed and on_error == "stop":
            count, reason = len(self.failed), next(iter(self.failed.values()))
            raise UserError(
                f"teacher {self.cache.name} failed on {count} of {len(batch)} prompts: {reason}. {_RESUMES}"
            )

    def _fail(self, keys: Iterable[str], reason: str) -> None:
        for key in keys:
            self.failed[key] = reason
            self._close(key)

    def _report_progress(self) -> None:
        self._report(AnnotationProgress(self.cache.name, len(self.rows) - self._cached_before, self._total))


def _new_row(key: str, request: GenerationRequest, answer: Completion, *, engine: str) -> CachedText:
    return CachedText(
        key=key,
        prompt=request.prompt,
        sampling={**asdict(request.sampling), "stop": list(request.sampling.stop)},
        seed=request.seed,
        # a server's JSON may hold halves of surrogate pairs, which UTF-8 may not
        text=answer.text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
        finish=answer.finish,
        seconds=answer.seconds,
        engine=engine,
        made={"date": today(), "prompts": PROMPTS_VERSION, "tinyllm_bench": __version__},
    )


def _file_state(file: Path) -> tuple[int, ...] | None:
    """Changes whenever the file does; a file that is rewritten after a crash is another inode."""
    if not file.exists():
        return None
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
