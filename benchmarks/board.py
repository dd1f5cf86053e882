"""Does a board of 1,000 records build in under ten seconds, and does its page stay usable?

`python benchmarks/board.py [--records N] [--questions N] [--builds N] [--keep DIR]` makes records of thirty methods on
six tasks, eleven students and five seeds, builds their board several times and prints Markdown. With `--questions 0`
(the default) the tasks are as long as the six full test splits, 603 questions on average; the `cpu` preset has 200.
The last two tasks have closed answers, so that macro-F1 is part of the build. Wall time exceeds CPU time on a busy
machine. The first build includes importing scipy. If Chromium with its driver and selenium are installed, the page is
opened, sorted and filtered in it, and the script prints the times.
"""

import argparse
import importlib.util
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllm_bench.base.files import digest
from tinyllm_bench.leaderboard import board
from tinyllm_bench.leaderboard.record import RunRecord, ids_digest, protocol_hash, record_path, save_record

AIM = 10.0  # seconds for 1,000 records
FULL = (500, 1165, 919, 510, 400, 123)  # test questions of the six sets
ANSWERS = {"task4": 3, "task5": 2}  # closed ones: yes, no, maybe
METHODS, STUDENTS, SEEDS = 30, 11, 5
WRITTEN = (".md", ".html", ".csv", ".json", ".jsonl", ".yaml", ".tex")
CONFIG = (
    "title: Synthetic board\nbaseline: method-00\nbaseline_title: label-only fine-tuning\norder: [guess, method-00]\n"
)


def protocol(task: str, ids: list[str]) -> dict[str, Any]:
    """The protocol of a made-up task."""
    return {
        "task": task,
        "version": 1,
        "scored_ids_digest": ids_digest(ids),
        "n": len(ids),
        "mode": "cloze",
        "prompt_digest": "p",
        "parser_version": 1,
        "metric": "logprob per character",
        "max_context_words": 160,
    }


def record(task: str, method: int, student: int, seed: int, shared: dict[str, Any]) -> RunRecord:
    """One run of a method whose true accuracy depends on method and student."""
    ids = shared["ids"]
    rng = random.Random(f"{task}/{method}/{student}/{seed}")
    share = 0.3 + 0.01 * method + 0.02 * student + rng.gauss(0, 0.02)
    flags = [int(rng.random() < share) for _ in ids]
    name, spec = f"method-{method:02d}", f"dir:student-{student:02d}"
    n, right = len(ids), sum(flags)
    classes = ANSWERS.get(task, 1)
    gold = [min(place % (2 * classes - 1), classes - 1) for place in range(n)]
    answers = [key if flag else (key + 1) % classes for key, flag in zip(gold, flags, strict=True)]
    fields = {
        "run_id": f"{name}-{task}-cloze-s{seed}-{digest([task, method, student, seed])[:8]}",
        "created": "2026-01-02T03:04:05Z",
        "kind": "method",
        "name": name,
        "label": name,
        "sample": False,
        "task": task,
        "task_version": 1,
        "mode": "cloze",
        "seed": seed,
        "config": {"train": {"learning_rate": 5e-5, "batch": 32}, "student": {"model": spec}},
        "protocol": shared["protocol"],
        "protocol_hash": shared["hash"],
        "student": {"spec": spec, "initial_digest": f"{student:064x}"},
        "data": {"source": "release", "splits": {"test": {"rows": n, "digest": "d"}}, "train_ids_digest": "t"},
        "budget": {"student_tokens": 1_000_000 + rng.randrange(-9000, 9000), "seconds": 300 + 40 * method},
        "score": {"n": n, "correct": right, "wrong": n - right},
        "secondary": {"accuracy_plain": round(0.9 * right) / n},
        "chance": 0.25,
        "test_evaluations": 1,
        "items": list(zip(ids, answers, flags, strict=True)),
        "gold": gold if classes > 1 else (),
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
    for made_up in records(count, questions):
        save_record(made_up, folder / record_path(made_up))


SORT = """const button = document.querySelectorAll("thead th button")[2];
const begin = performance.now(); button.click(); document.body.offsetHeight; return performance.now() - begin"""
FILTER = """const done = arguments[0], search = document.getElementById("search"), begin = performance.now();
new MutationObserver(() => { document.body.offsetHeight; done(performance.now() - begin) })
  .observe(document.getElementById("count"), { childList: true });
search.value = "method-07 student-03"; search.dispatchEvent(new Event("input"))"""
PAINT = """return performance.getEntriesByName("first-contentful-paint")[0]?.startTime"""
READY = """return performance.getEntriesByType("navigation")[0].loadEventEnd"""


def page_times(page: Path) -> dict[str, float] | None:
    """Milliseconds to the first paint, until all is loaded, of a sort and of a filter; None without a browser.

    The filter's time holds the 120 ms that the page waits for further typing.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver or importlib.util.find_spec("selenium") is None:
        return None
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(page.resolve().as_uri())
        times = {"first paint": browser.execute_script(PAINT), "ready": browser.execute_script(READY)}
        times |= {"sort": browser.execute_script(SORT), "filter": browser.execute_async_script(FILTER)}
    finally:
        browser.quit()
    return {name: float(value) for name, value in times.items() if value is not None}


def cpu_seconds() -> float:
    """Of this process."""
    return time.process_time()


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--questions", type=int, default=0, help="a task (default: the full test splits)")
    parser.add_argument("--builds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--keep", type=Path, help="leave the board in this folder; records there are used again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = args.keep or Path(place) / "board"
        if not (folder / "results").is_dir():
            fill(folder, args.records, args.questions)
        bytes_of = [file.stat().st_size for file in (folder / "results").rglob("*.json")]
        print(f"{len(bytes_of):,} records, {sum(bytes_of) / 1e6:.0f} MB; the aim is {AIM:.0f} s\n")
        print("| build | CPU s | wall s |\n|---|---|---|")
        builds = []
        walls = []
        for number in range(1, args.builds + 1):
            begin = cpu_seconds(), time.perf_counter()
            board.board_build(folder)
            walls.append(time.perf_counter() - begin[1])
            print(f"| {number} | {cpu_seconds() - begin[0]:.1f} | {walls[-1]:.1f} |", flush=True)
            builds.append({file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in WRITTEN})
        print(f"| median | | {statistics.median(walls):.1f} |")
        sizes = ", ".join(f"{name} {len(data) / 1e6:.1f} MB" for name, data in sorted(builds[0].items()))
        took = page_times(folder / "index.html")
        told = took and ", ".join(f"{name} {value:.0f} ms" for name, value in took.items())
        print(f"\nPage in Chromium: {told or 'not measured, no browser with its driver and selenium here'}.")
        same = all(one == builds[0] for one in builds[1:])
        print(f"\nSame bytes each time: {'yes' if same else 'NO'}. {sizes}.")


if __name__ == "__main__":
    main()
