"""`--plugin FILE` for every command, and one line for every plugin that is left out."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tinyllm_bench.cli.output import echo_error


def accept_plugins(command: Any) -> Any:
    """Give a command and all commands under it the option `--plugin`; returns the command.

    The option stands wherever a person types it, and no command has to know of it.
    """
    command.params.append(_option())
    for inner in getattr(command, "commands", {}).values():
        accept_plugins(inner)
    return command


def _option() -> Any:
    """The option as typer makes it for a command: its own class differs by typer's version."""
    alone = typer.Typer(add_completion=False)

    @alone.command()
    def _(plugin: Annotated[list[Path] | None, _PLUGIN] = None) -> None:
        """Nothing: only its option is used."""

    return next(one for one in typer.main.get_command(alone).params if one.name == "plugin")


def _add(files: list[Path] | None) -> None:
    from tinyllm_bench.base.plugins import add_file

    for file in files or ():
        add_file(file.expanduser())


_PLUGIN = typer.Option(
    "--plugin",
    metavar="FILE",
    callback=_add,
    expose_value=False,
    help="Also read methods, tasks, teachers and reporters from this Python file; may be repeated.",
)


@contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Tell of plugins that are left out on standard error; other warnings stay as they are."""
    from tinyllm_bench.base.plugins import PluginWarning

    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, PluginWarning):
                echo_error(f"warning: {message}")
            else:
                shown(message, category, *where, **more)

        warnings.showwarning = show
        warnings.simplefilter("always", PluginWarning)
        yield
