"""Two rows under one protocol, question by question: which rows, their statistics, and the result as text or JSON.

The main figure is `intervals.difference`: of methods where each side has several seeds, else of these trained students.
Tests over questions alone are given beside it and always generalise to these students only.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.data.sources import find_source, load_split, manifest
from tinyllm_bench.leaderboard.analysis import correctness_matrix, shared_clusters
from tinyllm_bench.leaderboard.board import board_records
from tinyllm_bench.leaderboard.protocols import check_same_protocol, protocols_differ
from tinyllm_bench.leaderboard.record import RECORD_FILE, Answer, RunRecord, load_record
from tinyllm_bench.leaderboard.rows import BUDGET_TOLERANCE, BoardRow, make_rows
from tinyllm_bench.leaderboard.stats.averages import macro_average
from tinyllm_bench.leaderboard.stats.intervals import Estimate, difference, summarise
from tinyllm_bench.leaderboard.stats.power import detectable
from tinyllm_bench.leaderboard.stats.significance import (
    ANY_RUN,
    THESE_STUDENTS,
    ExactTest,
    holm,
    mcnemar,
    permutation,
)
from tinyllm_bench.leaderboard.tables import percent, points

DEFAULT_PLACES = (Path("runs") / "board", Path("runs"))
_MAX_REASONS = 3
SectionKey = tuple[str, str, str]  # task, mode, protocol hash


# --- which rows are compared ------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two rows under one protocol."""

    first: BoardRow
    second: BoardRow


class Pairing(NamedTuple):
    """The pairs of a comparison, and in words what could not be paired."""

    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...] = ()


def find_pairs(first: str, second: str, *, place: Path | None = None, student: str | None = None) -> Pairing:
    """The rows that two names on the command line mean.

    Args:
        first: A run's folder, a record's file, a board's folder, or the name of a row.
        second: The same kind of thing.
        place: Where rows are looked up: a board, or a folder of runs.
        student: The student of the rows, where several students have rows of the same name.

    Raises:
        UserError: two different kinds, nothing there, an unknown or an ambiguous name, other protocols.
    """
    kinds = [_kind(name) for name in (first, second)]
    if kinds[0] != kinds[1]:
        raise UserError(
            f"{first} is a {kinds[0]} and {second} is a {kinds[1]}; compare two runs, two boards, or two rows"
        )
    if student is not None and kinds[0] != "row":
        raise UserError(f"--student {student} chooses among rows, and {first} is a {kinds[0]}; leave it out")
    if kinds[0] == "run":
        return pair_of(load_record(Path(first)), load_record(Path(second)))
    if kinds[0] == "board":
        return _pair_boards(Path(first), Path(second))
    return _pair_rows(first, second, _sections(_records_in(place or _default_place())), student)


def pair_of(first: RunRecord, second: RunRecord) -> Pairing:
    """Two runs.

    Raises:
        UserError: other protocols, or a run without answers.
    """
    check_same_protocol(first, second)
    rows = [BoardRow(record.label, (record,)) for record in (first, second)]
    for row in rows:
        _check_answers(row, row.first.run_id)
    return Pairing((Pair(*rows),))


def find_record(name: str, place: Path | None = None) -> RunRecord:
    """A record by its path, or a row of a board by the run's id or by a label that has one protocol there.

    Raises:
        UserError: unknown, or rows of several protocols have that name.
    """
    kind = _kind(name)
    if kind == "run":
        return load_record(Path(name))
    records = _records_in(Path(name) if kind == "board" else place or _default_place())
    rows = [row for section in _sections(records).values() for row in section]
    matches = rows if kind == "board" else _matching(name, rows)
    if not matches:
        raise unknown_name("row", name, {row.label for row in rows})
    by_protocol = {row.first.protocol_hash: row.first for row in matches}
    if len(by_protocol) > 1:
        runs = ", ".join(record.run_id for record in by_protocol.values())
        raise UserError(f"{name} has rows of {len(by_protocol)} protocols; name one run of {runs}")
    return next(iter(by_protocol.values()))


def _kind(name: str) -> Literal["run", "board", "row"]:
    path = Path(name)
    if path.is_file() or (path / RECORD_FILE).is_file():
        return "run"
    if (path / "results").is_dir():
        return "board"
    if (path.is_dir() and "/" in name) or path.suffix == ".json" or name.count("/") > 1:
        raise UserError(f"{name}: no run folder, record or board there; rows of a folder are named with --in FOLDER")
    return "row"


