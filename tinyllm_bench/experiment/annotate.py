"""Stage 1: what the teachers say about the training records, kept in the cache and shared by every method."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm_bench.base.events import AnnotationProgress, Report
from tinyllm_bench.base.files import append_checked, cache_root, digest, locked, read_checked
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.verified_texts import verified
from tinyllm_bench.teachers.controls import apply_control
from tinyllm_bench.teachers.teacher import Teacher, cost_of

CHUNK = 64


def annotation_file(cell: Cell, teacher: Teacher) -> Path:
    """The cache file of one teacher's annotations: named by all that decides a text."""
    key = {
        "teacher": teacher.spec,
        "task": [cell.task.name, cell.task.version],
        "data": cell.data["train"]["digest"],
        "texts": teacher.text_digest(cell.task.name),
    }
    return cache_root() / "annotations" / teacher.key / f"{digest(key)[:24]}.jsonl"


def annotate(cell: Cell, *, report: Report) -> list[Annotation]:
    """Annotations of the cell's training records by all its teachers, before any control; asks only for what is
    missing.

    What a teacher wrote is kept as it comes, so that a killed run goes on where it stopped; live teachers have a cache
    of their own, shared by all tasks and settings.
    """
    records = cell.records("train")
    return [a for teacher in cell.teachers for a in _of_teacher(cell, teacher, records, report)]


def _of_teacher(cell: Cell, teacher: Teacher, records: Sequence[TaskRecord], report: Report) -> list[Annotation]:
    said = teacher.annotate(records, report=report)
    if teacher.recorded:
        _keep(annotation_file(cell, teacher), said, report)
    return said


def _keep(file: Path, said: Sequence[Annotation], report: Report) -> None:
    """Add to the file what it lacks; the filters have judged all texts together, so these do not change the others."""
    with locked(file):
        known = {row["record_id"] for row in read_checked(file)}
        missing = [annotation for annotation in said if annotation.record_id not in known]
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            append_checked(file, [asdict(annotation) for annotation in chunk])
            report(AnnotationProgress(chunk[0].teacher, start + len(chunk), len(missing)))


def taught(cell: Cell, annotations: Sequence[Annotation]) -> list[Annotation]:
    """What the method is given: annotations under the cell's control, in the order of records and teachers; of methods
    that answer by paths, the right paths. Controls exchange rationales alone: another question's program is no control.
    """
    records = {record.id: record for record in cell.records("train")}
    texts = iter(apply_control(cell.config.annotations.control, [a for a in annotations if not _is_code(a)], records))
    return verified(cell, [a if _is_code(a) else next(texts) for a in annotations])


def _is_code(annotation: Annotation) -> bool:
    return annotation.kind == "program"


def annotation_counts(cell: Cell, annotations: Sequence[Annotation]) -> list[dict[str, Any]]:
    """Per teacher and kind: how many texts are used, how many were rejected for which reason, and what they cost."""
    return [
        _counts(cell, teacher, [a for a in annotations if (a.teacher, a.kind) == (teacher.key, teacher.kind)])
        for teacher in cell.teachers
    ]


def _counts(cell: Cell, teacher: Teacher, own: Sequence[Annotation]) -> dict[str, Any]:
    rejected = Counter(a.rejected for a in own if a.rejected)
    return {
        "teacher": teacher.key,
        "kind": teacher.kind,
        "used": sum(a.rejected is None for a in own),
        "missing": len({record.id for record in cell.records("train")} - {a.record_id for a in own}),
        "rejected": dict(sorted(rejected.items())),
        "degenerate_rate": _degenerate_rate(own) if teacher.kind == "program" else None,
        "control": cell.config.annotations.control,
        "text_digest": digest([a.text for a in own if not a.rejected]),
        "cost": None if teacher.recorded else cost_of(own, cell.config.annotations.prices.get(teacher.key))._asdict(),
    }


def _degenerate_rate(own: Sequence[Annotation]) -> float | None:
    """Of the programs with the right answer, the share that only hold the label."""
    right = sum(a.rejected in (None, "degenerate", "disagrees") for a in own)
    return sum(a.rejected == "degenerate" for a in own) / right if right else None
