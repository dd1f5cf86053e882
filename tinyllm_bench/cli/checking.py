"""The command that checks a request before anything is spent."""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm_bench.cli.options import (
    Anchors,
    AsJson,
    BoardDir,
    takes_request,
)
from tinyllm_bench.cli.output import echo

if TYPE_CHECKING:
    from tinyllm_bench.experiment.request import Request
    from tinyllm_bench.preflight.inspection import Finding

QUIET_SECONDS = 3.0  # a check that is done by then needs no word of progress
Strict = Annotated[bool, typer.Option("--strict", help="Status 1 also when there are warnings.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Also show what is in order.")]


def register(app: typer.Typer) -> None:
    """Add `doctor` to the command line."""
    app.command()(doctor)


@takes_request()
def doctor(
    request: "Request",
    *,
    board_dir: BoardDir = None,
    anchors: Anchors = True,
    strict: Strict = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> int:
    """Check a request before it is run: the arguments of `run`, nothing trained, no weights loaded.

    Status 1 when there is an error, with --strict also when there is a warning.
    """
    from tinyllm_bench.experiment.plan_cells import plan_cells
    from tinyllm_bench.preflight.doctor import examine
    from tinyllm_bench.preflight.inspection import Preflight
    from tinyllm_bench.preflight.machine import this_machine

    preset, cells = plan_cells(request, anchors=anchors, check_hub=False)
    preflight = Preflight(cells=cells, machine=this_machine())
    found = examine(preflight, report=_progress())
    if as_json:
        shown = {"preset": preset, **preflight.forecast.plain(), "findings": [asdict(one) for one in found]}
        echo(json.dumps(shown, indent=1, ensure_ascii=False))
    else:
        echo(told(found, verbose=verbose))
    grave = {"error", "warning"} if strict else {"error"}
    return int(any(one.severity in grave for one in found))


def _progress() -> Callable[[str], None]:
    """Say which check runs, once it takes longer."""
    started = time.monotonic()

    def say(name: str) -> None:
        seconds = time.monotonic() - started
        if seconds > QUIET_SECONDS:
            echo(f"{seconds:4.0f} s: checking {name}", err=True)

    return say


def told(found: "Sequence[Finding]", *, verbose: bool) -> str:
    """The findings, a line each, and how many of what kind there are; one line where there is nothing to say."""
    shown = [one for one in found if verbose or one.severity != "ok"]
    lines = [one.text for one in shown]
    if all(one.severity == "ok" for one in found):
        checks = len({one.check for one in found})
        lines.append(f"nothing found: {checks} checks, {len(found)} values in order")
        return "\n".join(lines)
    return "\n".join([*lines, "", _table(found), "what each check means: docs/doctor.md"])


def _table(found: "Sequence[Finding]") -> str:
    """Checks with findings, by how many of each severity."""
    from tabulate import tabulate

    counted: Counter[tuple[str, str]] = Counter((one.check, one.severity) for one in found)
    kinds = ("error", "warning", "note")
    checks = [one.check for one in found if one.severity != "ok"]
    rows = [[name, *(counted[name, kind] or "" for kind in kinds)] for name in dict.fromkeys(checks)]
    rows.append(["all", *(sum(one.severity == kind for one in found) for kind in kinds)])
    return tabulate(rows, headers=["check", "errors", "warnings", "notes"])
