"""`teachers report`, `pack`, `import` and `info`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tests.leaderboard.test_hostile import ALL, HIDDEN
from tests.teachers.recorded import recorded_reports
from tests.teachers.test_cache import REQUESTS, FakeGenerator, fill
from tinyllm_bench.cli.teachers import show_reports, teachers_import, teachers_info, teachers_pack
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.data.sources import Source
from tinyllm_bench.teachers.cache import TextCache, texts_folder
from tinyllm_bench.teachers.quality import TeacherReport, teacher_reports

IDENTITY = {"model": "a model", "chat": "auto"}


@pytest.fixture(scope="module")
def reports() -> list[TeacherReport]:
    return recorded_reports(Source("sample"), ["obqa", "arc"], ("empty", "short"), samples=1)


def test_tables_for_each_task(reports: list[TeacherReport], capsys: pytest.CaptureFixture[str]) -> None:
    show_reports(reports, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split() for line in lines if "(train)" in line]
    assert [head[0] for head in heads] == ["obqa", "arc"]
    assert set(heads[0][2:]) == {r.teacher for r in reports if r.task == "obqa"}
    mean = [r.words.mean for r in reports if r.task == "obqa"]
    assert next(line for line in lines if line.startswith("words: mean")).split()[2:] == [f"{m:.1f}" for m in mean]
    assert sum(line.startswith("prompt_echo ") for line in lines) == 2
    assert sum(line.startswith(f"{reports[0].teacher}, obqa/train/") for line in lines) == 1


def test_reports_as_json(reports: list[TeacherReport], capsys: pytest.CaptureFixture[str]) -> None:
    show_reports(reports, as_json=True)
    assert json.loads(capsys.readouterr().out) == [report.model_dump(mode="json") for report in reports]


def test_a_sample_is_shown_in_full(reports: list[TeacherReport], capsys: pytest.CaptureFixture[str]) -> None:
    (sample,) = reports[0].samples
    show_reports(reports, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index(f"{reports[0].teacher}, {sample.record_id}")
    question, facts, text = (line.strip() for line in lines[start + 1 : start + 4])
    assert question.startswith(sample.question) and all(choice in question for choice in sample.choices)
    assert f"right answer: {sample.gold}" in facts and "rejected by: " in facts
    assert text == " ".join(sample.text.split()) and len(text) > 20


@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_no_text_of_a_teacher_acts_on_the_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    record = TaskRecord(id=text, task=text, split="train", question=text, choices=(text, "tin"), answer=0)
    annotations = [Annotation(record_id=text, teacher=text, kind="rationale", text=text, answer=text)]
    hostile = teacher_reports(annotations, {text: record}, ("empty",))
    show_reports(hostile, as_json=False)
    show_reports(hostile, as_json=True)
    assert not HIDDEN.search(capsys.readouterr().out)


def test_the_report_prints_a_table(call: Call, tmp_path: Path) -> None:
    result = call("teachers", "report", "--task", "obqa", "--preset", "quickstart", "--runs-dir", tmp_path)
    assert result.status == 0, result.err
    assert "obqa (train)" in result.out and "terse" in result.out and "stepwise" in result.out


def test_the_report_as_json(call: Call, tmp_path: Path) -> None:
    asked = ("--task", "obqa,arc", "--preset", "quickstart", "--runs-dir", tmp_path, "--json")
    result = call("teachers", "report", *asked)
    assert result.status == 0, result.err
    assert [(row["task"], row["teacher"]) for row in json.loads(result.out)] == [
        (task, teacher) for task in ("obqa", "arc") for teacher in ("terse", "stepwise")
    ]


def test_a_report_without_a_text_is_refused(call: Call) -> None:
    result = call("teachers", "report", "--task", "obqa", "--preset", "quickstart", "teachers=[]")
    assert result.status == 2 and "no teacher has a text" in result.err


def test_texts_move_from_one_cache_to_another(
    call: Call, small: list[Any], tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = (f"teachers=[dir:{tiny_llama_dir}]", "annotations.sampling.max_new_tokens=4", "annotations.engine=hf")
    asked = ("--method", "tinyllm", "--task", "obqa", *small, *live, "data.train_limit=4")
    assert call("annotate", *asked).status == 0
    (row,) = json.loads(call("teachers", "info", "--json").out)
    assert (row["teacher"], row["texts"]) == ("tiny_llama", 4)
    pack = tmp_path / "texts.jsonl.zst"
    assert call("teachers", "pack", "tiny_llama", "--to", pack).status == 0
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path / "elsewhere"))
    result = call("teachers", "import", pack)
    assert result.status == 0 and "imported 4 texts" in result.out
    assert "4 were already cached" in call("teachers", "import", pack).out


def test_pack_import_and_show(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def result() -> str:
        return capsys.readouterr().out

    fill(TextCache(texts_folder("a-model", IDENTITY), IDENTITY), FakeGenerator(), REQUESTS[:5])
    file = tmp_path / "texts.jsonl.zst"
    teachers_pack(["a-model"], file)
    assert result() == f"packed 5 texts of a-model (5): {file}, 0.00 MB\n"

    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path / "elsewhere"))
    teachers_info(None, as_json=False)
    assert result() == "none\n"
    teachers_import(file)
    assert result() == "imported 5 texts of a-model; 0 were already cached\n"
    teachers_import(file)
    assert result() == "imported 0 texts of a-model; 5 were already cached\n"

    teachers_info(str(file), as_json=True)
    of_pack = json.loads(result())
    teachers_info(None, as_json=True)
    assert json.loads(result()) == of_pack and of_pack[0]["texts"] == 5
    teachers_info("a-model", as_json=False)
    table = result().splitlines()
    assert table[0].split()[:3] == ["teacher", "identity", "texts"]
    assert table[2].split()[:3] == ["a-model", texts_folder("a-model", IDENTITY).name, "5"]
