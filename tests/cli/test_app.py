"""Commands, their exit statuses and what they print."""

import json
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tinyllm_bench import __version__
from tinyllm_bench.base import plugins
from tinyllm_bench.leaderboard.record import load_record

TRAP = """
    import os
    from tinyllm_bench.base.plugins import load_method

    Finetune = load_method("finetune")
    signal_to_send = None
    fails = False

    class METHOD(Finetune):
        \"\"\"Label-only training that something happens to in its third step.\"\"\"

        paper = "none"

        def loss(self, batch, student, teacher, step):
            if step.index == 2 and signal_to_send is not None:
                os.kill(os.getpid(), signal_to_send)
            if step.index == 2 and fails:
                raise RuntimeError("the third step fails")
            return super().loss(batch, student, teacher, step)
"""


def records_in(runs: Path) -> dict[str, Any]:
    return {record.label: record for record in map(load_record, runs.glob("*/run.json"))}


# --- help and lists ---------------------------------------------------------------------------------------------------


def test_help_names_every_command(call: Call) -> None:
    result = call("--help")
    assert result.status == 0 and result.err == ""
    for name in (
        "run",
        "annotate",
        "train",
        "predict",
        "reference-baselines",
        "list",
        "data",
        "teachers",
        "conformance",
        "fetch",
        "board",
    ):
        assert re.search(rf"^  {name} ", result.out, re.MULTILINE), name


def test_help_begins_with_the_main_job_and_version_is_told(call: Call) -> None:
    assert re.search(r"Commands:\n  run ", call("--help").out)
    result = call("--version")
    assert (result.status, result.out, result.err) == (0, f"tinyllm-bench {__version__}\n", "")


def test_no_command_shows_the_help(call: Call) -> None:
    result = call()
    assert result.status == 2 and "Commands:" in result.out + result.err and "error:" not in result.err


def test_lists(call: Call) -> None:
    def listed(what: str) -> list[dict[str, Any]]:
        result = call("list", what, "--json")
        assert result.status == 0
        return list(json.loads(result.out))

    assert [row["name"] for row in listed("methods")] == plugins.names("method")
    assert all(row["about"] and row["paper"] for row in listed("methods"))
    assert [row["name"] for row in listed("tasks")] == plugins.names("task")
    assert [row["name"] for row in listed("presets")] == [
        "cpu",
        "mixed_distillation_table",
        "modern",
        "paper",
        "quickstart",
    ]
    assert {"bundled:smollm2-135m", "bundled:gemma3-270m"} <= {row["name"] for row in listed("models")}
    assert listed("plugins") == []
    assert "obqa" in call("list", "tasks").out
    assert call("list", "plugins").out == "none\n"


def test_a_third_partys_method_is_listed_and_runs(
    call: Call, small: list[Any], install: Callable[..., Any], tmp_path: Path
) -> None:
    install("trap", TRAP)
    assert {row["name"] for row in json.loads(call("list", "plugins", "--json").out)} == {"trap"}
    result = call("run", "--method", "trap", "--task", "obqa", "--no-reference-baselines", *small)
    assert result.status == 0, result.err
    assert set(records_in(tmp_path / "runs")) == {"trap"}


# --- run --------------------------------------------------------------------------------------------------------------


def test_run_records_prints_and_writes_a_board(call: Call, small: list[Any], tmp_path: Path) -> None:
    arguments = ("run", "--method", "finetune,tinyllm", "--task", "obqa", *small)
    result = call(*arguments)
    assert result.status == 0, result.err
    assert result.out.startswith("preset quickstart\n")
    page = (tmp_path / "runs" / "board" / "README.md").read_text()
    for label in ("random", "majority", "zero_shot", "few_shot (3 shots)", "finetune", "tinyllm"):
        assert f"{label} on obqa, seed 0" in result.err and label in page.replace("\\_", "_")
    assert "finetune" in result.out.split("\n\n", 1)[1], "the table is printed"
    next_one = result.out.splitlines()[-2].removeprefix("next: ")
    compared = call(*shlex.split(next_one)[1:])
    assert next_one.startswith("tinyllm-bench compare tinyllm finetune --in ") and compared.status == 0, compared.err
    records = records_in(tmp_path / "runs")
    assert len(records) == 6 and all(r.command.startswith("tinyllm-bench run --method") for r in records.values())
    assert records["finetune"].request["preset"] == "quickstart" and records["finetune"].request["tasks"] == ["obqa"]
    again = call(*arguments)
    assert again.status == 0 and again.err.count("already finished; nothing to do") == 6
    assert records_in(tmp_path / "runs") == records


