"""What a training will hold, from its parts, and against what a process really held."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.experiment.runs import cells_of, one_cell, quick
from tinyllm_bench.preflight.dry_training import DryTraining
from tinyllm_bench.preflight.memory import LIBRARIES, asking_memory, memory_of
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

SHORT = ("data.train_limit=12", "budget.student_tokens=2000", "backend.device=cpu")


def test_the_parts(tiny_llama_dir: Path) -> None:
    training = DryTraining(one_cell(tiny_llama_dir, *SHORT))
    found = memory_of(training)
    parameters = sum(p.numel() for p in training.lm.parameters())
    assert found.weights == found.trained == 4 * parameters and found.moments == 8 * parameters
    assert found.teacher == 0 and found.activations > 0 and found.logits > 0
    assert found.peak > LIBRARIES + 16 * parameters


def test_what_makes_it_larger_or_smaller(tiny_llama_dir: Path, tmp_path: Path) -> None:
    def found(*settings: str, method: str = "finetune", student: Path = tiny_llama_dir) -> "tuple[int, int, int]":
        cell = one_cell(student, *SHORT, "student.init=null", "teacher.init=null", *settings, method=method)
        one = memory_of(DryTraining(cell))
        return one.activations, one.trained, one.teacher

    usual, adapters = found(), found("student.lora={r: 4}")
    assert adapters[1] < usual[1] / 10
    assert found("train.gradient_checkpointing=true")[0] < usual[0]
    assert found("train.micro_batch_tokens=64")[0] < usual[0]
    deep = saved(tiny_llama(num_hidden_layers=6), tmp_path / "deep")
    assert 2 < found(student=deep)[0] / usual[0] < 4
    other = saved(tiny_llama(seed=1), tmp_path / "other")
    assert found(f"teacher.model=dir:{other}", method="kd")[2] == usual[1]


def test_of_reference_baselines_and_encoder_decoders(tiny_llama_dir: Path, tiny_t5_dir: Path) -> None:
    baselines = cells_of(quick(tiny_llama_dir, *SHORT), reference_baselines=True)[:4]
    peaks = {cell.name: asking_memory(cell) for cell in baselines}
    assert peaks["random"] == LIBRARIES < peaks["zero_shot"] == peaks["few_shot"]
    assert memory_of(DryTraining(one_cell(tiny_t5_dir, *SHORT))).peak > LIBRARIES


REAL = """
import json, sys
from pathlib import Path
from tests.experiment.runs import one_cell, run_all
from tinyllm_bench.testing.tiny_models import saved, tiny_llama
from tinyllm_bench.preflight.dry_training import DryTraining
from tinyllm_bench.preflight.memory import memory_of
folder = Path(sys.argv[1])
wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
student = saved(tiny_llama(**wide), folder / "student")
short = ("data.train_limit=48", "budget.student_tokens=6000", "eval.limit=4", "eval.valid_limit=4")
cell = one_cell(student, *short, "train.batch_records=24", method="tinyllm", runs=folder / "runs")
estimate = memory_of(DryTraining(cell)).peak
(outcome,) = run_all([cell], cell.runs)
print(json.dumps([estimate, outcome.record.budget.peak_memory_bytes]))
"""


@pytest.mark.slow
def test_against_a_real_process(tmp_path: Path) -> None:
    """A student of 28 million parameters whose activations outweigh them."""
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TINYLLM_BENCH_CACHE": str(tmp_path / "cache")},
    )
    estimate, real = json.loads(done.stdout.splitlines()[-1])
    assert 1 / 1.5 < estimate / real < 1.5
