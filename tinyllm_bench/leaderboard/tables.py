"""A board's sections in numbers, and how a number is written for people.

A row of a table holds shares, counts and seconds. Whoever shows a table (Markdown, page, LaTeX, terminal) asks its
columns for the text of each row; whoever exports it takes the numbers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tinyllm_bench.base import escaping
from tinyllm_bench.leaderboard.judgements import Judge
from tinyllm_bench.leaderboard.notes import section_notes
from tinyllm_bench.leaderboard.record import RunRecord, protocol_difference
from tinyllm_bench.leaderboard.rows import Gain, Row, make_rows
from tinyllm_bench.leaderboard.stats.arithmetic import over_seeds
from tinyllm_bench.leaderboard.stats.gap import Gap
from tinyllm_bench.leaderboard.stats.intervals import Estimate
from tinyllm_bench.leaderboard.stats.multiple import Standing
from tinyllm_bench.leaderboard.verdicts import Checks, Tier, least_checked

CONSTANT = "constant answer, the most frequent one"
NOT_MEASURABLE = "not measurable (recorded text)"
Cells = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardNames:
    """The words a board brings along: its baseline method, what to call it, the order of its rows."""

    baseline: str
    baseline_title: str
    order: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row of a table in numbers; None where the row has no such figure.

    `source` are the runs behind it; None for a constant answer and for a teacher that is only named. `accuracy` and
    `secondary` (figures of the task's own) are shares, means over seeds. `interval` belongs to `accuracy`,
    `macro_f1_interval` to `macro_f1`: older records hold the value alone. `unparsed` counts of `answers` in all runs.
    `student_tokens` and `seconds` are means of a run.
    """

    label: str
    student: str = ""
    kind: Literal["reference_baseline", "method", "teacher"]
    sample: bool
    source: Row | None = None
    n: int | None = None
    seeds: int | None = None
    accuracy: float | None = None
    interval: Estimate | None = None
    unparsed: int | None = None
    answers: int | None = None
    macro_f1: float | None = None
    macro_f1_interval: Estimate | None = None
    gain: Gain | None = None
    gap: Gap | None = None
    rank: Standing | None = None
    student_tokens: float | None = None
    seconds: float | None = None
    secondary: Mapping[str, float] = field(default_factory=dict)
    trust: Tier | None = None

    @property
    def title(self) -> str:
        """The label, with the word sample where the data is sample data."""
        return f"{self.label} [sample]" if self.sample else self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column as it is shown: `text` of a row for people, `key` to sort by (None stands last)."""

    title: str
    text: Callable[[TableRow], str]
    key: Callable[[TableRow], float | None] = lambda row: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table: rows of one task, mode and protocol. `table` are its rows in numbers, `rows` those that have runs,
    `columns` how the table is shown, `checks` what others found about the runs."""

    title: str
    facts: str
    records: tuple[RunRecord, ...]
    rows: tuple[Row, ...]
    table: tuple[TableRow, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...]
    checks: Checks

    @property
    def is_sample(self) -> bool:
        """Whether all of its runs were made from sample data."""
        return all(record.sample for record in self.records)

    def cells(self) -> list[Cells]:
        """The table for people, a text by column title for each row."""
        return [{column.title: column.text(row) for column in self.columns} for row in self.table]

    def runs(self) -> list[Cells]:
        """The table of runs for people."""
        return [run_cells(row, record) for row in self.table if row.source for record in row.source.records]


def make_section(
    records: Sequence[RunRecord], others: Sequence[RunRecord], names: BoardNames, checks: Checks
) -> Section:
    """One section from the records of one protocol; `others`: one record of each rival protocol of its task."""
    rows = make_rows(records, names.order)
    judge = Judge(rows)
    gains = judge.gains(names.baseline)
    first = rows[0].first
    sample = any(record.sample for record in records)
    title = f"{first.task}, {first.mode} mode, {first.protocol['n']} questions"
    table = tuple(_table(rows, gains, names, judge, checks))
    return Section(
        title=f"{title} (sample data)" if sample else title,
        facts=_facts(first, others),
        records=tuple(records),
        rows=tuple(rows),
        table=table,
        columns=tuple(_columns(table, names.baseline, with_f1=judge.constant is not None)),
        notes=tuple(section_notes(rows, gains, names.baseline_title, checks)),
        checks=checks,
    )