def test_stages_one_by_one(call: Call, small: list[Any], tmp_path: Path) -> None:
    asked = ("--method", "tinyllm", "--task", "obqa", *small)
    runs = tmp_path / "runs"
    for stage in ("annotate", "train"):
        result = call(stage, *asked)
        assert result.status == 0 and f"stage {stage} is complete" in result.out
        assert not list(runs.glob("*/run.json")) and bool(list(runs.glob("*/student"))) == (stage == "train")
    result = call("predict", *asked)
    (folder,) = (file.parent for file in runs.glob("*/run.json"))
    assert result.status == 0 and f"next: tinyllm-bench board add {folder}" in result.out
    assert not (runs / "board").exists()
    added = call("board", "add", folder, "--board-dir", tmp_path / "board")
    assert added.status == 0 and (tmp_path / "board" / "README.md").exists()
    assert "tinyllm" in call("board", "show", "--board-dir", tmp_path / "board").out
    assert call("board", "build", "--board-dir", tmp_path / "board").status == 0


def test_reference_baselines_alone(call: Call, small: list[Any], tmp_path: Path) -> None:
    result = call("reference-baselines", "--task", "arc", *small)
    assert result.status == 0, result.err
    assert set(records_in(tmp_path / "runs")) == {"random", "majority", "zero_shot", "few_shot (3 shots)"}


def test_dry_run_prints_the_plan_and_makes_nothing(call: Call, small: list[Any], tmp_path: Path) -> None:
    result = call("run", "--method", "finetune,tinyllm", "--task", "obqa,arc", "--seeds", "2", "--dry-run", *small)
    assert result.status == 0 and result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == "preset quickstart" and len(lines) == 1 + 2 * (4 + 2 * 2)
    assert (
        "  tinyllm on obqa, seed 1: 16 test questions, cloze scoring, sample data, 24 training records,"
        " 3,000 student tokens, teachers terse + stepwise [tinyllm-obqa-cloze-s1-"
    ) in result.out
    assert not (tmp_path / "runs").exists()


def test_dry_run_does_not_ask_the_hub(call: Call, small: list[Any]) -> None:
    asked = ("run", "--method", "finetune", "--task", "obqa", *small, "student.model=hf:nobody/nothing")
    assert call(*asked, "--dry-run").status == 0
    refused = call(*asked)
    assert refused.status == 2 and "hf:nobody/nothing is not in the local Hugging Face cache" in refused.err


def test_show_config_names_the_layer_of_every_setting(call: Call, small: list[Any], tmp_path: Path) -> None:
    result = call("run", "--method", "tinyllm", "--task", "obqa", "--no-reference-baselines", "--show-config", *small)
    assert result.status == 0 and not (tmp_path / "runs").exists()
    for line in (
        "budget.student_tokens = 3000  (command line)",
        "train.batch_records = 8  (preset quickstart)",
        "train.weight_decay = 0.0  (default)",
        "method.alpha = 1.0  (tinyllm.yaml)",
    ):
        assert f"  {line}\n" in result.out


def test_without_a_preset_the_chosen_one_is_said_first(call: Call, tiny_llama_dir: Path) -> None:
    from tinyllm_bench.experiment.request import default_preset

    result = call(
        *("run", "--method", "finetune", "--task", "obqa", "--dry-run", "data.source=sample"),
        f"student.model=dir:{tiny_llama_dir}",
    )
    assert result.status == 0, result.err
    assert result.out.startswith(f"preset {default_preset()} (chosen for this machine; --preset overrides it)\n")


@pytest.mark.bundled
def test_quickstart_plans_with_its_own_student(call: Call, bundled_smollm: Path) -> None:
    result = call("run", "--method", "finetune,tinyllm", "--task", "obqa", "--preset", "quickstart", "--dry-run")
    assert result.status == 0 and "12,000 student tokens" in result.out, result.err


