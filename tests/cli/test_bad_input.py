"""Every bad input is one readable line on standard error, status 2, before anything is computed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call, CommandResult
from tests.data import toy_release
from tests.data.toy_release import TASK
from tests.leaderboard.fakes import flags, make_record
from tinyllm_bench.leaderboard.record import save_record


def assert_refused(result: CommandResult, *parts: str) -> None:
    """One line, status 2, and all that it must name."""
    assert result.status == 2, result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert not [part for part in parts if part not in result.err], result.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--task", "obqua"), ("unknown task 'obqua'", "Did you mean 'obqa'?", "Known: all, arc,")),
        (("--method", "tinylm"), ("unknown method 'tinylm'", "Did you mean 'tinyllm'?")),
        (("--preset", "cpus"), ("unknown preset 'cpus'", "Did you mean 'cpu'?", "quickstart")),
        (("train.learning_rates=1",), ("'train.learning_rates'", "Did you mean 'train.learning_rate'?")),
        (("method.gama=1",), ("'gama'", "Did you mean 'gamma'?")),
        (("learning_rate",), ("'learning_rate' is not a setting; write key=value",)),
        (("--seeds", "0"), ("--seeds 0", "at least 1")),
        (("--seeds", "two"), ("--seeds", "see tinyllm-bench run --help")),
        (("--sed", "1"), ("--sed", "--seeds")),
        (("--backend", "onnx"), ("backend.engine='onnx'", "'auto', 'hf' or 'vllm'")),
        (("--config", "nowhere.yaml"), ("file not found: nowhere.yaml",)),
        (("student.model=dir:/no/such/folder",), ("dir:/no/such/folder", "no such folder")),
        (("student.model=gpt",), ("gpt",)),
        (("student.model=bundled:smollm9",), ("smollm9", "smollm2-135m")),
        (("student.model=bundled:smollm2-135m",), ("tinyllm-bench fetch smollm2-135m",)),
        (('teachers=["replay:sample#nobody"]',), ("replay:sample#nobody", "on_missing_teacher=drop")),
        (('teachers=["replay:sample"]',), ("names no rationales", "terse, stepwise")),
        (("teachers=[]",), ("teacher",)),
        (("data.source=web",), ("data.source='web'", "'auto', 'release', 'hub' or 'sample'")),
        (("--data-dir", "/no/such/release"), ("/no/such/release", "not a folder")),
        (("annotations.filters=[rude]",), ("'rude'", "empty")),
        (("annotations.filters=[empty, rude]",), ("'rude'", "empty")),
    ],
)
def test_wrong_requests(call: Call, small: list[Any], arguments: tuple[str, ...], parts: tuple[str, ...]) -> None:
    given = ["run", "--method", "tinyllm", "--task", "obqa", *small, *arguments]
    assert_refused(call(*given), *parts)
    runs = Path(small[small.index("--runs-dir") + 1])
    assert not runs.exists(), "nothing was started"


@pytest.mark.parametrize("show", [(), ("--show-config",), ("--dry-run",)])
@pytest.mark.parametrize(
    "address", ["api:https://h/v1?key=hidden#m", "api:HTTPS://me:hidden@h/v1#m", "api:https://h/v1#m?token=hidden"]
)
@pytest.mark.parametrize("way", ["teachers", "teacher.model", "student.model", "--config"])
def test_a_key_in_an_address_reaches_no_file_and_no_output(
    call: Call, small: list[Any], tmp_path: Path, way: str, address: str, show: tuple[str, ...]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"teacher: {{model: '{address}'}}")
    given = {"teachers": f"teachers=['{address}']", "--config": file}.get(way, f"{way}={address}")
    result = call(
        "run", "--method", "tinyllm", "--task", "obqa", *small, *(("--config",) * (way == "--config")), given, *show
    )
    assert_refused(result, "TINYLLM_BENCH_API_KEY")
    assert "hidden" not in result.out + result.err
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != file]
    assert not any(b"hidden" in content for content in written)


def test_a_key_that_stands_in_the_wrong_place_is_not_repeated(call: Call, small: list[Any]) -> None:
    for arguments in (
        ("api:https://me:hidden@h/v1#m",),
        ("--task", "api:https://me:hidden@h"),
        ("--sed", "https://me:hidden@h"),
    ):
        result = call("run", "--method", "tinyllm", "--task", "obqa", *small, *arguments)
        assert result.status == 2 and "hidden" not in result.out + result.err


def test_wrong_commands(call: Call) -> None:
    assert_refused(call("rum"), "'rum'", "'run'")
    assert_refused(call("run", "--task", "obqa"), "--method")
    assert_refused(call("list", "method"), "unknown list 'method'", "Did you mean 'methods'?")
    assert_refused(call("fetch", "smollm3"), "smollm3", "smollm2-135m")
    assert_refused(call("data", "check"), "--data-dir FOLDER or TINYLLM_BENCH_DATA")


def test_an_option_that_would_change_nothing_is_refused(call: Call, small: list[Any], tmp_path: Path) -> None:
    asked = ("--method", "finetune", "--task", "obqa", *small)
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "nowhere"):
        assert_refused(call("data", "info", "--data-dir", place), "--data-dir", str(place), "not a folder")
        assert_refused(call("verify", tmp_path, "--data-dir", place), "--data-dir", str(place), "not a folder")
        assert_refused(call("compare", "a", "b", "--in", place), "--in", str(place), "not a folder")
    assert_refused(call("doctor", *asked, "--runs-dir", tmp_path / "file"), "--runs-dir", "name a writable location")
    assert_refused(call("doctor", *asked, "--board-dir", tmp_path / "file" / "b"), "--board-dir", "not a directory")
    save_record(make_record("mine", flags(20, 13)), tmp_path / "run")
    assert_refused(call("compare", tmp_path / "run", tmp_path / "run", "--student", "x"), "--student x", "is a run")


@pytest.mark.parametrize("command", ["run", "annotate", "train", "predict", "plan", "doctor"])
@pytest.mark.parametrize("value", [{"attention_dropout": 2}, {"attention_dropout": -1}, {"num_key_value_heads": 3}])
def test_a_student_that_breaks_in_training_is_one_line(
    call: Call, small: list[Any], tiny_llama_dir: Path, tmp_path: Path, value: dict[str, Any], command: str
) -> None:
    folder = shutil.copytree(tiny_llama_dir, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **value}))
    said = call(command, "--method", "finetune", "--task", "obqa", *small, f"student.model=dir:{folder}")
    if command == "doctor":
        assert said.status == 1 and "Traceback" not in said.out + said.err
        assert "fails in a small copy of it (RuntimeError: " in said.out
    else:
        assert_refused(said, f"dir:{folder}", "RuntimeError: ", "config.json")


def test_a_model_folder_without_weights(call: Call, small: list[Any], tiny_llama_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no_weights"
    shutil.copytree(tiny_llama_dir, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    given = ("run", "--method", "finetune", "--task", "obqa", *small, f"student.model=dir:{folder}")
    assert_refused(call(*given), str(folder), "has no weights", "*.safetensors")
    (folder / "model.safetensors").write_bytes((tiny_llama_dir / "model.safetensors").read_bytes()[:-50])
    assert_refused(call(*given), "truncated or damaged")


@pytest.mark.parametrize("preset", [(), ("--preset", "cpu")])
def test_without_data_the_sample_is_offered(call: Call, tiny_llama_dir: Path, preset: tuple[str, ...]) -> None:
    result = call("run", "--method", "finetune", "--task", "obqa", *preset, f"student.model=dir:{tiny_llama_dir}")
    assert_refused(result, "no data", "TINYLLM_BENCH_DATA", "`--preset quickstart`")


def test_broken_records_and_boards(call: Call, tmp_path: Path) -> None:
    assert_refused(call("board", "add", tmp_path / "nothing", "--board-dir", tmp_path / "b"), "nothing")
    (tmp_path / "run.json").write_text('{"schema_version": 1')
    assert_refused(call("board", "add", tmp_path, "--board-dir", tmp_path / "b"), "run.json is not valid JSON")


# --- a release folder -------------------------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A whole small release of a task that another package brings."""
    site = tmp_path / "site"
    site.mkdir()
    toy_release.install(site)
    monkeypatch.syspath_prepend(str(site))
    yield toy_release.write(tmp_path / "release")


