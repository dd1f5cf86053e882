"""The parent's side of the worker that reads program texts: it never parses one itself.

A worker that dies or stops answering is replaced, and the text that it was reading is refused; the others of the same
request go on.
"""

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Sequence

from tinyllm_bench.answers.program_check import MAX_CHARS, too_long
from tinyllm_bench.answers.program_source import Prepared
from tinyllm_bench.answers.sandbox_runner import Limits, not_started

_MAX_LINE = 1 << 20  # bytes of one answer; a canonical form has at most 8,000 characters
READY = b"ready"  # what the worker says first
_START_S = 60.0  # seconds: a busy machine may be slow to start Python


class Reader:
    """Asks one worker at a time. Use it only in threads that live as long as it does (see `sandbox_launch`)."""

    def __init__(self, command: Sequence[str], limits: Limits) -> None:
        self._command, self._limits = list(command), limits
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._answered = 0  # by the present worker
        self._worked_s = 0.0

    def ask(self, operation: str, texts: Sequence[str]) -> list[Prepared]:
        """One answer for every text, in order; a text that is too long is not even sent."""
        sent = [text if len(text) <= MAX_CHARS else "" for text in texts]
        return [
            found if len(text) <= MAX_CHARS else Prepared(None, too_long(text).reason, too_long(text).detail)
            for text, found in zip(texts, self._ask_all(operation, sent), strict=True)
        ]

    def _ask_all(self, operation: str, texts: Sequence[str]) -> list[Prepared]:
        answers: list[Prepared] = []
        while len(answers) < len(texts):
            begin = time.perf_counter()
            lost = self._ask_rest(operation, texts[len(answers) :], answers)
            self._worked_s += time.perf_counter() - begin
            if lost:
                blamed = self._answered == 0  # a worker that was fresh: its death is this text's doing
                self.close()
                if blamed:
                    answers.append(Prepared(None, "rejected_by_gate", f"the source check {lost}"))
            elif self._worked_s > self._limits.serve_s:
                self.close()
        return answers

    def _ask_rest(self, operation: str, texts: Sequence[str], answers: list[Prepared]) -> str | None:
        """Ask for texts and append what comes; what went wrong, if the worker was lost on the way."""
        process = self._process or self._open()
        if lost := self._send(process, json.dumps([operation, list(texts)]).encode() + b"\n"):
            return lost
        for _ in texts:
            line = self._line(process, self._limits.wall_s)
            if isinstance(line, str):
                return line
            found = _read(line)
            if found is None:
                return "answered nonsense"
            answers.append(found)
            self._answered += 1
        return None

    def _send(self, process: subprocess.Popen[bytes], data: bytes) -> str | None:
        """Write a request; what is wrong if the worker does not take it: it reads all of it before it answers."""
        assert process.stdin is not None
        left = memoryview(data)
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdin, selectors.EVENT_WRITE)
            while left:
                if not ready.select(self._limits.wall_s):
                    return "took too long"
                try:
                    left = left[os.write(process.stdin.fileno(), left) :]
                except OSError:
                    return "died"
        return None

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | str:
        """The next line, or what is wrong: the worker `died`, or `took too long`."""
        assert process.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not ready.select(left):
                    return "took too long"
                part = os.read(process.stdout.fileno(), 1 << 16)
                self._buffer += part
                if not part or len(self._buffer) > _MAX_LINE:
                    return "died"
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _open(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={}, close_fds=True, bufsize=0
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        said = self._line(self._process, _START_S)
        if said != READY:
            self.close()
            raise not_started(f"the source check {said if isinstance(said, str) else 'answered nonsense'}")
        return self._process

    def close(self) -> None:
        """End the worker; the next request starts another."""
        process, self._process = self._process, None
        self._buffer, self._answered, self._worked_s = b"", 0, 0.0
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # unsent text for a worker that is gone
                pipe.close()


def _read(line: bytes) -> Prepared | None:
    """What a worker answered, trusted only as far as its types."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if type(found) is not list or [type(part) for part in found[2:4]] != [str, bool] or len(found) != 5:
        return None
    if any(type(part) not in (str, type(None)) for part in (found[0], found[1], found[4])):
        return None
    if (found[0] is None) == (found[1] is None):
        return None
    return Prepared(*found)
