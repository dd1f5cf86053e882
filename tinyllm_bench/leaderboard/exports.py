"""A board's tables for programs: CSV and JSON, every number as it was computed; reporters get the same data."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tinyllm_bench.base.escaping import csv_cell, terminal
from tinyllm_bench.leaderboard.markdown import HOW_TO_READ
from tinyllm_bench.leaderboard.record import RunRecord, record_path
from tinyllm_bench.leaderboard.tables import MEAN_NOTE, MeanRow, Section, TableRow
from tinyllm_bench.leaderboard.verdicts import Checks, RecordTrust, Refutation, Tier, trust_in


class _BoardPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunData(_BoardPart):
    """One run; its record holds everything else. `accuracy` is a share; `correct + wrong + unparsed = n`.

    `trust` is the run's own tier; that of a row is the lowest of its runs.
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
    test_evaluations: int
    commit: str | None
    dirty: bool | None
    trust: Tier
    refutations: tuple[Refutation, ...]
    command: str


class RowData(_BoardPart):
    """One row of a table in numbers, as they were computed; None where the row has no such figure.

    Accuracies, gains and their 95 % intervals are shares; `gain_scope` is what a gain generalises to, `no_gain` the
    reason for none. `unparsed` counts answers of all runs, out of `answers`; `student_tokens` and `seconds` are means
    of a run.
    """

    label: str
    student: str | None
    kind: Literal["reference_baseline", "method", "teacher"]
    sample: bool
    trust: str | None
    n: int | None
    seeds: int | None
    accuracy: float | None
    interval: tuple[float, float] | None
    unparsed: int | None
    answers: int | None
    macro_f1: float | None
    macro_f1_interval: tuple[float, float] | None
    gain: float | None
    gain_interval: tuple[float, float] | None
    gain_p: float | None
    gain_p_holm: float | None
    gain_scope: str | None
    no_gain: str | None
    gap_recovered: float | None
    gap_interval: tuple[float, float] | None
    best_rank: int | None
    worst_rank: int | None
    tied_with_best: bool | None
    student_tokens: float | None
    seconds: float | None
    secondary: dict[str, float]
    runs: tuple[RunData, ...]


class SectionData(_BoardPart):
    """One table: rows of one task, mode and protocol."""

    id: str
    title: str
    facts: str
    task: str
    mode: str
    protocol_hash: str
    protocol: dict[str, Any]
    chance: float
    rows: tuple[RowData, ...]
    notes: tuple[str, ...]


class MeanData(_BoardPart):
    """A row of the table of means over tasks: plain, and corrected for chance."""

    label: str
    student: str | None
    mode: str
    parser_version: str
    tasks: int
    mean_accuracy: float
    interval: tuple[float, float]
    chance_corrected: float
    chance_corrected_interval: tuple[float, float]


class BoardData(_BoardPart):
    """`data.json`: a whole board. `mean` is the table of means over tasks.

    Reporters also get `records`, the records of all runs by `RunData.record`, and `publisher`, the configured title of
    the board; neither is in the file.
    """

    schema_version: Literal[1] = 1
    title: str
    how_to_read: str
    sections: tuple[SectionData, ...]
    mean: tuple[MeanData, ...]
    mean_note: str
    records: dict[str, RunRecord] = Field(default_factory=dict, exclude=True)
    publisher: str = Field(default="", exclude=True)


def board_data(title: str, sections: Iterable[SectionData], means: Sequence[MeanRow]) -> BoardData:
    """Everything the page shows, in numbers."""
    mean = [
        MeanData(
            label=row.label,
            student=row.student or None,
            mode=row.mode,
            parser_version=row.parser,
            tasks=row.tasks,
            mean_accuracy=row.mean.value,
            interval=(row.mean.low, row.mean.high),
            chance_corrected=row.corrected.value,
            chance_corrected_interval=(row.corrected.low, row.corrected.high),
        )
        for row in means
    ]
    return BoardData(
        title=title, how_to_read=HOW_TO_READ, sections=tuple(sections), mean=tuple(mean), mean_note=MEAN_NOTE
    )