def _default_place() -> Path:
    place = next((place for place in DEFAULT_PLACES if place.is_dir()), None)
    if place is None:
        raise UserError("no runs/ here; say with --in FOLDER on which board, or in which folder of runs, the rows are")
    return place


def _records_in(place: Path) -> list[RunRecord]:
    """The records of a board, or of a folder of runs."""
    if (place / "results").is_dir():
        records = board_records(place)
    else:
        records = [load_record(file) for file in sorted(place.glob(f"*/{RECORD_FILE}"))]
    if not records:
        raise UserError(f"{place} holds no records; give a board's folder or a folder of runs with --in")
    return records


def _sections(records: Iterable[RunRecord]) -> dict[SectionKey, list[BoardRow]]:
    groups: dict[SectionKey, list[RunRecord]] = defaultdict(list)
    for record in records:
        groups[record.task, record.mode, record.protocol_hash].append(record)
    return {key: make_rows(group, ()) for key, group in sorted(groups.items())}


def _matching(name: str, rows: Sequence[BoardRow]) -> list[BoardRow]:
    """The rows that a name means: by label, by label without suffix, by method, by run id; the first that matches."""
    matches_by_rule = (
        [row for row in rows if row.label == name],
        [row for row in rows if row.first.label == name],
        [row for row in rows if row.first.name == name],
        [BoardRow(row.label, (record,)) for row in rows for record in row.records if record.run_id == name],
    )
    return next((matches for matches in matches_by_rule if matches), [])


def _has_answers(row: BoardRow) -> bool:
    return all(record.items and record.expected_accuracy is None for record in row.records)


def _check_answers(row: BoardRow, name: str) -> None:
    if not _has_answers(row):
        raise UserError(f"{name}: no answers to pair with: its accuracy is exact, or cannot be measured")


def _pair_rows(first: str, second: str, sections: dict[SectionKey, list[BoardRow]], student: str | None) -> Pairing:
    """Rows by their names, in every section that has both."""
    if student is not None:
        students = {row.student for rows in sections.values() for row in rows}
        if student not in students:
            raise unknown_name("student", student, students)
        sections = {key: [row for row in rows if row.student == student] for key, rows in sections.items()}
    sides: list[dict[SectionKey, BoardRow]] = []
    for name in (first, second):
        side = {}
        for key, rows in sections.items():
            matches = _matching(name, rows)
            if len(matches) > 1:
                candidates = "; ".join(f"{row.label} on {row.student or 'no student'}" for row in matches)
                raise UserError(
                    f"{name} names {len(matches)} rows of {key[0]} ({key[1]}): {candidates};"
                    " name one, or choose with --student"
                )
            if matches:
                side[key] = matches[0]
        if not side:
            raise unknown_name("row", name, {row.label for rows in sections.values() for row in rows})
        sides.append(side)
    left_out = _other_protocols(*sides)
    tasks = [{key[:2] for key in side} for side in sides]
    for name, own, other in ((first, tasks[0], tasks[1]), (second, tasks[1], tasks[0])):
        left_out += [f"{task} ({mode}): only {name} has a row" for task, mode in sorted(own - other)]
    pairs = tuple(Pair(sides[0][key], sides[1][key]) for key in sides[0] if key in sides[1])
    if not pairs:
        raise UserError(f"{first} and {second} cannot be compared: {'; '.join(left_out)}")
    for row in (row for pair in pairs for row in pair):
        _check_answers(row, row.label)
    return Pairing(pairs, tuple(left_out))


def _pair_boards(first: Path, second: Path) -> Pairing:
    """Rows of the same label and student under the same protocol."""
    sides = []
    for folder in (first, second):
        sections = _sections(board_records(folder))
        sides.append(
            {(*key, row.label, row.student): row for key, rows in sections.items() for row in rows if _has_answers(row)}
        )
    pairs = tuple(Pair(row, sides[1][key]) for key, row in sides[0].items() if key in sides[1])
    left_out = [
        f"{key[3]} on {key[0]} ({key[1]}, protocol {key[2][:12]}): only on {folder}"
        for folder, own, other in ((first, sides[0], sides[1]), (second, sides[1], sides[0]))
        for key in own
        if key not in other
    ]
    if not pairs:
        by_section = [{key[:3]: row for key, row in side.items()} for side in sides]
        reasons = _other_protocols(*by_section) or left_out or ["no measured rows"]
        more = f"; and {len(reasons) - _MAX_REASONS} more" if len(reasons) > _MAX_REASONS else ""
        raise UserError(f"{first} and {second} cannot be compared: {'; '.join(reasons[:_MAX_REASONS])}{more}")
    return Pairing(pairs, tuple(left_out))


