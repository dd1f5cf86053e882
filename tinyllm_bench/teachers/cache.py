"""The cache of one teacher's texts: found by what was asked, kept as they arrive, shared by many processes.

A text's key is the digest of all that decides it, so a changed prompt is another text and nothing is ever stale. Keys
are spread over 16 checksummed files by their first hex digit. Whoever writes into a file holds its lock, which the
system frees when a process is killed: what is lost is at most what was being written at that moment.
"""

import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

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
from tinyllm_bench.generation.requests import Completion, Failed, GenerationRequest, TextGenerator
from tinyllm_bench.teachers.cached_text import Row as Row
from tinyllm_bench.teachers.cached_text import check_row, differ, make_row, today
from tinyllm_bench.teachers.cached_text import text_key as text_key

POLL_SECONDS = 0.1  # how often files that other processes hold are looked at
_AGAIN = "delete the file to have its texts written again"
_KEPT = "What was annotated is kept; the same command goes on."


def texts_folder(name: str, teacher: Mapping[str, Any]) -> Path:
    """Where the texts of a teacher are kept; models of one name and another identity lie side by side."""
    return cache_root() / "annotations" / name / digest(teacher)[:16]


class TextCache:
    """The kept texts of one teacher. `teacher` is its identity: all that decides a text besides what is asked."""

    def __init__(self, folder: Path, teacher: Mapping[str, Any]) -> None:
        self.folder = folder
        self.teacher = teacher
        self.name = folder.parent.name

    @classmethod
    def open(cls, folder: Path) -> "TextCache":
        """The cache that lies in a folder.

        Raises:
            UserError: there is none.
        """
        return cls(folder, _read_card(folder / "teacher.json"))

    def shard(self, key: str) -> Path:
        """The file that a text belongs into."""
        return self.folder / f"{key[0]}.jsonl"

    def rows(self) -> Iterator[Row]:
        """All texts, in the order of their keys; half a line that a crash left behind is no text."""
        for digit in "0123456789abcdef":
            yield from (row for _, row in sorted(self.read(self.folder / f"{digit}.jsonl").items()))

    def read(self, shard: Path, wanted: Container[str] | None = None) -> dict[str, Row]:
        """The texts of one file by their keys, or those of them that are wanted; each is checked.

        Raises:
            UserError: a line is damaged, a row was edited, or two texts have one key.
        """
        found: dict[str, Row] = {}
        for row in read_checked(shard):
            if wanted is not None and isinstance(row, dict) and str(row.get("key")) not in wanted:
                continue
            checked = check_row(row, self.teacher, str(shard), fix=_AGAIN)
            if differ(found.setdefault(checked["key"], checked), checked):
                raise UserError(f"{shard}: two texts of the key {checked['key'][:12]}; {_AGAIN}")
        return found

    def fill(
        self,
        requests: Sequence[GenerationRequest],
        open_generator: Callable[[], TextGenerator],
        *,
        on_error: Literal["stop", "skip"],
        report: Report,
        meter: Callable[[], float | None] | None = None,
    ) -> dict[str, Row]:
        """Key to row of every request that has a text now. The generator is opened only for texts that are missing.

        Several processes may fill one cache: each text is written once. `meter` tells the joules since it was called
        last (`base.energy`); give it for teachers that run on this machine.

        Raises:
            UserError: the teacher cannot be had, or failed where `on_error` is `stop`; what it wrote before is kept.
                With `skip` failed requests are reported and have no row, also all that are left when it dies half way.
        """
        self.introduce(write=False)
        work = _Filling(self, requests, report, meter)
        if work.open:
            self.introduce()
            work.run(open_generator, on_error)
        return work.found

    def kept(self, requests: Sequence[GenerationRequest]) -> dict[str, Row]:
        """Key to row of the requests that have a text; nobody is asked and nothing is written."""
        self.introduce(write=False)
        return _Filling(self, requests, lambda event: None, None).found

    def merge(self, rows: Iterable[Row]) -> int:
        """Add texts that were written elsewhere, all of one file; returns how many of them were new.

        Raises:
            UserError: another text is kept under the key of one of them; then none is added.
        """
        new = list(rows)
        if not new:
            return 0
        shard = self.shard(new[0]["key"])
        assert all(self.shard(row["key"]) == shard for row in new)
        self.introduce()
        with locked(shard):
            have = self.read(shard)
            self.refuse_clashes(new, have)
            added = {row["key"]: row for row in new if row["key"] not in have}
            if added:
                append_checked(shard, added.values())
        return len(added)

    def refuse_clashes(self, rows: Iterable[Row], have: Mapping[str, Row]) -> None:
        """Do nothing unless a text differs from what is kept under its key: the same model on another machine may do.

        Raises:
            UserError: one does.
        """
        clashes = [row["key"][:12] for row in rows if row["key"] in have and differ(have[row["key"]], row)]
        if clashes:
            raise UserError(
                f"{len(clashes)} texts differ from those kept in {self.shard(clashes[0])} (the first is {clashes[0]});"
                " set TINYLLM_BENCH_CACHE to a folder of its own for them, or delete that file"
            )

    def introduce(self, *, write: bool = True) -> None:
        """Say in `teacher.json` whose texts these are; refuse a folder that says otherwise.

        Raises:
            UserError: the folder holds the texts of another teacher.
        """
        card = self.folder / "teacher.json"
        if write and not card.exists():
            with locked(card):
                if not card.exists():
                    made = {"created": today(), "tinyllm_bench": __version__}
                    write_json(card, {"identity": self.teacher, **made})
        if card.exists() and digest(_read_card(card)) != digest(self.teacher):
            raise UserError(f"{self.folder} holds the texts of another teacher (its teacher.json); delete or move it")


