"""The one way to a terminal: whatever is printed, no character of it acts there."""

import typer

from tinyllm_bench.base.escaping import terminal, visible


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print lines; control and direction characters stand as their codes. A JSON text stays the same JSON."""
    typer.echo(terminal(text), err=err, nl=nl)


def echo_error(text: object) -> None:
    """Print an error, or a warning, in one line, whatever it quotes."""
    typer.echo(visible(" ".join(str(text).split("\n"))), err=True)
