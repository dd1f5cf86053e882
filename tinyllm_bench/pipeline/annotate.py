"""Stage 1: what the teachers say about the training records, kept in the cache and shared by every method."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllm_bench.base.files import append_checked, cache_root, digest, locked, read_checked
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.pipeline.cells import Cell
from tinyllm_bench.teach.controls import apply_control
from tinyllm_bench.teach.teachers import Teacher

CHUNK = 64
Report = Callable[[Mapping[str, Any]], None]


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

    Written in chunks, so that a killed run goes on where it stopped.
    """
    records = cell.records("train")
    return [a for teacher in cell.teachers for a in _of_teacher(cell, teacher, records, report)]


def _of_teacher(cell: Cell, teacher: Teacher, records: Sequence[TaskRecord], report: Report) -> list[Annotation]:
    file = annotation_file(cell, teacher)
    with locked(file):
        known = {row["record_id"]: Annotation(**row) for row in read_checked(file)}
        missing = [record for record in records if record.id not in known]
        for start in range(0, len(missing), CHUNK):
            said = list(teacher.annotate(missing[start : start + CHUNK]))
            append_checked(file, [asdict(annotation) for annotation in said])
            known.update({annotation.record_id: annotation for annotation in said})
            report({"teacher": teacher.key, "annotated": start + len(said), "of": len(missing)})
    return [known[record.id] for record in records]


def taught(cell: Cell, annotations: Sequence[Annotation]) -> list[Annotation]:
    """What the method is given: annotations under the cell's control, in the order of records and teachers."""
    records = {record.id: record for record in cell.records("train")}
    return apply_control(cell.config.annotations.control, annotations, records)


def annotation_counts(cell: Cell, annotations: Sequence[Annotation]) -> list[dict[str, Any]]:
    """Per teacher: how many texts are used, and how many were rejected for which reason."""
    counts = []
    for teacher in cell.teachers:
        own = [a for a in annotations if a.teacher == teacher.key]
        rejected = Counter(a.rejected for a in own if a.rejected)
        counts.append(
            {
                "teacher": teacher.key,
                "kind": "rationale",
                "used": sum(a.rejected is None for a in own),
                "missing": len(cell.records("train")) - len(own),
                "rejected": dict(sorted(rejected.items())),
                "control": cell.config.annotations.control,
                "text_digest": digest([a.text for a in own if not a.rejected]),
            }
        )
    return counts