def _other_protocols(first: dict[SectionKey, BoardRow], second: dict[SectionKey, BoardRow]) -> list[str]:
    """Tasks and scoring modes that both have, under other protocols only."""
    reasons = []
    for task, mode in dict.fromkeys(key[:2] for key in first):
        sides = [{key: row for key, row in side.items() if key[:2] == (task, mode)} for side in (first, second)]
        if sides[1] and not sides[0].keys() & sides[1].keys():
            records = [next(iter(side.values())).first for side in sides]
            reasons.append(f"{task} ({mode}): {protocols_differ(*records)}")
    return reasons


# --- statistics of a pair ---------------------------------------------------------------------------------------------


class QuestionCounts(NamedTuple):
    """Questions by which side is right. With several seeds a question counts for the side with the larger share of
    right runs; `equal` counts those without one, of which `both_right` and `both_wrong` in every run of both sides.
    """

    first_better: int
    second_better: int
    equal: int
    both_right: int
    both_wrong: int


class AnswerAgreement(NamedTuple):
    """Shares of questions with the same answer: between a run of either side, and between two runs of one side."""

    between: float
    within_first: float | None
    within_second: float | None


class ItemDifference(NamedTuple):
    """A question that the sides answer differently: the answers by seed, and the share of right ones."""

    record_id: str
    first: tuple[Answer, ...]
    second: tuple[Answer, ...]
    first_right: float
    second_right: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PairComparison:
    """The comparison of one pair of rows; differences are first minus second, shares between -1 and 1.

    `p_holm` is corrected over the tasks of one call. `cohens_h` is 2 asin sqrt(p_A) - 2 asin sqrt(p_B). `mcnemar` has
    one test for each seed that both sides have. `detectable` is the difference that such a comparison detects with 80 %
    power.
    """

    first: BoardRow
    second: BoardRow
    estimate: Estimate
    p_holm: float
    cohens_h: float
    counts: QuestionCounts
    agreement: AnswerAgreement
    permutation: ExactTest
    mcnemar: tuple[tuple[int, ExactTest], ...]
    detectable: float
    notes: tuple[str, ...]

    @property
    def means(self) -> tuple[float, float]:
        """The accuracies of both sides, over their seeds."""
        first, second = self.first.accuracy, self.second.accuracy
        assert first is not None and second is not None, "rows without a score are refused before"
        return first, second


class ComparisonReport(NamedTuple):
    """Every comparison of a call, their mean over tasks where there are several, and what was left out."""

    comparisons: tuple[PairComparison, ...]
    mean: Estimate | None
    left_out: tuple[str, ...]


def compare(pairing: Pairing) -> ComparisonReport:
    """Compare the pairs of `find_pairs`; Holm's correction is over all of them."""
    estimates = []
    for pair in pairing.pairs:
        clusters = shared_clusters([pair.first.first, pair.second.first])
        first, second = (
            summarise(correctness_matrix(row.records), fixed=row.is_reference, clusters=clusters) for row in pair
        )
        estimates.append(difference(first, second))
    corrected = holm([1.0 if estimate.p is None else estimate.p for estimate in estimates])
    comparisons = tuple(
        _comparison(pair, estimate, p_holm, len(estimates))
        for pair, estimate, p_holm in zip(pairing.pairs, estimates, corrected, strict=True)
    )
    tasks = [pair.first.first.task for pair in pairing.pairs]
    several = len(tasks) > 1 and len(set(tasks)) == len(tasks)
    return ComparisonReport(comparisons, macro_average(estimates) if several else None, pairing.left_out)


