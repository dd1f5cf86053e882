"""`teachers report | pack | import | info` and `conformance`, as a person calls them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call


def test_the_report_prints_a_table_and_writes_a_page(call: Call, tmp_path: Path) -> None:
    said = call("teachers", "report", "--task", "obqa", "--preset", "quickstart", "--runs-dir", tmp_path)
    assert said.status == 0, said.err
    assert "obqa (train)" in said.out and "terse" in said.out and "stepwise" in said.out
    assert "<table" in (tmp_path / "teachers.html").read_text()


def test_the_report_as_json(call: Call, tmp_path: Path) -> None:
    asked = ("--task", "obqa,arc", "--preset", "quickstart", "--runs-dir", tmp_path, "--json")
    said = call("teachers", "report", *asked)
    assert said.status == 0, said.err
    assert [(row["task"], row["teacher"]) for row in json.loads(said.out)] == [
        (task, teacher) for task in ("obqa", "arc") for teacher in ("terse", "stepwise")
    ]


def test_a_report_without_a_text_is_refused(call: Call) -> None:
    said = call("teachers", "report", "--task", "obqa", "--preset", "quickstart", "teachers=[]")
    assert said.status == 2 and "no teacher has a text" in said.err


def test_texts_move_from_one_cache_to_another(
    call: Call, small: list[Any], tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = (f"teachers=[dir:{tiny_llama_dir}]", "annotations.draw.max_new_tokens=4", "annotations.engine=hf")
    asked = ("--method", "tinyllm", "--task", "obqa", *small, *live, "data.train_limit=4")
    assert call("annotate", *asked).status == 0
    (row,) = json.loads(call("teachers", "info", "--json").out)
    assert (row["teacher"], row["texts"]) == ("tiny_llama", 4)
    pack = tmp_path / "texts.jsonl.zst"
    assert call("teachers", "pack", "tiny_llama", "--to", pack).status == 0
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path / "elsewhere"))
    said = call("teachers", "import", pack)
    assert said.status == 0 and "imported 4 texts" in said.out
    assert "4 were there already" in call("teachers", "import", pack).out


def test_our_losses_conform(call: Call) -> None:
    said = call("conformance")
    assert said.status == 0 and "0 fail" in said.out
