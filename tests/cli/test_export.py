"""`export` on the command line: a folder, a dry run, a push to a hub that a local server plays."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tests.fake_hub import TOKEN, FakeHub


@pytest.fixture
def run_id(call: Call, small: list[Any], tmp_path: Path) -> str:
    said = call("run", "--method", "finetune", "--task", "obqa", "--no-reference-baselines", *small)
    assert said.status == 0, said.err
    (folder,) = (tmp_path / "runs").glob("finetune-*")
    return folder.name


@pytest.mark.slow
def test_the_whole_way(call: Call, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--runs-dir", tmp_path / "runs", "--to", tmp_path / "to")
    said = call("export", run_id, *where, "--push", "me/student", "--dry-run")  # needs no token and no network
    assert said.status == 0 and "and pushed to me/student (private)" in said.out
    assert "model.safetensors" in said.out and "# finetune on obqa, seed 0" in said.out
    assert not (tmp_path / "to").exists()

    said = call("export", run_id, *where, "--push", "me/student")
    assert said.status == 2 and "in the environment variable HF_TOKEN" in said.err and not (tmp_path / "to").exists()

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        said = call("export", run_id, *where, "--push", "me/student")
        assert said.status == 0, said.err
        assert f"pushed to {hub.url}/me/student (private)" in said.out
        assert TOKEN not in said.out + said.err
        sent = hub.repositories["me/student"].files
        here = {
            str(f.relative_to(tmp_path / "to")): f.read_bytes() for f in (tmp_path / "to").rglob("*") if f.is_file()
        }
        assert sent == here and not any(TOKEN.encode() in content for content in sent.values())

    said = call("export", run_id, *where)
    assert said.status == 2 and "there is something already" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--push", "student"), "write OWNER/NAME"),
        (("--public",), "add --push OWNER/NAME"),
        ((), "unknown run 'nothing'"),
    ],
)
def test_a_wrong_request(call: Call, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    found = call("export", "nothing", "--runs-dir", tmp_path, "--to", tmp_path / "to", *words)
    assert found.status == 2 and said in found.err
