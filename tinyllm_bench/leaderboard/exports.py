"""A board's tables for programs: CSV and JSON.

Cells are those of the Markdown. Where a file holds numbers too, accuracies are exact shares of the records, intervals
and lifts the printed ones.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tinyllm_bench.base.escaping import csv_cell, terminal
from tinyllm_bench.leaderboard.markdown import HOW_TO_READ
from tinyllm_bench.leaderboard.means import MEAN_NOTE
from tinyllm_bench.leaderboard.page_data import Line, Measured, lines
from tinyllm_bench.leaderboard.record import RunRecord, record_path
from tinyllm_bench.leaderboard.tables import TRUST, Cells, Section
from tinyllm_bench.leaderboard.verdicts import Checked, Checks, Refutation, Tier, checked


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunData(_Part):
    """One run; its record holds everything else. `accuracy` is a share; `correct + wrong + unparsed = n`.

    `trust` is the run's own tier, where that of a row is the least of its runs.
    """

    run_id: str
    record: str
    seed: int
    n: int | None
    correct: int | None
    wrong: int | None
    unparsed: int | None
    accuracy: float | None
    student_tokens: int | None
    seconds: float | None
    test_looks: int
    commit: str | None
    dirty: bool | None
    trust: Tier
    refutations: tuple[Refutation, ...]
    command: str


class RowData(_Part):
    """One line of a table. `cells` is what is printed; `accuracy` and `macro_f1` are shares, intervals and lifts in
    per cent and points."""

    label: str
    student: str | None
    kind: Literal["anchor", "method", "teacher"]
    sample: bool
    trust: str | None
    accuracy: float | None
    interval: tuple[float, float] | None
    macro_f1: float | None = None
    macro_f1_interval: tuple[float, float] | None = None
    lift: float | None
    lift_interval: tuple[float, float] | None
    cells: dict[str, str]
    runs: tuple[RunData, ...]


class SectionData(_Part):
    """One table: rows of one task, reading and protocol."""

    id: str
    title: str
    facts: str
    task: str
    reading: str
    protocol_hash: str
    protocol: dict[str, Any]
    chance: float
    rows: tuple[RowData, ...]
    notes: tuple[str, ...]


class BoardData(_Part):
    """`data.json`: a whole board. `mean` is the table of means over tasks."""

    schema_version: Literal[1] = 1
    title: str
    how_to_read: str
    sections: tuple[SectionData, ...]
    mean: tuple[dict[str, str], ...]
    mean_note: str


def board_data(title: str, sections: Iterable[SectionData], macro: Sequence[Cells]) -> BoardData:
    """Everything the page shows, with numbers beside the printed cells."""
    return BoardData(
        title=title, how_to_read=HOW_TO_READ, sections=tuple(sections), mean=tuple(macro), mean_note=MEAN_NOTE
    )


def section_data(section: Section, slug: str) -> SectionData:
    """A section's part of the data; `slug` is its name in files."""
    first = section.rows[0].first
    return SectionData(
        id=slug,
        title=section.title,
        facts=section.facts,
        task=first.task,
        reading=first.reading,
        protocol_hash=first.protocol_hash,
        protocol=first.protocol,
        chance=first.chance,
        rows=tuple(_row(line, section.checks) for line in lines(section)),
        notes=section.notes,
    )


def _row(line: Line, checks: Checks) -> RowData:
    row, lift = line.row, line.lift
    return RowData(
        label=line.cells["row"],
        student=(row.student or None) if row else None,
        kind=line.kind,
        sample=bool(row and row.first.sample) or line.cells["row"].endswith(" [sample]"),
        trust=line.trust,
        accuracy=line.share,
        interval=_interval(line.accuracy),
        macro_f1=line.macro_f1,
        macro_f1_interval=_interval(line.macro_f1_limits),
        lift=lift.value if lift else None,
        lift_interval=_interval(lift),
        cells=line.cells,
        runs=tuple(_run(record, checked(checks, record)) for record in row.records) if row else (),
    )


def _interval(found: Measured | None) -> tuple[float, float] | None:
    return (found.low, found.high) if found and found.low is not None and found.high is not None else None


def _run(record: RunRecord, found: Checked) -> RunData:
    score, budget = record.score, record.budget
    return RunData(
        run_id=record.run_id,
        record=record_path(record),
        seed=record.seed,
        n=score.n if score else None,
        correct=score.correct if score else None,
        wrong=score.wrong if score else None,
        unparsed=score.unparsed if score else None,
        accuracy=record.accuracy,
        student_tokens=budget.student_tokens if budget else None,
        seconds=budget.seconds if budget else None,
        test_looks=record.test_looks,
        commit=record.git.commit,
        dirty=record.git.dirty,
        trust=found.tier,
        refutations=found.refutations,
        command=" ".join(record.command.split()),
    )


def json_text(data: BoardData) -> str:
    """`data.json`: indented, in the order of the tables."""
    return terminal(data.model_dump_json(indent=1)) + "\n"


_FACTS = ("task", "reading", "protocol", "sample", "kind", "trust", "row", "student")
_NUMBERS = ("accuracy", "low_%", "high_%", "macro_f1", "macro_f1_low_%", "macro_f1_high_%")
_LIFTS = ("lift_points", "lift_low", "lift_high")


def rows_csv(data: BoardData) -> str:
    """One line a table line: what it is, numbers (empty where there is none), then the printed cells of all tables, in
    which a text that a spreadsheet would compute begins with `'`.

    `accuracy` and `macro_f1` are shares, the columns behind them the printed intervals in per cent.
    """
    printed = dict.fromkeys(name for section in data.sections for row in section.rows for name in row.cells)
    heads = [name for name in printed if name not in ("row", "student", TRUST)]
    body = (
        [
            *(section.task, section.reading, section.protocol_hash[:12], _yes(row.sample)),
            *(row.kind, row.trust, row.label, row.student, row.accuracy),
            *(row.interval or ("", "")),
            row.macro_f1,
            *(row.macro_f1_interval or ("", "")),
            row.lift,
            *(row.lift_interval or ("", "")),
            *(row.cells.get(name, "") for name in heads),
        ]
        for section in data.sections
        for row in section.rows
    )
    return _csv([*_FACTS, *_NUMBERS, *_LIFTS, *heads], body)


def runs_csv(data: BoardData) -> str:
    """One line a run, with its counts; `refutations` is their number."""
    fields = [name for name in RunData.model_fields if name not in (TRUST, "refutations")]
    body = (
        [section.task, section.reading, section.protocol_hash[:12], _yes(row.sample), row.kind, run.trust]
        + [row.label, row.student, *(getattr(run, name) for name in fields), len(run.refutations)]
        for section in data.sections
        for row in section.rows
        for run in row.runs
    )
    return _csv([*_FACTS, *fields, "refutations"], body)


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _csv(head: Sequence[str], body: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([csv_cell(value) for value in line] for line in (head, *body))
    return text.getvalue()
