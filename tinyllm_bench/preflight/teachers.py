"""Checks of `doctor` on teachers' texts: missing texts, junk, and texts that give the answer away."""

import random
import re
from collections.abc import Iterator, Sequence

from tinyllm_bench.answers.keys import normalised
from tinyllm_bench.answers.parser import numbers_in
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.preflight.inspection import Finding, Preflight, graded, share
from tinyllm_bench.teachers.filters import body
from tinyllm_bench.teachers.quality import TeacherReport
from tinyllm_bench.teachers.teacher import Teacher

MISSING = 0.05  # of questions without a text
REJECTED = 0.10  # of texts that the filters reject
UNUSED_FILTER = 0.25  # of texts that a filter would reject that is not used
GOLD_ONLY = 0.05  # of texts that are nothing but the answer
FIRST_WORDS = 12
LEAK = 0.20  # answers in the first words, above the base rate
ENOUGH = 20  # texts, below which a share says little


def texts(preflight: Preflight) -> list[Finding]:
    """Teachers without texts on a task or on some questions, and texts that are still to be written and paid for."""
    findings = [
        Finding("note", "texts", cell.task.name, note, fix="see what it names")
        for cell in preflight.cells
        for note in cell.notes
    ]
    for cell, teacher in _teachers_of_students(preflight):
        annotations, where = preflight.annotations(cell, teacher), f"{cell.task.name}, teacher {teacher.key}"
        count = len(cell.records("train"))
        if not teacher.recorded:
            missing = count - len({annotation.record_id for annotation in annotations})
            measured = f"{share(missing, count)} training questions have no {teacher.kind} of it in the cache"
            fix = "`tinyllm-bench annotate` has them written before anything trains" if missing else ""
            findings.append(Finding("note" if missing else "ok", "texts", where, measured, fix=fix))
            continue
        empty = sum(a.rejected in ("empty", "nan") or not body(a.text) for a in annotations)
        findings.append(
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
    return findings


def junk(preflight: Preflight) -> list[Finding]:
    """The share of rationales that the filters reject, and what filters that are not used would reject.

    Filters decide what a student learns; `teachers/quality.py` says how each was measured.
    """
    findings = []
    for cell, teacher, report in _reports(preflight):
        where = f"{cell.task.name}, teacher {teacher.key}"
        reasons = sorted(report.rejected.items(), key=lambda pair: -pair[1].count)
        named = ", ".join(f"{name} {rejected.count:,}" for name, rejected in reasons if rejected.count)
        count, of = report.kept.of - report.kept.count, report.kept.of
        findings.append(
            graded(
                count / max(of, 1),
                check="junk",
                where=where,
                measured=f"{share(count, of)} rationales are rejected" + (f": {named}" if named else ""),
                fix="read them with `tinyllm-bench teachers report`; have them written again, or name another teacher",
                note=None,
                warning=REJECTED,
                unit="of rationales",
            )
        )
        unused = {name: rejected for name, rejected in report.alone.items() if name not in report.filters}
        many = {name: rejected for name, rejected in unused.items() if (rejected.share or 0.0) > UNUSED_FILTER}
        if many:
            named = ", ".join(f"{name} {share(rejected.count, rejected.of)}" for name, rejected in many.items())
            threshold = f"note above {100 * UNUSED_FILTER:g} %"
            fix = "read some with `tinyllm-bench teachers report`; add those that you want to annotations.filters"
            measured = f"filters that are not used would reject: {named}"
            findings.append(Finding("note", "junk", where, measured, threshold, fix))
    return findings


def leakage(preflight: Preflight) -> list[Finding]:
    """How often a rationale gives the answer away in its first words, above a base rate, or is nothing but the answer.

    The base rate is how often the wrong options occur there (their mean), or another question's number: a text that
    weighs the options names them all. A student that reads the answer off the first words imitates the label twice.
    """
    findings = []
    for cell, teacher, report in _reports(preflight):
        where = f"{cell.task.name}, teacher {teacher.key}"
        findings.append(
            graded(
                report.gold_only.share or 0.0,
                check="leakage",
                where=where,
                measured=f"{share(report.gold_only.count, report.gold_only.of)} rationales are nothing but the gold"
                " answer",
                fix="they teach the label twice: reject them, or name another teacher; compare with"
                " annotations.control=gold",
                note=None,
                warning=GOLD_ONLY,
                unit="of rationales",
            )
        )
        annotations = [annotation for annotation in preflight.annotations(cell, teacher) if annotation.rejected is None]
        if len(annotations) < ENOUGH:
            continue
        gold, base = _named_in_first_words(annotations, {record.id: record for record in cell.records("train")})
        findings.append(
            graded(
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
        )
    return findings


def _named_in_first_words(annotations: Sequence[Annotation], records: dict[str, TaskRecord]) -> tuple[float, float]:
    """The shares of texts whose first words name the answer, and a wrong answer (the base rate)."""

    def words(text: str) -> str:
        return " " + " ".join(re.findall(r"\w+", normalised(text))) + " "

    starts = [" ".join(body(annotation.text).split()[:FIRST_WORDS]) for annotation in annotations]
    # Each text is paired with another one, the same on every call: the base rate of questions that ask for a number.
    order = list(range(len(starts)))
    random.Random("leakage").shuffle(order)
    others = dict(zip(order, [*order[1:], order[0]], strict=True))
    gold = base = 0.0
    for index, annotation in enumerate(annotations):
        record, start = records[annotation.record_id], starts[index]
        if not record.choices:
            gold += record.number in numbers_in(start)
            base += record.number in numbers_in(starts[others[index]])
            continue
        start = words(start)
        named = [bool(words(choice).strip()) and words(choice) in start for choice in record.choices]
        gold += named[record.answer]
        base += sum(hit for place, hit in enumerate(named) if place != record.answer) / max(len(named) - 1, 1)
    return gold / len(annotations), base / len(annotations)


def _teachers_of_students(preflight: Preflight) -> Iterator[tuple[Cell, Teacher]]:
    """Every teacher whose texts a cell learns from, once per task and selection of questions."""
    seen = set()
    for cell in preflight.trained:
        for teacher in cell.teachers:
            if parse_spec(teacher.spec, role="teacher").kind == "run":
                continue  # a teacher that is still to be trained has written nothing
            key = (cell.task.name, teacher.key, teacher.kind, teacher.text_digest(cell.task.name))
            if key not in seen:
                seen.add(key)
                yield cell, teacher


def _reports(preflight: Preflight) -> Iterator[tuple[Cell, Teacher, TeacherReport]]:
    for cell, teacher in _teachers_of_students(preflight):
        report = preflight.report(cell, teacher)
        if report is not None:
            yield cell, teacher, report
