"""What the teachers of a request are worth: their texts on the training records, judged, task by task."""

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Report
from tinyllm_bench.experiment.cell import records_of
from tinyllm_bench.experiment.cell_teachers import place_of
from tinyllm_bench.experiment.request import Request, default_preset, expand, load_preset, settings_of
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.teachers.quality import TeacherReport, teacher_reports
from tinyllm_bench.teachers.teacher import open_teacher


def reports_of(request: Request, *, report: Report) -> list[TeacherReport]:
    """A report per task and teacher; live teachers are asked for what the cache lacks. `request.methods` is not used.

    Raises:
        UserError: no teacher has a text for any of the tasks, or one cannot be had.
    """
    preset = load_preset(request.preset or default_preset())
    found: list[TeacherReport] = []
    for task in expand("task", request.tasks):
        config: BenchConfig = settings_of(request, preset, method=None, task=task, variant={})[0].config
        place = place_of(config, task, request.runs)
        specs = [parse_spec(text, role="teacher") for text in config.teachers]
        teachers = [t for spec in specs if (t := open_teacher(spec, config.annotations, place)) is not None]
        records = records_of(config, place.source, task, "train")
        said = [a for teacher in teachers for a in teacher.annotate(records, report=report)]
        by_id = {record.id: record for record in records}
        found += teacher_reports(said, by_id, config.annotations.filters)
    if not found:
        raise UserError(f"no teacher has a text for {', '.join(request.tasks)}; name some with teachers=[...]")
    return found
