"""Kills a run with SIGKILL at chosen points, calls it again, and stores the results. Used by test_resume.py.

    python kill_and_resume.py STUDENT_FOLDER OUT_FOLDER

One process imports everything; every attempt is a fork of it, so that a kill is a real one and costs no imports.
Writes OUT/<stage>-<k>/{runs,cache} for each attempt, OUT/reference/ for the uninterrupted run and OUT/attempts.json.
"""

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lm_eval  # noqa: F401  imported before the forks, like all that follows
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

from tests.experiment.runs import one_cell, run_all
from tinyllm_bench.base.files import checked_line, write_json
from tinyllm_bench.evaluation import runner
from tinyllm_bench.experiment import annotate, predict
from tinyllm_bench.training import checkpoint
from tinyllm_bench.training.trainer import Trainer

POINTS = 3
STAGES = ("annotate", "train_before_checkpoint", "train_after_checkpoint", "predict")
# Where each stage writes: the owner of the function, its name.
PLACES: dict[str, tuple[Any, str]] = {
    "annotate": (annotate, "append_checked"),
    "train_before_checkpoint": (Trainer, "optimise"),
    "train_after_checkpoint": (checkpoint, "save_tensors"),
    "predict": (predict, "append_checked"),
}


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def half_append(path: Path, rows: Any) -> None:
    """Half of what should have been written, and then the end."""
    text = "".join(checked_line(row) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text[: len(text) // 2])
    die()


def half_checkpoint(path: Path, tensors: Any) -> None:
    """A checkpoint whose file stands there but is not whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x40" * 100)
    die()


def half_step(trainer: Trainer, groups: Any, index: int) -> None:
    """The end between two writes."""
    die()


ENDS: dict[str, Callable[..., None]] = {
    "annotate": half_append,
    "train_before_checkpoint": half_step,
    "train_after_checkpoint": half_checkpoint,
    "predict": half_append,
}


@contextmanager
def watched(stage: str, at: int, counts: Path | None = None) -> Iterator[None]:
    """Count the calls at a stage's place; the call number `at` (from 1, 0 for none) ends the process."""
    owner, name = PLACES[stage]
    original, calls = getattr(owner, name), 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            ENDS[stage](*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, call)
    yield
    setattr(owner, name, original)
    if counts is not None:
        write_json(counts, {**(json.loads(counts.read_text()) if counts.exists() else {}), stage: calls})


def run_here(student: Path, place: Path, *, checkpoints: bool) -> None:
    """The one request of all attempts: two teachers, so that every stage writes several times."""
    os.environ["TINYLLM_BENCH_CACHE"] = str(place / "cache")
    seconds = "0" if checkpoints else "1000000"
    settings = ("budget.student_tokens=30000", f"train.checkpoint_seconds={seconds}")
    run_all([one_cell(student, *settings, method="tinyllm")], place / "runs")


def forked(work: Callable[[], None]) -> int:
    """Do the work in a fork of this process; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 0
        try:
            work()
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def reference(student: Path, place: Path) -> dict[str, int]:
    """The uninterrupted run, and how often each stage writes in it."""
    counts = place / "counts.json"

    def work() -> None:
        with ExitStack() as stack:
            for stage in STAGES:
                stack.enter_context(watched(stage, 0, counts))
            run_here(student, place, checkpoints=True)

    assert forked(work) == 0
    return dict(json.loads(counts.read_text()))


def attempt(student: Path, place: Path, stage: str, at: int) -> dict[str, Any]:
    """Killed once at a point, then the same request again."""
    checkpoints = stage != "train_before_checkpoint"

    def killed() -> None:
        with watched(stage, at):
            run_here(student, place, checkpoints=checkpoints)

    first = forked(killed)
    stored = sorted(str(file.relative_to(place)) for file in place.rglob("*") if file.is_file())
    second = forked(lambda: run_here(student, place, checkpoints=checkpoints))
    return {"stage": stage, "at": at, "first": first, "second": second, "stored": stored}


def main(student: Path, out: Path) -> None:
    """All attempts: per stage three seeded points."""
    torch.set_num_threads(1)
    runner._task_manager("obqa")  # lm-eval's index of tasks is built once, not in every fork
    annotate.CHUNK, predict.CHUNK = 5, 3  # several writes for 24 and 16 records
    counts = reference(student, out / "reference")
    done = []
    for stage in STAGES:
        # The first three tensor files make the first checkpoint; afterwards there is one to go on from.
        first = 4 if stage == "train_after_checkpoint" else 1
        points = random.Random(f"kill/{stage}").sample(range(first, counts[stage] + 1), POINTS)
        done += [attempt(student, out / f"{stage}-{k}", stage, at) for k, at in enumerate(points)]
    write_json(out / "attempts.json", {"counts": counts, "attempts": done})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
