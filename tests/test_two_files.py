"""A method is two files and a task is two, and no other file changes: tested in a copy of the repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tinyllm_bench", "baselines", "tasks", "tests", "scripts", "leaderboards", "docs", "examples", "benchmarks")
FILES = ("pyproject.toml", "mkdocs.yml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "LICENSE")
METHOD, TASK = "added_method", "added_task"
CHECKS = (  # tests that cover every method and every task
    f"tests/test_method_contract.py::Test_{METHOD}",
    f"tests/test_tasks_contract.py::Test_{TASK}",
    "tests/test_tasks_contract.py",
    "tests/test_lm_eval_tasks.py",
    "tests/test_architecture.py",
    "tests/experiment/test_request.py",
    "tests/cli/test_app.py::test_lists",
    "tests/data/test_checks.py",
)
CODE = '''"""Label-only training whose loss counts twice.

Paper: none; added by a test.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyllm_bench import (
    LABEL,
    Annotation,
    Ask,
    Example,
    Method,
    MethodConfig,
    Step,
    TaskRecord,
    TeacherSignal,
    Term,
    channel_cross_entropy,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch


class AddedConfig(MethodConfig):
    """weight: of the label's loss."""

    weight: float = 1.0


class Added(Method):
    """Train on the gold answer with a weight."""

    paper = "none"
    Config = AddedConfig

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The label."""
        return [ask.example(record, LABEL, ask.label_target(record))]

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """Weighted cross-entropy."""
        sums = channel_cross_entropy(batch, student)
        return [Term(channel, self.config.weight, total) for channel, total in sums.items()]


METHOD = Added
'''
FACTS = f'''"""Which word was named: two options, added by a test.

A row (invented here):

    {{"id": "0", "question": "...", "choices": ["one", "two"], "answer": "one"}}

Source: a test.
Licence: Apache-2.0.
"""

from collections.abc import Mapping
from typing import Any

from tinyllm_bench import Split, TaskInfo, TaskRecord, multiple_choice


def to_record(row: Mapping[str, Any], split: Split) -> TaskRecord:
    """The record of a row."""
    return multiple_choice(row, task="{TASK}", split=split)


TASK = TaskInfo(
    name="{TASK}",
    title="An added task",
    version=1,
    sizes={{"train": 24, "valid": 8, "test": 16}},
    to_record=to_record,
    source="a test",
    licence="Apache-2.0",
    suite="native",
)
'''


def sample() -> str:
    rows = []
    for number in range(48):
        choices = [f"word {number}", f"word {number + 50}"]
        answer = choices[number % 2]
        row = {
            "id": str(number),
            "split": "train" if number < 24 else "valid" if number < 32 else "test",
            "question": f"Ada names {answer} in round {number}. Which word does she name?",
            "choices": choices,
            "answer": answer,
        }
        result = {"terse": f"It is {answer}.", "stepwise": f"She names {answer}."}
        rows.append({**row, "rationales": result} if number < 24 else row)
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the four files, and with what `make tasks` makes of them."""
    copy = tmp_path_factory.mktemp("checkout") / "copy"
    copy.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    (copy / "baselines" / f"{METHOD}.py").write_text(CODE)
    (copy / "baselines" / f"{METHOD}.yaml").write_text("method: {weight: 2.0}\n")
    (copy / "tasks" / f"{TASK}.py").write_text(FACTS)
    (copy / "tasks" / "samples" / f"{TASK}.jsonl").write_text(sample())
    output = python(copy, "-m", "tinyllm_bench.evaluation.task_yaml")
    assert f"wrote {TASK}_cloze.yaml" in output and "wrote _group_native_multiple_choice.yaml" in output
    return copy


def python(copy: Path, *words: str) -> str:
    """Run Python in the copy, with its files before those that are installed; returns its output."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=550
    )
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-2000:]
    return process.stdout


@pytest.mark.slow
def test_the_checks_of_every_method_and_task_pass(checkout: Path) -> None:
    run = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    python(checkout, *run, "-m", "not slow and not release", *CHECKS)
    result = python(checkout, *run, "-m", "slow", "-k", f"Test_{METHOD}", "tests/test_method_contract.py")
    assert " passed" in result and "failed" not in result


@pytest.mark.slow
def test_both_run_together(checkout: Path, tiny_llama_dir: Path, tmp_path: Path) -> None:
    small = [f"student.model=dir:{tiny_llama_dir}", "budget.student_tokens=2000", "eval.valid_limit=4"]
    command = [
        "run",
        "--method",
        METHOD,
        "--task",
        TASK,
        "--preset",
        "quickstart",
        "--runs-dir",
        str(tmp_path / "runs"),
    ]
    python(checkout, "-m", "tinyllm_bench", *command, *small)
    records = [json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*/run.json")]
    assert {record["name"] for record in records} == {METHOD, "random", "majority", "zero_shot", "few_shot"}
    (mine,) = [record for record in records if record["name"] == METHOD]
    assert mine["config"]["method"] == {"weight": 2.0} and mine["task"] == TASK and mine["score"]["n"] == 16
