"""User errors: one readable line with the value, what is allowed and the fix; never a traceback."""

import difflib
from collections.abc import Iterable

from tinyllm_bench.base.secrets import redacted


class UserError(ValueError):
    """A wrong request or input; the command line prints the message and exits with status 2.

    Messages quote user input: a key or a password in it is shown as `***`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


def in_one_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says: for errors that other people's code raises."""
    line = next(iter(str(error).strip().split("\n")), "")
    return f"{type(error).__name__}: {line[:200]}"


def unknown_name(kind: str, value: object, known: Iterable[str]) -> UserError:
    """The error for a name that does not exist, with the known names and the nearest one."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {value!r}.{hint} Known: {', '.join(names) or 'none'}.")