def _comparison(pair: Pair, estimate: Estimate, p_holm: float, comparisons: int) -> PairComparison:
    first, second = (correctness_matrix(row.records).astype(np.int64) for row in pair)  # questions x seeds
    gap = first.mean(axis=1) - second.mean(axis=1)
    right, wrong = first.all(axis=1) & second.all(axis=1), ~(first.any(axis=1) | second.any(axis=1))
    counts = QuestionCounts(*(int(questions.sum()) for questions in (gap > 0, gap < 0, gap == 0, right, wrong)))

    def same_share(pairs: Iterable[tuple[list[Answer], list[Answer]]]) -> float | None:
        shares = [sum(a == b for a, b in zip(run, other, strict=True)) / len(run) for run, other in pairs]
        return sum(shares) / len(shares) if shares else None

    ids = pair.first.first.items.ids
    own, others = ([_answers(record, ids) for record in row.records] for row in pair)
    between = same_share(product(own, others))
    assert between is not None, "a row has a run"
    return PairComparison(
        first=pair.first,
        second=pair.second,
        estimate=estimate,
        p_holm=p_holm,
        cohens_h=cohens_h(float(first.mean()), float(second.mean())),
        counts=counts,
        agreement=AnswerAgreement(between, same_share(combinations(own, 2)), same_share(combinations(others, 2))),
        permutation=permutation(first, second, shared_clusters([pair.first.first, pair.second.first])),
        mcnemar=tuple(_mcnemar_by_seed(pair)),
        detectable=detectable(estimate, comparisons=comparisons),
        notes=tuple(_notes(pair)),
    )


def cohens_h(first: float, second: float) -> float:
    """2 asin sqrt(p_A) - 2 asin sqrt(p_B), an effect size of two shares: 0.2 is called small, 0.5 medium, 0.8 large.

    J. Cohen, "Statistical power analysis for the behavioral sciences", 2nd ed. (1988), chapter 6.
    """
    return 2 * math.asin(math.sqrt(first)) - 2 * math.asin(math.sqrt(second))


def _answers(record: RunRecord, ids: Sequence[str]) -> list[Answer]:
    by_id = dict(zip(record.items.ids, record.items.answers, strict=True))
    return [by_id[record_id] for record_id in ids]


def _mcnemar_by_seed(pair: Pair) -> Iterator[tuple[int, ExactTest]]:
    by_seed = {record.seed: record for record in pair.second.records}
    runs = [(record, by_seed[record.seed]) for record in pair.first.records if record.seed in by_seed]
    if not runs and len(pair.first.records) == len(pair.second.records) == 1:
        runs = [(pair.first.first, pair.second.first)]
    for record, other in runs:
        right, other_right = correctness_matrix([record, other]).T.astype(bool)
        yield record.seed, mcnemar(int((right & ~other_right).sum()), int((other_right & ~right).sum()))


def _notes(pair: Pair) -> Iterator[str]:
    first, second = pair
    if {record.run_id for record in first.records} & {record.run_id for record in second.records}:
        yield "the same run is on both sides"
    if first.first.sample:
        yield "made from sample questions: it shows that everything works, not which is better"
    trained = [row for row in pair if not row.is_reference]
    if any(len(row.records) == 1 for row in trained):
        yield "a trained side has one seed: how its runs vary is unknown, so nothing follows for its method"
    if len(trained) == 2:
        yield from _unequal_training(first, second)
    if first.student != second.student:
        yield f"the students differ: {first.student or 'none'} and {second.student or 'none'}"
    backends = [row.first.backend and (row.first.backend.name, row.first.backend.dtype) for row in pair]
    if None not in backends and backends[0] != backends[1]:
        yield f"evaluated by different backends: {' '.join(backends[0] or ())} and {' '.join(backends[1] or ())}"
    for row in pair:
        if any(record.test_evaluations > 1 for record in row.records):
            yield f"{row.label}: more than one evaluation on the test split, which makes a number optimistic"
        if any(record.selected_on == "test" for record in row.records):
            yield f"{row.label}: weights were selected on the test split"


def _unequal_training(first: BoardRow, second: BoardRow) -> Iterator[str]:
    budgets = [row.first.budget for row in (first, second)]
    # FLOPs and seconds must be equal as they were set; epochs and student tokens are compared by the tokens spent.
    fixed = [budget if budget and budget.track in ("flops", "seconds") else None for budget in budgets]
    if any(fixed):
        if len({(budget.amount, budget.track) if budget else None for budget in fixed}) > 1:
            amounts = [f"{budget.amount:g} {budget.track}" if budget else "student tokens" for budget in fixed]
            yield f"other budgets: {' and '.join(amounts)}"
    elif abs(first.tokens - second.tokens) > BUDGET_TOLERANCE * max(first.tokens, second.tokens):
        yield f"other budgets: {round(first.tokens):,} and {round(second.tokens):,} student tokens"
    if first.first.data.train_ids_digest != second.first.data.train_ids_digest:
        yield "trained on other questions"


