"""A run that is killed resumes where it stopped and ends with the same bytes as one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tinyllm_bench.base.files import read_checked
from tinyllm_bench.leaderboard.record import load_record

pytestmark = pytest.mark.slow
STAGES = ("annotate", "train_before_checkpoint", "train_after_checkpoint", "predict")
attempts = pytest.mark.parametrize("k", range(3))
stages = pytest.mark.parametrize("stage", STAGES)


@pytest.fixture(scope="module")
def out(tiny_llama_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("kill_and_resume.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": ""}
    command = [sys.executable, str(script), str(tiny_llama_dir), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def reported(out: Path, stage: str, k: int) -> dict[str, Any]:
    rows = json.loads((out / "attempts.json").read_text())["attempts"]
    return [row for row in rows if row["stage"] == stage][k]


def run_of(place: Path) -> Path:
    (file,) = (place / "runs").glob("*/run.json")
    return file.parent


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what time and place decide."""
    for key in ("created", "peak_memory_bytes", "seconds", "train_seconds", "tokens_per_second"):
        record.pop(key, None)
        record["budget"].pop(key, None)
    record["config"]["train"].pop("checkpoint_seconds")
    for key in ("git", "request"):  # the checkout may change meanwhile; the settings name the checkpoint's seconds
        record.pop(key)
    return record


def test_every_stage_writes_often_enough_to_be_killed_in_between(out: Path) -> None:
    counts = json.loads((out / "attempts.json").read_text())["counts"]
    assert all(counts[stage] >= 5 for stage in STAGES), counts


@stages
@attempts
def test_it_was_killed_and_resumed(out: Path, stage: str, k: int) -> None:
    attempt = reported(out, stage, k)
    assert attempt["first"] == -9 and attempt["second"] == 0
    stored = attempt["stored"]
    assert not any(name.endswith("run.json") for name in stored), "killed before it was finished"
    assert any("checkpoints" in name and name.endswith("manifest.json") for name in stored) == (
        stage == "train_after_checkpoint"
    )
    assert any(name.endswith("train/result.json") for name in stored) == (stage == "predict")
    assert any("runs/" in name and "metrics.jsonl" in name for name in stored) == (
        stage in ("train_after_checkpoint", "predict") or (stage == "train_before_checkpoint" and attempt["at"] > 1)
    )


@stages
@attempts
def test_the_predictions_are_the_same_bytes(out: Path, stage: str, k: int) -> None:
    expected, result = run_of(out / "reference"), run_of(out / f"{stage}-{k}")
    name = Path("predictions") / "obqa.jsonl.zst"
    assert (result / name).read_bytes() == (expected / name).read_bytes()
    assert not list((result / "predictions").glob("*.part.jsonl"))


@stages
@attempts
def test_student_metrics_and_record_are_the_same(out: Path, stage: str, k: int) -> None:
    expected, result = run_of(out / "reference"), run_of(out / f"{stage}-{k}")
    assert result.name == expected.name, "a place or a time is no part of the cell"
    weights = "student/model.safetensors"
    assert (result / weights).read_bytes() == (expected / weights).read_bytes()
    metrics = "train/metrics.jsonl"
    assert (result / metrics).read_bytes() == (expected / metrics).read_bytes()
    records = [load_record(folder) for folder in (expected, result)]
    assert records[1].test_evaluations == 1
    first, second = (plain(record.model_dump(mode="json")) for record in records)
    assert second == first


@stages
@attempts
def test_annotations_are_whole_and_in_order(out: Path, stage: str, k: int) -> None:
    texts = []
    for place in ("reference", f"{stage}-{k}"):
        files = sorted((out / place / "cache" / "annotations").glob("*/*.jsonl"))
        texts.append([list(read_checked(file)) for file in files])
    assert texts[0] == texts[1] and [len(rows) for rows in texts[0]] == [24, 24]


def test_what_was_done_is_not_done_again(out: Path) -> None:
    """After a kill in predict, training is read back; the chunks that stood there are kept."""
    for k in range(3):
        folder = run_of(out / f"predict-{k}")
        events = [row["event"] for row in read_checked(folder / "events.jsonl") if row["event"] != "cell_started"]
        assert events == [
            "annotation_finished",
            "training_finished",
            "annotation_finished",
            "training_finished",
            "run_recorded",
        ]
        metrics = [row for row in read_checked(folder / "train" / "metrics.jsonl") if row["event"] == "training_step"]
        assert [row["step"] for row in metrics] == list(range(1, len(metrics) + 1))
