"""Printing to the terminal, where control characters of a text are shown instead of obeyed."""

import json
import re
from collections.abc import Sequence
from typing import Any

import typer

from tinyllm_bench.base.escaping import terminal, visible


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print lines; control and direction characters are shown as their codes. A JSON text stays the same JSON."""
    typer.echo(terminal(text), err=err, nl=nl)


_MAX_WORD, _MAX_LINE = 1000, 4000  # characters


def echo_error(text: object) -> None:
    """Print an error, or a warning, in one line, whatever it quotes; very long values are shown by their ends."""
    line = visible(" ".join(str(text).split("\n")))
    line = re.sub(rf"\S{{{_MAX_WORD},}}", lambda word: _shortened(word[0], _MAX_WORD), line)
    typer.echo(_shortened(line, _MAX_LINE), err=True)


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}[...]{text[-limit // 4 :]}"


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
