"""`teachers report`, `pack`, `import` and `info`: the quality of teachers' annotations, and the cache of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import check_writable
from tinyllm_bench.cli.console import Console
from tinyllm_bench.cli.options import AsJson, takes_request
from tinyllm_bench.cli.output import echo, echo_json, echo_rows
from tinyllm_bench.data.prompts import LETTERS

if TYPE_CHECKING:
    from tinyllm_bench.base.events import Report
    from tinyllm_bench.experiment.request import Request
    from tinyllm_bench.experiment.settings import BenchConfig
    from tinyllm_bench.teachers.quality import SampleText, TeacherReport


@takes_request(without=("method", "seeds", "backend"))
def teachers_report(request: "Request", *, as_json: AsJson = False) -> None:
    """Report each teacher's quality per task: accuracy, lengths, rejection reasons, agreement and sample texts."""
    with Console() as console:
        reports = quality_reports(request, report=console.event)
    show_reports(reports, as_json=as_json)


def quality_reports(request: "Request", *, report: "Report") -> "list[TeacherReport]":
    """A report per task and teacher; texts that live teachers have not cached are generated. Methods are not used.

    Raises:
        UserError: no teacher has a text for any of the tasks, or a teacher is not available.
    """
    from tinyllm_bench.experiment.annotate import teacher_context
    from tinyllm_bench.experiment.cell import records_of
    from tinyllm_bench.experiment.request import default_preset, expand, load_preset, settings_of
    from tinyllm_bench.models.specs import parse_spec
    from tinyllm_bench.teachers.quality import teacher_reports
    from tinyllm_bench.teachers.teacher import open_teacher

    preset = load_preset(request.preset or default_preset())
    reports: list[TeacherReport] = []
    for task in expand("task", request.tasks):
        config: BenchConfig = settings_of(request, preset, method=None, task=task, variant={})[0].config
        context = teacher_context(config, task, request.runs)
        specs = [parse_spec(text, role="teacher") for text in config.teachers]
        teachers = [t for spec in specs if (t := open_teacher(spec, config.annotations, context)) is not None]
        records = records_of(config, context.source, task, "train")
        annotations = [a for teacher in teachers for a in teacher.annotate(records, report=report)]
        reports += teacher_reports(annotations, {record.id: record for record in records}, config.annotations.filters)
    if not reports:
        raise UserError(f"no teacher has a text for {', '.join(request.tasks)}; name some with teachers=[...]")
    return reports


def show_reports(reports: "Sequence[TeacherReport]", *, as_json: bool) -> None:
    """Print the reports, as tables with sample texts or as JSON."""
    from tinyllm_bench.teachers.quality import by_task

    if as_json:
        echo_json([report.model_dump(mode="json") for report in reports])
        return
    echo("\n".join(_task_text(task, reports_of_task) for task, reports_of_task in by_task(reports).items()))


def _task_text(task: str, reports: "Sequence[TeacherReport]") -> str:
    from tabulate import tabulate

    from tinyllm_bench.teachers.quality import agreement_lines, figure_rows, filter_rows

    teachers = [report.teacher for report in reports]
    filters = ", ".join(dict.fromkeys(name for report in reports for name in report.filters)) or "none"
    parts = [
        tabulate(figure_rows(reports), headers=[f"{task} ({reports[0].split})", *teachers], disable_numparse=True),
        tabulate(filter_rows(reports), headers=["rejected by each filter alone", *teachers], disable_numparse=True),
        f"filters in use: {filters}",
        "\n".join(agreement_lines(reports)),
        *(_sample_text(report.teacher, sample) for report in reports for sample in report.samples),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _sample_text(teacher: str, sample: "SampleText") -> str:
    """One text in full, with its question and the facts about it, each on its own line."""
    options = "".join(f" ({letter}) {choice}" for letter, choice in zip(LETTERS, sample.choices, strict=False))
    facts = [f"right answer: {sample.gold}", f"rejected by: {', '.join(sample.reasons) or 'no filter'}"]
    if sample.answer is not None:
        facts.insert(1, f"the teacher's answer: {sample.answer}")
    lines = [f"{sample.question}{options}", "; ".join(facts), sample.text]
    return "\n".join([f"{teacher}, {sample.record_id}", *(f"  {' '.join(line.split())}" for line in lines)])


def teachers_pack(
    teachers: Annotated[
        list[str], typer.Argument(help="Short names of teachers (see `teachers info`), or cache folders.")
    ],
    to: Annotated[Path, typer.Option("--to", help="File to write, ending in .jsonl.zst.")],
) -> None:
    """Export cached annotations to one file, with their provenance."""
    from tinyllm_bench.leaderboard.public import machine_paths
    from tinyllm_bench.teachers.packs import pack

    check_writable(to, "--to", file=True)
    header = pack(teachers, to, private=machine_paths)
    names = ", ".join(f"{teacher.name} ({teacher.texts})" for teacher in header.teachers)
    echo(f"packed {header.texts} texts of {names}: {to}, {to.stat().st_size / 1e6:.2f} MB")


def teachers_import(file: Annotated[Path, typer.Argument(help="A file written by `teachers pack`.")]) -> None:
    """Import packed annotations into the cache."""
    from tinyllm_bench.teachers.packs import import_pack

    header, new = import_pack(file)
    names = ", ".join(teacher.name for teacher in header.teachers)
    echo(f"imported {new} texts of {names}; {header.texts - new} were already cached")


def teachers_info(
    what: Annotated[
        str | None, typer.Argument(help="A packed file, a teacher's name or a cache folder; default: the whole cache.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List cached annotations: models, counts, tokens and generation time."""
    from tinyllm_bench.teachers.packs import summaries

    echo_rows([summary._asdict() for summary in summaries(what)], as_json=as_json)