def _facts(first: RunRecord, others: Sequence[RunRecord]) -> str:
    told = [
        f"Protocol {first.protocol_hash[:12]}",
        f"task version {first.task_version}",
        f"metric {first.protocol['metric']}",
        f"parser version {first.protocol['parser_version']}",
        f"chance {percent(first.chance)} %",
    ]
    differs = [
        f" Not comparable with protocol {other.protocol_hash[:12]}: it differs in "
        f"{', '.join(_difference(name, first, other) for name in protocol_difference(first.protocol, other.protocol))}."
        for other in others
    ]
    return ", ".join(told) + "." + "".join(differs)


def _difference(name: str, first: RunRecord, other: RunRecord) -> str:
    if name != "parser_version":
        return name
    return (
        f"the parser's version ({first.protocol[name]} here, {other.protocol[name]} there: a text may count otherwise)"
    )


def _table(
    rows: Sequence[Row], gains: Sequence[Gain], names: BoardNames, judge: Judge, checks: Checks
) -> Iterator[TableRow]:
    """ReferenceBaselines, then lines that no run stands behind, then methods."""
    ranks, gaps = judge.ranks(), judge.gaps(names.baseline)
    made = []
    for row, gain in zip(rows, gains, strict=True):
        # An accuracy that is known without asking (a guess) has no answers that could be counted.
        scores = [one.score for one in row.records if one.score] if row.first.expected_accuracy is None else []
        names_of_all = set.intersection(*(set(record.secondary) for record in row.records))
        secondary = {
            name: over_seeds([record.secondary[name] for record in row.records]).mean for name in sorted(names_of_all)
        }
        f1 = judge.macro_f1.get(row.key)
        told_f1 = secondary.pop("macro_f1", None)
        made.append(
            TableRow(
                label=row.label,
                student=row.student,
                kind=row.first.kind,
                sample=row.first.sample,
                source=row,
                n=row.first.protocol["n"] if row.accuracy else None,
                seeds=len(row.records) if scores else None,
                accuracy=row.accuracy.mean if row.accuracy else None,
                interval=judge.accuracies.get(row.key),
                unparsed=sum(score.unparsed for score in scores) if scores else None,
                answers=sum(score.n for score in scores) if scores else None,
                # A guess is not asked for the value of one draw.
                macro_f1=None if row.first.expected_accuracy is not None else f1.value if f1 else told_f1,
                macro_f1_interval=f1,
                gain=gain,
                gap=gaps.get(row.key),
                rank=ranks.get(row.key),
                student_tokens=None if row.is_reference else row.tokens,
                seconds=row.seconds or None,
                secondary=secondary,
                trust=least_checked(checks, row.records),
            )
        )
    sample = any(row.first.sample for row in rows)
    yield from (row for row in made if row.kind == "reference_baseline")
    if judge.constant is not None:
        yield TableRow(
            label=CONSTANT,
            kind="reference_baseline",
            sample=sample,
            n=rows[0].first.protocol["n"],
            accuracy=judge.constant.accuracy,
            macro_f1=judge.constant.macro_f1,
        )
    # A replayed teacher wrote its texts before, without answers to score: it is named, never scored.
    used = {teacher.spec for row in rows for record in row.records for teacher in record.teachers}
    own = {row.student for row in rows if row.is_reference}
    for spec in sorted(spec for spec in used if spec.startswith("replay:") and spec not in own):
        yield TableRow(label=f"teacher {spec}", kind="teacher", sample=sample)
    yield from (row for row in made if row.kind != "reference_baseline")