def differing_items(comparison: PairComparison) -> list[ItemDifference]:
    """The questions that the two sides answer differently, the largest gap in right answers first."""
    rows = (comparison.first, comparison.second)
    ids = rows[0].first.items.ids
    sorted_ids = sorted(ids)  # the order of `correctness_matrix`
    answers = [list(zip(*(_answers(record, ids) for record in row.records), strict=True)) for row in rows]
    right = [dict(zip(sorted_ids, correctness_matrix(row.records).mean(axis=1).tolist(), strict=True)) for row in rows]
    items = [
        ItemDifference(record_id, first, second, right[0][record_id], right[1][record_id])
        for record_id, first, second in zip(ids, *answers, strict=True)
        if set(first) != set(second) or right[0][record_id] != right[1][record_id]
    ]
    return sorted(items, key=lambda item: -abs(item.first_right - item.second_right))


# --- text and JSON ----------------------------------------------------------------------------------------------------


def report_text(report: ComparisonReport, *, items: bool = False, data_dir: str | None = None) -> str:
    """All comparisons; `items` adds the questions that the sides answer differently.

    Texts of questions come only from the reader's own copy of the data.
    """
    parts = []
    for comparison in report.comparisons:
        text = _comparison_text(comparison, len(report.comparisons))
        if items:
            text += f"\n\n{_items_text(comparison, _question_texts(comparison.first.first, data_dir))}"
        parts.append(text)
    if report.mean is not None:
        parts.append(f"mean over {len(report.comparisons)} tasks: {_estimate_text(report.mean)}")
    return "\n\n".join([*parts, *(f"not compared: {reason}" for reason in report.left_out)])


def _comparison_text(comparison: PairComparison, comparisons: int) -> str:
    record = comparison.first.first
    rows = (comparison.first, comparison.second)
    single = all(len(row.records) == 1 for row in rows)
    sample = " (sample data)" if record.sample else ""
    title = f"{record.task}, {record.mode} mode, {record.protocol['n']} questions"
    lines = [f"{title}, protocol {record.protocol_hash[:12]}{sample}"]
    lines += [f"{letter}  {_row_text(row)}" for letter, row in zip("AB", rows, strict=True)]
    lines += ["", f"A - B: {_estimate_text(comparison.estimate)}"]
    if comparisons > 1:
        lines.append(f"after Holm's correction over {comparisons} comparisons: p {_p_text(comparison.p_holm)}")
    lines.append(f"effect size: Cohen's h {comparison.cohens_h:+.2f}")
    counts = comparison.counts
    discordant = counts.first_better + counts.second_better
    n = discordant + counts.equal
    if single:
        details = f"only A right {counts.first_better}, only B right {counts.second_better}"
        details += f"; both right {counts.both_right}, both wrong {counts.both_wrong}"
    else:
        details = f"A right in more runs {counts.first_better}, B in more {counts.second_better}"
        details += f"; right in all runs {counts.both_right}, in none {counts.both_wrong}"
    lines.append(f"discordant questions: {discordant} of {n} ({percent(discordant / n)} %): {details}")
    agreement = comparison.agreement
    within = [
        f"two runs of {letter} {percent(share)} %"
        for letter, share in (("A", agreement.within_first), ("B", agreement.within_second))
        if share is not None
    ]
    same = f"same answer: {percent(agreement.between)} % of the questions"
    lines.append(same + (f" ({', '.join(within)})" if within else ""))
    smallest = percent(comparison.detectable)
    lines.append(f"smallest difference that such a comparison detects with 80 % power: {smallest} points")
    tests = [
        f"{test.method} p {_p_text(test.p)}" + ("" if single else f" (seed {seed})")
        for seed, test in comparison.mcnemar
    ]
    tests.append(f"{comparison.permutation.method} p {_p_text(comparison.permutation.p)}")
    lines.append(f"{THESE_STUDENTS}: {', '.join(tests)}")
    return "\n".join([*lines, *(f"note: {note}" for note in comparison.notes)])


def _row_text(row: BoardRow) -> str:
    runs = f"seed {row.first.seed}, run {row.first.run_id}"
    if len(row.records) > 1:
        seeds = ", ".join(str(record.seed) for record in row.records)
        accuracies = [record.accuracy or 0.0 for record in row.records]
        runs = f"seeds {seeds}, from {percent(min(accuracies))} to {percent(max(accuracies))} %"
    student = f" on {row.student}" if row.student else ""
    return f"{row.label}{student}: {percent(row.accuracy or 0.0)} % ({runs})"


