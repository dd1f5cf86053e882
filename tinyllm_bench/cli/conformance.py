"""What is printed of the loss-conformance kit."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.cli.output import echo

if TYPE_CHECKING:
    from tinyllm_bench.training.conformance import Outcome


def report_conformance(against: str | None, *, as_json: bool = False) -> int:
    """Hold our losses, or `module:function`, to every vector; 1 where one fails, else 0.

    Raises:
        UserError: the function cannot be found.
    """
    function = None if against is None else find_function(against)
    from tinyllm_bench.training.conformance import run_conformance

    outcomes = run_conformance(function)
    if as_json:
        echo(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    else:
        echo(_table(outcomes))
        echo(_summary(against or "our losses", outcomes))
    return int(any(outcome.passed is False for outcome in outcomes))


def find_function(name: str) -> Callable[..., Any]:
    """The function of `module:function`; modules of the folder one stands in are found too.

    Raises:
        UserError: it has another form, or there is no such module or function.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UserError(f"--against {name}: it must be module:function, such as my_losses:answer")
    with _this_folder_first():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:  # a stranger's module may raise anything
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"--against {name}: {module_name} cannot be imported here ({why})") from None
    if not hasattr(module, attribute):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown_name(f"function of {module_name}", attribute, known)
    function = getattr(module, attribute)
    if not callable(function):
        raise UserError(f"--against {name}: {attribute} is not a function but {type(function).__name__}")
    return function


@contextmanager
def _this_folder_first() -> Iterator[None]:
    """An installed command does not look into the folder it is called from, as `python -m` does."""
    before = list(sys.path)
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path[:] = before


def _table(outcomes: "Sequence[Outcome]") -> str:
    from tabulate import tabulate

    rows = [[one.vector, one.expected, one.got, one.verdict] for one in outcomes]
    return tabulate(rows, headers=["vector", "expected", "got", "verdict"], disable_numparse=True)


def _summary(name: str, outcomes: "Sequence[Outcome]") -> str:
    passed, missing = (sum(one.passed is wanted for one in outcomes) for wanted in (True, None))
    failed = [f"  {one.vector}: {one.verdict}; {one.about}" for one in outcomes if one.passed is False]
    heading = f"\n{name}: {passed} of {len(outcomes)} vectors pass, {len(failed)} fail, {missing} are not offered"
    return "\n".join([heading, *failed])
