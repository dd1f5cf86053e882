"""The options that several commands share, each declared once, and the request that they describe."""

import inspect
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tinyllm_bench.base.errors import UserError

if TYPE_CHECKING:
    from tinyllm_bench.experiment.request import Request


def existing_folder(option: str) -> Callable[[Any], Any]:
    """A callback for an option that names a folder to read: it is checked even if the command reads it much later."""

    def check(value: Any) -> Any:
        if value is not None and not Path(value).expanduser().is_dir():
            raise UserError(f"{option} names {str(value)!r}, which is not a folder; name a folder, or leave it out")
        return value

    return check


# Options that describe a request.
Methods = Annotated[str, typer.Option("--method", help="Methods, comma-separated, or all.")]
Tasks = Annotated[str, typer.Option("--task", help="Tasks, comma-separated, or all.")]
Settings = Annotated[list[str] | None, typer.Argument(help="Settings as key=value, e.g. train.learning_rate=1e-4.")]
PresetName = Annotated[
    str | None, typer.Option("--preset", help="quickstart, cpu, paper or modern; default: what this machine can run.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with settings.")]
Seeds = Annotated[int, typer.Option("--seeds", help="Number of seeds: 3 runs seeds 0, 1 and 2.")]
DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        callback=existing_folder("--data-dir"),
        help="Folder of the released data; default: TINYLLM_BENCH_DATA.",
    ),
]
Backend = Annotated[str | None, typer.Option("--backend", help="Evaluation backend: hf, vllm or auto.")]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder of runs.")]

# What a command does with the request.
ReferenceBaselines = Annotated[
    bool, typer.Option(help="Also run the reference baselines: random, majority, zero-shot and few-shot.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and exit.")]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="Print every setting with its source and exit.")]
BoardDir = Annotated[
    Path | None, typer.Option("--board-dir", help="Folder to write the leaderboard to; default: RUNS_DIR/board.")
]

# Results.
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verifier = Annotated[str | None, typer.Option("--by", help="Name of the verifier, stored with the verdict.")]


def check_not_empty(arguments: Sequence[str]) -> None:
    """Refuse empty arguments, which no command accepts.

    Raises:
        UserError: an argument is empty; it says which one.
    """
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if not argument.strip():
            before = arguments[place - 1] if place and arguments[place - 1].startswith("--") else "an argument"
            raise UserError(f"{before} {argument!r} is empty; give a value, or leave it out")
        if name.startswith("--") and equals and not value.strip():
            raise UserError(f"{name} {value!r} is empty; give a value, or leave it out")


def names_of(kind: Literal["method", "task"], text: str) -> tuple[str, ...]:
    """Names of methods or tasks, comma-separated, checked before anything slow is imported.

    Raises:
        UserError: one of them is empty or unknown.
    """
    from tinyllm_bench.base.plugins import check_names

    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise UserError(f"--{kind} {text!r}: a name is empty; write them as a,b")
    check_names(kind, names, "all")
    return names


def own_command() -> str:
    """The command line as a person types it."""
    return shlex.join(["tinyllm-bench", *sys.argv[1:]])


def request_of(
    method: Methods,
    task: Tasks,
    settings: Settings = None,
    preset: PresetName = None,
    config: ConfigFile = None,
    seeds: Seeds = 1,
    data_dir: DataDir = None,
    backend: Backend = None,
    runs_dir: RunsDir = Path("runs"),
) -> "Request":
    """The request that the options of a command describe.

    Raises:
        UserError: fewer than one seed, or an empty name.
    """
    methods, tasks = names_of("method", method) if method else (), names_of("task", task)
    from tinyllm_bench.experiment.request import Request  # imports torch: a typo in a name is refused before that

    return Request(
        methods=methods,
        tasks=tasks,
        preset=preset,
        config_file=config,
        assignments=tuple(settings or ()),
        seeds=seeds,
        data_dir=data_dir,
        engine=backend,
        runs=runs_dir,
    )


def takes_request(*, without: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a command of `function(request, *, its own options)`: typer sees the options of `request_of` instead of the
    request, so that they are declared once. `without` names those that the command does not have.
    """
    shared = {
        name: parameter for name, parameter in inspect.signature(request_of).parameters.items() if name not in without
    }
    left_out: dict[str, Any] = {"method": ""} if "method" in without else {}

    def command_of(function: Callable[..., Any]) -> Callable[..., Any]:
        _, *own = inspect.signature(function).parameters.values()
        shown = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*shared.values(), *own)]

        def command(**arguments: Any) -> Any:
            request = request_of(**left_out, **{name: arguments.pop(name) for name in shared})
            return function(request, **arguments)

        command.__name__, command.__doc__ = function.__name__, function.__doc__
        command.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
        return command

    return command_of
