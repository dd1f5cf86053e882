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
    said = call("run", "--method", "finetune,tinyllm", "--task", "obqa", "--seeds", 2, *small)
    assert said.status == 0, said.err
    return tmp_path / "runs"


def run_of(runs: Path, start: str) -> Path:
    return next(iter(sorted(runs.glob(f"{start}-*"))))


@pytest.mark.slow
def test_the_whole_way(call: Call, runs: Path) -> None:
    said = call("verify", runs, "--board-dir", runs / "board", "--by", "A. Maintainer")
    assert said.status == 0 and len(re.findall(r"^ok .*: re-scored$", said.out, re.MULTILINE)) == 8
    run = run_of(runs, "finetune")
    (kept,) = (runs / "board").rglob(f"{run.name}.verified")
    assert tier_of(kept.with_suffix(".json")) == "re-scored" and '"by": "A. Maintainer"' in kept.read_text()
    said = call("verify", runs / "board", "--json")
    assert said.status == 0 and {one["tier"] for one in json.loads(said.out)} == {"self-reported"}

    said = call("compare", "tinyllm", "finetune", "--in", runs / "board", "--show-items")
    assert said.status == 0 and said.out.startswith("obqa, ") and "(sample data)" in said.out
    assert "for new runs and new questions of this kind)" in said.out
    assert "exact permutation p" in said.out and "for these trained students only: exact McNemar p" in said.out
    said = call("compare", "tinyllm", "finetune", "--in", runs, "--json", "--show-items")
    data = json.loads(said.out)["comparisons"][0]
    assert data["first"]["seeds"] == [0, 1] and data["n"] == 16 and isinstance(data["items"], list)
    pair = run_of(runs, "finetune"), run_of(runs, "tinyllm")
    said = call("compare", *pair)
    assert said.status == 0 and "note: a trained side has one seed" in said.out
    said = call("compare", runs / "board", runs / "board")
    assert said.status == 0 and "the same run stands on both sides" in said.out

    assert call("protocol", "diff", *pair).out.startswith("same protocol ")
    said = call("verify", run, "--refute", "trained on the test split", "--by", "B")
    assert said.status == 0 and said.out.startswith("refuted finetune-") and len(refutations_of(run)) == 1
    assert "trained on the test split" in call("verify", run).out


def test_what_does_not_hold_has_status_1_and_a_line_each(call: Call, small: list[Any], tmp_path: Path) -> None:
    assert call("run", "--method", "finetune", "--task", "obqa", "--no-reference-baselines", *small).status == 0
    (run,) = (tmp_path / "runs").glob("finetune-*")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"test_evaluations": 3}))
    said = call("verify", run)
    assert said.status == 1 and said.err == ""
    assert said.out.splitlines()[:2] == [
        f"FAILED {run}: 1 problem",
        f"  {run}/run.json: test_evaluations is 3; expected 1 as ledger.jsonl says",
    ]
    said = call("verify", run, "--json")
    (found,) = json.loads(said.out)
    assert said.status == 1 and found["ok"] is False and found["problems"][0]["wrong"] == "test_evaluations is 3"


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
    said = call("protocol", "diff", *runs)
    assert said.status == 1 and "scored_ids_digest" in said.out and "8 of " in said.out
    data = json.loads(call("protocol", "diff", *runs, "--json").out)
    assert [one["field"] for one in data["fields"]] == ["scored_ids_digest", "n", "prompt_digest"] and not data["same"]
    said = call("compare", *runs)
    assert said.status == 2 and said.err.count("\n") == 1
    assert "differ in scored_ids_digest, n, prompt_digest" in said.err


def test_wrong_requests_are_one_line(call: Call, tmp_path: Path) -> None:
    for arguments, expected in (
        (("verify", tmp_path / "none"), "no record there; give a run's folder"),
        (("compare", tmp_path / "a" / "run.json", tmp_path / "b"), "no run folder, record or board there"),
        (("compare", "a", "b", "--in", tmp_path), "holds no records"),
        (("protocol", "diff", "a", "b", "--in", tmp_path), "holds no records"),
    ):
        said = call(*arguments)
        assert (
            said.status == 2 and said.err.startswith("error: ") and said.err.count("\n") == 1 and expected in said.err
        )


def test_a_board_s_owner_verifies_what_is_added(call: Call, small: list[Any], tmp_path: Path) -> None:
    assert call("run", "--method", "finetune", "--task", "obqa", "--no-reference-baselines", *small).status == 0
    (run,) = (tmp_path / "runs").glob("finetune-*")
    board = tmp_path / "owner"
    assert call("verify", run, "--board-dir", board).err.startswith(f"error: run {run.name} is not on the board")
    assert call("board", "add", run, "--board-dir", board).status == 0
    assert call("verify", run, "--refute", "no", "--board-dir", board).status == 0
    said = call("board", "add", run, "--board-dir", board, "--verify", "--by", "The owner")
    assert said.status == 0 and f"re-scored: {board}" in said.out
    page = (board / "README.md").read_text()
    assert "| re-scored" in page and "refuted on" in page and not list(run.glob("*refut*"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"test_evaluations": 3}))
    said = call("board", "add", run, "--board-dir", tmp_path / "other", "--verify")
    assert said.status == 2 and "test_evaluations is 3; expected 1" in said.err and len(said.err.splitlines()) == 1
    assert not (tmp_path / "other").exists()


# --- curves -----------------------------------------------------------------------------------------------------------


def test_curves_prints_and_draws_every_run_of_a_folder(call: Call, tmp_path: Path) -> None:
    for name in ("run-a", "run-b"):
        write_run(tmp_path / "runs" / name)
    (tmp_path / "runs" / "board").mkdir()
    said = call("curves", tmp_path / "runs")
    assert said.status == 0 and said.err == ""
    for name in ("run-a", "run-b"):
        picture = tmp_path / "runs" / name / "train" / "curves.svg"
        assert picture.read_text().endswith("</svg>\n") and f"\n  {picture}\n" in said.out and f"{name}\n" in said.out


def test_several_in_one_picture(call: Call, tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("run-a", "run-b")]
    said = call("curves", *runs, "--to", tmp_path / "both.svg")
    assert said.status == 0 and said.out.splitlines()[-1] == f"2 runs: {tmp_path / 'both.svg'}"
    assert "Training of 2 runs" in (tmp_path / "both.svg").read_text()
    assert not (runs[0] / "train" / "curves.svg").exists()


def test_curves_that_are_refused(call: Call, tmp_path: Path) -> None:
    said = call("curves", tmp_path)
    assert said.status == 2 and f"no training metrics in {tmp_path}" in said.err
    said = call("curves", write_run(tmp_path / "run-a"), "--to", tmp_path / "x.png")
    assert said.status == 2 and "name a file that ends in .svg" in said.err
