"""Models of the hub: a name means a commit, and that commit is what is known, loaded and recorded."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.experiment.runs import cells_of, quick, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.leaderboard.record import load_record
from tinyllm_bench.models.hub import at_commit, forget_revisions
from tinyllm_bench.models.identity import model_identity
from tinyllm_bench.models.load import check_spec, is_encoder_decoder, load_model, weights_digest
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

A, B = "a" * 40, "b" * 40


def spec(text: str = "hf:me/stu") -> ModelSpec:
    return parse_spec(text, role="teacher")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with two commits of one model; `refs/main` names the first."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    home = tmp_path / "hub" / "models--me--stu"
    for seed, commit in enumerate((A, B)):
        saved(tiny_llama(seed=seed), home / "snapshots" / commit)
    (home / "refs").mkdir()
    means(home, "main", A)
    forget_revisions()
    return home


def means(home: Path, revision: str, commit: str) -> None:
    (home / "refs" / revision).write_text(commit)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The hub can be asked: it says what revisions mean, or fails; what was asked is collected."""
    from huggingface_hub import HfApi, constants

    def answers(**revisions: str) -> list[str]:
        requested: list[str] = []

        def model_info(self: Any, name: str, revision: str, **_: Any) -> Any:
            requested.append(revision)
            if revision not in revisions:
                raise OSError("no route")
            return SimpleNamespace(sha=revisions[revision], siblings=[SimpleNamespace(rfilename="model.safetensors")])

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(HfApi, "model_info", model_info)
        forget_revisions()
        return requested

    return answers


def test_a_name_is_its_commit_in_identity_and_weights(cache: Path, tmp_path: Path) -> None:
    assert at_commit(spec()).text == model_identity(spec(), tmp_path) == f"hf:me/stu@{A}"
    first = weights_digest(load_model(spec()).model)
    assert first == weights_digest(tiny_llama(seed=0)[0])
    means(cache, "main", B)
    assert model_identity(spec("hf:me/stu?layers=0:1"), tmp_path) == f"hf:me/stu@{B}?layers=0:1:1"
    assert weights_digest(load_model(spec()).model) != first
    assert weights_digest(load_model(spec(f"hf:me/stu@{A}")).model) == first


def test_branches_and_tags_are_commits_too(cache: Path) -> None:
    means(cache, "v1", B)
    assert at_commit(spec("hf:me/stu@v1")).revision == B
    assert at_commit(spec("hf:me/stu@nothing")).revision == "nothing"
    with pytest.raises(UserError, match="hf:me/stu@nothing is not in the local Hugging Face cache"):
        check_spec(spec("hf:me/stu@nothing"))


def test_a_reference_that_is_no_commit_is_none(cache: Path) -> None:
    means(cache, "main", "../../elsewhere")
    assert at_commit(spec()).revision is None


def test_the_hub_is_asked_first_and_once(cache: Path, online: Callable[..., list[str]]) -> None:
    requested = online(main=B)
    assert [at_commit(spec()).revision for _ in range(3)] == [B] * 3 and requested == ["main"]
    forget_revisions()
    assert at_commit(spec()).revision == B and requested == ["main", "main"]


def test_a_hub_that_cannot_be_reached_leaves_the_cache(cache: Path, online: Callable[..., list[str]]) -> None:
    online()
    assert at_commit(spec()).revision == A
    check_spec(at_commit(spec()))
    assert not is_encoder_decoder(at_commit(spec()))


def test_an_interrupted_download_is_not_a_model(cache: Path) -> None:
    (cache / "snapshots" / A / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights"):
        check_spec(spec())


def test_pickled_shards_in_an_index_of_the_hub_are_refused(cache: Path) -> None:
    folder = cache / "snapshots" / A
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {"x": "pytorch_model.bin"}}')
    for opened in (check_spec, load_model):
        with pytest.raises(UserError, match="names 'pytorch_model.bin'; allowed: .*safetensors"):
            opened(spec())


def _cells(runs: Path, student: str, *more: str, method: str = "finetune") -> list[Cell]:
    return cells_of(quick(Path("x"), f"student.model={student}", *more, methods=(method,), runs=runs))


def test_a_run_of_a_branch_is_another_cell_once_it_moves(cache: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (first,) = _cells(runs, "hf:me/stu")
    (done,) = run_all([first], runs)
    record = load_record(done.folder)
    assert record.student is not None and record.student.spec == f"hf:me/stu@{A}"
    assert record.config["student"]["model"] == f"hf:me/stu@{A}"
    assert [cell.run_id for cell in _cells(runs, "hf:me/stu")] == [first.run_id]
    means(cache, "main", B)
    (moved,) = _cells(runs, "hf:me/stu")
    assert moved.run_id != first.run_id
    assert [cell.run_id for cell in _cells(runs, f"hf:me/stu@{A}")] == [first.run_id]


def test_a_branch_that_moves_while_a_run_is_planned_changes_nothing_of_it(cache: Path, tmp_path: Path) -> None:
    (cell,) = _cells(tmp_path / "runs", "hf:me/stu")
    name = cell.run_id
    means(cache, "main", B)
    assert cell.run_id == name
    (done,) = run_all([cell], tmp_path / "runs")
    record = load_record(done.folder)
    assert record.student is not None and record.student.initial_digest == weights_digest(tiny_llama(seed=0)[0])


def test_a_teacher_of_the_hub_is_known_by_its_commit(cache: Path, tmp_path: Path) -> None:
    own = saved(tiny_llama(seed=9), tmp_path / "own")
    student, white_box = f"dir:{own}", ("teacher.model=hf:me/stu", "teacher.init=null")
    ids, texts, signals = set(), set(), []
    for commit in (A, B):
        means(cache, "main", commit)
        (cell,) = _cells(tmp_path, student, "teachers=['hf:me/stu']", "method.dss.teacher=null", method="dss")
        texts.add(cell.teachers[0].text_digest("obqa"))
        ids.add(cell.run_id)
        (kd,) = _cells(tmp_path, student, *white_box, method="kd")
        assert kd.signal is not None
        signals.append(kd.signal.text)
        ids.add(kd.run_id)
    assert len(ids) == 4 and len(texts) == 2 and signals == [f"hf:me/stu@{A}", f"hf:me/stu@{B}"]


def test_files_of_the_cache_may_be_links(cache: Path, tmp_path: Path) -> None:
    """As the hub's own library lays them out."""
    folder = cache / "snapshots" / A
    blobs = cache / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert weights_digest(load_model(spec()).model) == weights_digest(tiny_llama(seed=0)[0])
