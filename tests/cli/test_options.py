"""Options with values that mean nothing, and places that cannot be written: one line, status 2, before any work."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tests.cli.test_bad_input import assert_refused

HUGE = "99999999999999999999"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--method", ""), ("--method", "empty")),
        (("--method", " "), ("--method", "empty")),
        (("--method=",), ("--method", "empty")),
        (("--method", ","), ("--method", "a name is empty")),
        (("--method", "finetune,,tinyllm"), ("--method", "a name is empty")),
        (("--task", ""), ("--task", "empty")),
        (("--task", "obqa,"), ("--task", "a name is empty")),
        (("--preset", ""), ("--preset", "empty")),
        (("--config", ""), ("--config", "empty")),
        (("--runs-dir", ""), ("--runs-dir", "empty")),
        (("--runs-dir=",), ("--runs-dir", "empty")),
        (("--board-dir", ""), ("--board-dir", "empty")),
        (("--data-dir", ""), ("--data-dir", "empty")),
        (("--backend", ""), ("--backend", "empty")),
        (("",), ("empty",)),
        (("--seeds", HUGE), ("--seeds", "at most 1,000")),
        (("--seeds", "1001"), ("--seeds 1001", "at most 1,000")),
        (("--seeds", "-1"), ("--seeds -1", "at least 1")),
        (("--seeds", "nan"), ("--seeds",)),
        (("--seeds", "9" * 5000), ("--seeds",)),
    ],
)
def test_an_option_without_a_meaning(call: Call, small: list[Any], arguments: tuple[str, ...], parts: Any) -> None:
    assert_refused(call("run", "--method", "finetune", "--task", "obqa", *small, *arguments), *parts)
    assert not Path(small[small.index("--runs-dir") + 1]).exists()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e300"])
@pytest.mark.parametrize("option", ["--price", "--detect"])
def test_a_number_of_plan(call: Call, small: list[Any], option: str, value: str) -> None:
    assert_refused(call("plan", "--method", "finetune", "--task", "obqa", *small, f"{option}={value}"), option)


@pytest.fixture
def places(tmp_path: Path) -> list[Path]:
    """A file, something in it, a dangling link, something behind it, a disk that takes no files, a name too long."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deep")
    names = ("file", "file/inside", "link", "link/inside", "x" * 300)
    return [*(tmp_path / name for name in names), Path("/proc/nobody")]


def test_folders_of_a_run(call: Call, small: list[Any], places: list[Path], tmp_path: Path) -> None:
    given = ("run", "--method", "finetune", "--task", "obqa", *small)
    for option in ("--runs-dir", "--board-dir"):
        for place in places:
            assert_refused(call(*given, option, place), str(place))
    runs = Path(small[small.index("--runs-dir") + 1])
    assert not runs.exists() and (tmp_path / "file").read_text() == "x", "nothing was computed"


def test_the_cache(call: Call, small: list[Any], places: list[Path], tiny_llama_dir: Path, monkeypatch: Any) -> None:
    live = (f'teachers=["dir:{tiny_llama_dir}"]', "annotations.engine=hf")
    for place in places:
        monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(place))
        assert_refused(call("run", "--method", "tinyllm", "--task", "obqa", *small, *live), str(place))
        assert_refused(call("fetch", "smollm2-135m"), str(place))


def test_outputs_of_other_commands(call: Call, places: list[Path], tmp_path: Path) -> None:
    for place in places:
        for command in (("board", "build", "--board-dir"), ("new", "method", "some_method", "--to")):
            assert_refused(call(*command, place), str(place))
        assert_refused(call("reproduce", "minillm", "--runs-dir", place, "--task", ""), "--task")
        assert_refused(call("teachers", "pack", "nobody", "--to", place / "x.jsonl.zst"), "x.jsonl.zst")
    folder = tmp_path / "folder"
    folder.mkdir()
    assert_refused(call("teachers", "pack", "nobody", "--to", folder), "--to", "is a folder; name a file")
