"""A board's tables in numbers, and how a number is written for people.

A row of a table holds shares, counts and seconds. A renderer (Markdown, page, LaTeX, terminal) asks the table's columns
for the text of each row; an export takes the numbers. Below the sections: the table of means over tasks, and runs as a
pandas table.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tinyllm_bench.base import escaping
from tinyllm_bench.leaderboard.analysis import SectionAnalysis
from tinyllm_bench.leaderboard.notes import section_notes
from tinyllm_bench.leaderboard.record import RunRecord, protocol_difference
from tinyllm_bench.leaderboard.rows import BoardRow, Gain, make_rows
from tinyllm_bench.leaderboard.stats.averages import macro_average
from tinyllm_bench.leaderboard.stats.intervals import Estimate, GapRecovered, RankInterval
from tinyllm_bench.leaderboard.verdicts import Checks, Tier, least_checked

if TYPE_CHECKING:
    import pandas as pd

CONSTANT = "constant answer, the most frequent one"
NOT_MEASURABLE = "not measurable (recorded text)"
Cells = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardNames:
    """A board's baseline method, its title in sentences, and the order of the rows."""

    baseline: str
    baseline_title: str
    order: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row of a table in numbers; None where the row has no such figure.

    `source` holds the runs behind it; None for a constant answer and for a teacher that is only named. `accuracy` and
    `secondary` (the task's own figures) are shares, means over seeds. `interval` belongs to `accuracy`,
    `macro_f1_interval` to `macro_f1`, which some records hold without one. `unparsed` counts answers of all runs, out
    of `answers`. `student_tokens` and `seconds` are means of a run.
    """

    label: str
    student: str = ""
    kind: Literal["reference_baseline", "method", "teacher"]
    sample: bool
    source: BoardRow | None = None
    n: int | None = None
    seeds: int | None = None
    accuracy: float | None = None
    interval: Estimate | None = None
    unparsed: int | None = None
    answers: int | None = None
    macro_f1: float | None = None
    macro_f1_interval: Estimate | None = None
    gain: Gain | None = None
    gap: GapRecovered | None = None
    rank: RankInterval | None = None
    student_tokens: float | None = None
    seconds: float | None = None
    secondary: Mapping[str, float] = field(default_factory=dict)
    trust: Tier | None = None

    @property
    def title(self) -> str:
        """The label, with the word sample where the data is sample data."""
        return f"{self.label} [sample]" if self.sample else self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """A column as it is shown: `text` of a row for people, `key` to sort by (None comes last)."""

    title: str
    text: Callable[[TableRow], str]
    key: Callable[[TableRow], float | None] = lambda row: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table: rows of one task, mode and protocol. `table` holds its rows in numbers, `rows` those that have runs,
    `columns` how the table is shown, `checks` the verdicts on its runs."""

    title: str
    facts: str
    records: tuple[RunRecord, ...]
    rows: tuple[BoardRow, ...]
    table: tuple[TableRow, ...]
    columns: tuple[TableColumn, ...]
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
        return [run_line(row, record) for row in self.table if row.source for record in row.source.records]


def make_section(
    records: Sequence[RunRecord], others: Sequence[RunRecord], names: BoardNames, checks: Checks
) -> Section:
    """One section from the records of one protocol; `others`: one record of each rival protocol of its task."""
    rows = make_rows(records, names.order)
    analysis = SectionAnalysis(rows)
    gains = analysis.gains(names.baseline)
    first = rows[0].first
    sample = any(record.sample for record in records)
    title = f"{first.task}, {first.mode} mode, {first.protocol['n']} questions"
    table = tuple(_table_rows(rows, gains, names, analysis, checks))
    return Section(
        title=f"{title} (sample data)" if sample else title,
        facts=_facts(first, others),
        records=tuple(records),
        rows=tuple(rows),
        table=table,
        columns=tuple(_columns(table, names.baseline, with_f1=analysis.constant is not None)),
        notes=tuple(section_notes(rows, gains, names.baseline_title, checks)),
        checks=checks,
    )


def _facts(first: RunRecord, others: Sequence[RunRecord]) -> str:
    """The line under a section's title: its protocol, and how rival protocols differ."""
    facts = [
        f"Protocol {first.protocol_hash[:12]}",
        f"task version {first.task_version}",
        f"metric {first.protocol['metric']}",
        f"parser version {first.protocol['parser_version']}",
        f"chance {percent(first.chance)} %",
    ]
    text = ", ".join(facts) + "."
    for other in others:
        versions = [record.protocol["parser_version"] for record in (first, other)]
        parser = f"the parser's version ({versions[0]} here, {versions[1]} there: a text may count otherwise)"
        fields = [
            parser if name == "parser_version" else name for name in protocol_difference(first.protocol, other.protocol)
        ]
        text += f" Not comparable with protocol {other.protocol_hash[:12]}: it differs in {', '.join(fields)}."
    return text


def _table_rows(
    rows: Sequence[BoardRow], gains: Sequence[Gain], names: BoardNames, analysis: SectionAnalysis, checks: Checks
) -> Iterator[TableRow]:
    """Reference baselines, then lines without runs (a constant answer, teachers that are only named), then methods."""
    ranks, gaps = analysis.ranks(), analysis.gaps(names.baseline)
    table = []
    for row, gain in zip(rows, gains, strict=True):
        # A guess, whose accuracy is known exactly, has no answers to count and no macro-F1.
        is_guess = row.first.expected_accuracy is not None
        scores = [] if is_guess else [record.score for record in row.records if record.score]
        shared = set.intersection(*(set(record.secondary) for record in row.records))
        secondary = {name: fmean(record.secondary[name] for record in row.records) for name in sorted(shared)}
        f1 = analysis.macro_f1.get(row.key)
        recorded_f1 = secondary.pop("macro_f1", None)
        table.append(
            TableRow(
                label=row.label,
                student=row.student,
                kind=row.first.kind,
                sample=row.first.sample,
                source=row,
                n=None if row.accuracy is None else row.first.protocol["n"],
                seeds=len(row.records) if scores else None,
                accuracy=row.accuracy,
                interval=analysis.accuracies.get(row.key),
                unparsed=sum(score.unparsed for score in scores) if scores else None,
                answers=sum(score.n for score in scores) if scores else None,
                macro_f1=None if is_guess else f1.value if f1 else recorded_f1,
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
    yield from (row for row in table if row.kind == "reference_baseline")
    if analysis.constant is not None:
        yield TableRow(
            label=CONSTANT,
            kind="reference_baseline",
            sample=sample,
            n=rows[0].first.protocol["n"],
            accuracy=analysis.constant.accuracy,
            macro_f1=analysis.constant.macro_f1,
        )
    # A replayed teacher has recorded texts without answers to score: it is named, never scored.
    used = {teacher.spec for row in rows for record in row.records for teacher in record.teachers}
    own = {row.student for row in rows if row.is_reference}
    for spec in sorted(spec for spec in used if spec.startswith("replay:") and spec not in own):
        yield TableRow(label=f"teacher {spec}", kind="teacher", sample=sample)
    yield from (row for row in table if row.kind != "reference_baseline")


def _columns(table: Sequence[TableRow], baseline: str, *, with_f1: bool) -> Iterator[TableColumn]:
    """The columns with content in this table."""
    yield TableColumn(title="row", text=lambda row: row.title)
    yield TableColumn(title="student", text=lambda row: row.student or "-")
    yield TableColumn(
        title="accuracy %",
        text=lambda row: NOT_MEASURABLE if row.accuracy is None else percent(row.accuracy),
        key=lambda row: row.accuracy,
    )
    yield TableColumn(
        title="95 % interval",
        text=lambda row: interval_text(row.interval),
        key=lambda row: row.interval.low if row.interval else None,
    )
    yield TableColumn(title="n", text=lambda row: _count(row.n), key=lambda row: row.n)
    yield TableColumn(title="seeds", text=lambda row: _count(row.seeds), key=lambda row: row.seeds)
    if any(row.unparsed for row in table):
        yield TableColumn(
            title="unparsed",
            text=lambda row: f"{row.unparsed} of {row.answers}" if row.unparsed else _count(row.unparsed),
            key=lambda row: row.unparsed,
        )
    if with_f1 or any(row.macro_f1 is not None for row in table):
        yield TableColumn(title="macro-F1 %", text=_macro_f1_text, key=lambda row: row.macro_f1)
    yield TableColumn(
        title=f"gain over {baseline} at equal budget (points)",
        text=lambda row: "-" if row.gain is None else _gain_text(row.gain),
        key=lambda row: row.gain.value if row.gain else None,
    )
    if any(row.gain and row.gain.p_holm is not None for row in table):
        yield TableColumn(
            title="p (Holm)",
            text=lambda row: "-" if row.gain is None or row.gain.p_holm is None else probability(row.gain.p_holm),
            key=lambda row: row.gain.p_holm if row.gain else None,
        )
    if any(row.gap for row in table):
        yield TableColumn(
            title="gap to teacher recovered %",
            text=lambda row: "-" if row.gap is None else _gap_text(row.gap),
            key=lambda row: row.gap.value if row.gap else None,
        )
    if any(row.rank for row in table):
        yield TableColumn(
            title="rank",
            text=lambda row: "-" if row.rank is None else _rank_text(row.rank),
            key=lambda row: row.rank.best_rank if row.rank else None,
        )
    yield TableColumn(
        title="student tokens",
        text=lambda row: "-" if row.student_tokens is None else f"{round(row.student_tokens):,}",
        key=lambda row: row.student_tokens,
    )
    yield TableColumn(
        title="wall time",
        text=lambda row: "-" if row.seconds is None else duration(row.seconds),
        key=lambda row: row.seconds,
    )
    for name in sorted({name for row in table for name in row.secondary}):
        yield _secondary_column(name)
    yield TableColumn(title="trust", text=lambda row: row.trust or "-")


def _secondary_column(name: str) -> TableColumn:
    return TableColumn(
        title=f"{name.replace('_', ' ')} %",
        text=lambda row: percent(row.secondary[name]) if name in row.secondary else "-",
        key=lambda row: row.secondary.get(name),
    )


def percent(share: float) -> str:
    """A share as per cent with one decimal; what rounds to zero has no sign."""
    return f"{100 * share:z.1f}"


def points(share: float) -> str:
    """A difference of shares as signed points with one decimal; what rounds to zero has no sign."""
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


def interval_text(estimate: Estimate | None) -> str:
    """An accuracy's interval in per cent, `exact` for a value that is known exactly."""
    if estimate is None:
        return "-"
    return "exact" if estimate.df == math.inf else f"{percent(estimate.low)} to {percent(estimate.high)}"


def probability(p: float) -> str:
    """A p value with three decimals, `< 0.001` below that."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _macro_f1_text(row: TableRow) -> str:
    if row.macro_f1 is None:
        return "-"
    interval = f" ({interval_text(row.macro_f1_interval)})" if row.macro_f1_interval else ""
    return f"{percent(row.macro_f1)}{interval}"


def _gain_text(gain: Gain) -> str:
    if gain.value is None or gain.low is None or gain.high is None:
        return gain.why_not or "-"
    return f"{points(gain.value)} ({points(gain.low)} to {points(gain.high)})"


def _gap_text(gap: GapRecovered) -> str:
    if gap.value is None or gap.low is None or gap.high is None:
        return "n/a"
    return f"{100 * gap.value:.0f} ({100 * gap.low:.0f} to {100 * gap.high:.0f})"


def _rank_text(rank: RankInterval) -> str:
    span = str(rank.best_rank) if rank.best_rank == rank.worst_rank else f"{rank.best_rank}-{rank.worst_rank}"
    return f"{span}, tied with best" if rank.tied_with_best else span


def run_line(row: TableRow, record: RunRecord) -> Cells:
    """A line of the table of runs for people."""
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

    escaped = escaping.markdown if markdown else escaping.terminal
    heads = [str(escaped(name)) for name in cells[0]]
    rows = [[str(escaped(line[name])) for name in cells[0]] for line in cells]
    return tabulate(rows, headers=heads, tablefmt="github" if markdown else "simple", disable_numparse=True)


# --- means over tasks -------------------------------------------------------------------------------------------------

MEAN_NOTE = (
    "Only rows that have a result on every task of their mode. Chance-corrected: 0 at chance, 100 if all is right."
)


class TaskAccuracies(NamedTuple):
    """A section as a mean over tasks needs it: its rows' accuracies by title and student.

    `parser` is the version of the parser, which choices and numbers share.
    """

    task: str
    mode: str
    parser: str
    chance: float
    rows: Mapping[tuple[str, str], Estimate]


class MeanRow(NamedTuple):
    """A row of the table of means: `mean` of the accuracies, and of the accuracies corrected for chance."""

    label: str
    student: str
    mode: str
    parser: str
    tasks: int
    mean: Estimate
    corrected: Estimate


def task_accuracies(section: Section) -> TaskAccuracies:
    """The rows of a section whose accuracy is known."""
    first = section.rows[0].first
    rows = {(row.title, row.student): row.interval for row in section.table if row.source and row.interval}
    version = re.search(r"\d+", str(first.protocol["parser_version"]))
    return TaskAccuracies(first.task, first.mode, version[0] if version else "", first.chance, rows)


def mean_rows(sections: Sequence[TaskAccuracies]) -> list[MeanRow]:
    """Mean accuracy and mean chance-corrected accuracy of the rows that are in every task's table, per mode and parser.

    Only tasks with one protocol count: with several it is unclear which belongs in a mean. Answers that two versions of
    the parser read are never in one mean.
    """
    means = []
    for mode, parser in sorted({(section.mode, section.parser) for section in sections}):
        same_mode = [section for section in sections if (section.mode, section.parser) == (mode, parser)]
        tasks = [section.task for section in same_mode]
        single = [section for section in same_mode if tasks.count(section.task) == 1]
        if len(single) < 2:
            continue
        chances = [section.chance for section in single]
        for row in single[0].rows:
            accuracies = [section.rows[row] for section in single if row in section.rows]
            if len(accuracies) == len(single):
                average, corrected = macro_average(accuracies), macro_average(accuracies, chances)
                means.append(MeanRow(*row, mode, parser, len(single), average, corrected))
    return means


def mean_cells(rows: Sequence[MeanRow]) -> list[Cells]:
    """The table of means for people."""
    return [
        {
            "row": row.label,
            "student": row.student or "-",
            "mode": row.mode,
            "parser version": row.parser,
            "tasks": str(row.tasks),
            "mean accuracy %": percent(row.mean.value),
            "95 % interval": interval_text(row.mean),
            "mean chance-corrected %": percent(row.corrected.value),
        }
        for row in rows
    ]


def mean_keys(row: MeanRow) -> list[float | None]:
    """The sorting keys of the columns of `mean_cells`; None for words."""
    return [None, None, None, None, row.tasks, row.mean.value, row.mean.low, row.corrected.value]


# --- runs for notebooks -----------------------------------------------------------------------------------------------
_FRAME_COLUMNS = [  # also of a table without runs
    "method",
    "kind",
    "task",
    "mode",
    "seed",
    "sample",
    "student",
    "n",
    "accuracy",
    "low",
    "high",
    "unparsed",
    "student_tokens",
    "seconds",
    "protocol",
    "run_id",
]


def runs_frame(records: Iterable[RunRecord]) -> "pd.DataFrame":
    """One line a run: `accuracy` and its 95 % interval as shares, None where it cannot be measured.

    The interval is that of a board's row of one run: it generalises to these questions and this student, not to seeds.
    """
    import pandas as pd

    lines: list[dict[str, Any]] = []
    for record in records:
        row = BoardRow(record.label, (record,))
        interval = SectionAnalysis([row]).accuracies.get(row.key)
        score, budget = record.score, record.budget
        lines.append(
            {
                "method": record.label,
                "kind": record.kind,
                "task": record.task,
                "mode": record.mode,
                "seed": record.seed,
                "sample": record.sample,
                "student": row.student or None,
                "n": record.protocol["n"],
                "accuracy": record.accuracy,
                "low": interval.low if interval else None,
                "high": interval.high if interval else None,
                "unparsed": score.unparsed if score else None,
                "student_tokens": budget.student_tokens if budget else None,
                "seconds": budget.seconds if budget else None,
                "protocol": record.protocol_hash,
                "run_id": record.run_id,
            }
        )
    return pd.DataFrame(lines, columns=_FRAME_COLUMNS)
