"""A Python that has its slow imports behind it: it forks for every script, so that the documentation runs in minutes.

`serve` imports torch and its like once and waits at a socket. `client(...)` is the text of a program that asks it to
run a script or a module in a fork, with the caller's arguments, folder, environment, input and outputs, and ends with
its exit status. What is run is the real code in a process of its own; only the start of the interpreter is saved.
"""

import contextlib
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

SLOW = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "lm_eval.evaluator",
    "pandas",
    "scipy.stats",
    "peft",
    "httpx",
)
READY = b"ready\n"
BACKLOG = 8
MESSAGE = 1 << 17  # bytes: arguments and environment of one call

CLIENT = """\
#!{python} -IS
import json, os, socket, sys
words = {words!r} + sys.argv[1:]
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
    door.connect({address!r})
    said = json.dumps({{"words": words, "folder": os.getcwd(), "environment": dict(os.environ)}})
    socket.send_fds(door, [said.encode()], [0, 1, 2])
    sys.exit((door.recv(1) or b"\\x86")[0])
"""


def client(address: Path, *words: str) -> str:
    """The text of a program that runs `words` and its own arguments in the server at `address`."""
    return CLIENT.format(python=sys.executable, words=list(words), address=str(address))


def serve(address: str) -> None:
    """Import what is slow, then fork for every caller, until this process is ended."""
    for name in SLOW:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(address)
        door.listen(BACKLOG)
        os.write(1, READY)
        while True:
            caller, _ = door.accept()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:  # children that ended meanwhile
                    pass
            if os.fork() == 0:
                door.close()
                _answer(caller)
            caller.close()


def _answer(caller: socket.socket) -> NoReturn:
    said, streams, _, _ = socket.recv_fds(caller, MESSAGE, 3)
    asked = json.loads(said)
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    status = 1
    try:
        status = _run(asked["words"])
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
        caller.send(bytes([status % 256]))
    os._exit(status)


def _run(words: list[str]) -> int:
    """`-m MODULE ...`, `SCRIPT ...` or `- ...`, as Python itself takes them."""
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, os.getcwd()
            text = sys.stdin.read() if words[0] == "-" else Path(words[0]).read_text()
            exec(compile(text, words[0], "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@contextlib.contextmanager
def warm_python(address: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """A server at `address` with this environment."""
    command = [sys.executable, __file__, str(address)]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **streams, env=dict(environment)) as server:
        try:
            assert server.stdout and server.stdout.readline() == READY, "the server did not start"
            yield
        finally:
            server.kill()


if __name__ == "__main__":
    serve(sys.argv[1])
