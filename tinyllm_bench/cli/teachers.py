"""`teachers report`, `pack`, `import` and `info`: the quality of teachers' annotations, and the cache of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm_bench.base.files import check_writable, write_text
from tinyllm_bench.cli.console import Console
from tinyllm_bench.cli.options import AsJson, takes_request
from tinyllm_bench.cli.output import echo, echo_json, echo_rows

if TYPE_CHECKING:
    from tinyllm_bench.experiment.request import Request
    from tinyllm_bench.teachers.quality_report import Row, TeacherReport

SAMPLE_CHARACTERS = 100


@takes_request(without=("method", "seeds", "backend"))
def teachers_report(
    request: "Request",
    *,
    page: Annotated[
        Path | None, typer.Option("--page", help="HTML page to write; default: RUNS_DIR/teachers.html.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report each teacher's quality per task: accuracy, lengths, rejection reasons, agreement and sample texts."""
    from tinyllm_bench.experiment.teacher_report import reports_of

    page = page or request.runs / "teachers.html"
    check_writable(page, "--page", file=True)
    with Console() as console:
        reports = reports_of(request, report=console.event)
    show_reports(reports, as_json=as_json, page=page)


def show_reports(reports: "Sequence[TeacherReport]", *, as_json: bool, page: Path) -> None:
    """Write the page and print the reports, as tables or as JSON."""
    from tinyllm_bench.teachers.quality_page import quality_page
    from tinyllm_bench.teachers.quality_report import by_task

    write_text(page, quality_page(reports))
    if as_json:
        echo_json([report.model_dump(mode="json") for report in reports])
        return
    texts = [_task_text(task, reports_of_task) for task, reports_of_task in by_task(reports).items()]
    echo("\n".join(texts))
    echo(f"page: {page} (for local use: it quotes the data set; do not publish it)")


def _task_text(task: str, reports: "Sequence[TeacherReport]") -> str:
    from tinyllm_bench.teachers.quality_report import agreement_lines, figure_rows, filter_rows

    teachers = [report.teacher for report in reports]
    samples = []
    for report in reports:
        for sample in report.samples:
            text = " ".join(sample.text.split())
            if len(text) > SAMPLE_CHARACTERS:
                text = f"{text[: SAMPLE_CHARACTERS - 3]}..."
            reasons = f" [{', '.join(sample.reasons)}]" if sample.reasons else ""
            samples.append(f"{report.teacher}, {sample.record_id}{reasons}: {text}")
    parts = [
        _table(f"{task} ({reports[0].split})", teachers, figure_rows(reports)),
        _table("rejected by each filter alone", teachers, filter_rows(reports)),
        "\n".join(agreement_lines(reports)),
        "\n".join(samples),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(title: str, teachers: Sequence[str], rows: "Sequence[Row]") -> str:
    from tabulate import tabulate

    lines = [[row.label, *(cell.text for cell in row.cells)] for row in rows]
    return tabulate(lines, headers=[title, *teachers], disable_numparse=True)


def teachers_pack(
    teachers: Annotated[
        list[str], typer.Argument(help="Short names of teachers (see `teachers info`), or cache folders.")
    ],
    to: Annotated[Path, typer.Option("--to", help="File to write, ending in .jsonl.zst.")],
) -> None:
    """Export cached annotations to one file, with their provenance."""
    from tinyllm_bench.leaderboard.public import machine_paths
    from tinyllm_bench.teachers.text_files import pack

    check_writable(to, "--to", file=True)
    header = pack(teachers, to, private=machine_paths)
    names = ", ".join(f"{teacher.name} ({teacher.texts})" for teacher in header.teachers)
    echo(f"packed {header.texts} texts of {names}: {to}, {to.stat().st_size / 1e6:.2f} MB")


def teachers_import(file: Annotated[Path, typer.Argument(help="A file written by `teachers pack`.")]) -> None:
    """Import packed annotations into the cache."""
    from tinyllm_bench.teachers.text_files import import_pack

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
    from tinyllm_bench.teachers.text_files import info

    echo_rows(info(what), as_json=as_json)
