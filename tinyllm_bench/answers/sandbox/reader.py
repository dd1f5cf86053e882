"""The parent's side of the worker that reads program texts; this process never parses one.

A worker that dies or stops answering is replaced, and the text that it was reading is refused; the other texts of the
request are not affected.
"""

import contextlib
import json
import os
import selectors
import subprocess
import time
from collections.abc import Sequence

from tinyllm_bench.answers.programs import MAX_CHARS, Prepared, too_long
from tinyllm_bench.answers.sandbox.runner import Limits, not_started

_MAX_LINE = 1 << 20  # bytes of one answer; a canonical form has at most 8,000 characters
READY = b"ready"  # the worker's first line
_START_S = 60.0  # seconds: a busy machine may be slow to start Python


class Reader:
    """Sends requests to one worker at a time. Use it only in threads that live as long as it does (see `launch`)."""

    def __init__(self, command: Sequence[str], limits: Limits) -> None:
        self._command, self._limits = list(command), limits
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self._answered = 0  # by the present worker
        self._worked_s = 0.0

    def read(self, operation: str, texts: Sequence[str]) -> list[Prepared]:
        """One result for every text, in order; a text that is too long is not even sent."""
        short = [text if len(text) <= MAX_CHARS else "" for text in texts]
        results: list[Prepared] = []
        while len(results) < len(texts):
            begin = time.perf_counter()
            problem = self._request(operation, short[len(results) :], results)
            self._worked_s += time.perf_counter() - begin
            if problem:
                blamed = self._answered == 0  # a fresh worker: this text is the reason
                self.close()
                if blamed:
                    results.append(Prepared(None, "rejected_by_gate", f"the source check {problem}"))
            elif self._worked_s > self._limits.serve_s:
                self.close()
        return [
            result if len(text) <= MAX_CHARS else Prepared(None, too_long(text).reason, too_long(text).detail)
            for text, result in zip(texts, results, strict=True)
        ]

    def _request(self, operation: str, texts: Sequence[str], results: list[Prepared]) -> str | None:
        """Send texts and append the results; returns what went wrong if the worker was lost meanwhile."""
        process = self._process or self._open()
        assert process.stdin is not None
        unsent = memoryview(json.dumps([operation, list(texts)]).encode() + b"\n")
        with selectors.DefaultSelector() as ready:
            ready.register(process.stdin, selectors.EVENT_WRITE)
            while unsent:  # the worker reads the whole request before it answers
                if not ready.select(self._limits.wall_s):
                    return "took too long"
                try:
                    unsent = unsent[os.write(process.stdin.fileno(), unsent) :]
                except OSError:
                    return "died"
        for _ in texts:
            line = self._line(process, self._limits.wall_s)
            if isinstance(line, str):
                return line
            result = _parse(line)
            if result is None:
                return "sent an invalid answer"
            results.append(result)
            self._answered += 1
        return None

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes | str:
        """The worker's next line, or what went wrong: it `died`, or `took too long`."""
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
        line = self._line(self._process, _START_S)
        if line != READY:
            self.close()
            raise not_started(f"the source check {line if isinstance(line, str) else 'sent an invalid answer'}")
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


def _parse(line: bytes) -> Prepared | None:
    """The result in a worker's line, trusted only as far as its types; None for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if type(row) is not list or [type(part) for part in row[2:4]] != [str, bool] or len(row) != 5:
        return None
    if any(type(part) not in (str, type(None)) for part in (row[0], row[1], row[4])):
        return None
    if (row[0] is None) == (row[1] is None):
        return None
    return Prepared(*row)
