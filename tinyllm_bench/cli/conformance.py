"""`conformance`: checks a loss function against the loss-conformance vectors."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.cli.options import AsJson
from tinyllm_bench.cli.output import echo, echo_json


def conformance(
    against: Annotated[
        str | None, typer.Option("--against", help="Loss function to test, as module:function; default: our own.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Test a loss function against the loss-conformance vectors. Status 1 if any vector fails."""
    from tabulate import tabulate

    function = None if against is None else find_function(against)
    from tinyllm_bench.training.conformance import run_conformance

    outcomes = run_conformance(function)
    failed = [outcome for outcome in outcomes if outcome.passed is False]
    if as_json:
        echo_json([asdict(outcome) for outcome in outcomes])
        return int(bool(failed))
    rows = [[outcome.vector, outcome.expected, outcome.got, outcome.verdict] for outcome in outcomes]
    echo(tabulate(rows, headers=["vector", "expected", "got", "verdict"], disable_numparse=True))
    passed, missing = (sum(outcome.passed is state for outcome in outcomes) for state in (True, None))
    name = against or "our losses"
    echo(f"\n{name}: {passed} of {len(outcomes)} vectors pass, {len(failed)} fail, {missing} are not offered")
    for outcome in failed:
        echo(f"  {outcome.vector}: {outcome.verdict}; {outcome.about}")
    return int(bool(failed))


def find_function(name: str) -> Callable[..., Any]:
    """The function of `module:function`; modules in the working directory are found too.

    Raises:
        UserError: the name has another form, or there is no such module or function.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"--against {name}: must be module:function, such as my_losses:answer")
    search_path = list(sys.path)
    sys.path.insert(0, "")  # unlike `python -m`, an installed command does not look into the working directory
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # other people's modules may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"--against {name}: cannot import {module_name} here ({reason})") from None
    finally:
        sys.path[:] = search_path
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown_name(f"function of {module_name}", attribute, known)
    function: Any = getattr(module, attribute)
    if not callable(function):
        raise UserError(f"--against {name}: {attribute} is not a function but {type(function).__name__}")
    return function
