"""Start a program under limits that it cannot lift; run as a script, before anything of ours is imported.

`python -I -S launch.py PARENT CPU_SECONDS MEGABYTES PROGRAM [ARGUMENT ...]` becomes PROGRAM (execve): CPU time,
address space, no file of any size, few descriptors, no core dump, no new privileges; none of the parent's descriptors,
environment, folder or terminal; and the kernel kills it when the thread of PARENT that started it ends.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_DESCRIPTORS = 16  # standard streams, the loader and the interpreter's own event queue


def limit(cpu_seconds: int, megabytes: int) -> None:
    """Set every limit, soft equal to hard (a soft CPU limit alone sends a signal that can be ignored)."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: megabytes << 20,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: _DESCRIPTORS,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def bind_to(parent: int) -> None:
    """Die with the parent, and gain no privilege by executing a file.

    Raises:
        OSError: the kernel refuses.
        SystemExit: the parent is gone already.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit(1)


def main(arguments: list[str]) -> None:
    """Give up everything, then become the program."""
    parent, cpu_seconds, megabytes, *program = arguments
    bind_to(int(parent))
    with contextlib.suppress(PermissionError):  # already the leader of a process group
        os.setsid()  # a Ctrl-C is for the parent, which ends its workers itself
    os.chdir("/")
    os.umask(0o777)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this listing is closed already
            if int(descriptor) > 2:
                os.close(int(descriptor))
    limit(int(cpu_seconds), int(megabytes))
    os.execve(program[0], program, {"PYTHONHASHSEED": "0"})


if __name__ == "__main__":
    main(sys.argv[1:])
