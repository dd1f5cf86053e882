"""What a request can tell apart, per task, before it is run."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.checks import clusters
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.protocol import protocol_of
from tinyllm_bench.leaderboard.record import RECORD_FILE, RunRecord, load_record, protocol_hash
from tinyllm_bench.leaderboard.stats.power import (
    Assumed,
    assumed_from,
    planned_detectable,
    questions_needed,
    seeds_needed,
)


class Detectable(NamedTuple):
    """What can be told apart on one task; differences are shares.

    units: questions, those that share a passage counted once; comparisons: that a table of these rows makes, for
    Holm's correction; difference: the smallest that is found with 80 % power; wished, seeds, more_questions: a
    wished-for difference, and how many seeds (at these questions) or questions (at these seeds, two at least) it
    needs; None where that does not help.
    """

    task: str
    questions: int
    units: int
    seeds_planned: int
    comparisons: int
    difference: float
    assumed: Assumed
    wished: float | None
    seeds: int | None
    more_questions: int | None


def detectable_of(cells: Sequence[Cell], wished: float | None = None) -> list[Detectable]:
    """Per task and reading of a request; `wished` is a share."""
    methods = [cell for cell in cells if cell.method is not None]
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in methods:
        groups.setdefault((cell.task.name, cell.reading), []).append(cell)
    return [_detectable(found, wished) for found in groups.values()]


def share_of(points: float) -> float:
    """A difference in points as a share.

    Raises:
        UserError: it is not between 0 and 100.
    """
    if not 0 < points <= 100:
        raise UserError(f"--detect {points:g}: a difference in points of accuracy, above 0 and at most 100, e.g. 5")
    return points / 100


def _detectable(cells: Sequence[Cell], wished: float | None) -> Detectable:
    cell = cells[0]
    records = cell.records("test")
    units = len(set(clusters(records)) or records)
    seeds = len({one.seed for one in cells})
    rows = len({one.label for one in cells})
    comparisons, assumed = max(rows - 1, 1), assumed_from(_finished(cell))
    known = {"discordance": assumed.discordance, "within": assumed.within, "run_sd": assumed.run_sd}
    found = planned_detectable(units, seeds=seeds, comparisons=comparisons, **known)
    return Detectable(
        task=cell.task.name,
        questions=len(records),
        units=units,
        seeds_planned=seeds,
        comparisons=comparisons,
        difference=found,
        assumed=assumed,
        wished=wished,
        seeds=None if wished is None else seeds_needed(units, wished, assumed, comparisons=comparisons),
        more_questions=None
        if wished is None
        else questions_needed(max(seeds, 2), wished, assumed, comparisons=comparisons),
    )


def _finished(cell: Cell) -> list[list[list[int]]]:
    """Right and wrong answers of the finished runs in the same folder on the same protocol, by row."""
    wanted = protocol_hash(protocol_of(cell))
    rows: dict[tuple[str, str | None], list[list[int]]] = {}
    for file in sorted(Path(cell.runs).glob(f"*/{RECORD_FILE}")):
        record = _read(file)
        if record is not None and record.kind == "method" and record.protocol_hash == wanted:
            key = (record.label, record.student.spec if record.student else None)
            right = {record_id: flag for record_id, _, flag in record.items}
            rows.setdefault(key, []).append([right[record_id] for record_id in sorted(right)])
    return list(rows.values())


def _read(file: Path) -> RunRecord | None:
    """A record, or None for one that cannot be read: it decides nothing here."""
    try:
        return load_record(file)
    except UserError:
        return None
