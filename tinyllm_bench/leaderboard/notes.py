"""The notes under a table: what its numbers alone would hide."""

import math
from collections.abc import Iterable, Iterator, Sequence

from tinyllm_bench.leaderboard.analysis import smallest_difference
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.rows import OTHER_SETTINGS, BoardRow, Gain
from tinyllm_bench.leaderboard.stats.significance import ANY_RUN, THESE_STUDENTS
from tinyllm_bench.leaderboard.verdicts import Checks, content_digest, trust_in

_MANY_REJECTED = 0.25


def section_notes(rows: Sequence[BoardRow], gains: Sequence[Gain], baseline_title: str, checks: Checks) -> list[str]:
    """Every note of a section, in a fixed order and without repetition."""
    notes: list[str] = []
    if any(row.first.sample for row in rows):
        notes.append("Made from sample questions: it shows that everything works, not which method is better.")
    notes += _refuted(rows, checks)
    notes += _scope(gains, rows)
    notes += _no_gain(rows, gains, baseline_title)
    notes += _scoring_problems(rows)
    notes += _overlap(rows)
    notes += _teachers(rows)
    notes += _rejected(rows)
    notes += _runs_own(rows)
    return list(dict.fromkeys(notes))


def _runs(rows: Sequence[BoardRow]) -> Iterator[tuple[str, RunRecord]]:
    """Every run with its name in a note."""
    for row in rows:
        for record in row.records:
            yield row.label if len(row.records) == 1 else f"{row.label}, seed {record.seed}", record


def _share(count: int, n: int) -> str:
    return f"{count} of {n} ({100 * count / n:.1f} %)"


def _refuted(rows: Sequence[BoardRow], checks: Checks) -> Iterable[str]:
    for name, record in _runs(rows):
        for refutation in trust_in(checks, record).refutations:
            # A refutation stays when the record is edited.
            before = "" if refutation.record_digest == content_digest(record) else ", of what the record said then"
            by = f" by {refutation.by}" if refutation.by else ""
            yield f"{name}: refuted{by} on {refutation.date[:10]}{before}: {refutation.reason}"


def _scope(gains: Sequence[Gain], rows: Sequence[BoardRow]) -> Iterable[str]:
    """What the intervals of this table generalise to, and what it can detect."""
    if any(gain.scope == THESE_STUDENTS for gain in gains):
        yield (
            "Gains of one run each have Newcombe's paired 95 % interval and McNemar's exact p, for these trained "
            "students only: how results move between seeds is not in it. The two may disagree near 0.05."
        )
    if any(gain.scope == ANY_RUN for gain in gains) or any(len(row.records) > 1 for row in rows):
        yield (
            "Rows of several seeds have two-way intervals, over questions and seeds: they apply to new runs and new"
            " questions of this kind."
        )
    if any(record.gold for row in rows for record in row.records):
        yield (
            "Macro-F1 is the mean of F1 over the answers; its 95 % interval is a bootstrap over questions and, for "
            "rows of several, seeds. The constant answer is the most frequent right one, given to every question."
        )
    smallest = smallest_difference(gains)
    if smallest is not None:
        yield f"This table can detect gains of {100 * smallest:.1f} points or more (80 % power, after correction)."
    if any(gain.why_not == OTHER_SETTINGS for gain in gains):
        yield (
            f"{OTHER_SETTINGS[0].upper()}{OTHER_SETTINGS[1:]}: no baseline row of this budget and these training rows "
            "was trained with the same `train` and `student` settings."
        )
    clusters = next((record.clusters for row in rows for record in row.records if record.clusters), ())
    if clusters:
        groups = len(set(clusters))
        yield f"{len(clusters)} questions in {groups} clusters that share a passage or a question."


