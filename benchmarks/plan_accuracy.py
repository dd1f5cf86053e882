"""How near `plan` comes: cells drawn by a seed are planned, then run, each in a fresh process.

A cell is a method, a task of the main suite and 200 or 400 training records; combinations that this machine cannot run
are passed over. Wall time is of the whole process, start and cells that train first included; memory is the largest
peak that the records tell; tokens and FLOPs are of all trainings together.

`python benchmarks/plan_accuracy.py [--cells N] [--seed N] [--preset NAME] [--keep DIR] [key=value ...]`
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

LIMITS = (200, 400)


class Drawn(NamedTuple):
    """One cell that is planned and run."""

    method: str
    task: str
    records: int


def drawn_cells(count: int, seed: int, preset: str, settings: list[str]) -> list[Drawn]:
    """The first `count` of all combinations, shuffled by the seed, that can be run here."""
    from tinyllm_bench.base.errors import UserError
    from tinyllm_bench.base.plugins import names
    from tinyllm_bench.experiment.request import expand

    every = [Drawn(*one) for one in product(names("method"), expand("task", ("all",)), LIMITS)]
    random.Random(seed).shuffle(every)
    found = []
    for one in every:
        if len(found) == count:
            break
        try:
            cell_of(one, Path("runs"), preset, settings)
        except UserError as error:
            print(f"passed over: {one.method} on {one.task}: {error}", file=sys.stderr)
        else:
            found.append(one)
    return found


def cell_of(one: Drawn, runs: Path, preset: str, settings: list[str]) -> Any:
    """The cell, the first of its method's variants."""
    from tinyllm_bench.experiment.cell import plan_cells
    from tinyllm_bench.experiment.request import Request

    limit = f"data.train_limit={one.records}"
    request = Request(
        methods=(one.method,), tasks=(one.task,), preset=preset, assignments=(*settings, limit), runs=runs
    )
    return plan_cells(request)[1][0]


def planned(cell: Any) -> dict[str, Any]:
    """What the plan says of a cell and of those that it needs first."""
    from tinyllm_bench.preflight.estimate import Planner, totals
    from tinyllm_bench.preflight.plan import start_seconds

    start = start_seconds()
    planner = Planner()
    planner.add(cell)
    plans = list(planner.plans.values())
    total = totals(plans, start=start, price=None)
    parts = [{"cell": plan.label, **(plan.seconds or {})} for plan in plans]
    return {**_four(total, total["student_tokens"]), "parts": parts, "probe": planner.probe_seconds}


def _four(found: dict[str, Any], tokens: float) -> dict[str, Any]:
    return {"seconds": found["seconds"], "memory": found["memory"], "tokens": tokens, "flops": found["flops"]}


def happened(cell: Any) -> dict[str, Any]:
    """What running it took."""
    import psutil

    from tinyllm_bench.base.files import read_checked, read_json
    from tinyllm_bench.experiment.predict import Engines
    from tinyllm_bench.experiment.stages import run_cell

    with Engines() as engines:
        record = run_cell(cell, cell.runs, engines, report=lambda event: None).record
    seconds = time.time() - psutil.Process().create_time()
    assert record is not None and record.budget is not None
    folders = [cell.runs / one.run_id for one in _all(cell)]
    results = [read_json(f / "train" / "result.json") for f in folders if (f / "train" / "result.json").exists()]
    return {
        "seconds": seconds,
        "memory": max(record.budget.peak_memory_bytes or 0, *(one["peak_memory_bytes"] for one in results)),
        "tokens": sum(one["student_tokens"] for one in results),
        "flops": sum(one["flops"] for one in results),
        "parts": [{key: one[key] for key in ("seconds", "rollout_seconds", "peak_memory_bytes")} for one in results],
        "events": [row for folder in folders for row in read_checked(folder / "events.jsonl")],
    }


def _all(cell: Any) -> list[Any]:
    return [*(one for first in cell.earlier for one in _all(first)), cell]


def apart(what: str, one: Drawn, asked: argparse.Namespace, runs: Path) -> dict[str, Any]:
    """Plan or run a cell in a process of its own."""
    command = [sys.executable, __file__, "--apart", what, json.dumps(one), "--runs", str(runs)]
    command += ["--preset", asked.preset, *asked.settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(one: Drawn, plan: dict[str, Any], run: dict[str, Any]) -> str:
    """Planned, happened, and the ratio of the two."""
    units = {"seconds": (1.0, "s"), "memory": (1e9, "GB"), "tokens": (1.0, ""), "flops": (1e12, "TFLOP")}
    lines = [f"{one.method} on {one.task}, {one.records} training records (probe {plan['probe']:.0f} s)"]
    for key, (unit, name) in units.items():
        said, was = plan[key], run[key]
        ratio = f"{said / was:5.2f}" if said is not None and was else "  n/a"
        shown = "n/a" if said is None else f"{said / unit:,.2f}"
        lines.append(f"  {key:<8} planned {shown:>12}  happened {was / unit:>12,.2f} {name:<6} ratio {ratio}")
    return "\n".join(lines)


def main() -> None:
    """Draw, plan, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--keep", type=Path, help="a folder for the runs; a temporary one by default")
    parser.add_argument("--only", help="METHOD:TASK:RECORDS instead of a draw")
    parser.add_argument("--apart", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="settings as of `tinyllm-bench run`")
    asked = parser.parse_args()
    if asked.apart:
        what, one = asked.apart[0], Drawn(*json.loads(asked.apart[1]))
        work = planned if what == "plan" else happened
        print(json.dumps(work(cell_of(one, asked.runs, asked.preset, asked.settings))))
        return
    if asked.only:
        method, task, records = asked.only.split(":")
        chosen = [Drawn(method, task, int(records))]
    else:
        chosen = drawn_cells(asked.cells, asked.seed, asked.preset, asked.settings)
    with tempfile.TemporaryDirectory() as made:
        for one in chosen:
            runs = (asked.keep or Path(made)) / f"{one.method}-{one.task}-{one.records}"
            os.makedirs(runs, exist_ok=True)
            plan = apart("plan", one, asked, runs)
            run = apart("run", one, asked, runs)
            (runs / "accuracy.json").write_text(json.dumps({"planned": plan, "happened": run}, indent=1))
            print(table(one, plan, run), flush=True)


if __name__ == "__main__":
    main()
