"""Programs per second in the sandbox, with and without its source check, warm, in turn, medians over rounds.

`python benchmarks/sandbox.py [--programs N] [--rounds N] [--workers N]` runs the programs of the folder
`mixed_distillation` beside TINYLLM_BENCH_DATA, or generated ones if that is not set. The aim is 3,000 programs per
second with the check.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.answers.sandbox.runner import ExecResult

AIM = 3000  # programs per second on two cores


def recorded(folder: Path) -> list[str]:
    """Every program of both files, in file order."""
    programs: list[str] = []
    for file in sorted(folder.glob("*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            programs += [part["pot"] for part in (row, *row.values()) if isinstance(part, dict) and part.get("pot")]
    return programs


def generated(count: int) -> list[str]:
    """Programs like a teacher's: a few named facts, some arithmetic, an answer."""
    return [
        f"apples_begin = {i}\napples_bought = {i % 17} * 12\nprice_each = {i % 5 + 1} / 4\n"
        "apples_total = apples_begin + apples_bought\nanswer = apples_total * price_each"
        for i in range(count)
    ]


def without_check(box: Sandbox, codes: Sequence[str]) -> list[ExecResult]:
    """Run programs without the source check, which no user can do; it shows the cost of the check."""
    return box._spread(lambda slot, a, b: [slot.runner.run(code, "answer") for code in codes[a:b]], len(codes))


def measure(forms: dict[str, Callable[[], object]], count: int, rounds: int) -> dict[str, list[float]]:
    """Programs per second of every round; the forms take turns, and the first round only warms up."""
    speeds_of: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, work in forms.items():
            begin = time.perf_counter()
            work()
            if number:
                speeds_of[name].append(count / (time.perf_counter() - begin))
    return speeds_of


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=9001, help="at most (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    data = os.environ.get("TINYLLM_BENCH_DATA")
    codes = recorded(Path(data).resolve().parent / "mixed_distillation") if data else []
    kind = "recorded" if codes else "generated"
    codes = (codes or generated(args.programs))[: args.programs]
    begin = time.perf_counter()
    with Sandbox(workers=args.workers) as box:
        print(
            f"{len(codes)} {kind} programs, {args.workers} workers on {os.cpu_count()} cores, {args.rounds} rounds,"
            f" started in {time.perf_counter() - begin:.2f} s"
        )
        assert box.map(["answer = 6 * 7"])[0].value == 42
        forms: dict[str, Callable[[], object]] = {
            "source check and run": lambda: box.map(codes),
            "run only": lambda: without_check(box, codes),
            "canonical form only": lambda: box.prepare(codes),
        }
        for name, speeds in measure(forms, len(codes), args.rounds).items():
            middle = statistics.median(speeds)
            print(f"  {name:<22} {middle:8.0f} programs/s  ({min(speeds):.0f}-{max(speeds):.0f})")
            if name == "source check and run":
                print(f"  {'':<22} {'meets' if middle >= AIM else 'misses'} the aim of {AIM} programs/s")


if __name__ == "__main__":
    main()
