"""A comparison for the terminal and as plain data; texts of questions only from the reader's own copy of the data."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.data.sources import find_source, load_split, manifest
from tinyllm_bench.leaderboard.compare import Answer, Comparison, Counts, ItemDifference, Report, differing_items
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.rows import Row
from tinyllm_bench.leaderboard.stats.arithmetic import ANY_RUN, THESE_STUDENTS
from tinyllm_bench.leaderboard.stats.intervals import Estimate
from tinyllm_bench.leaderboard.tables import percent, points

Texts = Mapping[str, TaskRecord]


def report_text(report: Report, *, items: bool = False, data_dir: str | None = None) -> str:
    """All comparisons; `items` adds the questions that the sides answer differently."""
    parts = [_text(one, len(report.comparisons)) for one in report.comparisons]
    if items:
        parts = [
            f"{part}\n\n{items_text(one, texts_of(one.first.first, data_dir))}"
            for part, one in zip(parts, report.comparisons, strict=True)
        ]
    if report.mean is not None:
        parts.append(f"mean over {len(report.comparisons)} tasks: {_estimate(report.mean)}")
    parts += [f"not compared: {one}" for one in report.left_out]
    return "\n\n".join(parts)


def _text(one: Comparison, comparisons: int) -> str:
    record = one.first.first
    head = f"{record.task}, {record.mode} mode, {record.protocol['n']} questions"
    sample = " (sample data)" if record.sample else ""
    lines = [f"{head}, protocol {record.protocol_hash[:12]}{sample}", *_sides(one), ""]
    lines += [f"A - B: {_estimate(one.estimate)}"]
    if comparisons > 1:
        lines.append(f"after Holm's correction over {comparisons} comparisons: p {_p(one.p_holm)}")
    lines += [
        f"effect size: Cohen's h {one.cohens_h:+.2f}",
        _counts(one.counts, len(one.first.records) == 1 == len(one.second.records)),
        _agreement(one),
        f"smallest difference that such a comparison finds with 80 % power: {percent(one.detectable)} points",
        *_item_tests(one),
        *(f"note: {note}" for note in one.notes),
    ]
    return "\n".join(lines)


def _sides(one: Comparison) -> list[str]:
    return [f"{letter}  {_side(row)}" for letter, row in (("A", one.first), ("B", one.second))]


def _side(row: Row) -> str:
    runs = f"seed {row.first.seed}, run {row.first.run_id}"
    if len(row.records) > 1:
        seeds = ", ".join(str(record.seed) for record in row.records)
        found = [record.accuracy or 0.0 for record in row.records]
        runs = f"seeds {seeds}, from {percent(min(found))} to {percent(max(found))} %"
    mean = row.accuracy.mean if row.accuracy else 0.0
    student = f" on {row.student}" if row.student else ""
    return f"{row.label}{student}: {percent(mean)} % ({runs})"


def _estimate(found: Estimate) -> str:
    test = "" if found.p is None else f", p {_p(found.p)}"
    span = f"95 % interval {points(found.low)} to {points(found.high)}"
    reach = "for new runs and new questions of this kind" if found.scope == ANY_RUN else found.scope
    return f"{points(found.value)} points, {span}{test} ({found.method}; {reach})"


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"


def _counts(counts: Counts, single: bool) -> str:
    total = counts.first_better + counts.second_better
    n = total + counts.equal
    if single:
        told = f"only A right {counts.first_better}, only B right {counts.second_better}"
        rest = f"both right {counts.both_right}, both wrong {counts.both_wrong}"
        return f"discordant questions: {total} of {n} ({percent(total / n)} %): {told}; {rest}"
    told = f"A right in more runs {counts.first_better}, B in more {counts.second_better}"
    rest = f"right in all runs {counts.both_right}, in none {counts.both_wrong}"
    return f"discordant questions: {total} of {n} ({percent(total / n)} %): {told}; {rest}"


def _agreement(one: Comparison) -> str:
    found = one.agreement
    text = f"same answer: {percent(found.between)} % of the questions"
    within = (("A", found.within_first), ("B", found.within_second))
    own = [f"two runs of {letter} {percent(share)} %" for letter, share in within if share is not None]
    return text + (f" ({', '.join(own)})" if own else "")


def _item_tests(one: Comparison) -> Iterator[str]:
    several = len(one.first.records) > 1 or len(one.second.records) > 1
    found = [f"{test.method} p {_p(test.p)}" + (f" (seed {seed})" if several else "") for seed, test in one.mcnemar]
    yield f"{THESE_STUDENTS}: {', '.join([*found, f'{one.permutation.method} p {_p(one.permutation.p)}'])}"


def texts_of(record: RunRecord, data_dir: str | None) -> Texts:
    """The questions of a record's test split by id, where the data that it was made from are at hand; else none."""
    try:
        kind: Any = record.data.source
        source = find_source(kind, None if kind == "sample" else data_dir)
        told = record.data.splits.get("test")
        if told is not None and manifest(source, record.task)["test"]["digest"] != told.digest:
            return {}
        return {one.id: one for one in load_split(source, record.task, "test")}
    except UserError:
        return {}