@pytest.mark.release
@pytest.mark.parametrize("preset", ["cpu", "paper", "modern"])
def test_every_preset_resolves_on_the_real_data(
    call: Call, release: Path, tiny_llama_dir: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYLLM_BENCH_DATA", str(release))
    local = [f"student.model=dir:{tiny_llama_dir}"] if preset == "cpu" else []
    result = call("run", "--method", "finetune,dss,tinyllm", "--task", "obqa", "--preset", preset, "--dry-run", *local)
    assert result.status == 0, result.err
    live = "teachers qwen2.5-7b-instruct + olmo-2-1124-7b-instruct"
    assert (live if preset == "modern" else "teachers flan-t5-xl + llama-2-7b") in result.out
    assert "release data" in result.out


# --- a cell that fails, an interruption -------------------------------------------------------------------------------


def test_a_cell_that_fails_leaves_the_others_running(call: Call, small: list[Any], tmp_path: Path) -> None:
    result = call("run", "--method", "finetune", "--task", "obqa", *small, "train.learning_rate=1e30")
    assert result.status == 1
    assert re.search("failed: .*lower the learning rate", result.err, re.IGNORECASE) and "Traceback" not in result.err
    assert result.err.rstrip().endswith("1 failed: finetune on obqa; run the same command again to retry")
    assert set(records_in(tmp_path / "runs")) == {"random", "majority", "zero_shot", "few_shot (3 shots)"}
    assert (tmp_path / "runs" / "board" / "README.md").exists(), "what was finished is on the board"


@pytest.mark.slow
def test_a_fault_of_a_method_is_logged_and_the_next_cell_runs(
    call: Call, small: list[Any], install: Callable[..., Any], tmp_path: Path
) -> None:
    trap = install("trap", TRAP)
    trap.fails = True
    asked = ("run", "--method", "trap,finetune", "--task", "obqa", "--no-reference-baselines", *small)
    result = call(*asked)
    assert result.status == 1 and "RuntimeError: the third step fails (traceback in " in result.err
    assert "Traceback" not in result.err
    (log,) = (tmp_path / "runs").glob("trap-*/error.log")
    assert "in loss" in log.read_text()
    assert set(records_in(tmp_path / "runs")) == {"finetune"}
    trap.fails = False
    again = call(*asked)
    assert again.status == 0 and again.err.count("nothing to do") == 1
    assert set(records_in(tmp_path / "runs")) == {"finetune", "trap"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on_and_goes_on(
    call: Call, small: list[Any], install: Callable[..., Any], tmp_path: Path, number: signal.Signals
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
    trap = install("trap", TRAP)
    trap.signal_to_send = number
    asked = (
        "run",
        "--method",
        "trap",
        "--task",
        "obqa",
        "--no-reference-baselines",
        *small,
        "train.checkpoint_seconds=0",
    )
    result = call(*asked)
    *_, told, command = result.err.splitlines()
    assert result.status == 3 and told == "interrupted; run the same command again to resume:"
    assert shlex.split(command) == ["tinyllm-bench", *map(str, asked)]
    assert "Traceback" not in result.err and not records_in(tmp_path / "runs")
    trap.signal_to_send = None
    again = call(*asked)
    assert again.status == 0 and "resumes after step 2 of" in again.err
    assert records_in(tmp_path / "runs")["trap"].training.steps > 2


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.release
@pytest.mark.slow
def test_data_check_reports_every_set(call: Call, release: Path) -> None:
    result = call("data", "check", "--data-dir", release)
    assert result.status == 0 and result.err == ""
    counts = {
        "arc": "1117 / 295 / 1165",
        "bioasq": "976 / 109 / 123",
        "gsm8k": "6473 / 500 / 500",
        "obqa": "4957 / 500 / 500",
        "piqa": "16113 / 919 / 919",
        "pubmedqa": "500 / 100 / 400",
        "riddle": "3510 / 511 / 510",
        "svamp": "720 / 80 / 200",
    }
    lines = result.out.splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(counts)
    for line in lines:
        name, _, rest = line.partition(": ")
        assert rest.startswith((f"{counts[name]} rows", "not present, and no other task needs it")), line


@pytest.mark.release
@pytest.mark.slow
def test_data_check_finds_a_deleted_row(call: Call, release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    (folder / "obqa").mkdir(parents=True)
    for child in release.iterdir():
        if child.name != "obqa":
            (folder / child.name).symlink_to(child)
    for child in (release / "obqa").iterdir():
        (folder / "obqa" / child.name).symlink_to(child)
    path = folder / "obqa" / "obqa_test.json"
    text = path.read_text()
    path.unlink()
    path.write_text("\n".join(text.split("\n")[1:]))
    result = call("data", "check", "--data-dir", folder)
    assert result.status == 2 and f"{path}: 499 rows, expected 500" in result.out
    assert len(result.out.splitlines()) == len(plugins.names("task")), "the other sets are checked too"


def test_data_info_of_the_sample(call: Call) -> None:
    result = call("data", "info", "--sample", "--task", "obqa", "--json")
    (facts,) = json.loads(result.out)
    assert result.status == 0 and facts["chance"] == 0.25
    assert "chance: 0.25" in call("data", "info", "--sample", "--task", "obqa").out
