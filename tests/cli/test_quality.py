"""The teacher report on a terminal, as JSON and as a page, on recorded teachers: no model is needed."""

import json
from pathlib import Path

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.cli.quality import report_teachers
from tinyllm_bench.data.sources import Source
from tinyllm_bench.teachers.quality import replayed_reports
from tinyllm_bench.teachers.quality_report import TeacherReport


@pytest.fixture(scope="module")
def reports() -> list[TeacherReport]:
    return replayed_reports(Source("sample"), ["obqa", "arc"], None, ("empty", "short"), samples=1)


def test_tables_for_each_task(reports: list[TeacherReport], capsys: pytest.CaptureFixture[str]) -> None:
    report_teachers(reports, as_json=False, page=None)
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split() for line in lines if "(train)" in line]
    assert [head[0] for head in heads] == ["obqa", "arc"]
    assert set(heads[0][2:]) == {r.teacher for r in reports if r.task == "obqa"}
    mean = [r.words.mean for r in reports if r.task == "obqa"]
    assert next(line for line in lines if line.startswith("words: mean")).split()[2:] == [f"{m:.1f}" for m in mean]
    assert sum(line.startswith("prompt_echo ") for line in lines) == 2
    assert sum(line.startswith(f"{reports[0].teacher}, obqa/train/") for line in lines) == 1


def test_json_is_the_reports(reports: list[TeacherReport], capsys: pytest.CaptureFixture[str]) -> None:
    report_teachers(reports, as_json=True, page=None)
    assert json.loads(capsys.readouterr().out) == [report.model_dump(mode="json") for report in reports]


def test_the_page_is_written_and_json_stays_json(
    reports: list[TeacherReport], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "teachers.html"
    report_teachers(reports, as_json=True, page=page)
    assert json.loads(capsys.readouterr().out) and page.read_text().startswith("<!doctype html>")
    report_teachers(reports, as_json=False, page=page)
    assert f"page: {page}" in capsys.readouterr().out


def test_a_page_that_cannot_be_written_is_told(reports: list[TeacherReport], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        report_teachers(reports, as_json=False, page=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report_teachers(reports, as_json=False, page=tmp_path / "file" / "page.html")


def test_nothing_to_report_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    report_teachers([], as_json=False, page=None)
    assert capsys.readouterr().out == "no texts to report on\n"
