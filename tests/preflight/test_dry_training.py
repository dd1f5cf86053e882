"""The memory of a training: its parts, and the total against that of a real process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import cells_of, one_cell, quick
from tests.preflight import doctor_plants as plants
from tinyllm_bench.preflight.dry_training import LIBRARIES, DryTraining, Memory, broken_step, small_copy
from tinyllm_bench.preflight.forecast import forecast
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

SHORT = ("data.train_limit=12", "budget.student_tokens=2000", "backend.device=cpu")


def test_the_parts_of_the_memory(tiny_llama_dir: Path) -> None:
    training = DryTraining(one_cell(tiny_llama_dir, *SHORT))
    memory = training.memory
    parameters = sum(p.numel() for p in training.lm.parameters())
    assert memory.weights == memory.trained == 4 * parameters and memory.moments == 8 * parameters
    assert memory.teacher == 0 and memory.activations > 0 and memory.logits > 0
    assert memory.peak > LIBRARIES + 16 * parameters


def test_what_makes_the_memory_larger_or_smaller(tiny_llama_dir: Path, tmp_path: Path) -> None:
    def memory(*settings: str, method: str = "finetune", student: Path = tiny_llama_dir) -> Memory:
        cell = one_cell(student, *SHORT, "student.init=null", "teacher.init=null", *settings, method=method)
        return DryTraining(cell).memory

    usual = memory()
    assert memory("student.lora={r: 4}").trained < usual.trained / 10
    assert memory("train.gradient_checkpointing=true").activations < usual.activations
    assert memory("train.micro_batch_tokens=64").activations < usual.activations
    deep = saved(tiny_llama(num_hidden_layers=6), tmp_path / "deep")
    assert 2 < memory(student=deep).activations / usual.activations < 4
    other = saved(tiny_llama(seed=1), tmp_path / "other")
    assert memory(f"teacher.model=dir:{other}", method="kd").teacher == usual.trained


WIDTHS = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("gpt2", {"n_embd": 16, "n_head": 2}),
        ("gemma3_text", WIDTHS),
        ("mixtral", WIDTHS | {"num_local_experts": 2}),
        ("mamba", {"hidden_size": 16, "num_hidden_layers": 2}),  # computes its `layer_types`
        ("t5", {"d_model": 16, "d_ff": 32, "num_heads": 2, "d_kv": 8}),  # names no first token of the decoder
    ],
)
def test_a_sound_model_of_any_family_passes_the_trial_step(kind: str, settings: dict[str, Any]) -> None:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = CONFIG_MAPPING[kind](**settings)
    family = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model = family.from_config(config)
    assert broken_step(model) is None
    small_copy(model)


def test_the_memory_of_reference_baselines_and_encoder_decoders(tiny_llama_dir: Path, tiny_t5_dir: Path) -> None:
    baselines = cells_of(quick(tiny_llama_dir, *SHORT), reference_baselines=True)[:4]
    plan = forecast(baselines, speed=plants.speed)
    peaks = {cell.name: plan.cell(cell.run_id).memory for cell in baselines}
    assert peaks["random"] == LIBRARIES < peaks["zero_shot"] == peaks["few_shot"]
    assert DryTraining(one_cell(tiny_t5_dir, *SHORT)).memory.peak > LIBRARIES


REAL = """
import json, sys
from pathlib import Path
from tests.experiment.runs import one_cell, run_all
from tinyllm_bench.testing.tiny_models import saved, tiny_llama
from tinyllm_bench.preflight.dry_training import LIBRARIES, DryTraining, Memory
from tinyllm_bench.preflight.forecast import forecast
folder = Path(sys.argv[1])
wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
student = saved(tiny_llama(**wide), folder / "student")
short = ("data.train_limit=48", "budget.student_tokens=6000", "eval.limit=4", "eval.valid_limit=4")
cell = one_cell(student, *short, "train.batch_records=24", method="tinyllm", runs=folder / "runs")
estimate = DryTraining(cell).memory.peak
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
