"""The one way to a terminal: whatever is printed, no character of it acts there."""

import json
from collections.abc import Sequence
from typing import Any

import typer

from tinyllm_bench.base.escaping import terminal, visible


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print lines; control and direction characters stand as their codes. A JSON text stays the same JSON."""
    typer.echo(terminal(text), err=err, nl=nl)


def echo_error(text: object) -> None:
    """Print an error, or a warning, in one line, whatever it quotes."""
    typer.echo(visible(" ".join(str(text).split("\n"))), err=True)


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
