"""Fills one cache with a slow generator, in many processes and with many kills. Used by test_cache.py.

    python cache_and_kill.py fill FOLDER NAME OTHER    fill it, as NAME, from when the process OTHER is ready too
    python cache_and_kill.py kill FOLDER               ten fills that SIGKILL ends at seeded moments, then a whole one

The generator notes each prompt in FOLDER/calls.log before it writes, so that every text that was ever begun is known.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.requests import Completion, GenerationRequest, SamplingConfig
from tinyllm_bench.teachers.cache import TextCache

TEACHER = {"model": "slow", "chat": "never"}
REQUESTS = [GenerationRequest(f"Question {n}: what sinks?", SamplingConfig(max_new_tokens=8), n) for n in range(80)]
SECONDS = 0.02  # one text
KILLS = 10


class SlowGenerator:
    """Takes its time for each text, and makes no text twice: a text names its process and the moment."""

    engine = "slow"
    batch = 5

    def __init__(self, log: Path, name: str) -> None:
        self.log = log
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion]]:
        for index, request in enumerate(requests):
            note(self.log, f"{self.name} {request.seed}")
            time.sleep(SECONDS)
            yield index, Completion(f"{self.name} {request.seed} {time.monotonic_ns()}", 5, 3, "stop", SECONDS)


def note(log: Path, line: str) -> None:
    """Append a line at once: other processes write here too."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def cache_in(folder: Path) -> TextCache:
    """The cache of these tests."""
    return TextCache(folder / "slow" / "0123456789abcdef", TEACHER)


def fill(folder: Path, name: str) -> int:
    """Fill the cache; returns how many texts there are."""
    cache = cache_in(folder)
    rows = cache.fill(
        REQUESTS, lambda: SlowGenerator(folder / "calls.log", name), on_error="stop", report=lambda event: None
    )
    return len(rows)


def texts_in(folder: Path) -> dict[str, str]:
    """Every cached text by its key; damage is an error."""
    return {row["key"]: row["text"] for row in cache_in(folder).rows()}


def killed_fill(folder: Path, name: str, after: float) -> bool:
    """Fill in a fork that SIGKILL ends after some seconds; whether it was still at work."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if fill(folder, name) == len(REQUESTS) else 1
        except UserError as error:
            sys.stderr.write(f"{error}\n")
        os._exit(status)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def kill(folder: Path) -> dict[str, Any]:
    """Ten killed fills, and the cached texts after each; then a whole one."""
    moments = random.Random("cache/kill")
    cached, killed = [], []
    for attempt in range(KILLS):
        killed.append(killed_fill(folder, f"killed-{attempt}", moments.uniform(0.01, 0.2)))
        cached.append(texts_in(folder))
    return {"killed": killed, "cached": cached, "end": fill(folder, "whole")}


def meet(folder: Path, own: str, other: str) -> None:
    """Wait until both processes have started, which takes longer than the work."""
    (folder / f"ready-{own}").touch()
    deadline = time.monotonic() + 60
    while not (folder / f"ready-{other}").exists():
        assert time.monotonic() < deadline, f"{other} never came"
        time.sleep(0.01)


def main() -> None:
    folder = Path(sys.argv[2])
    if sys.argv[1] == "kill":
        (folder / "attempts.json").write_text(json.dumps(kill(folder)))
    else:
        meet(folder, *sys.argv[3:])
        assert fill(folder, sys.argv[3]) == len(REQUESTS)


if __name__ == "__main__":
    main()