def items_text(one: Comparison, texts: Texts) -> str:
    """The questions that two sides answer differently: ids, both answers, and texts where they are at hand."""
    from tabulate import tabulate

    found = differing_items(one)
    if not found:
        return "no question is answered differently"
    lines = [_item_cells(item, texts.get(item.record_id)) for item in found]
    heads = ["question", "A", "B", *(["text"] if texts else [])]
    note = "" if texts else "\n(texts are not at hand: give --data-dir)"
    title = f"{len(found)} questions are answered differently (* right)"
    return f"{title}\n{tabulate(lines, headers=heads, disable_numparse=True)}{note}"


def _item_cells(item: ItemDifference, record: TaskRecord | None) -> list[str]:
    cells = [item.record_id, _shown(item.first, item.first_right), _shown(item.second, item.second_right)]
    if record is None:
        return cells
    options = "; ".join(f"{LETTERS[i]} {text}" for i, text in enumerate(record.choices))
    gold = f"right: {LETTERS[record.answer]}" if record.choices else f"right: {record.gold_text}"
    return [*cells, " ".join(f"{record.question} {f'[{options}] ' if options else ''}{gold}".split())]


def _shown(answers: Sequence[Answer], right: float) -> str:
    words = " ".join(_answer(answer) for answer in answers)
    if len(answers) == 1:
        return f"{words} *" if right else words
    return f"{words} ({round(right * len(answers))} of {len(answers)} right)"


def _answer(answer: Answer) -> str:
    if answer is None:
        return "unread"
    return LETTERS[answer] if isinstance(answer, int) else answer


def report_data(report: Report, *, items: bool = False) -> dict[str, Any]:
    """The same as plain values, without any text of a question."""
    return {
        "comparisons": [_data(one, items=items) for one in report.comparisons],
        "mean": None if report.mean is None else _plain(report.mean),
        "not_compared": list(report.left_out),
    }


def _data(one: Comparison, *, items: bool) -> dict[str, Any]:
    record = one.first.first
    found: dict[str, Any] = {
        "task": record.task,
        "mode": record.mode,
        "n": record.protocol["n"],
        "protocol_hash": record.protocol_hash,
        "sample": record.sample,
        "first": _row_data(one.first),
        "second": _row_data(one.second),
        "difference": _plain(one.estimate),
        "p_holm": one.p_holm,
        "cohens_h": one.cohens_h,
        "counts": one.counts._asdict(),
        "agreement": one.agreement._asdict(),
        "permutation": one.permutation._asdict(),
        "mcnemar": [{"seed": seed, **test._asdict()} for seed, test in one.mcnemar],
        "detectable": one.detectable,
        "notes": list(one.notes),
    }
    return found | ({"items": [item._asdict() for item in differing_items(one)]} if items else {})


def _plain(found: Estimate) -> dict[str, Any]:
    """JSON knows no infinity: the degrees of freedom of an exact value are null."""
    return {**found._asdict(), "df": found.df if found.df < float("inf") else None}


def _row_data(row: Row) -> dict[str, Any]:
    return {
        "label": row.label,
        "student": row.student,
        "runs": [record.run_id for record in row.records],
        "seeds": [record.seed for record in row.records],
        "accuracy": row.accuracy.mean if row.accuracy else None,
    }
