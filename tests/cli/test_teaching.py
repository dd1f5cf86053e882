"""Kept texts on the terminal."""

import json
from pathlib import Path

import pytest

from tests.teachers.test_cache import REQUESTS, FakeGenerator, fill
from tinyllm_bench.cli.teaching import import_texts, pack_texts, show_texts
from tinyllm_bench.teachers.cache import TextCache, texts_folder

IDENTITY = {"model": "a model", "chat": "auto"}


def test_pack_import_and_show(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said() -> str:
        return capsys.readouterr().out

    fill(TextCache(texts_folder("a-model", IDENTITY), IDENTITY), FakeGenerator(), REQUESTS[:5])
    file = tmp_path / "texts.jsonl.zst"
    pack_texts(["a-model"], file)
    assert said() == f"packed 5 texts of a-model (5): {file}, 0.00 MB\n"

    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path / "elsewhere"))
    show_texts(None, as_json=False)
    assert said() == "none\n"
    import_texts(file)
    assert said() == "imported 5 texts of a-model; 0 were there already\n"
    import_texts(file)
    assert said() == "imported 0 texts of a-model; 5 were there already\n"

    show_texts(str(file), as_json=True)
    of_pack = json.loads(said())
    show_texts(None, as_json=True)
    assert json.loads(said()) == of_pack and of_pack[0]["texts"] == 5
    show_texts("a-model", as_json=False)
    table = said().splitlines()
    assert table[0].split()[:3] == ["teacher", "identity", "texts"]
    assert table[2].split()[:3] == ["a-model", texts_folder("a-model", IDENTITY).name, "5"]
