"""A board's sections as plain data (cells are text), and their two renderings: Markdown and terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tinyllm_bench.base import escaping
from tinyllm_bench.leaderboard.judgements import Judge
from tinyllm_bench.leaderboard.notes import section_notes
from tinyllm_bench.leaderboard.record import RunRecord, protocol_difference
from tinyllm_bench.leaderboard.rows import Lift, Row, make_rows
from tinyllm_bench.leaderboard.stats.arithmetic import over_seeds
from tinyllm_bench.leaderboard.stats.averages import ConstantAnswer
from tinyllm_bench.leaderboard.stats.gap import Gap
from tinyllm_bench.leaderboard.stats.intervals import Estimate
from tinyllm_bench.leaderboard.stats.multiple import Standing
from tinyllm_bench.leaderboard.verdicts import Checks, least_checked

TRUST = "trust"
MACRO_F1 = "macro-F1 %"
CONSTANT = "constant answer, the most frequent one"
NOT_MEASURABLE = "not measurable (recorded text)"
Cells = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardNames:
    """The words a board brings along: its floor method, what to call it, the order of its rows."""

    floor: str
    floor_title: str
    order: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One table: rows of one task, reading and protocol. `runs` are the cells of the details table, `accuracies` and
    `macro_f1` the rows' with their intervals, by the row's key, `constant` the value of one answer to all questions,
    `checks` what others found about the runs."""

    title: str
    facts: str
    records: tuple[RunRecord, ...]
    rows: tuple[Row, ...]
    table: tuple[Cells, ...]
    notes: tuple[str, ...]
    runs: tuple[Cells, ...]
    accuracies: Mapping[str, Estimate]
    macro_f1: Mapping[str, Estimate]
    constant: ConstantAnswer | None
    checks: Checks

    @property
    def is_sample(self) -> bool:
        """Whether all of its runs were made from sample data."""
        return all(record.sample for record in self.records)