def _read_card(card: Path) -> Mapping[str, Any]:
    said = read_json(card)
    if not isinstance(said, dict) or not isinstance(said.get("identity"), dict):
        raise UserError(f"{card} names no teacher's identity: edited? Delete or move its folder")
    return dict(said["identity"])


class _Filling:
    """One call of `fill`: what was found, what is still open, and what failed here."""

    def __init__(
        self,
        cache: TextCache,
        requests: Sequence[GenerationRequest],
        report: Report,
        meter: Callable[[], float | None] | None,
    ) -> None:
        self.cache = cache
        self.found: dict[str, Row] = {}
        self.failed: dict[str, str] = {}
        self.open: dict[Path, dict[str, GenerationRequest]] = {}
        self._report = report
        self._meter = meter or (lambda: None)
        self._seen: dict[Path, tuple[int, ...] | None] = {}
        for request in requests:
            key = text_key(cache.teacher, request)
            self.open.setdefault(cache.shard(key), {})[key] = request
        for shard in list(self.open):
            self._look(shard)
        self._known = len(self.found)
        self._of = sum(map(len, self.open.values()))

    def run(self, open_generator: Callable[[], TextGenerator], on_error: Literal["stop", "skip"]) -> None:
        """Write what is open and free, batch by batch; wait for what other processes are writing."""
        with ExitStack() as opened:
            closed, generator = open_generator(), None
            while self.open:
                with ExitStack() as locks:
                    asked = self._claim(locks, closed.batch)
                    if asked and generator is None:  # the others may have written everything meanwhile
                        generator = opened.enter_context(closed)
                    if asked and generator is not None:
                        self._write(generator, asked, on_error)
                if not asked and self.open:
                    time.sleep(POLL_SECONDS)
        if self.failed:
            first = next(iter(self.failed.values()))
            self._report(AnnotationFailed(self.cache.name, len(self.failed), self._of, reason=first))

    def _claim(self, locks: ExitStack, batch: int) -> dict[str, GenerationRequest]:
        """Lock files that nobody holds until they lack enough texts for a batch; those texts are ours to write."""
        before = len(self.found)
        free: dict[str, GenerationRequest] = {}
        for shard in sorted(self.open):
            if len(free) < batch and locks.enter_context(try_locked(shard)):
                self._look(shard)
                free.update(self.open.get(shard, {}))
        if len(self.found) > before:
            self._progress()
        return dict(list(free.items())[:batch])

    def _look(self, shard: Path) -> None:
        """Take over what the file holds by now, unless nobody touched it since we read or wrote it."""
        state = _state(shard)
        if state != self._seen.get(shard):
            for key, row in self.cache.read(shard, self.open[shard]).items():
                self._found(key, row)
            self._seen[shard] = state

    def _found(self, key: str, row: Row) -> None:
        self.found[key] = row
        self._close(key)

    def _close(self, key: str) -> None:
        shard = self.cache.shard(key)
        del self.open[shard][key]
        if not self.open[shard]:
            del self.open[shard]

    def _write(
        self, generator: TextGenerator, asked: Mapping[str, GenerationRequest], on_error: Literal["stop", "skip"]
    ) -> None:
        """Have one batch written; all its answers are kept before a failure ends the run."""
        unanswered, keys = dict(asked), list(asked)
        self._meter()
        try:
            for index, answer in generator.generate(list(asked.values())):
                self._answered(keys[index], unanswered.pop(keys[index]), answer, generator.engine)
        except UserError as error:
            if on_error == "stop":
                raise UserError(f"{str(error).rstrip('.')}. {_KEPT}") from error
            unanswered = {key: request for requests in self.open.values() for key, request in requests.items()}
            self._fail(unanswered, str(error))
            return
        self._fail(unanswered, "no answer came")
        if self.failed and on_error == "stop":
            count, reason = len(self.failed), next(iter(self.failed.values()))
            raise UserError(f"teacher {self.cache.name} failed on {count} of {len(asked)} prompts: {reason}. {_KEPT}")

    def _answered(self, key: str, request: GenerationRequest, answer: Completion | Failed, engine: str) -> None:
        if isinstance(answer, Failed):
            self._fail([key], answer.reason)
            return
        shard, row = self.cache.shard(key), make_row(key, request, answer, joules=self._meter(), engine=engine)
        append_checked(shard, [row])
        self._seen[shard] = _state(shard)
        self._found(key, row)
        self._progress()

    def _fail(self, keys: Iterable[str], reason: str) -> None:
        for key in keys:
            self.failed[key] = reason
            self._close(key)

    def _progress(self) -> None:
        self._report(AnnotationProgress(self.cache.name, len(self.found) - self._known, self._of))


def _state(file: Path) -> tuple[int, ...] | None:
    """What changes whenever a file does; a file that is written anew after a crash is another inode."""
    if not file.exists():
        return None
    stat = file.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