def section_data(section: Section, slug: str) -> SectionData:
    """A section's part of the data; `slug` is its name in files."""
    first = section.rows[0].first
    return SectionData(
        id=slug,
        title=section.title,
        facts=section.facts,
        task=first.task,
        mode=first.mode,
        protocol_hash=first.protocol_hash,
        protocol=first.protocol,
        chance=first.chance,
        rows=tuple(_row(row, section.checks) for row in section.table),
        notes=section.notes,
    )


def _row(row: TableRow, checks: Checks) -> RowData:
    gain, gap, rank = row.gain, row.gap, row.rank
    return RowData(
        label=row.title,
        student=row.student or None,
        kind=row.kind,
        sample=row.sample,
        trust=row.trust,
        n=row.n,
        seeds=row.seeds,
        accuracy=row.accuracy,
        interval=(row.interval.low, row.interval.high) if row.interval else None,
        unparsed=row.unparsed,
        answers=row.answers,
        macro_f1=row.macro_f1,
        macro_f1_interval=(row.macro_f1_interval.low, row.macro_f1_interval.high) if row.macro_f1_interval else None,
        gain=gain.value if gain else None,
        gain_interval=(gain.low, gain.high) if gain and gain.low is not None and gain.high is not None else None,
        gain_p=gain.p if gain else None,
        gain_p_holm=gain.p_holm if gain else None,
        gain_scope=(gain.scope or None) if gain else None,
        no_gain=gain.why_not if gain and gain.why_not != "-" else None,
        gap_recovered=gap.value if gap else None,
        gap_interval=(gap.low, gap.high) if gap and gap.low is not None and gap.high is not None else None,
        best_rank=rank.best_rank if rank else None,
        worst_rank=rank.worst_rank if rank else None,
        tied_with_best=rank.tied_with_best if rank else None,
        student_tokens=row.student_tokens,
        seconds=row.seconds,
        secondary=dict(row.secondary),
        runs=tuple(_run(record, trust_in(checks, record)) for record in (row.source.records if row.source else ())),
    )


def _run(record: RunRecord, trust: RecordTrust) -> RunData:
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
        test_evaluations=record.test_evaluations,
        commit=record.git.commit,
        dirty=record.git.dirty,
        trust=trust.tier,
        refutations=trust.refutations,
        command=" ".join(record.command.split()),
    )


def json_text(data: BoardData) -> str:
    """`data.json`: indented, in the order of the tables."""
    return terminal(data.model_dump_json(indent=1)) + "\n"


_FACTS = ("task", "mode", "protocol", "sample", "kind", "trust", "row", "student")
_INTERVALS = {"interval": "accuracy", "macro_f1_interval": "macro_f1", "gain_interval": "gain", "gap_interval": "gap"}


def rows_csv(data: BoardData) -> str:
    """One line a row of a table: what it is, then its numbers, empty where there is none.

    Shares are shares, in full; an interval has two columns, `<figure>_low` and `<figure>_high`. A text that a
    spreadsheet would compute begins with `'`.
    """
    plain = [name for name in RowData.model_fields if name not in ("label", *_FACTS, "runs", "secondary")]
    secondary = sorted({name for section in data.sections for row in section.rows for name in row.secondary})
    heads: list[str] = []
    for name in plain:
        figure = _INTERVALS.get(name)
        heads += [f"{figure}_low", f"{figure}_high"] if figure else [name]

    def line(section: SectionData, row: RowData) -> list[Any]:
        cells: list[Any] = [section.task, section.mode, section.protocol_hash[:12], _yes(row.sample)]
        cells += [row.kind, row.trust, row.label, row.student]
        for name in plain:
            cells += list(getattr(row, name) or ("", "")) if name in _INTERVALS else [getattr(row, name)]
        return [*cells, *(row.secondary.get(name, "") for name in secondary)]

    return _csv(
        [*_FACTS, *heads, *secondary], (line(section, row) for section in data.sections for row in section.rows)
    )


def runs_csv(data: BoardData) -> str:
    """One line a run, with its counts; `refutations` is their number."""
    fields = [name for name in RunData.model_fields if name not in ("trust", "refutations")]
    body = (
        [section.task, section.mode, section.protocol_hash[:12], _yes(row.sample), row.kind, run.trust]
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
