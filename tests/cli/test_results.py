"""`compare`, `protocol diff`, `verify` and `curves` on the command line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tests.leaderboard.test_curves import write_run
from tinyllm_bench.leaderboard.verdicts import refutations_of, tier_of


@pytest.fixture
def runs(call: Call, small: list[Any], tmp_path: Path) -> Path:
    """A leaderboard of a method and the fine-tuning baseline, two seeds each, and the reference baselines."""
    result = call("run", "--method", "finetune,tinyllm", "--task", "obqa", "--seeds", 2, *small)
    assert result.status == 0, result.err
    return tmp_path / "runs"


def run_of(runs: Path, start: str) -> Path:
    return next(iter(sorted(runs.glob(f"{start}-*"))))


@pytest.mark.slow
def test_the_whole_way(call: Call, runs: Path) -> None:
    result = call("verify", runs, "--board-dir", runs / "board", "--by", "A. Maintainer")
    assert result.status == 0 and len(re.findall(r"^ok .*: re-scored$", result.out, re.MULTILINE)) == 8
    run = run_of(runs, "finetune")
    (kept,) = (runs / "board").rglob(f"{run.name}.verified")
    assert tier_of(kept.with_suffix(".json")) == "re-scored" and '"by": "A. Maintainer"' in kept.read_text()
    result = call("verify", runs / "board", "--json")
    assert result.status == 0 and {one["tier"] for one in json.loads(result.out)} == {"self-reported"}

    result = call("compare", "tinyllm", "finetune", "--in", runs / "board", "--show-items")
    assert result.status == 0 and result.out.startswith("obqa, ") and "(sample data)" in result.out
    assert "for new runs and new questions of this kind)" in result.out
    assert "exact permutation p" in result.out and "for these trained students only: exact McNemar p" in result.out
    result = call("compare", "tinyllm", "finetune", "--in", runs, "--json", "--show-items")
    data = json.loads(result.out)["comparisons"][0]
    assert data["first"]["seeds"] == [0, 1] and data["n"] == 16 and isinstance(data["items"], list)
    pair = run_of(runs, "finetune"), run_of(runs, "tinyllm")
    result = call("compare", *pair)
    assert result.status == 0 and "note: a trained side has one seed" in result.out
    result = call("compare", runs / "board", runs / "board")
    assert result.status == 0 and "the same run is on both sides" in result.out

    assert call("protocol", "diff", *pair).out.startswith("same protocol ")
    result = call("verify", run, "--refute", "trained on the test split", "--by", "B")
    assert result.status == 0 and result.out.startswith("refuted finetune-") and len(refutations_of(run)) == 1
    assert "trained on the test split" in call("verify", run).out


def test_what_does_not_hold_has_status_1_and_a_line_each(call: Call, small: list[Any], tmp_path: Path) -> None:
    assert call("run", "--method", "finetune", "--task", "obqa", "--no-reference-baselines", *small).status == 0
    (run,) = (tmp_path / "runs").glob("finetune-*")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"test_evaluations": 3}))
    result = call("verify", run)
    assert result.status == 1 and result.err == ""
    assert result.out.splitlines()[:2] == [
        f"FAILED {run}: 1 problem",
        f"  {run}/run.json: test_evaluations is 3; expected 1 as ledger.jsonl says",
    ]
    result = call("verify", run, "--json")
    (found,) = json.loads(result.out)
    assert result.status == 1 and found["ok"] is False and found["problems"][0]["wrong"] == "test_evaluations is 3"


@pytest.mark.slow
def test_protocols_that_differ_have_status_1_and_no_comparison(call: Call, small: list[Any], tmp_path: Path) -> None:
    for limit in (8, 16):
        arguments = (
            "run",
            "--method",
            "finetune",
            "--task",
            "obqa",
            "--no-reference-baselines",
            *small,
            f"eval.limit={limit}",
        )
        assert call(*arguments).status == 0
    runs = sorted((tmp_path / "runs").glob("finetune-*"))
    result = call("protocol", "diff", *runs)
    assert result.status == 1 and "scored_ids_digest" in result.out and "8 of " in result.out
    data = json.loads(call("protocol", "diff", *runs, "--json").out)
    assert [one["field"] for one in data["fields"]] == ["scored_ids_digest", "n", "prompt_digest"] and not data["same"]
    result = call("compare", *runs)
    assert result.status == 2 and result.err.count("\n") == 1
    assert "differ in scored_ids_digest, n, prompt_digest" in result.err


def test_wrong_requests_are_one_line(call: Call, tmp_path: Path) -> None:
    for arguments, expected in (
        (("verify", tmp_path / "none"), "no record there; give a run's folder"),
        (("compare", tmp_path / "a" / "run.json", tmp_path / "b"), "no run folder, record or board there"),
        (("compare", "a", "b", "--in", tmp_path), "holds no records"),
        (("protocol", "diff", "a", "b", "--in", tmp_path), "holds no records"),
    ):
        result = call(*arguments)
        assert (
            result.status == 2
            and result.err.startswith("error: ")
            and result.err.count("\n") == 1
            and expected in result.err
        )


def test_a_board_s_owner_verifies_what_is_added(call: Call, small: list[Any], tmp_path: Path) -> None:
    assert call("run", "--method", "finetune", "--task", "obqa", "--no-reference-baselines", *small).status == 0
    (run,) = (tmp_path / "runs").glob("finetune-*")
    board = tmp_path / "owner"
    assert call("verify", run, "--board-dir", board).err.startswith(f"error: run {run.name} is not on the board")
    assert call("board", "add", run, "--board-dir", board).status == 0
    assert call("verify", run, "--refute", "no", "--board-dir", board).status == 0
    result = call("board", "add", run, "--board-dir", board, "--verify", "--by", "The owner")
    assert result.status == 0 and f"re-scored: {board}" in result.out
    page = (board / "README.md").read_text()
    assert "| re-scored" in page and "refuted on" in page and not list(run.glob("*refut*"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"test_evaluations": 3}))
    result = call("board", "add", run, "--board-dir", tmp_path / "other", "--verify")
    assert (
        result.status == 2 and "test_evaluations is 3; expected 1" in result.err and len(result.err.splitlines()) == 1
    )
    assert not (tmp_path / "other").exists()


# --- curves -----------------------------------------------------------------------------------------------------------


def test_curves_prints_and_draws_every_run_of_a_folder(call: Call, tmp_path: Path) -> None:
    for name in ("run-a", "run-b"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "board").mkdir()
    result = call("curves", tmp_path / "runs")
    assert result.status == 0 and result.err == ""
    for name in ("run-a", "run-b"):
        picture = tmp_path / "runs" / name / "train" / "curves.svg"
        assert (
            picture.read_text().endswith("</svg>\n") and f"\n  {picture}\n" in result.out and f"{name}\n" in result.out
        )


def test_several_in_one_picture(call: Call, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("run-a", "run-b")]
    result = call("curves", *runs, "--to", tmp_path / "both.svg")
    assert result.status == 0 and result.out.splitlines()[-1] == f"2 runs: {tmp_path / 'both.svg'}"
    assert "Training of 2 runs" in (tmp_path / "both.svg").read_text()
    assert not (runs[0] / "train" / "curves.svg").exists()


def test_curves_that_are_refused(call: Call, tmp_path: Path) -> None:
    result = call("curves", tmp_path)
    assert result.status == 2 and f"no training metrics in {tmp_path}" in result.err
    result = call("curves", write_run(tmp_path / "run-a"), "--to", tmp_path / "x.png")
    assert result.status == 2 and "name a file that ends in .svg" in result.err
