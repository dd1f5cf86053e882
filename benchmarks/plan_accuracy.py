"""The accuracy of `plan`: requests are forecast, then run, each in a process of its own, and both are compared.

A request is one method on one task with 200 training questions, by default every method on the first task. Time is wall
time of the whole process, including its start and the cells that train first; memory is the largest peak in the
results; disk is the size of the folder of runs at the end.

`python benchmarks/plan_accuracy.py [--methods NAMES] [--tasks NAMES] [--preset NAME] [key=value ...]`
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-c", "from tinyllm_bench.cli import main; main()")


def compare(arguments: list[str], runs: Path) -> dict[str, tuple[float, float]]:
    """The forecast and the measurement of a request, by quantity."""
    plan = subprocess.run([*COMMAND, "plan", *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    forecast: dict[str, Any] = json.loads(plan.stdout)["totals"]
    began = time.monotonic()
    subprocess.run([*COMMAND, "run", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    trained = [json.loads(file.read_text()) for file in runs.glob("*/train/result.json")]
    folders = [file for folder in runs.iterdir() if folder.name != "board" for file in folder.rglob("*")]
    return {
        "steps": (forecast["steps"], sum(result["steps"] for result in trained)),
        "tokens": (forecast["student_tokens"], sum(result["student_tokens"] for result in trained)),
        "TFLOP": (forecast["flops"] / 1e12, sum(result["flops"] for result in trained) / 1e12),
        "seconds": (forecast["seconds"], seconds),
        "memory, GB": (forecast["memory"] / 1e9, max(result["peak_memory_bytes"] for result in trained) / 1e9),
        "disk, GB": (forecast["disk"] / 1e9, sum(file.stat().st_size for file in folders if file.is_file()) / 1e9),
    }


def main() -> None:
    """Forecast, run, compare."""
    from tinyllm_bench.base.plugins import names

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(names("method")))
    parser.add_argument("--tasks", default=names("task")[0])
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("settings", nargs="*", help="settings as of `tinyllm-bench run`")
    args = parser.parse_args()
    for task in args.tasks.split(","):
        for method in args.methods.split(","):
            with tempfile.TemporaryDirectory() as folder:
                words = ["--method", method, "--task", task, "--preset", args.preset, "--no-reference-baselines"]
                words += ["--runs-dir", folder, "data.train_limit=200", *args.settings]
                try:
                    comparison = compare(words, Path(folder))
                except subprocess.CalledProcessError as error:
                    print(f"{method} on {task}: skipped, status {error.returncode}", file=sys.stderr)
                    continue
            print(f"{method} on {task}")
            for name, (forecast, measured) in comparison.items():
                ratio = f"{forecast / measured:5.2f}" if measured else "  n/a"
                numbers = f"forecast {forecast:>12,.2f}  measured {measured:>12,.2f}  ratio {ratio}"
                print(f"  {name:<11} {numbers}", flush=True)


if __name__ == "__main__":
    main()
