"""What the page and the exports know of a board: its tables' own cells, and numbers for plots and sorting.

Intervals and lifts are read back from the printed cells, so that no plot or export can say something else than the
table does. Costs come from the records.
"""

import re
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from tinyllm_bench.leaderboard.record import RunRecord, TeacherInfo
from tinyllm_bench.leaderboard.record import record_path as record_path
from tinyllm_bench.leaderboard.rows import Row
from tinyllm_bench.leaderboard.tables import CONSTANT, MACRO_F1, NOT_MEASURABLE, TRUST, Cells, Section, marked

Kind = Literal["anchor", "method", "teacher"]
_NUMBER = r"[+-]?\d+(?:\.\d+)?"
_COSTS = ("student tokens", "wall seconds", "teacher tokens", "training FLOPs")
_SPAN = re.compile(rf"({_NUMBER}) to ({_NUMBER})")


class Measured(NamedTuple):
    """A printed number with its printed interval, in per cent or points; None where the cell has none."""

    value: float
    low: float | None
    high: float | None


class Line(NamedTuple):
    """A line of a table with the row behind it; None for a constant answer and a teacher that is only named.

    `share` and `macro_f1` are the exact accuracy and macro-F1; None where the line has none.
    """

    cells: Cells
    row: Row | None
    runs: Sequence[Cells]
    share: float | None
    macro_f1: float | None

    @property
    def kind(self) -> Kind:
        """`anchor`, `method` or `teacher`."""
        if self.row is None:
            return "anchor" if self.cells["row"].startswith(CONSTANT) else "teacher"
        return self.row.first.kind

    @property
    def trust(self) -> str | None:
        """The tier of the row; None where no run stands behind the line."""
        return None if self.row is None else self.cells[TRUST]

    @property
    def accuracy(self) -> Measured | None:
        """Per cent, with the interval that the table prints."""
        return measured(self.cells[_head(self.cells, "accuracy")], _cell(self.cells, "95 %"))

    @property
    def macro_f1_limits(self) -> Measured | None:
        """Per cent, with the interval that the table prints."""
        text = self.cells.get(MACRO_F1, "-")
        return measured(text, text)

    @property
    def lift(self) -> Measured | None:
        """Points over the floor, with the interval that the table prints."""
        text = _cell(self.cells, "lift over")
        return measured(text, text)


def lines(section: Section) -> Iterator[Line]:
    """The table's lines in their order; between them may stand lines that no run stands behind."""
    rows, runs = deque(section.rows), iter(section.runs)
    for cells in section.table:
        row = rows[0] if rows else None
        if row is None or (marked(row), row.student or "-") != (cells["row"], cells["student"]):
            told = section.constant if cells["row"].startswith(CONSTANT) else None
            yield Line(cells, None, (), *((told.accuracy, told.macro_f1) if told else (None, None)))
        else:
            share = row.accuracy.mean if row.accuracy else None
            found = section.macro_f1.get(row.key)
            own = tuple(islice(runs, len(row.records)))
            yield Line(cells, rows.popleft(), own, share, found.value if found else None)
    assert not rows, "a row of the section has no line in its table"


def measured(value: str, span: str) -> Measured | None:
    """The number that `value` begins with and the `a to b` in `span`; None where there is no number.

    A number is not read out of a reason in words.
    """
    found = re.match(rf"{_NUMBER}(?=$|\s*[(±])", value)
    if found is None:
        return None
    limits = _SPAN.search(span)
    return Measured(float(found[0]), *((float(limits[1]), float(limits[2])) if limits else (None, None)))


def costs(row: Row | None) -> dict[str, float]:
    """What a row cost, as the mean of its runs; a cost that a run does not tell is left out."""
    if row is None:
        return {}
    found: dict[str, list[float | None]] = {
        "student tokens": [0 if row.is_anchor else row.tokens],
        "wall seconds": [row.seconds],
        "teacher tokens": [_teacher_tokens(record) for record in row.records],
        "training FLOPs": [record.budget.train_flops if record.budget else None for record in row.records],
    }
    known = {name: [one for one in values if one] for name, values in found.items()}
    return {name: sum(values) / len(values) for name, values in known.items() if len(values) == len(found[name])}


def _teacher_tokens(record: RunRecord) -> int | None:
    budget = record.budget
    if budget is None or budget.teacher_tokens_in is None or budget.teacher_tokens_out is None:
        return None
    return budget.teacher_tokens_in + budget.teacher_tokens_out


def page_section(section: Section, slug: str) -> dict[str, Any]:
    """All that the page shows of a section, as lists: a name that stands in every row would be most of the file."""
    first = section.rows[0].first
    found = list(lines(section))
    names = sorted({name for line in found for name in costs(line.row)}, key=_COSTS.index)
    return {
        "slug": slug,
        "title": section.title,
        "facts": section.facts,
        "protocol": first.protocol_hash,
        "chance": round(100 * first.chance, 1),
        "columns": list(section.table[0]),
        "costs": names,
        "run_columns": [*section.runs[0], "record"],
        "rows": [_row_data(line, names) for line in found],
        "notes": list(section.notes),
    }


def _row_data(line: Line, names: Sequence[str]) -> dict[str, Any]:
    spent = costs(line.row)
    records = line.row.records if line.row else ()
    return {
        "kind": line.kind,
        "cells": list(line.cells.values()),
        "accuracy": line.accuracy,
        "lift": line.lift,
        "costs": [round(spent[name]) if name in spent else None for name in names],
        "facts": _facts(line.row, line.trust) if line.row else [],
        # The row's own name need not stand in each of its runs again.
        "runs": [
            [*list(cells.values())[1:], record_path(record)] for cells, record in zip(line.runs, records, strict=True)
        ],
    }


def _facts(row: Row, trust: str | None) -> list[list[str]]:
    """What the opened row tells beyond its cells and runs; the record holds the rest."""
    record, budget = row.first, row.first.budget
    told = {
        "kind": record.kind,
        "data": f"{record.data.source}{' (sample questions)' if record.sample else ''}",
        "training rows": None if record.data.n_train is None else f"{record.data.n_train:,}",
        "teachers": "; ".join(_teacher(one) for one in record.teachers),
        "student tokens asked": f"{budget.asked_student_tokens:,}" if budget and budget.asked_student_tokens else None,
        "teacher tokens in and out": f"{_teacher_tokens(record):,}" if _teacher_tokens(record) else None,
        "training FLOPs (estimate)": f"{budget.train_flops:.3g}" if budget and budget.train_flops else None,
        "parameters": f"{record.student.parameters:,}" if record.student and record.student.parameters else None,
        "protocol": record.protocol_hash,
        "trust": trust,
    }
    return [[name, text] for name, text in told.items() if text]


def _teacher(info: TeacherInfo) -> str:
    saw = {True: ", saw the right answer", False: ", did not see the right answer", None: ""}[info.gold_visible]
    return f"{info.spec}{saw}"


def _head(cells: Cells, start: str) -> str:
    return next(name for name in cells if name.startswith(start))


def _cell(cells: Cells, start: str) -> str:
    return next((text for name, text in cells.items() if name.startswith(start)), NOT_MEASURABLE)
