"""The contract of methods (`tinyllm_bench.testing`) for the built-in methods and a fake third party's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.learning import METHODS, FakeMethod, assert_close
from tinyllm_bench.base import plugins
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.leaderboard.record import load_record
from tinyllm_bench.testing import MethodContract, method_contract

globals().update({f"Test_{name}": method_contract(name) for name in plugins.names("method")})


class TestFakeThirdParty(MethodContract):
    method = FakeMethod
    ask = Ask(mode="multiple_choice", markers={"again": "\nAnswer:"})  # its two channels have one prompt


@pytest.mark.slow
def test_two_processes_give_the_gradient_and_the_student_of_one(tmp_path: Path) -> None:
    """One pair of processes serves all methods: starting one costs seconds."""
    script = Path(__file__).with_name("two_processes.py")
    environment = {
        **os.environ,
        "PYTHONPATH": str(script.parent.parent),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    for count in (1, 2):
        result = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)),
                *("--master-port", str(29500 + os.getpid() % 1000), str(script), str(tmp_path / str(count))),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert result.returncode == 0, result.stderr[-3000:]
    for name in METHODS:
        single, pair = (load_file(tmp_path / str(count) / f"{name}.safetensors") for count in (1, 2))
        assert_close(single, pair, rtol=1e-5)  # two processes share prompts as well
    records = [load_record(next((tmp_path / str(count) / "runs").glob("*/run.json"))) for count in (1, 2)]
    assert [record.training.steps for record in records if record.training] == [2, 2]
    assert records[0].run_id == records[1].run_id and records[0].budget and records[1].budget
    assert records[0].budget.student_tokens == records[1].budget.student_tokens
    weights = [load_file(next((tmp_path / str(n) / "runs").glob("*/student/*.safetensors"))) for n in (1, 2)]
    assert_close(*weights, rtol=1e-3)
