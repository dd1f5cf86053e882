"""Checks of `doctor` on teachers' texts: missing ones, junk, and texts that give the answer away."""

import random
import re
from collections.abc import Iterator, Sequence

from tinyllm_bench.answers.numbers import numbers_in
from tinyllm_bench.answers.parser import normalised
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.preflight.inspection import Finding, Preflight, graded, share
from tinyllm_bench.teachers.filters import body
from tinyllm_bench.teachers.quality import TeacherReport
from tinyllm_bench.teachers.teacher import Teacher

MISSING = 0.05  # of questions without a text
REJECTED = 0.10  # of texts that the filters reject
UNFILTERED = 0.25  # of texts that one filter that is not used would reject
GOLD_ONLY = 0.05  # of texts that are the answer and nothing else
FIRST_WORDS = 12
LEAK = 0.20  # answers in the first words, above the base rate
ENOUGH = 20  # texts, below which a share says little


def texts(preflight: Preflight) -> list[Finding]:
    """Teachers without texts on a task or on some questions, and texts that are yet to be written and paid for."""
    found = [
        Finding(severity="note", check="texts", where=cell.task.name, measured=note, fix="see what it names")
        for cell in preflight.cells
        for note in cell.notes
    ]
    for cell, teacher in _taught(preflight):
        annotations, where = preflight.annotations(cell, teacher), f"{cell.task.name}, teacher {teacher.key}"
        count = len(cell.records("train"))
        if not teacher.recorded:
            missing = count - len({a.record_id for a in annotations})
            found.append(_to_be_written(where, missing, count, teacher))
            continue
        empty = sum(a.rejected in ("empty", "nan") or not body(a.text) for a in annotations)
        found.append(
            graded(
                empty / max(count, 1),
                check="texts",
                where=where,
                measured=f"{share(empty, count)} training questions have no {teacher.kind} (empty or nan)",
                fix="these questions teach the label alone; have them written by a live teacher, or name another",
                note=0.0,
                warning=MISSING,
                unit="of questions",
            )
        )
    return found


def _to_be_written(where: str, missing: int, count: int, teacher: Teacher) -> Finding:
    measured = f"{share(missing, count)} training questions have no {teacher.kind} of it in the cache"
    if not missing:
        return Finding(severity="ok", check="texts", where=where, measured=measured)
    fix = "`tinyllm-bench annotate` has them written before anything trains"
    return Finding(severity="note", check="texts", where=where, measured=measured, fix=fix)


def junk(preflight: Preflight) -> list[Finding]:
    """The share of rationales that the filters reject, and what filters that are not used would reject.

    Whoever uses a filter decides what a student learns; `teachers/quality.py` tells how each was measured.
    """
    found = []
    for cell, teacher, report in _reports(preflight):
        where = f"{cell.task.name}, teacher {teacher.key}"
        reasons = sorted(report.rejected.items(), key=lambda pair: -pair[1].count)
        named = ", ".join(f"{name} {one.count:,}" for name, one in reasons if one.count)
        bad = report.kept.of - report.kept.count
        found.append(
            graded(
                bad / max(report.kept.of, 1),
                check="junk",
                where=where,
                measured=f"{share(bad, report.kept.of)} rationales are rejected" + (f": {named}" if named else ""),
                fix="read them with `tinyllm-bench teachers report`; have them written anew, or name another teacher",
                note=None,
                warning=REJECTED,
                unit="of rationales",
            )
        )
        found += _unused(where, report)
    return found


def _unused(where: str, report: TeacherReport) -> list[Finding]:
    """Filters that are not used and would reject many."""
    others = {name: one for name, one in report.alone.items() if name not in report.filters}
    many = {name: one for name, one in others.items() if (one.share or 0.0) > UNFILTERED}
    if not many:
        return []
    named = ", ".join(f"{name} {share(one.count, one.of)}" for name, one in many.items())
    return [
        Finding(
            severity="note",
            check="junk",
            where=where,
            measured=f"filters that are not used would reject: {named}",
            threshold=f"note above {100 * UNFILTERED:g} %",
            fix="read some with `tinyllm-bench teachers report`; name those in annotations.filters that you mean",
        )
    ]


