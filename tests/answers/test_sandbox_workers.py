"""Workers of the sandbox: lost, replaced, limited, misbehaving, and gone when the sandbox is."""

import contextlib
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

from tinyllm_bench.answers.sandbox import pool as sandbox_module
from tinyllm_bench.answers.sandbox import runner as sandbox_runner
from tinyllm_bench.answers.sandbox.pool import Sandbox, launch_command
from tinyllm_bench.answers.sandbox.reader import Reader
from tinyllm_bench.answers.sandbox.runner import Limits
from tinyllm_bench.base.errors import UserError

pytestmark = pytest.mark.slow

GOOD = "x = 6\ny = 7\nanswer = x * y"


def workers() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


class Own:
    """The workers of the sandboxes opened after this."""

    def __init__(self) -> None:
        self.others = {process.pid for process in workers()}

    def all(self) -> list[psutil.Process]:
        return [process for process in workers() if process.pid not in self.others]

    def interpreters(self) -> list[psutil.Process]:
        return [process for process in self.all() if "subprocess" in process.cmdline()]


def test_a_worker_lost_between_programs_costs_at_most_one() -> None:
    own = Own()
    with Sandbox() as box:
        before = own.all()
        assert len(before) == 4
        for process in before:
            process.kill()
        results = box.map([GOOD] * 50)
        assert sum(not r.ok for r in results) <= 2, "one for each of the two interpreters"
        assert {r.error for r in results if not r.ok} <= {"exec_error:WorkerDied"}
        assert all(r.value == 42 for r in box.map([GOOD] * 50))
        now = own.all()
        assert len(now) == 4 and not {p.pid for p in before} & {p.pid for p in now}
        assert psutil.STATUS_ZOMBIE not in {process.status() for process in now}
    assert own.all() == []


def test_a_worker_killed_at_work_loses_its_own_program_only() -> None:
    own = Own()
    with Sandbox(cpu_s=20, wall_s=30, workers=1) as box:
        timer = threading.Timer(0.3, lambda: [process.kill() for process in own.interpreters()])
        timer.start()
        results = box.map([GOOD, "while True:\n    pass", GOOD, GOOD])
        timer.join()
        assert [r.value for r in results] == [42, None, 42, 42]
        assert results[1].error == "exec_error:WorkerDied" and results[1].ms < 10_000
    assert own.all() == []


def test_workers_are_replaced_before_their_cpu_time_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_runner, "_LIVES", 1)
    own = Own()
    with Sandbox(cpu_s=0.1, wall_s=1.0, workers=1) as box:
        [first] = own.interpreters()
        busy = "n = 0\nfor i in range(100000):\n    n += i\nanswer = n"
        assert {r.error for r in box.map([busy] * 120)} <= {None, "timeout"}
        assert box.run(GOOD).value == 42
        [last] = own.interpreters()
        assert first.pid != last.pid


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    threads, open_files, before = threading.active_count(), psutil.Process().num_fds(), workers()
    for _ in range(3):
        with Sandbox(cpu_s=0.1, wall_s=0.5) as box:
            inside = psutil.Process().num_fds()
            box.map([GOOD, "while True:\n    pass", "answer = 'a' * 10**12"] * 4)
            assert psutil.Process().num_fds() <= inside
    assert workers() == before and list(tmp_path.iterdir()) == []
    assert psutil.Process().num_fds() <= open_files and threading.active_count() == threads


def test_workers_have_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Own()
    read, write = os.pipe()
    os.set_inheritable(write, True)
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "1")
    with Sandbox(workers=1):
        processes = own.all()
        assert len(processes) == 2
        for process in processes:
            assert process.environ() == {"PYTHONHASHSEED": "0"} and process.cwd() == "/"
            assert process.rlimit(psutil.RLIMIT_CORE) == process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
            assert process.rlimit(psutil.RLIMIT_NOFILE) == (16, 16)
            assert process.rlimit(psutil.RLIMIT_AS) == (256 << 20, 256 << 20)
            assert process.rlimit(psutil.RLIMIT_CPU) == (14, 14)
            links = {os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")}
            assert f"pipe:[{os.fstat(write).st_ino}]" not in links
            assert os.readlink(f"/proc/{process.pid}/fd/2") == os.devnull
    os.close(read)
    os.close(write)


def test_workers_die_with_their_parent() -> None:
    code = (
        "import os, psutil, signal, sys\n"
        "from tinyllm_bench.answers.sandbox.pool import Sandbox\n"
        "box = Sandbox(cpu_s=50, wall_s=60).__enter__()\n"
        "future = box._submit(lambda slot: slot.runner.run('while True: pass', 'answer'))\n"
        "print(*[p.pid for p in psutil.Process().children()], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 4
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    assert not any(psutil.pid_exists(pid) for pid in pids)


MISBEHAVIOUR = {
    "exits": "os._exit(7)",
    "segfault": "os.kill(os.getpid(), signal.SIGSEGV)",
    "abort": "os.abort()",
    "hangs": "time.sleep(60)",
    "loops": "while True: pass",
    "ignores SIGXCPU": "signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
    "floods": "while True: os.write(1, b'x' * 65536)",
    "zeros": "os.write(1, bytes(1000)); time.sleep(60)",
    "forged JSON": 'os.write(1, b\'["42"]\\n["answer = 42", null, "", false, null]\\n\'); time.sleep(60)',
    "truncated": "os.write(1, b'\\x10\\0\\0\\0ab')",
    "closes its output": "os.close(1); time.sleep(60)",
    "4 GB": "x = bytearray(4 << 30); time.sleep(60)",
}


@pytest.fixture
def impostor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Put a Python that misbehaves, under our launcher, where the interpreter's worker would be."""

    def install(behaviour: str, after: str = "") -> None:
        script = tmp_path / "impostor.py"
        script.write_text(f"import os, resource, signal, sys, time\n{behaviour}\n")
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -S {script} "$@"\n')
        python.chmod(0o755)
        monkeypatch.setattr(sandbox_module, "find_interpreter", lambda: str(python))

    return install


@pytest.mark.slow
@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_an_interpreter_that_misbehaves_is_contained(name: str, impostor: Any) -> None:
    impostor(MISBEHAVIOUR[name])
    before, begin = workers(), time.monotonic()
    with pytest.raises(UserError, match="did not start"), Sandbox(cpu_s=0.1, wall_s=0.3, workers=1):
        pass
    assert time.monotonic() - begin < 10 and workers() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MISBEHAVIOUR if name != "forged JSON"])
