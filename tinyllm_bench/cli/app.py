"""The command line: every command and its function, options of all commands, exit statuses."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from tinyllm_bench import __version__
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import cannot_write
from tinyllm_bench.base.secrets import redacted
from tinyllm_bench.cli import board, conformance, data, export, new, plan, reproduce, results, run, teachers
from tinyllm_bench.cli.options import check_not_empty, own_command
from tinyllm_bench.cli.output import echo, echo_error


def _group(about: str, **more: Any) -> typer.Typer:
    return typer.Typer(help=about, no_args_is_help=True, rich_markup_mode=None, **more)


# --- the commands, in the order of the help ---------------------------------------------------------------------------

app = _group(
    "Compare LLM distillation methods with the same students, data, training budget and evaluation.",
    name="tinyllm-bench",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run.run)
app.command()(run.annotate)
app.command()(run.train)
app.command()(run.predict)
app.command()(run.reference_baselines)
app.command()(plan.plan)
app.command()(plan.doctor)
app.command()(results.compare)
app.command()(results.verify)
app.command()(results.curves)
app.command()(reproduce.reproduce)
app.command()(export.export)
app.command("list")(data.list_)
app.command()(data.fetch)
app.command()(conformance.conformance)

board_app = _group("Build and show leaderboards.")
board_app.command("add")(board.board_add)
board_app.command("build")(board.board_build)
board_app.command("show")(board.board_show)
app.add_typer(board_app, name="board")

protocol_app = _group("Compare evaluation protocols.")
protocol_app.command("diff")(results.protocol_diff)
app.add_typer(protocol_app, name="protocol")

teachers_app = _group("Report on, export, import and list teachers' annotations.")
teachers_app.command("report")(teachers.teachers_report)
teachers_app.command("pack")(teachers.teachers_pack)
teachers_app.command("import")(teachers.teachers_import)
teachers_app.command("info")(teachers.teachers_info)
app.add_typer(teachers_app, name="teachers")

data_app = _group("Check and describe the data sets.")
data_app.command("check")(data.data_check)
data_app.command("info")(data.data_info)
app.add_typer(data_app, name="data")

new_app = _group("Start a package for a method or task of your own.")
new_app.command("method")(new.new_method)
new_app.command("task")(new.new_task)
app.add_typer(new_app, name="new")


# --- options of all commands ------------------------------------------------------------------------------------------


def _print_version(requested: bool) -> None:
    if requested:
        echo(f"tinyllm-bench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _load_plugins(files: list[Path] | None) -> None:
    from tinyllm_bench.base.plugins import add_file

    for file in files or ():
        add_file(file.expanduser())


def _accept_plugins(command: Any) -> Any:
    """Give a command and all its subcommands the option `--plugin`, so that it may appear anywhere in the command line
    and no command has to declare it; returns the command.
    """
    made_by_typer = typer.Typer(add_completion=False)  # the class of an option differs by typer's version

    @made_by_typer.command()
    def _(
        plugin: Annotated[
            list[Path] | None,
            typer.Option(
                "--plugin",
                metavar="FILE",
                callback=_load_plugins,
                expose_value=False,
                help="Load methods, tasks, teachers and reporters from this Python file; may be repeated.",
            ),
        ] = None,
    ) -> None:
        """Only the option is used."""

    command.params += [option for option in typer.main.get_command(made_by_typer).params if option.name == "plugin"]
    for subcommand in getattr(command, "commands", {}).values():
        _accept_plugins(subcommand)
    return command


@contextmanager
def _plugin_warnings_in_one_line() -> Iterator[None]:
    """Print a plugin that cannot be loaded as one line on standard error; other warnings stay as they are."""
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


# --- exit statuses ----------------------------------------------------------------------------------------------------


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run_app() -> int:
    """Run the command line and return its exit status; a user error is one line, never a traceback.

    The command is invoked directly: typer's own entry would turn an interruption into a status of its own.
    """
    signal.signal(signal.SIGTERM, _terminated)
    command = _accept_plugins(typer.main.get_command(app))
    try:
        check_not_empty(sys.argv[1:])
        with _plugin_warnings_in_one_line(), command.make_context("tinyllm-bench", sys.argv[1:]) as context:
            return int(command.invoke(context) or 0)
    except UserError as error:
        echo_error(f"error: {error}")
        return 2
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        echo(f"interrupted; run the same command again to resume:\n{own_command()}", err=True)
        return 3
    except BrokenPipeError:  # the reader is gone (`... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        echo_error(f"error: {cannot_write(error.filename or 'the disk', error)}")
        return 2
    except Exception as error:
        if not hasattr(error, "format_message"):  # a usage error's class is click's or typer's, by typer's version
            raise
        text, context = redacted(str(error.format_message())), getattr(error, "ctx", None)
        if "\n" in text:  # no command was given: the error is the help page
            echo(text, err=True)
        else:
            echo_error(f"error: {text} (see {context.command_path if context else 'tinyllm-bench'} --help)")
        return 2
