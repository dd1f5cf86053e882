"""`export` on the command line: a folder, a dry run, a push to a hub that a local server plays."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tests.fake_hub import TOKEN, FakeHub


@pytest.fixture
def run_id(call: Call, small: list[Any], tmp_path: Path) -> str:
    result = call("run", "--method", "finetune", "--task", "obqa", "--no-reference-baselines", *small)
    assert result.status == 0, result.err
    (folder,) = (tmp_path / "runs").glob("finetune-*")
    return folder.name


@pytest.mark.slow
def test_the_whole_way(call: Call, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--runs-dir", tmp_path / "runs", "--to", tmp_path / "to")
    result = call("export", run_id, *where, "--push", "me/student", "--dry-run")  # needs no token and no network
    assert result.status == 0 and "and pushed to me/student (private)" in result.out
    assert "model.safetensors" in result.out and "# finetune on obqa, seed 0" in result.out
    assert not (tmp_path / "to").exists()

    result = call("export", run_id, *where, "--push", "me/student")
    assert (
        result.status == 2 and "in the environment variable HF_TOKEN" in result.err and not (tmp_path / "to").exists()
    )

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        result = call("export", run_id, *where, "--push", "me/student")
        assert result.status == 0, result.err
        assert f"pushed to {hub.url}/me/student (private)" in result.out
        assert TOKEN not in result.out + result.err
        sent = hub.repositories["me/student"].files
        here = {
            str(f.relative_to(tmp_path / "to")): f.read_bytes() for f in (tmp_path / "to").rglob("*") if f.is_file()
        }
        assert sent == here and not any(TOKEN.encode() in content for content in sent.values())

    result = call("export", run_id, *where)
    assert result.status == 2 and "there is something already" in result.err


@pytest.mark.parametrize(
    ("words", "result"),
    [
        (("--push", "student"), "write OWNER/NAME"),
        (("--public",), "add --push OWNER/NAME"),
        ((), "unknown run 'nothing'"),
    ],
)
def test_a_wrong_request(call: Call, tmp_path: Path, words: tuple[str, ...], result: str) -> None:
    found = call("export", "nothing", "--runs-dir", tmp_path, "--to", tmp_path / "to", *words)
    assert found.status == 2 and result in found.err