def _estimate_text(estimate: Estimate) -> str:
    test = "" if estimate.p is None else f", p {_p_text(estimate.p)}"
    interval = f"95 % interval {points(estimate.low)} to {points(estimate.high)}"
    scope = "for new runs and new questions of this kind" if estimate.scope == ANY_RUN else estimate.scope
    return f"{points(estimate.value)} points, {interval}{test} ({estimate.method}; {scope})"


def _p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"= {p:.4f}"


def _question_texts(record: RunRecord, data_dir: str | None) -> Mapping[str, TaskRecord]:
    """The questions of a record's test split by id, where its data is available here; else none."""
    try:
        kind: Any = record.data.source
        source = find_source(kind, None if kind == "sample" else data_dir)
        split = record.data.splits.get("test")
        if split is not None and manifest(source, record.task)["test"]["digest"] != split.digest:
            return {}
        return {question.id: question for question in load_split(source, record.task, "test")}
    except UserError:
        return {}


def _items_text(comparison: PairComparison, questions: Mapping[str, TaskRecord]) -> str:
    """The questions that two sides answer differently: ids, both answers, and texts where they are available."""
    from tabulate import tabulate

    items = differing_items(comparison)
    if not items:
        return "no question is answered differently"
    lines = []
    for item in items:
        cells = [item.record_id]
        cells += [_answers_text(item.first, item.first_right), _answers_text(item.second, item.second_right)]
        if (record := questions.get(item.record_id)) is not None:
            options = "; ".join(f"{LETTERS[i]} {text}" for i, text in enumerate(record.choices))
            gold = f"right: {LETTERS[record.answer]}" if record.choices else f"right: {record.gold_text}"
            cells.append(" ".join(f"{record.question} {f'[{options}] ' if options else ''}{gold}".split()))
        lines.append(cells)
    heads = ["question", "A", "B", *(["text"] if questions else [])]
    note = "" if questions else "\n(texts are not available here: give --data-dir)"
    title = f"{len(items)} questions are answered differently (* right)"
    return f"{title}\n{tabulate(lines, headers=heads, disable_numparse=True)}{note}"


def _answers_text(answers: Sequence[Answer], right: float) -> str:
    letters = [LETTERS[answer] if isinstance(answer, int) else answer or "unread" for answer in answers]
    words = " ".join(letters)
    if len(answers) == 1:
        return f"{words} *" if right else words
    return f"{words} ({round(right * len(answers))} of {len(answers)} right)"


def report_data(report: ComparisonReport, *, items: bool = False) -> dict[str, Any]:
    """The same as plain values for JSON, without any text of a question."""

    def plain(estimate: Estimate) -> dict[str, Any]:
        # JSON has no infinity: the degrees of freedom of an exact value are null.
        return {**estimate._asdict(), "df": estimate.df if estimate.df < math.inf else None}

    def row_data(row: BoardRow) -> dict[str, Any]:
        return {
            "label": row.label,
            "student": row.student,
            "runs": [record.run_id for record in row.records],
            "seeds": [record.seed for record in row.records],
            "accuracy": row.accuracy,
        }

    comparisons = []
    for comparison in report.comparisons:
        record = comparison.first.first
        data: dict[str, Any] = {
            "task": record.task,
            "mode": record.mode,
            "n": record.protocol["n"],
            "protocol_hash": record.protocol_hash,
            "sample": record.sample,
            "first": row_data(comparison.first),
            "second": row_data(comparison.second),
            "difference": plain(comparison.estimate),
            "p_holm": comparison.p_holm,
            "cohens_h": comparison.cohens_h,
            "counts": comparison.counts._asdict(),
            "agreement": comparison.agreement._asdict(),
            "permutation": comparison.permutation._asdict(),
            "mcnemar": [{"seed": seed, **test._asdict()} for seed, test in comparison.mcnemar],
            "detectable": comparison.detectable,
            "notes": list(comparison.notes),
        }
        if items:
            data["items"] = [item._asdict() for item in differing_items(comparison)]
        comparisons.append(data)
    return {
        "comparisons": comparisons,
        "mean": None if report.mean is None else plain(report.mean),
        "not_compared": list(report.left_out),
    }
