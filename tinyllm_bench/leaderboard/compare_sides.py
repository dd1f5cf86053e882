"""Who is compared: two runs, two rows of a board or of a folder of runs, or two boards row by row."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.leaderboard.board import board_records
from tinyllm_bench.leaderboard.protocols import check_same_protocol, told
from tinyllm_bench.leaderboard.record import RECORD_FILE, RunRecord, load_record
from tinyllm_bench.leaderboard.rows import Row, make_rows

PLACES = (Path("runs") / "board", Path("runs"))
_SHOWN = 3


class Pair(NamedTuple):
    """Two rows under one protocol."""

    first: Row
    second: Row


class Found(NamedTuple):
    """The pairs of a comparison, and in words what could not be paired."""

    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...] = ()


def find_pairs(first: str, second: str, *, place: Path | None = None, student: str | None = None) -> Found:
    """What two names on the command line mean.

    Args:
        first: A run's folder, a record's file, a board's folder, or the name of a row.
        second: The same kind of thing.
        place: Where rows are looked up: a board, or a folder of runs.
        student: The student of the rows, where several students have rows of the same name.

    Raises:
        UserError: two different kinds, nothing there, an unknown or an ambiguous name, other protocols.
    """
    kinds = {name: _kind(name) for name in (first, second)}
    if kinds[first] != kinds[second]:
        raise UserError(
            f"{first} is a {kinds[first]} and {second} is a {kinds[second]}; compare two runs, two boards, or two rows"
        )
    if kinds[first] == "run":
        return pair_of(load_record(Path(first)), load_record(Path(second)))
    if kinds[first] == "board":
        return _boards(Path(first), Path(second))
    return _rows(first, second, records_in(place or _usual_place()), student)


def pair_of(first: RunRecord, second: RunRecord) -> Found:
    """Two runs.

    Raises:
        UserError: other protocols, or a run without answers.
    """
    check_same_protocol(first, second)
    return Found((Pair(*(_measured(Row(record.label, (record,)), record.run_id) for record in (first, second))),))


def _kind(name: str) -> Literal["run", "board", "row"]:
    path = Path(name)
    if path.is_file() or (path / RECORD_FILE).is_file():
        return "run"
    if (path / "results").is_dir():
        return "board"
    if (path.is_dir() and "/" in name) or path.suffix == ".json" or name.count("/") > 1:
        raise UserError(f"{name}: no run folder, record or board there; rows of a folder are named with --in FOLDER")
    return "row"


def _usual_place() -> Path:
    place = next((place for place in PLACES if place.is_dir()), None)
    if place is None:
        raise UserError("no runs/ here; say with --in FOLDER on which board, or in which folder of runs, the rows are")
    return place


def records_in(place: Path) -> list[RunRecord]:
    """The records of a board, or of a folder of runs.

    Raises:
        UserError: nothing there.
    """
    if (place / "results").is_dir():
        found = board_records(place)
    else:
        found = [load_record(file) for file in sorted(place.glob(f"*/{RECORD_FILE}"))]
    if not found:
        raise UserError(f"{place} holds no records; give a board's folder or a folder of runs with --in")
    return found


def find_record(name: str, place: Path | None = None) -> RunRecord:
    """A record by its path, or a row of a board by the run's id or by a label that has one protocol there.

    Raises:
        UserError: unknown, or rows of several protocols have that name.
    """
    if _kind(name) == "run":
        return load_record(Path(name))
    records = records_in(Path(name) if _kind(name) == "board" else place or _usual_place())
    rows = [row for section in _sections(records).values() for row in section]
    matches = rows if _kind(name) == "board" else _matching(name, rows)
    if not matches:
        raise unknown_name("row", name, {row.label for row in rows})
    found = {row.first.protocol_hash: row.first for row in matches}
    if len(found) > 1:
        runs = ", ".join(record.run_id for record in found.values())
        raise UserError(f"{name} stands for {len(found)} protocols; name one run of {runs}")
    return next(iter(found.values()))


Key = tuple[str, str, str]


def _sections(records: Iterable[RunRecord]) -> dict[Key, list[Row]]:
    """Rows by task, mode and protocol."""
    groups: dict[Key, list[RunRecord]] = defaultdict(list)
    for record in records:
        groups[record.task, record.mode, record.protocol_hash].append(record)
    return {key: make_rows(found, ()) for key, found in sorted(groups.items())}


def _matching(name: str, rows: Sequence[Row]) -> list[Row]:
    """The rows that a name means: the first of these ways that finds any."""
    ways = (
        [row for row in rows if row.label == name],
        [row for row in rows if row.first.label == name],
        [row for row in rows if row.first.name == name],
        [Row(row.label, (one,)) for row in rows for one in row.records if one.run_id == name],
    )
    return next((found for found in ways if found), [])


def _rows(first: str, second: str, records: Sequence[RunRecord], student: str | None) -> Found:
    sections = _sections(records)
    if student is not None:
        known = {row.student for rows in sections.values() for row in rows}
        if student not in known:
            raise unknown_name("student", student, known)
        sections = {key: [row for row in rows if row.student == student] for key, rows in sections.items()}
    chosen = [_chosen(name, sections) for name in (first, second)]
    return _paired(chosen[0], chosen[1], (first, second))


def _chosen(name: str, sections: dict[Key, list[Row]]) -> dict[Key, Row]:
    """Per section the one row of a name."""
    chosen: dict[Key, Row] = {}
    for key, rows in sections.items():
        found = _matching(name, rows)
        if len(found) > 1:
            told_rows = "; ".join(f"{row.label} on {row.student or 'no student'}" for row in found)
            raise UserError(
                f"{name} names {len(found)} rows of {key[0]} ({key[1]}): {told_rows};"
                " name one, or choose with --student"
            )
        if found:
            chosen[key] = found[0]
    if not chosen:
        raise unknown_name("row", name, {row.label for rows in sections.values() for row in rows})
    return chosen


def _paired(first: dict[Key, Row], second: dict[Key, Row], names: tuple[str, str]) -> Found:
    shared = [key for key in first if key in second]
    left = [*_other_protocols(first, second), *_alone(first, second, names)]
    if not shared:
        raise UserError(f"{names[0]} and {names[1]} cannot be compared: {'; '.join(left)}")
    return Found(tuple(Pair(*(_measured(side[key]) for side in (first, second))) for key in shared), tuple(left))


def _other_protocols(first: dict[Key, Row], second: dict[Key, Row]) -> list[str]:
    """Tasks and scoring modes that both have, under other protocols only."""
    found = []
    for place in dict.fromkeys(key[:2] for key in first):
        sides = [{key: row for key, row in side.items() if key[:2] == place} for side in (first, second)]
        if sides[1] and not sides[0].keys() & sides[1].keys():
            one, other = (next(iter(side.values())).first for side in sides)
            found.append(f"{place[0]} ({place[1]}): {told(one, other)}")
    return found


def _alone(first: dict[Key, Row], second: dict[Key, Row], names: tuple[str, str]) -> list[str]:
    places = [{key[:2] for key in side} for side in (first, second)]
    return [
        f"{task} ({mode}): only {name} has a row"
        for name, own, other in ((names[0], places[0], places[1]), (names[1], places[1], places[0]))
        for task, mode in sorted(own - other)
    ]


def _measured(row: Row, name: str | None = None) -> Row:
    if not _has_answers(row):
        raise UserError(f"{name or row.label}: no answers to pair with: its accuracy is exact, or cannot be measured")
    return row


def _has_answers(row: Row) -> bool:
    return all(record.items and record.expected_accuracy is None for record in row.records)


def _boards(first: Path, second: Path) -> Found:
    """Rows of the same label and student under the same protocol."""
    sides = []
    for folder in (first, second):
        sections = _sections(board_records(folder))
        sides.append(
            {(*key, row.label, row.student): row for key, rows in sections.items() for row in rows if _has_answers(row)}
        )
    shared = [key for key in sides[0] if key in sides[1]]
    left = [
        f"{key[3]} on {key[0]} ({key[1]}, protocol {key[2][:12]}): only on {folder}"
        for folder, own, other in ((first, sides[0], sides[1]), (second, sides[1], sides[0]))
        for key in own
        if key not in other
    ]
    if not shared:
        by_place = [{key[:3]: row for key, row in side.items()} for side in sides]
        reasons = _other_protocols(*by_place) or left or ["no measured rows"]
        more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
        raise UserError(f"{first} and {second} cannot be compared: {'; '.join(reasons[:_SHOWN])}{more}")
    return Found(tuple(Pair(sides[0][key], sides[1][key]) for key in shared), tuple(left))