def test_a_reader_that_misbehaves_is_contained(name: str, tmp_path: Path) -> None:
    script = tmp_path / "reader.py"
    misbehave = MISBEHAVIOUR[name].replace("\n", "\n" + " " * 8)
    script.write_text(
        "import os, signal, sys, time\nos.write(1, b'ready\\n')\n"
        f"for line in sys.stdin:\n    if 'poison' in line:\n        {misbehave}\n"
        "    for _ in eval(line.replace('null', 'None'))[1]:\n"
        '        os.write(1, b\'["answer = 1", null, "", false, null]\\n\')\n'
    )
    limits = Limits(0.2, 0.5, 256)
    reader = Reader(launch_command(limits, sys.executable, "-S", str(script)), limits)
    begin = time.monotonic()
    try:
        good, bad, again = (reader.read("runnable", [text]) for text in ("good", "poison", "good"))
    finally:
        reader.close()
    assert good[0].code == again[0].code == "answer = 1"
    assert bad[0].code is None and bad[0].reason == "rejected_by_gate"
    assert time.monotonic() - begin < 10


def limited(code: str, cpu: int = 1) -> "subprocess.CompletedProcess[str]":
    """Run Python under the launcher alone."""
    limits = Limits(cpu_s=0.05, wall_s=0.2)
    assert limits.life_s == cpu
    command = launch_command(limits, sys.executable, "-S", "-B", "-c", code)
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=False)


def test_the_limits_of_the_operating_system_alone(tmp_path: Path) -> None:
    assert limited("print(6 * 7)").stdout == "42\n"
    ignoring = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert limited(ignoring).returncode == -9
    assert limited("bytearray(4 << 30)").returncode == 1
    assert limited("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)").returncode == -11
    assert limited("import os\nos.abort()").returncode == -6
    assert limited(f"print('x', file=open({str(tmp_path / 'x')!r}, 'w'), flush=True)").returncode == 1
    assert (tmp_path / "x").stat().st_size == 0
    assert limited("f = [open('/dev/null') for _ in range(20)]").returncode == 1
    assert limited(
        "import os\nprint(set(os.environ) - {'LC_CTYPE'}, os.getcwd(), os.listdir('/proc/self/fd'))"
    ).stdout.startswith("{'PYTHONHASHSEED'} / ['0', '1', '2', '3']")


def accessible_python() -> str | None:
    """An interpreter of our version that any user may run."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (sys.executable, shutil.which(version, path="/usr/local/bin:/usr/bin")):
        with contextlib.suppress(PermissionError):
            if path and subprocess.run([path, "-c", "1"], user="nobody", check=False).returncode == 0:
                return path
    return None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_it_works_as_nobody() -> None:
    python = accessible_python()
    if python is None:
        pytest.skip("no Python here that the user nobody may run")
    paths = [
        str(Path(sandbox_module.__file__).parents[3]),
        str(Path(metadata.files("pydantic-monty-client")[0].locate()).parents[1]),
    ]
    code = (
        "import os\nfrom tinyllm_bench.answers.sandbox.pool import Sandbox\n"
        "with Sandbox() as box:\n"
        "    print(os.getuid() != 0, box.run('answer = 6 * 7').value, box.run('while True: pass').error)\n"
    )
    done = subprocess.run(
        [python, "-B", "-c", code],
        user="nobody",
        cwd="/",
        env={"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True 42 timeout\n", done.stderr


def test_the_launcher_needs_a_kernel_that_binds_it_to_its_parent() -> None:
    assert ctypes.CDLL(None).prctl(2, ctypes.byref(ctypes.c_int()), 0, 0, 0) == 0
    assert importlib.util.find_spec("resource") is not None
    gone = [
        sys.executable,
        "-I",
        "-S",
        str(Path(sandbox_module.__file__).parent / "launch.py"),
        "1",
        "1",
        "256",
    ]
    assert subprocess.run([*gone, "/bin/true"], check=False).returncode == 1


@pytest.mark.slow
def test_a_worker_that_takes_no_request_is_replaced(tmp_path: Path) -> None:
    script = tmp_path / "deaf.py"
    script.write_text("import os, time\nos.write(1, b'ready\\n')\ntime.sleep(60)\n")
    limits = Limits(0.1, 0.2, 256)
    reader = Reader(launch_command(limits, sys.executable, "-S", str(script)), limits)
    begin = time.monotonic()
    try:
        result = reader.read("runnable", ["x" * 8000] * 9)
    finally:
        reader.close()
    assert result[0].detail == "the source check took too long" and time.monotonic() - begin < 20
