"""Does a board of 10,000 records build in under ten seconds?

`python benchmarks/board.py [--records N] [--questions N] [--keep DIR]` makes records of thirty methods on six tasks,
eleven students and five seeds, builds their board twice in this process and prints Markdown. With `--questions 0` (the
default) the tasks are as long as the six full test splits, 603 questions on average. CPU seconds are what the build
needs; wall seconds are more on a machine that does other work. The first build includes importing pandas and scipy.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllm_bench.base.files import digest
from tinyllm_bench.report import board
from tinyllm_bench.report.page_data import record_path
from tinyllm_bench.report.record import RunRecord, ids_digest, protocol_hash, save_record

AIM = 10.0  # seconds for 10,000 records
FULL = (500, 1165, 919, 510, 400, 123)  # test questions of the six sets
METHODS, STUDENTS, SEEDS = 30, 11, 5
WRITTEN = (".md", ".html", ".csv", ".json", ".jsonl", ".yaml", ".tex")
CONFIG = "title: Synthetic board\nfloor: method-00\nfloor_title: label-only fine-tuning\norder: [guess, method-00]\n"


def protocol(task: str, ids: list[str]) -> dict[str, Any]:
    """The protocol of a made-up task."""
    return {
        "task": task,
        "version": 1,
        "scored_ids_digest": ids_digest(ids),
        "n": len(ids),
        "reading": "cloze",
        "prompt_digest": "p",
        "parser_version": 1,
        "metric": "logprob per character",
        "max_context_words": 160,
    }


def record(task: str, method: int, student: int, seed: int, shared: dict[str, Any]) -> RunRecord:
    """One run of a method whose true accuracy depends on method and student."""
    ids, asked = shared["ids"], shared["protocol"]
    draw = random.Random(f"{task}/{method}/{student}/{seed}")
    share = 0.3 + 0.01 * method + 0.02 * student + draw.gauss(0, 0.02)
    flags = [int(draw.random() < share) for _ in ids]
    name, spec = f"method-{method:02d}", f"dir:student-{student:02d}"
    n, right = len(ids), sum(flags)
    fields = {
        "run_id": f"{name}-{task}-cloze-s{seed}-{digest([task, method, student, seed])[:8]}",
        "created": "2026-01-02T03:04:05Z",
        "kind": "method",
        "name": name,
        "label": name,
        "sample": False,
        "task": task,
        "task_version": 1,
        "reading": "cloze",
        "seed": seed,
        "config": {"train": {"learning_rate": 5e-5, "batch": 32}, "student": {"model": spec}},
        "protocol": asked,
        "protocol_hash": shared["hash"],
        "student": {"spec": spec, "initial_digest": f"{student:064x}"},
        "data": {"source": "release", "splits": {"test": {"rows": n, "digest": "d"}}, "train_ids_digest": "t"},
        "budget": {"student_tokens": 1_000_000 + draw.randrange(-9000, 9000), "seconds": 300 + 40 * method},
        "score": {"n": n, "correct": right, "wrong": n - right},
        "secondary": {"accuracy_plain": 0.9 * right / n},
        "chance": 0.25,
        "test_looks": 1,
        "items": [(one, 0, flag) for one, flag in zip(ids, flags, strict=True)],
        "backend": {"name": "hf", "dtype": "float32", "device": "cpu"},
        "git": {"commit": "0" * 40, "dirty": False},
        "command": f"tinyllm-bench run --method {name} --task {task} --seed {seed}",
    }
    return RunRecord.model_validate(fields)


def records(count: int, questions: int) -> Iterator[RunRecord]:
    """At most `count` records, in a fixed order."""
    for index, size in enumerate(FULL):
        task = f"task{index}"
        ids = [f"{task}/test/{i}" for i in range(questions or size)]
        shared = {"ids": ids, "protocol": protocol(task, ids), "hash": protocol_hash(protocol(task, ids))}
        per_task = count // len(FULL) + (index < count % len(FULL))
        cells = ((m, s, e) for s in range(STUDENTS + 1) for m in range(METHODS) for e in range(SEEDS))
        for method, student, seed in list(cells)[:per_task]:
            yield record(task, method, student, seed, shared)


def fill(folder: Path, count: int, questions: int) -> None:
    """Save the records where `board add` would."""
    (folder / "boards").mkdir(parents=True, exist_ok=True)
    (folder / "boards" / "main.yaml").write_text(CONFIG)
    for one in records(count, questions):
        save_record(one, folder / record_path(one))


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--questions", type=int, default=0, help="a task (default: the full test splits)")
    parser.add_argument("--keep", type=Path, help="leave the board in this folder; records there are used again")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = asked.keep or Path(place) / "board"
        if not (folder / "results").is_dir():
            fill(folder, asked.records, asked.questions)
        found = [file.stat().st_size for file in (folder / "results").rglob("*.json")]
        print(f"{len(found):,} records, {sum(found) / 1e6:.0f} MB; the aim is {AIM:.0f} s\n")
        print("| build | CPU s | wall s |\n|---|---|---|")
        builds = []
        for name in ("first", "second"):
            begin = time.process_time(), time.perf_counter()
            board.board_build(folder)
            print(f"| {name} | {time.process_time() - begin[0]:.1f} | {time.perf_counter() - begin[1]:.1f} |")
            builds.append({file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in WRITTEN})
        sizes = ", ".join(f"{name} {len(data) / 1e6:.1f} MB" for name, data in sorted(builds[0].items()))
        print(f"\nSame bytes twice: {'yes' if builds[0] == builds[1] else 'NO'}. {sizes}.")


if __name__ == "__main__":
    main()
