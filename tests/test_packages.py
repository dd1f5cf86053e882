"""Packages of plugins, really installed: the scaffolds of `new`, and the published method of examples/."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm_bench.testing.tiny_models import saved, tiny_llama

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "todi"


def python(site: Path, cwd: Path, *words: object) -> str:
    """Run Python with the installed packages, then this checkout, on its path; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    environment.pop("TINYLLM_BENCH_DATA", None)
    process = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-2000:]
    return process.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both scaffolds in it, and all three packages installed into its `site`."""
    folder = tmp_path_factory.mktemp("home")
    site = folder / "site"
    python(site, folder, "-m", "tinyllm_bench", "new", "method", "my_kd")
    python(site, folder, "-m", "tinyllm_bench", "new", "task", "my_task")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", site)
    python(site, folder, "-m", "pip", "install", *offline, "./my_kd", "./my_task", EXAMPLE)
    return folder


@pytest.mark.slow
def test_they_are_listed(home: Path) -> None:
    rows = json.loads(python(home / "site", home, "-m", "tinyllm_bench", "list", "plugins", "--json"))
    assert {(row["kind"], row["name"], row["package"], row["state"]) for row in rows} == {
        ("method", "my_kd", "my-kd", "ok"),
        ("method", "todi", "tinyllm-bench-todi", "ok"),
        ("task", "my_task", "my-task", "ok"),
    }


@pytest.mark.slow
def test_their_own_tests_pass(home: Path) -> None:
    """Each from its own folder, as its author does: pytest names modules by the folders that it starts in."""
    for folder in (home / "my_kd", home / "my_task", EXAMPLE):
        result = python(home / "site", folder, "-m", "pytest", "-q", "-p", "no:cacheprovider")
        assert " passed" in result and "skipped" not in result, folder


@pytest.mark.slow
def test_they_run_on_the_sample_and_on_a_file_of_their_own(home: Path, tiny_llama_dir: Path) -> None:
    teacher = saved(tiny_llama(seed=1), home / "teacher")
    small = [
        f"student.model=dir:{tiny_llama_dir}",
        f"teacher.model=dir:{teacher}",
        "budget.student_tokens=2000",
        "eval.valid_limit=4",
    ]
    small += ["method.todi.temperature=1.0", "teacher.init=null"]
    command = ("-m", "tinyllm_bench", "run", "--method", "my_kd,todi", "--task", "my_task", "--preset", "quickstart")
    python(home / "site", home, *command, "--no-reference-baselines", *small)
    (home / "data").mkdir()
    sample = home / "my_task" / "src" / "my_task" / "samples" / "my_task.jsonl"
    (home / "data" / "my_task.jsonl").write_text(sample.read_text())
    own = ("--data-dir", "data", "--runs-dir", "own", "teachers=[replay:release#terse]")
    python(home / "site", home, *command, *own, "--no-reference-baselines", *small)
    for runs, source in (("runs", "sample"), ("own", "release")):
        records = {r["name"]: r for f in (home / runs).glob("*/run.json") if (r := json.loads(f.read_text()))}
        assert set(records) == {"my_kd", "todi"} and {r["data"]["source"] for r in records.values()} == {source}
        assert all(record["score"]["n"] == 16 for record in records.values())
        assert records["todi"]["packages"]["tinyllm-bench-todi"].startswith("0.1.0 sha256:")
        assert {"my-kd", "my-task"} <= set(records["my_kd"]["packages"])
        assert records["my_kd"]["config"]["method"] == {"alpha": 0.5}
