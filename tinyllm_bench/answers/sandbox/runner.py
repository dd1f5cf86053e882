"""Running a program in one Monty worker under limits, and the plain data that may enter and leave it.

Monty (`pydantic_monty`) interprets a program in a process of its own, checks time, memory and recursion there, offers
no file, network, process or environment, and replaces a worker that dies. Its `binary_path` is our launcher, so that
the process also carries the limits of the operating system. The source was checked before (`sandbox.pool`).
"""

import datetime
import json
import keyword
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tinyllm_bench.answers.programs import RAISED
from tinyllm_bench.base.errors import UserError

INSTALL = 'install it with `pip install "tinyllm-bench[programs]"`'

MAX_STDOUT = 65536  # bytes a program may print
STORED_STDOUT = 4096  # characters of it in a result
MAX_BITS = 1024  # of an int that enters or leaves
MAX_STRING = 4096  # characters
MAX_ITEMS = 64  # of one list or dict
MAX_DEPTH = 3
MAX_JSON = 128 * 1024  # characters
_LIVES = 10  # a worker is replaced after this many times one program's CPU seconds
_TRIES = 5  # starts of a worker: a busy machine may need more than one
_HEAP_SHARE = 4  # the heap's part of the address space, which also holds the interpreter's code and stacks
_RECURSION = 200
_SUSPENSIONS = 16  # requests of a program to its host, all of which are refused
_DETAIL = 200  # characters
_ENDS_WORKER = frozenset({"timeout", "memory", "exec_error:WorkerDied"})
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")
_EXPORT = "import json\njson.dumps({var})"
# No clock and no chance even if a program gets past the source check: it sees these.
_POLICY = {"datetime": datetime.datetime(2000, 1, 1), "sleep": "zero", "random_start": {"seed": 0}}


@dataclass(frozen=True, slots=True)
class ExecResult:
    """The result of running a program.

    `error` is a rejection reason (`syntax`, `rejected_by_gate`, `no_answer`, `timeout`, `memory`, `forbidden`,
    `exec_error:<type>`, ...) or None; `detail` explains it. `value` is plain data (None, bool, int, float,
    str, lists and dicts of these; tuples become lists). `ms` is wall time and is not compared.
    """

    ok: bool
    value: Any = None
    error: str | None = None
    detail: str = ""
    stdout: str = ""
    ms: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one program: CPU and wall seconds, and megabytes of the worker's address space."""

    cpu_s: float = 1.0
    wall_s: float = 2.0
    mem_mb: int = 256

    @property
    def serve_s(self) -> float:
        """Seconds a worker may work before it is replaced: RLIMIT_CPU counts over the life of a process."""
        return _LIVES * self.cpu_s

    @property
    def life_s(self) -> int:
        """RLIMIT_CPU of a worker: `serve_s` and enough for its last program."""
        return math.ceil(self.serve_s + 2 * self.wall_s)


class Runner:
    """Runs programs in one worker at a time. Use it only in threads that live as long as it does.

    The worker dies with the thread that started it. `launcher` is an executable that becomes a Monty worker.
    """

    def __init__(self, launcher: str, limits: Limits) -> None:
        self._launcher, self._limits = launcher, limits
        self._pool: Any = None
        self._worked_s = 0.0

    def run(self, code: str, var: str, inputs: Mapping[str, Any] | None = None) -> ExecResult:
        """Run a program in a session of its own and read one variable; nothing that a program does is raised.

        Opening the session and running have `wall_s` each; only a worker that a program took over needs the first.
        """
        if self._worked_s > self._limits.serve_s:
            self.close()
        pool = self._pool or self._open()
        begin = time.perf_counter()
        result = self._session(pool, code, var, dict(inputs or {}))
        seconds = time.perf_counter() - begin
        self._worked_s += seconds
        if result.error in _ENDS_WORKER:
            self.close()  # stopped in an unknown state: its heap is not trusted with another program
        return replace(result, ms=1000 * seconds)

    def close(self) -> None:
        """End the worker."""
        pool, self._pool, self._worked_s = self._pool, None, 0.0
        if pool is not None:
            pool.__exit__(None, None, None)

    def _open(self) -> Any:
        from pydantic_monty import Monty

        limits = self._limits
        problem = ""
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
                problem = str(error)[:_DETAIL]
                self.close()
        raise not_started(problem)

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
                    return ExecResult(False, None, reason, detail, printed.output[:STORED_STDOUT])
                # Only now, so that no exception of the program is taken for one of this.
                text = session.feed_run(_EXPORT.format(var=var))
        except Exception as error:
            reason, detail = classify(error, missing=var)
            return ExecResult(False, None, reason, detail, printed.output[:STORED_STDOUT])
        value, why = read_value(text)
        failed = "exec_error:ValueError" if why else None
        return ExecResult(why is None, value, failed, why or "", printed.output[:STORED_STDOUT])


