"""One slot of the sandbox: a pool of one Monty worker under limits, which runs programs one after another.

Monty (`pydantic_monty`) interprets a program in a process of its own, checks time, memory and recursion there, offers
no file, network, process or environment, and replaces a worker that dies. Its `binary_path` is our launcher, so that
the process also carries the limits of the operating system. Nothing here looks at the source: see `sandbox`.
"""

import datetime
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tinyllm_bench.answers.program_source import RAISED
from tinyllm_bench.answers.sandbox_values import read_value
from tinyllm_bench.base.errors import UserError

INSTALL = 'install it with `pip install "tinyllm-bench[programs]"`'

MAX_STDOUT = 65536  # bytes a program may print
KEPT_STDOUT = 4096  # characters that are kept of them
_LIVES = 10  # times one program's CPU seconds that a worker may serve before it is replaced
_TRIES = 5  # starts of a worker: a busy machine may need more than one
_HEAP_SHARE = 4  # the interpreter's heap gets this part of the address space, which also holds its code and stacks
_RECURSION = 200
_SUSPENSIONS = 16  # requests of a program to its host, all of which are refused
_DETAIL = 200  # characters
_ENDS_WORKER = frozenset({"timeout", "memory", "exec_error:WorkerDied"})
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")
_EXPORT = "import json\njson.dumps({var})"
# Below the source check, too, no clock and no chance: a program that gets at them sees these.
_POLICY = {"datetime": datetime.datetime(2000, 1, 1), "sleep": "zero", "random_start": {"seed": 0}}


@dataclass(frozen=True, slots=True)
class ExecResult:
    """What running a program gave.

    `error` is a rejection reason (`syntax`, `rejected_by_gate`, `no_answer`, `timeout`, `memory`, `forbidden`,
    `exec_error:<type>`, ...) or None; `detail` says more, for people. `value` is plain data (None, bool, int, float,
    str, lists and dicts of these; a tuple has become a list). `ms` is wall time, and no part of equality.
    """

    ok: bool
    value: Any = None
    error: str | None = None
    detail: str = ""
    stdout: str = ""
    ms: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use: CPU and wall seconds, and megabytes of the worker's address space."""

    cpu_s: float = 1.0
    wall_s: float = 2.0
    mem_mb: int = 256

    @property
    def serve_s(self) -> float:
        """Seconds a worker may work before it is replaced: RLIMIT_CPU counts over the life of a process."""
        return _LIVES * self.cpu_s

    @property
    def life_s(self) -> int:
        """RLIMIT_CPU of a worker: what it may serve, and its last program with room to spare."""
        return math.ceil(self.serve_s + 2 * self.wall_s)