def _no_gain(rows: Sequence[BoardRow], gains: Sequence[Gain], baseline_title: str) -> Iterable[str]:
    for row, gain in zip(rows, gains, strict=True):
        if gain.value is None or gain.beats:
            continue
        reason = "its gain is below zero" if (gain.high or 0) < 0 else "its gain is not clearly above zero"
        yield f"{row.label} ({row.student}) does not beat {baseline_title} here: {reason}."


def _scoring_problems(rows: Sequence[BoardRow]) -> Iterable[str]:
    for name, record in _runs(rows):
        score = record.score
        if score and 2 * score.unparsed > score.n:
            yield (
                f"{name}: no answer could be read in {_share(score.unparsed, score.n)} questions, more than half; "
                "its accuracy says little about what the model knows."
            )
        if score and score.hit_token_limit:
            yield f"{name}: {_share(score.hit_token_limit, score.n)} answers hit the token limit."
        if score and score.ties:
            yield f"{name}: {_share(score.ties, score.n)} questions ended in a tie: the first option wins."
    for _, record in _runs(rows):
        if record.score and record.score.context_cut:
            words = record.protocol["max_context_words"]
            yield (
                f"The context was cut to its last {words} words in "
                f"{_share(record.score.context_cut, record.score.n)} questions."
            )


def _teachers(rows: Sequence[BoardRow]) -> Iterable[str]:
    for row in rows:
        for teacher in row.first.teachers:
            if teacher.gold_visible:
                yield f"{row.label}: teacher {teacher.spec} saw the right answer when it wrote its texts."
        for info in row.first.annotations:
            if info.control:
                yield f"{row.label}: the {info.kind} texts of {info.teacher} are a control ({info.control})."


def _overlap(rows: Sequence[BoardRow]) -> Iterable[str]:
    """One sentence for all rows with the same count: training rows are mostly shared."""
    labels_by_share: dict[str, list[str]] = {}
    for row in rows:
        if row.first.data.overlap:
            share = _share(row.first.data.overlap, row.first.protocol["n"])
            labels_by_share.setdefault(share, []).append(row.label)
    for share, labels in labels_by_share.items():
        names = ", ".join(dict.fromkeys(labels))
        yield f"{share} scored questions are also, once normalised, among the training records of {names}."


def _rejected(rows: Sequence[BoardRow]) -> Iterable[str]:
    for row in rows:
        for info in row.first.annotations:
            rejected = sum(info.rejected.values())
            total = info.used + rejected
            if rejected <= _MANY_REJECTED * total:
                continue
            reason, count = min(info.rejected.items(), key=lambda item: (-item[1], item[0]))
            yield (
                f"{row.label}: used {info.used} of {total} {info.kind}s of {info.teacher}: {count} {reason}; "
                f"{100 * rejected / total:.1f} % rejected in all."
            )
    for row in rows:
        # With two options, a text written for another answer was written for the wrong one.
        if any(info.control == "shuffled" for info in row.first.annotations) and math.isclose(row.first.chance, 0.5):
            yield (
                f"{row.label}: where all questions share their two options (such as yes and no), the shuffled texts "
                "that remain argue for the wrong answer."
            )


def _runs_own(rows: Sequence[BoardRow]) -> Iterable[str]:
    """How runs were evaluated and trained, and their own notes."""
    for name, record in _runs(rows):
        if record.test_evaluations > 1:
            yield f"{name}: {record.test_evaluations} test evaluations; more than one makes a number optimistic."
    for row in rows:
        own = [name for name in row.first.own_settings if name.startswith("train.")]
        values = {name: row.first.config.get("train", {}).get(name.removeprefix("train.")) for name in own}
        if values:
            settings = ", ".join(f"{name} = {value}" for name, value in values.items())
            yield f"{row.label}: trained with settings of its own paper, {settings}."
    for name, record in _runs(rows):
        if record.student and record.student.chat_template:
            yield f"{name}: prompted through the model's own chat template."
        for note in record.notes:
            yield f"{name}: {' '.join(note.split())}"
