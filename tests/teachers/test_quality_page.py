"""The page of the teacher report: whole, static, escaped, labelled."""

from pathlib import Path

import pytest

from tests.html_pages import Page
from tests.leaderboard.test_hostile import ALL, HIDDEN
from tinyllm_bench.cli.teachers import show_reports
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.teachers.quality import teacher_reports
from tinyllm_bench.teachers.quality_page import NOTE, quality_page

RECORDS = {
    f"toy/train/{n}": TaskRecord(
        id=f"toy/train/{n}",
        task="toy",
        split="train",
        question=f"What grows on rake {n}, <moss> or rust?",
        choices=("rust", "tin", "moss"),
        answer=n,
    )
    for n in range(3)
}


def own(teacher: str, answers: list[str | None], text: str = "Rust grows on iron.") -> list[Annotation]:
    return [
        Annotation(record_id=f"toy/train/{n}", teacher=teacher, kind="rationale", text=text, answer=answer)
        for n, answer in enumerate(answers)
    ]


def test_the_page_is_whole_static_and_escaped() -> None:
    nasty = '<script>alert("rust")</script> & <b>moss</b>'
    alder, birch = teacher_reports(
        [*own("alder", ["rust", "tin", "tin"]), *own('<i>"birch"', [None], text=nasty)], RECORDS, ("empty",)
    )
    text = quality_page([alder, birch])
    page = Page(text)
    assert page.open == []
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "img", "iframe", "b", "i"} & set(names)
    assert "&lt;script&gt;alert(&quot;rust&quot;)&lt;/script&gt; &amp; &lt;b&gt;" in text
    assert "http" not in text and "url(" not in text
    assert NOTE in text and text.index(NOTE) < text.index("<h1>")
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_no_text_of_a_teacher_acts_on_the_page_or_the_terminal(
    text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record = TaskRecord(id=text, task=text, split="train", question=text, choices=(text, "tin"), answer=0)
    said = [Annotation(record_id=text, teacher=text, kind="rationale", text=text, answer=text)]
    reports = teacher_reports(said, {text: record}, ("empty",))
    made = Page(quality_page(reports))
    plain = Page(quality_page(teacher_reports(own("alder", ["rust"]), RECORDS, ("empty",))))
    assert made.open == [] and {tag for tag, _ in made.tags} <= {tag for tag, _ in plain.tags}
    show_reports(reports, as_json=False, page=tmp_path / "page.html")
    show_reports(reports, as_json=True, page=tmp_path / "page.html")
    printed = capsys.readouterr().out
    assert not HIDDEN.search(quality_page(reports)) and not HIDDEN.search(printed)


def test_the_pages_tables_are_labelled() -> None:
    text = quality_page(teacher_reports(own("alder", ["rust", "tin", "tin"]), RECORDS, ()))
    tags = Page(text).tags
    assert names_of(tags).count("table") == names_of(tags).count("caption") == 2
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in tags if tag == "th")
    assert 'style="width:66.7%"' in text  # own accuracy: two of three
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert [attributes["href"] for tag, attributes in tags if tag == "a"] == [f"#{one}" for one in ids]


def names_of(tags: list[tuple[str, dict[str, str | None]]]) -> list[str]:
    return [tag for tag, _ in tags]
