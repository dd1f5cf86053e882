"""Running programs that a model wrote: contained, limited, repeatable, and with a named reason for every failure.

A program's author is untrusted. Its text is parsed (`worker`) and run (`runner`) in worker processes only, never here,
and only plain data comes back. Three limits bound every program: those of the interpreter (`runner`), those of the
operating system (`launch`), and the wall clock of this process. Without the interpreter nothing is run: a `UserError`
says so.
"""

import contextlib
import math
import os
import queue
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tinyllm_bench.answers.programs import Prepared
from tinyllm_bench.answers.sandbox.reader import Reader
from tinyllm_bench.answers.sandbox.runner import INSTALL, ExecResult, Limits, Runner, is_name, not_started, unplain
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import temporary_folder

_RUNTIME = "pydantic-monty-runtime"  # the distribution that carries the interpreter's executable
_HERE = Path(__file__).resolve().parent
_CHUNK = 64  # texts in one request
_SHARES = 4  # requests of a worker in one `map`, so that no worker waits long for another
_MIN_MB = 192  # with less the interpreter itself does not start
_T = TypeVar("_T")


class _Slot:
    """A reader and a runner that serve one thread at a time."""

    def __init__(self, launcher: str, reader: Sequence[str], limits: Limits) -> None:
        self.reader, self.runner = Reader(reader, limits), Runner(launcher, limits)

    def close(self) -> None:
        self.reader.close()
        self.runner.close()


