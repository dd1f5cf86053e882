"""What is printed and written of a report on teachers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllm_bench.cli.output import echo

if TYPE_CHECKING:
    from tinyllm_bench.teachers.quality_report import Row, Shown, TeacherReport

_SHOWN_CHARACTERS = 100


def report_teachers(reports: "Sequence[TeacherReport]", *, as_json: bool, page: Path | None) -> None:
    """Print the reports as tables or as JSON, and write the page where one is wanted.

    Raises:
        UserError: the page cannot be written there.
    """
    if page is not None:
        _write_page(reports, page)
    if as_json:
        echo(json.dumps([report.model_dump(mode="json") for report in reports], indent=1, ensure_ascii=False))
        return
    from tinyllm_bench.teachers.quality_report import by_task

    texts = [_task_text(task, found) for task, found in by_task(reports).items()]
    echo("\n".join(texts) or "no texts to report on")
    if page is not None:
        echo(f"page: {page} (a local file: it holds texts of the data set; do not publish it)")


def _write_page(reports: "Sequence[TeacherReport]", page: Path) -> None:
    from tinyllm_bench.base.errors import UserError
    from tinyllm_bench.base.files import write_text
    from tinyllm_bench.teachers.quality_page import quality_page

    if page.is_dir():
        raise UserError(f"{page} is a folder; name the page's file, such as {page / 'teachers.html'}")
    try:
        write_text(page, quality_page(reports))
    except OSError as error:
        raise UserError(f"{page} cannot be written ({error.strerror}); name another file") from None


def _task_text(task: str, reports: "Sequence[TeacherReport]") -> str:
    from tinyllm_bench.teachers.quality_report import agreement_lines, figure_rows, filter_rows

    teachers = [report.teacher for report in reports]
    shown = [_sample_line(report.teacher, sample) for report in reports for sample in report.samples]
    parts = [
        _table(f"{task} ({reports[0].split})", teachers, figure_rows(reports)),
        _table("each filter alone", teachers, filter_rows(reports)),
        "\n".join(agreement_lines(reports)),
        "\n".join(shown),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(title: str, teachers: Sequence[str], rows: "Sequence[Row]") -> str:
    from tabulate import tabulate

    lines = [[row.label, *(cell.text for cell in row.cells)] for row in rows]
    return tabulate(lines, headers=[title, *teachers], disable_numparse=True)


def _sample_line(teacher: str, sample: "Shown") -> str:
    text = " ".join(sample.text.split())
    cut = text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
    reasons = f" [{', '.join(sample.reasons)}]" if sample.reasons else ""
    return f"{teacher}, {sample.record_id}{reasons}: {cut}"
