"""A board's folder as it is read: its records, and something made of each of its sections.

Records lie at `results/<protocol>/<task>/<run_id>.json`, so that the records of one folder are one section: rows that
may stand in one table.
"""

import gc
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.reading import check_inside
from tinyllm_bench.leaderboard.consistency import check_consistency
from tinyllm_bench.leaderboard.labels import slugs
from tinyllm_bench.leaderboard.record import RunRecord, load_record, record_path
from tinyllm_bench.leaderboard.tables import BoardNames, Section, make_section
from tinyllm_bench.leaderboard.verdicts import checks_on

T = TypeVar("T")
# From so many records on, sections are made in several processes.
MANY_RECORDS = 1000


class _Job(NamedTuple):
    """One section to be made: its files and about how many bytes they are, its file name, and a record of each rival
    protocol of its task."""

    files: Sequence[str]
    size: int
    slug: str
    others: Sequence[RunRecord]


def no_board(folder: Path) -> UserError:
    """The refusal of a folder that is not there."""
    return UserError(f"no board at {folder}; `tinyllm-bench board add RUN` makes one")


def check_selection(record: RunRecord, path: str | Path) -> None:
    """Refuse what was selected on test.

    Raises:
        UserError: it was.
    """
    if record.selected_on == "test":
        raise UserError(
            f"{path}: run {record.run_id} was selected on test, boards take what was selected on valid; run the cell "
            "with `tinyllm-bench run`, which selects on valid"
        )


def board_records(folder: Path) -> list[RunRecord]:
    """Every record of a board, checked, ordered by task, reading, protocol and run id.

    Raises:
        UserError: no such folder, a record that fails its checks, was selected on test or lies where it does not
            belong.
    """
    with _no_collection():
        return sorted(_loaded(folder, (file for files in _files(folder) for file in files)), key=_place)


def of_sections(folder: Path, names: BoardNames, make: Callable[[Section, str], T]) -> list[T]:
    """What `make` makes of every section and its file name (`slugs`), in the board's order.

    `make` and what it makes can be pickled: sections of a board of many records are made in several processes.

    Raises:
        UserError: as `board_records`.
    """
    jobs = _jobs(folder)
    work = partial(_made, Path(folder), names, make)
    processes = _processors() if sum(len(job.files) for job in jobs) >= MANY_RECORDS else 1
    if min(processes, len(jobs)) < 2:
        return [work(job) for job in jobs]
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=get_context("fork")) as pool:
        # The longest first, so that none is alone at the end.
        longest = sorted(range(len(jobs)), key=lambda place: -jobs[place].size)
        found = {place: pool.submit(work, jobs[place]) for place in longest}
        try:
            return [found[place].result() for place in range(len(jobs))]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _processors() -> int:
    """How many processes may work beside each other: forked ones, since these need no import of their own."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def _jobs(folder: Path) -> list[_Job]:
    """The sections of a board, told by the first record of each."""
    found = [(next(iter(_loaded(folder, files[:1]))), files) for files in _files(folder)]
    found.sort(key=lambda one: _place(one[0]))
    rivals: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for head, _ in found:
        rivals[head.task, head.reading].append(head)
    jobs = []
    for slug, (head, files) in zip(slugs([head for head, _ in found]), found, strict=True):
        others = [other for other in rivals[head.task, head.reading] if other is not head]
        jobs.append(_Job(files, len(files) * Path(folder, files[0]).stat().st_size, slug, others))
    return jobs


def _made(folder: Path, names: BoardNames, make: Callable[[Section, str], T], job: _Job) -> T:
    with _no_collection():
        records = sorted(_loaded(folder, job.files), key=_place)
        return _section_of(folder, names, make, records, job)


def _section_of(
    folder: Path, names: BoardNames, make: Callable[[Section, str], T], records: Sequence[RunRecord], job: _Job
) -> T:
    """What `make` makes of some records; a record that it cannot be made of is named."""
    try:
        checks = checks_on(folder, records)
        return make(make_section(records, job.others, names, checks), job.slug)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        for record in records:
            try:
                make(make_section([record], [], names, {}), job.slug)
            except Exception:
                raise UserError(
                    f"{folder / record_path(record)} cannot stand on a board ({reason}); remove it"
                ) from error
        raise UserError(
            f"the records in {(folder / record_path(records[0])).parent} cannot stand in one table ({reason}); remove "
            "the one that was added last"
        ) from error


def check_sections(
    folder: Path, names: BoardNames, make: Callable[[Section, str], Any], added: Mapping[Path, RunRecord]
) -> None:
    """Try the sections that some records would become part of, so that a board takes only what it can be built of.

    `added` are the records by their places on the board; those that stand there already are read from it.

    Raises:
        UserError: a section cannot be made; names a record.
    """
    by_section: dict[Path, list[RunRecord]] = defaultdict(list)
    for place, record in added.items():
        by_section[place.parent].append(record)
    for section, records in by_section.items():
        there = [file for file in sorted(section.glob("*.json")) if file not in added]
        known = _loaded(folder, [file.relative_to(folder).as_posix() for file in there])
        together = sorted([*known, *records], key=_place)
        _section_of(folder, names, make, together, _Job((), 0, "tried", ()))


def _files(folder: Path) -> Iterator[list[str]]:
    """The records' files, those of each folder together, as names below the board's."""
    if not Path(folder).is_dir():
        raise no_board(folder)
    for place, below, files in os.walk(Path(folder) / "results"):
        below.sort()
        start = os.path.relpath(place, folder)
        if found := [os.path.join(start, file) for file in sorted(files) if file.endswith(".json")]:
            yield found


def _loaded(folder: Path, files: Iterable[str]) -> Iterator[RunRecord]:
    for name in files:
        file = os.path.join(folder, name)
        if os.path.islink(file):
            check_inside(file, folder)
        record = load_record(file)
        check_selection(record, file)
        check_consistency(record, Path(file))
        if name.replace(os.sep, "/") != record_path(record):
            raise UserError(f"{file} belongs at {folder / record_path(record)}; use `tinyllm-bench board add`")
        yield record


def _place(record: RunRecord) -> tuple[str, str, str, str]:
    return record.task, record.reading, record.protocol_hash, record.run_id


@contextmanager
def _no_collection() -> Iterator[None]:
    """Thousands of records are many objects without cycles; looking for those again and again takes long."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