@pytest.fixture
def asked(toy: Path, tiny_llama_dir: Path, tmp_path: Path) -> list[Any]:
    """Two cells on the toy release, the second one with a teacher."""
    return [
        *("run", "--method", "finetune,tinyllm", "--task", TASK, "--preset", "cpu", "--data-dir", toy),
        *("--runs-dir", tmp_path / "runs", f"student.model=dir:{tiny_llama_dir}", "eval.limit=null"),
        *('teachers=["replay:release#first", "replay:release#second"]', "annotations.filters=[empty]"),
        *("budget.student_tokens=400", "eval.shots=1", "data.train_limit=null"),
    ]


def rows_file(toy: Path, split: str) -> Path:
    return toy / TASK / f"{TASK}_{split}.json"


@pytest.mark.slow
def test_a_whole_release_of_another_packages_task_runs(call: Call, asked: list[Any], tmp_path: Path) -> None:
    result = call(*asked)
    assert result.status == 0, result.err
    assert (
        len(list((tmp_path / "runs").glob("*/run.json"))) == 4 + 2
    )  # a budget on the command line: finetune has no second row of another budget


def damage(toy: Path, how: str) -> None:
    file = rows_file(toy, "test")
    rows = json.loads(file.read_text())
    if how == "missing":
        file.unlink()
    elif how == "truncated":
        file.write_text(file.read_text()[:-40])
    elif how == "count":
        file.write_text(json.dumps(rows[1:]))
    elif how == "answer":
        file.write_text(json.dumps([{**rows[0], "answer": "none of these"}, *rows[1:]]))
    elif how == "no rationales":
        (toy / TASK / "llm" / "train_CoT_0.json").unlink()
    elif how == "other rationales":
        texts = toy / TASK / "llm" / "train_CoT_0.json"
        texts.write_text(json.dumps(json.loads(texts.read_text())[::-1]))


