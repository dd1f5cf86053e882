"""The one way to a terminal: whatever is printed, no character of it acts there."""

import json
import re
from collections.abc import Sequence
from typing import Any

import typer

from tinyllm_bench.base.escaping import terminal, visible


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print lines; control and direction characters stand as their codes. A JSON text stays the same JSON."""
    typer.echo(terminal(text), err=err, nl=nl)


_LONGEST_WORD, _LONGEST_LINE = 1000, 4000  # characters


def echo_error(text: object) -> None:
    """Print an error, or a warning, in one line, whatever it quotes; very long values are shown by their ends."""
    line = visible(" ".join(str(text).split("\n")))
    line = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda found: _ends(found[0], _LONGEST_WORD), line)
    typer.echo(_ends(line, _LONGEST_LINE), err=True)


def _ends(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most // 2]}[...]{text[-most // 4 :]}"


def echo_json(value: Any) -> None:
    """Print a value as indented JSON."""
    echo(json.dumps(value, indent=1, ensure_ascii=False))


def echo_rows(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows as a table whose headings are their keys, or as JSON."""
    if as_json:
        echo_json(rows)
        return
    from tabulate import tabulate

    echo(tabulate(rows, headers="keys") if rows else "none")
