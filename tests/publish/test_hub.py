"""Pushing to a fake hub on this machine: what arrives, what is refused, and that the token appears nowhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_hub import TOKEN, FakeHub, Repository
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.publish import hub as publish


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as fake_hub:
        reach(fake_hub, monkeypatch)
        yield fake_hub


def reach(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    exported = tmp_path / "exported"
    (exported / ".eval_results").mkdir(parents=True)
    (exported / "README.md").write_text("---\nlicense: apache-2.0\n---\n\n# A student\n")
    (exported / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (exported / ".eval_results" / "a.yaml").write_text("- {}\n")
    return exported


def push(folder: Path, repo: str = "me/student", *, private: bool = True) -> str:
    return publish.push(folder, repo, private=private, message="Student of a-run")


def test_every_file_arrives_in_a_private_repository(hub: FakeHub, folder: Path) -> None:
    assert push(folder) == f"{hub.url}/me/student"
    repository = hub.repositories["me/student"]
    sent = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert repository.files == sent and repository.private
    assert repository.commits[0].startswith("Student of a-run")


def test_a_public_repository_must_be_requested(hub: FakeHub, folder: Path) -> None:
    push(folder, private=False)
    assert not hub.repositories["me/student"].private


def test_an_existing_repository_is_added_to(hub: FakeHub, folder: Path) -> None:
    hub.repositories["me/student"] = Repository(private=True, files={"old.txt": b"old"})
    push(folder)
    assert {"old.txt", "README.md"} <= hub.repositories["me/student"].files.keys()


def test_a_private_push_to_a_public_repository_is_refused(hub: FakeHub, folder: Path) -> None:
    hub.repositories["me/student"] = Repository(private=False)
    with pytest.raises(UserError, match="me/student: the repository exists and is public; add --public"):
        push(folder)
    assert hub.repositories["me/student"].files == {}
    push(folder, private=False)
    assert hub.repositories["me/student"].files


def test_no_error_shows_the_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub(breaks=403) as hub:
        reach(hub, monkeypatch)
        with pytest.raises(UserError, match="does it have write access there") as caught:
            push(folder)
    error: BaseException | None = caught.value
    assert TOKEN not in str(error) and "***" in str(error)
    assert error is not None and error.__suppress_context__


def test_a_wrong_token_is_reported_without_showing_it(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError, match="is the token in HF_TOKEN valid") as caught:
        push(folder)
    assert "hf_wrong" not in str(caught.value) and hub.repositories == {}


def test_nothing_is_called_without_a_token_or_offline(
    hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="in the environment variable HF_TOKEN"):
        push(folder)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        push(folder)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["student", "me/two/parts", "me/ä", "me/-x", "http://hub/me/x", ""])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="write OWNER/NAME"):
        publish.check_repo(name)