def leakage(preflight: Preflight) -> list[Finding]:
    """How often a rationale gives the answer away in its first words, above a base rate, or is nothing but the answer.

    The base rate is how often the wrong options stand there (their mean), or another question's number: a text that
    weighs the options names them all. A student that reads the answer off the first words imitates the label twice.
    """
    found = []
    for cell, teacher, report in _reports(preflight):
        where = f"{cell.task.name}, teacher {teacher.key}"
        records = {record.id: record for record in cell.records("train")}
        annotations = [a for a in preflight.annotations(cell, teacher) if a.rejected is None]
        found.append(_alone(where, report))
        if len(annotations) >= ENOUGH:
            found.append(_first_words(where, annotations, records))
    return found


def _alone(where: str, report: TeacherReport) -> Finding:
    return graded(
        report.gold_only.share or 0.0,
        check="leakage",
        where=where,
        measured=f"{share(report.gold_only.count, report.gold_only.of)} rationales are nothing but the gold answer",
        fix="they teach the label twice: reject them, or name another teacher; compare with annotations.control=gold",
        note=None,
        warning=GOLD_ONLY,
        unit="of rationales",
    )


def _first_words(where: str, annotations: Sequence[Annotation], records: dict[str, TaskRecord]) -> Finding:
    shares = [
        _named_early(a.text, records[a.record_id], other)
        for a, other in zip(annotations, _others(annotations), strict=True)
    ]
    gold = sum(g for g, _ in shares) / len(shares)
    base = sum(b for _, b in shares) / len(shares)
    return graded(
        gold - base,
        check="leakage",
        where=where,
        measured=f"{100 * gold:.3g} % of {len(annotations):,} rationales name the answer in their first"
        f" {FIRST_WORDS} words, {100 * base:.3g} % a wrong one",
        fix="compare with annotations.control=gold before speaking of reasoning, or annotations.kind=free",
        note=None,
        warning=LEAK,
        unit="more than the base rate",
    )


def _others(annotations: Sequence[Annotation]) -> list[str]:
    """For each text another one, the same on every call: the base rate of questions that ask for a number."""
    order = list(range(len(annotations)))
    random.Random("leakage").shuffle(order)
    after = dict(zip(order, [*order[1:], order[0]], strict=True))
    return [annotations[after[place]].text for place in range(len(annotations))]


def _named_early(text: str, record: TaskRecord, other: str) -> tuple[float, float]:
    """Whether the first words name the answer, and the mean over what is wrong."""
    start = _start(text)
    if not record.choices:
        return float(record.number in numbers_in(start)), float(record.number in numbers_in(_start(other)))
    named = [_holds(start, choice) for choice in record.choices]
    wrong = [hit for place, hit in enumerate(named) if place != record.answer]
    return float(named[record.answer]), sum(wrong) / max(len(wrong), 1)


def _start(text: str) -> str:
    return " ".join(body(text).split()[:FIRST_WORDS])


def _holds(text: str, choice: str) -> bool:
    """Whether a text holds a choice as whole words."""
    wanted = _words(choice)
    return bool(wanted) and f" {wanted} " in f" {_words(text)} "


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", normalised(text)))


def _taught(preflight: Preflight) -> Iterator[tuple[Cell, Teacher]]:
    """Every teacher's texts that a cell learns, once for each task and selection of questions."""
    seen = set()
    for cell in preflight.trained:
        for teacher in cell.teachers:
            if parse_spec(teacher.spec, role="teacher").kind == "run":
                continue  # a teacher that is yet to be trained has written nothing
            key = (cell.task.name, teacher.key, teacher.kind, teacher.text_digest(cell.task.name))
            if key not in seen:
                seen.add(key)
                yield cell, teacher


def _reports(preflight: Preflight) -> Iterator[tuple[Cell, Teacher, TeacherReport]]:
    for cell, teacher in _taught(preflight):
        report = preflight.report(cell, teacher)
        if report is not None:
            yield cell, teacher, report