def not_started(problem: str) -> UserError:
    """The error for a worker that cannot start; there is no other way to run a program."""
    return UserError(
        f"programs cannot be run: a sandbox worker did not start ({problem or 'no answer'}); it needs pydantic-monty"
        f" ({INSTALL}), /bin/sh, and a temporary folder from which files may be executed (TMPDIR)"
    )


def _raised(session: Any, error: Exception) -> bool:
    """Whether a program was ended by an exception that it raised itself (see `programs.runnable`)."""
    import pydantic_monty as monty

    if isinstance(error, monty.MontyCrashedError | monty.MontyDisconnectError):
        return False
    try:
        return session.feed_run(RAISED) is True
    except monty.MontyError:  # the name is not set: the program raises nothing, or a limit ended it
        return False


def classify(error: Exception, *, raised: bool = False, missing: str | None = None) -> tuple[str, str]:
    """The rejection reason of an exception of Monty, and a short explanation.

    An exception that the program raised itself (`raised`) is never a limit, a refusal or bad syntax, whatever its type
    and message. `missing` is the variable that was being read.
    """
    import pydantic_monty as monty

    detail = str(error)[:_DETAIL]
    if raised:
        name = type(error.exception()).__name__ if isinstance(error, monty.MontySyntaxError) else detail
        return _exec_error(name), detail
    if isinstance(error, monty.MontyCrashedError):
        return ("timeout" if error.timed_out else "exec_error:WorkerDied"), detail
    if isinstance(error, monty.MontySyntaxError):
        return "syntax", detail
    if isinstance(error, UnicodeEncodeError):
        return "syntax", "the text has a lone surrogate (half a character)"
    if not isinstance(error, monty.MontyError):
        return "exec_error:WorkerDied", detail  # it broke the protocol
    if not isinstance(error, monty.MontyRuntimeError):
        return f"exec_error:{type(error).__name__}", detail
    name, _, message = detail.partition(": ")
    if missing is not None and name == "NameError" and message.startswith(f"name '{missing}' is not defined"):
        return "no_answer", detail
    if name == "TimeoutError" and "limit exceeded" in message:
        return "timeout", detail
    if name == "MemoryError":
        return "memory", detail
    if name == "PermissionError":
        return "forbidden", detail
    return _exec_error(detail), detail


def _exec_error(message: str) -> str:
    """The reason for an exception, by its type: the part of its message before the first colon."""
    name = message.partition(": ")[0]
    return f"exec_error:{name if _TYPE.fullmatch(name) else 'Exception'}"


def unplain(value: Any, depth: int = 0) -> str | None:
    """Why a value is not plain data within the caps, in a few words; None if it is."""
    kind = type(value)
    if value is None or kind in (bool, float):
        return None
    if kind is int:
        return f"an int of more than {MAX_BITS} bits" if value.bit_length() > MAX_BITS else None
    if kind is str:
        return f"a string of more than {MAX_STRING} characters" if len(value) > MAX_STRING else None
    if kind not in (list, dict):
        return f"a value of type {kind.__name__}"
    if depth >= MAX_DEPTH:
        return f"nested more than {MAX_DEPTH} deep"
    if len(value) > MAX_ITEMS:
        return f"more than {MAX_ITEMS} items"
    parts = [*value, *value.values()] if kind is dict else list(value)
    if kind is dict and any(type(key) is not str for key in value):
        return "a key that is not a string"
    return next((why for part in parts if (why := unplain(part, depth + 1))), None)


def read_value(text: object) -> tuple[Any, str | None]:
    """Read JSON from a worker that a program may have taken over: `(value, None)` or `(None, what is wrong)`."""
    if type(text) is not str:
        return None, f"the worker sent a {type(text).__name__}"
    if len(text) > MAX_JSON:
        return None, f"more than {MAX_JSON} characters of JSON"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {type(error).__name__}"
    why = unplain(value)
    return (None, why) if why else (value, None)


def is_name(name: object) -> bool:
    """Whether a variable of this name may be set for a program, or read from it."""
    return type(name) is str and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