@pytest.mark.parametrize(
    ("how", "parts"),
    [
        ("missing", (f"{TASK}_test.json: file not found, expected 3 rows", "copy it again")),
        ("truncated", (f"{TASK}_test.json: not valid JSON", "truncated?", "expected 3 rows", "copy it again")),
        ("count", (f"{TASK}_test.json: 2 rows, expected 3",)),
        ("answer", (f"{TASK}_test.json: row 1 of 3", "none of these", "copy it again")),
        ("no rationales", ("train_CoT_0.json: file not found", "copy it again")),
        ("other rationales", ("train_CoT_*.json", "is not about the question of", "copy it again")),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_damaged_data_is_refused_before_anything_starts(
    call: Call, toy: Path, asked: list[Any], tmp_path: Path, how: str, parts: tuple[str, ...], dry: tuple[str, ...]
) -> None:
    damage(toy, how)
    assert_refused(call(*asked, *dry), *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_refusal_loses_nothing_that_was_computed(call: Call, asked: list[Any], small: list[Any]) -> None:
    runs = Path(small[small.index("--runs-dir") + 1])
    done = ("run", "--method", "finetune", "--task", "obqa", "--no-reference-baselines", *small)
    assert call(*done).status == 0
    before = {file: file.read_bytes() for file in runs.rglob("*") if file.is_file()}
    assert_refused(call(*done, "train.warmups=1"), "train.warmup")
    assert {file: file.read_bytes() for file in runs.rglob("*") if file.is_file()} == before


def test_rationales_of_other_questions_are_refused(call: Call, asked: list[Any], toy: Path) -> None:
    sample = 'teachers=["replay:sample#terse"]'
    result = call("run", "--method", "tinyllm", "--task", "obqa", "--preset", "quickstart", sample, *asked[9:])
    assert result.status == 2 and result.err.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "plan", "doctor"])
def test_a_student_as_its_own_teacher(call: Call, small: list[Any], tiny_llama_dir: Path, command: str) -> None:
    taught = "{method: finetune, epochs: 1}"
    own = (f"teacher.model=dir:{tiny_llama_dir}", f"teacher.init={taught}", f"student.init={taught}")
    result = call(command, "--method", "gkd", "--task", "obqa", *small, *own)
    assert_refused(result, "gkd on obqa: teacher and student are the same weights", "teacher.init.train_limit")
    assert not Path(small[small.index("--runs-dir") + 1]).exists()