def make_section(
    records: Sequence[RunRecord], others: Sequence[RunRecord], names: BoardNames, checks: Checks
) -> Section:
    """One section from the records of one protocol; `others`: one record of each rival protocol of its task."""
    rows = make_rows(records, names.order)
    judge = Judge(rows)
    lifts = judge.lifts(names.floor)
    first = rows[0].first
    sample = any(record.sample for record in records)
    title = f"{first.task}, {first.reading} reading, {first.protocol['n']} questions"
    return Section(
        title=f"{title} (sample data)" if sample else title,
        facts=_facts(first, others),
        records=tuple(records),
        rows=tuple(rows),
        table=tuple(_table(rows, lifts, names, judge, checks)),
        notes=tuple(section_notes(rows, lifts, names.floor_title, checks)),
        runs=tuple(_run_cells(row, record) for row in rows for record in row.records),
        accuracies=judge.accuracies,
        macro_f1=judge.macro_f1,
        constant=judge.constant,
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


def _table(rows: Sequence[Row], lifts: Sequence[Lift], names: BoardNames, judge: Judge, checks: Checks) -> list[Cells]:
    secondary = sorted({key for row in rows for record in row.records for key in record.secondary})
    unparsed = any(record.score and record.score.unparsed for row in rows for record in row.records)
    ranks, gaps = judge.ranks(), judge.gaps(names.floor)
    tested = any(lift.p_holm is not None for lift in lifts)
    cells = []
    for row, lift in zip(rows, lifts, strict=True):
        line = {
            "row": marked(row),
            "student": row.student or "-",
            "accuracy %": percent(row.accuracy.mean) if row.accuracy else NOT_MEASURABLE,
            "95 % interval": interval_text(judge.accuracies.get(row.key)),
            "n": str(row.first.protocol["n"]) if row.accuracy else "-",
            "seeds": _seeds(row),
        }
        if unparsed:
            line["unparsed"] = _unparsed(row)
        if judge.constant is not None or "macro_f1" in secondary:
            line[MACRO_F1] = _macro_f1(row, judge.macro_f1.get(row.key))
        line[f"lift over {names.floor} at equal budget (points)"] = _lift_text(lift)
        if tested:
            line["p (Holm)"] = "-" if lift.p_holm is None else probability(lift.p_holm)
        if gaps:
            line["gap to teacher recovered %"] = _gap(gaps[row.key]) if row.key in gaps else "-"
        if ranks:
            line["rank"] = _rank(ranks[row.key]) if row.key in ranks else "-"
        line["student tokens"] = "-" if row.is_anchor else f"{round(row.tokens):,}"
        line["wall time"] = duration(row.seconds) if row.seconds else "-"
        line |= {f"{key.replace('_', ' ')} %": _secondary(row, key) for key in secondary if key != "macro_f1"}
        line[TRUST] = least_checked(checks, row.records)
        cells.append(line)
    return _with_unasked(rows, cells, judge.constant)


def marked(row: Row) -> str:
    """The row's label, with the word sample where its data is sample data."""
    return f"{row.label} [sample]" if row.first.sample else row.label


def interval_text(found: Estimate | None) -> str:
    """An accuracy's interval in per cent, `exact` where there is none to have."""
    if found is None:
        return "-"
    return "exact" if found.df == math.inf else f"{percent(found.low)} to {percent(found.high)}"


def probability(p: float) -> str:
    """A p value with three decimals, or that it is smaller."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _rank(found: Standing) -> str:
    span = str(found.best_rank) if found.best_rank == found.worst_rank else f"{found.best_rank}-{found.worst_rank}"
    return f"{span}, tied with best" if found.tied_with_best else span


def _seeds(row: Row) -> str:
    return str(len(row.records)) if row.first.score and row.first.expected_accuracy is None else "-"


def _unparsed(row: Row) -> str:
    scores = [record.score for record in row.records if record.score]
    if not scores or row.first.expected_accuracy is not None:
        return "-"
    found, total = sum(score.unparsed for score in scores), sum(score.n for score in scores)
    return f"{found} of {total}" if found else "0"


def _secondary(row: Row, key: str) -> str:
    found = [record.secondary[key] for record in row.records if key in record.secondary]
    return percent(over_seeds(found).mean) if len(found) == len(row.records) else "-"


def _macro_f1(row: Row, found: Estimate | None) -> str:
    """With its interval; older records hold the value alone. A guess is not asked for the value of one draw."""
    if row.first.expected_accuracy is not None:
        return "-"
    return _secondary(row, "macro_f1") if found is None else f"{percent(found.value)} ({interval_text(found)})"


def _lift_text(lift: Lift) -> str:
    if lift.value is None:
        return lift.why_not or "-"
    assert lift.low is not None and lift.high is not None
    return f"{points(lift.value)} ({points(lift.low)} to {points(lift.high)})"


def _gap(found: Gap) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "n/a"
    return f"{100 * found.value:.0f} ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _with_unasked(rows: Sequence[Row], cells: list[Cells], constant: ConstantAnswer | None) -> list[Cells]:
    """Lines that no run stands behind, between anchors and methods.

    A constant answer is known from the right ones. A replayed teacher wrote its texts before, without answers to
    score: it is named, never scored.
    """
    used = {teacher.spec for row in rows for record in row.records for teacher in record.teachers}
    recorded = sorted(spec for spec in used if spec.startswith("replay:"))
    own = {row.student for row in rows if row.is_anchor}
    mark = " [sample]" if any(row.first.sample for row in rows) else ""
    extra = [
        dict.fromkeys(cells[0], "-") | {"row": f"teacher {spec}{mark}", "accuracy %": NOT_MEASURABLE}
        for spec in recorded
        if spec not in own
    ]
    if constant is not None:
        told = {"row": f"{CONSTANT}{mark}", "accuracy %": percent(constant.accuracy)}
        told |= {"n": str(rows[0].first.protocol["n"]), MACRO_F1: percent(constant.macro_f1)}
        extra.insert(0, dict.fromkeys(cells[0], "-") | told)
    anchors = sum(row.is_anchor for row in rows)
    return [*cells[:anchors], *extra, *cells[anchors:]]


def _run_cells(row: Row, record: RunRecord) -> Cells:
    commit = (record.git.commit or "unknown")[:12] + (" (dirty)" if record.git.dirty else "")
    backend = record.backend
    return {
        "row": marked(row),
        "seed": str(record.seed),
        "run": record.run_id,
        "commit": commit,
        "backend": f"{backend.name} {backend.dtype} on {backend.device}" if backend else "-",
        "looks at test": str(record.test_looks),
        "command": " ".join(record.command.split()) or "-",
    }


def text_table(cells: Sequence[Cells], *, markdown: bool) -> str:
    """Rows of text as a GitHub table or as a terminal table; heads and cells are escaped."""
    from tabulate import tabulate

    written = escaping.markdown if markdown else escaping.terminal
    heads = [str(written(name)) for name in cells[0]]
    rows = [[str(written(line[name])) for name in cells[0]] for line in cells]
    return tabulate(rows, headers=heads, tablefmt="github" if markdown else "simple", disable_numparse=True)
