"""Recorded teachers' unfiltered annotations, and reports on them."""

from collections.abc import Sequence

from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.data.sources import Source, load_split, rationale_keys
from tinyllm_bench.teachers.quality import SAMPLES, TeacherReport, teacher_reports
from tinyllm_bench.teachers.teacher import ReplayTeacher


def recorded_annotations(source: Source, records: Sequence[TaskRecord], key: str) -> list[Annotation]:
    teacher = ReplayTeacher(key, f"replay:{source.kind}#{key}", source, ())
    return teacher.annotate(records, report=lambda _: None)


def recorded_reports(
    source: Source, tasks: Sequence[str], filters: Sequence[str], *, keys: Sequence[str] = (), samples: int = SAMPLES
) -> list[TeacherReport]:
    """Reports on the rationales of `keys`, by default of all recorded teachers, on the train splits."""
    reports = []
    for task in tasks:
        records = load_split(source, task, "train")
        annotations = [
            annotation
            for key in keys or rationale_keys(source, task)
            for annotation in recorded_annotations(source, records, key)
        ]
        reports += teacher_reports(annotations, {r.id: r for r in records}, filters, samples=samples)
    return reports