class Runner:
    """Runs programs in one worker at a time. Open and use it only in threads that live as long as it does.

    The worker dies with the thread that started it. `launcher` is an executable that becomes a Monty worker.
    """

    def __init__(self, launcher: str, limits: Limits) -> None:
        self._launcher, self._limits = launcher, limits
        self._pool: Any = None
        self._worked_s = 0.0

    def run(self, code: str, var: str, inputs: Mapping[str, Any] | None = None) -> ExecResult:
        """Run a program in a session of its own and read one variable; it never raises for a program's sake.

        Opening the session and running have `wall_s` each; only a worker that is not ours any more uses the first.
        """
        if self._worked_s > self._limits.serve_s:
            self.close()
        pool = self._pool or self._open()
        begin = time.perf_counter()
        result = self._session(pool, code, var, dict(inputs or {}))
        seconds = time.perf_counter() - begin
        self._worked_s += seconds
        if result.error in _ENDS_WORKER:
            self.close()  # stopped in the middle of something: its heap is not trusted with another program
        return replace(result, ms=1000 * seconds)

    def close(self) -> None:
        """End the worker."""
        pool, self._pool, self._worked_s = self._pool, None, 0.0
        if pool is not None:
            pool.__exit__(None, None, None)

    def _open(self) -> Any:
        from pydantic_monty import Monty

        limits = self._limits
        said = ""
        for _ in range(_TRIES):
            try:
                self._pool = Monty(
                    binary_path=self._launcher,
                    min_processes=1,
                    max_processes=1,
                    checkout_timeout=limits.wall_s,
                    request_timeout=limits.wall_s,
                    feed_duration_limit_grace=limits.wall_s - limits.cpu_s,
                ).__enter__()
                with self._pool.checkout() as session:
                    session.feed_run("1")  # so that no program pays for the start of its worker
                return self._pool
            except Exception as error:
                said = str(error)[:_DETAIL]
                self.close()
        raise not_started(said)

    def _session(self, pool: Any, code: str, var: str, inputs: dict[str, Any]) -> ExecResult:
        import pydantic_monty

        heap = {
            "max_feed_duration_secs": self._limits.cpu_s,
            "max_memory": (self._limits.mem_mb << 20) // _HEAP_SHARE,
            "max_recursion_depth": _RECURSION,
            "max_suspensions": _SUSPENSIONS,
        }
        printed = pydantic_monty.CollectString(MAX_STDOUT)
        try:
            with pool.checkout(limits=heap, os_policy=_POLICY) as session:
                try:
                    session.feed_run(code, inputs=inputs, print_callback=printed)
                except pydantic_monty.MontyError as error:
                    reason, detail = classify(error, raised=_raised(session, error))
                    return ExecResult(False, None, reason, detail, printed.output[:KEPT_STDOUT])
                # Only now, so that no exception of the program is taken for one of this.
                text = session.feed_run(_EXPORT.format(var=var))
        except Exception as error:
            reason, detail = classify(error, missing=var)
            return ExecResult(False, None, reason, detail, printed.output[:KEPT_STDOUT])
        value, why = read_value(text)
        failed = "exec_error:ValueError" if why else None
        return ExecResult(why is None, value, failed, why or "", printed.output[:KEPT_STDOUT])


def not_started(said: str) -> UserError:
    """The error for a worker that cannot start; there is no other way to run a program."""
    return UserError(
        f"programs cannot be run: a sandbox worker did not start ({said or 'no answer'}); it needs pydantic-monty"
        f" ({INSTALL}), /bin/sh, and a temporary folder from which files may be executed (TMPDIR)"
    )


def _raised(session: Any, error: Exception) -> bool:
    """Whether what ended a program is an exception that it raised itself (see `program_source.runnable`)."""
    import pydantic_monty as monty

    if isinstance(error, monty.MontyCrashedError | monty.MontyDisconnectError):
        return False
    try:
        return session.feed_run(RAISED) is True
    except monty.MontyError:  # no such name: the program raises nothing, or a limit ended it
        return False


def classify(error: Exception, *, raised: bool = False, missing: str | None = None) -> tuple[str, str]:
    """The rejection reason of what Monty raised, and a short text for people.

    The reason is what the sandbox saw: an exception that the program raised itself (`raised`) is never a limit, a
    refusal or bad syntax, whatever its type and words. `missing` is the variable that was read when this came.
    """
    import pydantic_monty as monty

    detail = str(error)[:_DETAIL]
    if raised:
        name = type(error.exception()).__name__ if isinstance(error, monty.MontySyntaxError) else detail
        return _own(name), detail
    if isinstance(error, monty.MontyCrashedError):
        return ("timeout" if error.timed_out else "exec_error:WorkerDied"), detail
    if isinstance(error, monty.MontySyntaxError):
        return "syntax", detail
    if isinstance(error, UnicodeEncodeError):
        return "syntax", "the text holds half a character (a lone surrogate)"
    if not isinstance(error, monty.MontyError):
        return "exec_error:WorkerDied", detail  # it broke the protocol
    if not isinstance(error, monty.MontyRuntimeError):
        return f"exec_error:{type(error).__name__}", detail
    return _reason(detail, missing), detail


def _reason(said: str, missing: str | None) -> str:
    name, _, message = said.partition(": ")
    if missing is not None and name == "NameError" and message.startswith(f"name '{missing}' is not defined"):
        return "no_answer"
    if name == "TimeoutError" and "limit exceeded" in message:
        return "timeout"
    if name == "MemoryError":
        return "memory"
    if name == "PermissionError":
        return "forbidden"
    return _own(said)


def _own(said: str) -> str:
    """The reason for an exception by its type, the first word of what is said of it."""
    name = said.partition(": ")[0]
    return f"exec_error:{name if _TYPE.fullmatch(name) else 'Exception'}"