def _columns(table: Sequence[TableRow], baseline: str, *, with_f1: bool) -> Iterator[Column]:
    """The columns that have something to say in this table."""
    yield Column(title="row", text=lambda row: row.title)
    yield Column(title="student", text=lambda row: row.student or "-")
    yield Column(
        title="accuracy %",
        text=lambda row: NOT_MEASURABLE if row.accuracy is None else percent(row.accuracy),
        key=lambda row: row.accuracy,
    )
    yield Column(
        title="95 % interval",
        text=lambda row: interval_text(row.interval),
        key=lambda row: row.interval.low if row.interval else None,
    )
    yield Column(title="n", text=lambda row: _count(row.n), key=lambda row: row.n)
    yield Column(title="seeds", text=lambda row: _count(row.seeds), key=lambda row: row.seeds)
    if any(row.unparsed for row in table):
        yield Column(title="unparsed", text=_unparsed_text, key=lambda row: row.unparsed)
    if with_f1 or any(row.macro_f1 is not None for row in table):
        yield Column(title="macro-F1 %", text=_macro_f1_text, key=lambda row: row.macro_f1)
    yield Column(
        title=f"gain over {baseline} at equal budget (points)",
        text=lambda row: "-" if row.gain is None else _gain_text(row.gain),
        key=lambda row: row.gain.value if row.gain else None,
    )
    if any(row.gain and row.gain.p_holm is not None for row in table):
        yield Column(
            title="p (Holm)",
            text=lambda row: "-" if row.gain is None or row.gain.p_holm is None else probability(row.gain.p_holm),
            key=lambda row: row.gain.p_holm if row.gain else None,
        )
    if any(row.gap for row in table):
        yield Column(
            title="gap to teacher recovered %",
            text=lambda row: "-" if row.gap is None else _gap_text(row.gap),
            key=lambda row: row.gap.value if row.gap else None,
        )
    if any(row.rank for row in table):
        yield Column(
            title="rank",
            text=lambda row: "-" if row.rank is None else _rank_text(row.rank),
            key=lambda row: row.rank.best_rank if row.rank else None,
        )
    yield Column(
        title="student tokens",
        text=lambda row: "-" if row.student_tokens is None else f"{round(row.student_tokens):,}",
        key=lambda row: row.student_tokens,
    )
    yield Column(
        title="wall time",
        text=lambda row: "-" if row.seconds is None else duration(row.seconds),
        key=lambda row: row.seconds,
    )
    for name in sorted({name for row in table for name in row.secondary}):
        yield _secondary_column(name)
    yield Column(title="trust", text=lambda row: row.trust or "-")


def _secondary_column(name: str) -> Column:
    return Column(
        title=f"{name.replace('_', ' ')} %",
        text=lambda row: percent(row.secondary[name]) if name in row.secondary else "-",
        key=lambda row: row.secondary.get(name),
    )


def percent(share: float) -> str:
    """A share as per cent with one decimal."""
    return f"{100 * share:.1f}"


def points(share: float) -> str:
    """A difference of shares as signed points with one decimal; what rounds to nothing has no sign."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def duration(seconds: float) -> str:
    """Wall time for people: `42 s`, `7 min 02 s`, `1 h 04 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def interval_text(found: Estimate | None) -> str:
    """An accuracy's interval in per cent, `exact` where there is none to have."""
    if found is None:
        return "-"
    return "exact" if found.df == math.inf else f"{percent(found.low)} to {percent(found.high)}"


def probability(p: float) -> str:
    """A p value with three decimals, or that it is smaller."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _unparsed_text(row: TableRow) -> str:
    return f"{row.unparsed} of {row.answers}" if row.unparsed else _count(row.unparsed)


def _macro_f1_text(row: TableRow) -> str:
    if row.macro_f1 is None:
        return "-"
    interval = f" ({interval_text(row.macro_f1_interval)})" if row.macro_f1_interval else ""
    return f"{percent(row.macro_f1)}{interval}"


def _gain_text(gain: Gain) -> str:
    if gain.value is None or gain.low is None or gain.high is None:
        return gain.why_not or "-"
    return f"{points(gain.value)} ({points(gain.low)} to {points(gain.high)})"


def _gap_text(found: Gap) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "n/a"
    return f"{100 * found.value:.0f} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _rank_text(found: Standing) -> str:
    span = str(found.best_rank) if found.best_rank == found.worst_rank else f"{found.best_rank}-{found.worst_rank}"
    return f"{span}, tied with best" if found.tied_with_best else span


def run_cells(row: TableRow, record: RunRecord) -> Cells:
    """A run for people."""
    commit = (record.git.commit or "unknown")[:12] + (" (dirty)" if record.git.dirty else "")
    backend = record.backend
    return {
        "row": row.title,
        "seed": str(record.seed),
        "run": record.run_id,
        "commit": commit,
        "backend": f"{backend.name} {backend.dtype} on {backend.device}" if backend else "-",
        "test evaluations": str(record.test_evaluations),
        "command": " ".join(record.command.split()) or "-",
    }


def text_table(cells: Sequence[Cells], *, markdown: bool) -> str:
    """Rows of text as a GitHub table or as a terminal table; heads and cells are escaped."""
    from tabulate import tabulate

    written = escaping.markdown if markdown else escaping.terminal
    heads = [str(written(name)) for name in cells[0]]
    rows = [[str(written(line[name])) for name in cells[0]] for line in cells]
    return tabulate(rows, headers=heads, tablefmt="github" if markdown else "simple", disable_numparse=True)