class Sandbox:
    """A pool of workers that read and run programs; a context manager.

    Args:
        cpu_s: CPU seconds of one program.
        wall_s: seconds after which a program's worker is killed; not below `cpu_s`.
        mem_mb: address space of a worker in megabytes; a quarter of it is the program's heap.
        workers: programs that run at the same time.

    Raises:
        UserError: an impossible setting, the interpreter missing, not on Linux, or a worker that cannot start.
    """

    def __init__(self, *, cpu_s: float = 1.0, wall_s: float = 2.0, mem_mb: int = 256, workers: int = 2) -> None:
        if not 0 < cpu_s <= wall_s < math.inf:
            raise UserError(f"cpu_s={cpu_s}, wall_s={wall_s}: give seconds with 0 < cpu_s <= wall_s, such as 1 and 2")
        if mem_mb < _MIN_MB:
            raise UserError(f"mem_mb={mem_mb}: a worker needs at least {_MIN_MB} megabytes; the default is 256")
        if workers < 1:
            raise UserError(f"workers={workers}: give at least 1")
        self._limits, self._workers = Limits(cpu_s, wall_s, mem_mb), workers
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._stack = contextlib.ExitStack()
        self._threads: ThreadPoolExecutor | None = None
        self._owner, self._closing = 0, False

    def __enter__(self) -> Self:
        interpreter = find_interpreter()
        self._owner, self._closing = os.getpid(), False
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(temporary_folder("tinyllm-bench-sandbox"))
            launcher = folder / "monty"  # Monty starts an executable file, not a command
            command = shlex.join(launch_command(self._limits, interpreter))
            launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
            launcher.chmod(0o700)
            # A worker dies with the thread that started it: only these threads, which live until the end, start one.
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="sandbox")
            stack.callback(self._close_slots)
            stack.callback(self._threads.shutdown, cancel_futures=True)
            for _ in range(self._workers):
                self._slots.put(_Slot(str(launcher), reader_command(self._limits), self._limits))
            for future in [self._submit(_check_start) for _ in range(self._workers)]:
                future.result()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True  # `map` stops before the next program
        self._stack.close()
        self._threads = None

    def run(self, code: str, var: str = "answer", inputs: Mapping[str, Any] | None = None) -> ExecResult:
        """Check and run one program and read `var`; `inputs` are variables that are set before (plain data).

        Raises:
            UserError: a `var` that is not a name, or inputs that are not plain data; never what the program does.
        """
        return self.map([code], None if inputs is None else [inputs], var=var)[0]

    def map(
        self, codes: Sequence[str], inputs: Sequence[Mapping[str, Any] | None] | None = None, *, var: str = "answer"
    ) -> list[ExecResult]:
        """`run` for many programs, on all workers; results are in the order of the programs."""
        inputs_by_program = [None] * len(codes) if inputs is None else list(inputs)
        if len(inputs_by_program) != len(codes):
            raise UserError(
                f"{len(inputs_by_program)} inputs for {len(codes)} programs: give one for each, or none at all"
            )
        if not is_name(var):
            raise UserError(f"var={var!r}: give a Python name that does not start with an underscore, such as 'answer'")
        for variables in inputs_by_program:
            for name, value in (variables or {}).items():
                if not is_name(name):
                    raise UserError(f"input {name!r}: a name must be a Python name without an underscore in front")
                if why := unplain(value):
                    raise UserError(f"input {name!r} is {why}: programs are given small plain data only")

        def run_one(slot: _Slot, program: Prepared, variables: Mapping[str, Any] | None) -> ExecResult:
            if self._closing:
                return ExecResult(False, error="exec_error:Closed")
            if program.code is None:
                return ExecResult(False, error=program.reason, detail=program.detail)
            return slot.runner.run(program.code, var, variables)

        def work(slot: _Slot, begin: int, end: int) -> list[ExecResult]:
            programs = slot.reader.read("runnable", codes[begin:end])
            return [run_one(slot, *pair) for pair in zip(programs, inputs_by_program[begin:end], strict=True)]

        return self._spread(work, len(codes))

    def prepare(self, codes: Sequence[str]) -> list[Prepared]:
        """The canonical form of each text, or a rejection reason; nothing is run."""

        def work(slot: _Slot, begin: int, end: int) -> list[Prepared]:
            return [] if self._closing else slot.reader.read("prepare", codes[begin:end])

        return self._spread(work, len(codes))

    def _spread(self, work: Callable[[_Slot, int, int], list[_T]], count: int) -> list[_T]:
        size = max(1, min(_CHUNK, math.ceil(count / (self._workers * _SHARES))))
        borders = [(begin, min(begin + size, count)) for begin in range(0, count, size)]
        futures = [self._submit(work, *border) for border in borders]
        try:
            return [item for future in futures for item in future.result()]
        finally:
            for future in futures:
                future.cancel()

    def _submit(self, work: Callable[..., _T], *arguments: Any) -> "Future[_T]":
        assert self._threads is not None, "use `with Sandbox() as sandbox:`"
        assert os.getpid() == self._owner, "a forked process needs a Sandbox of its own"

        def with_a_slot() -> _T:
            slot = self._slots.get()
            try:
                return work(slot, *arguments)
            finally:
                self._slots.put(slot)

        return self._threads.submit(with_a_slot)

    def _close_slots(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._slots.get_nowait().close()


def find_interpreter() -> str:
    """The path of Monty's executable.

    Raises:
        UserError: not installed, or not on Linux (whose limits and parent-death signal the sandbox relies on).
    """
    if sys.platform != "linux":
        raise UserError(f"programs cannot be run on {sys.platform!r}: the sandbox needs the limits of Linux; run there")
    try:
        missing = util.find_spec("pydantic_monty") is None
        files = metadata.files(_RUNTIME) or []
    except (metadata.PackageNotFoundError, ValueError):  # ValueError: the module was blocked by a None in sys.modules
        missing, files = True, []
    paths = [str(Path(str(file.locate())).resolve()) for file in files if file.name == "monty"]
    if missing or not paths or not os.access(paths[0], os.X_OK):
        raise UserError(f"programs cannot be run: pydantic-monty is not installed; {INSTALL}")
    return paths[0]


def launch_command(limits: Limits, *program: str) -> list[str]:
    """The command that starts `program` under the limits of the operating system."""
    numbers = [os.getpid(), limits.life_s, limits.mem_mb]
    return [sys.executable, "-I", "-S", str(_HERE / "launch.py"), *map(str, numbers), *program]


def reader_command(limits: Limits) -> list[str]:
    """The command of a worker that reads texts. `-I` would make Python ignore the fixed hash seed."""
    worker = str(_HERE / "worker.py")
    return launch_command(limits, sys.executable, "-S", "-P", "-B", "-W", "ignore", worker)


def _check_start(slot: _Slot) -> None:
    [program] = slot.reader.read("runnable", ["answer = 6 * 7"])
    result = slot.runner.run(program.code, "answer") if program.code else ExecResult(False, detail=program.detail)
    if result.value != 42:
        raise not_started(result.detail)
