"""`plan`: what a request will cost and which differences it can detect, before anything is spent."""

import json
import math
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm_bench.cli.options import (
    Anchors,
    AsJson,
    takes_request,
)
from tinyllm_bench.cli.output import echo

if TYPE_CHECKING:
    from tinyllm_bench.experiment.request import Request

Detect = Annotated[
    float | None, typer.Option("--detect", help="A difference in points: how many seeds and questions it needs.")
]
Price = Annotated[float | None, typer.Option("--price", help="US dollars for an hour of this device.")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("plan")(plan)


@takes_request()
def plan(
    request: "Request",
    *,
    anchors: Anchors = True,
    detect: Detect = None,
    price: Price = None,
    as_json: AsJson = False,
) -> None:
    """Say what `run` with the same arguments will cost: tokens, time, memory, disk, money; nothing is spent."""
    from tinyllm_bench.base.errors import UserError
    from tinyllm_bench.cli.plan_text import plan_text
    from tinyllm_bench.experiment.plan_cells import plan_cells
    from tinyllm_bench.preflight.forecast import forecast
    from tinyllm_bench.preflight.machine import this_machine

    if price is not None and not 0 <= price <= 1e9:
        raise UserError(f"--price {price:g}: US dollars an hour, from 0 to 1e9")
    if detect is not None and not math.isfinite(detect):
        raise UserError(f"--detect {detect:g}: a difference in points, such as 5")
    if detect is not None and not 0 < detect <= 100:
        raise UserError(f"--detect {detect:g}: a difference in points of accuracy, above 0 and at most 100, e.g. 5")
    preset, cells = plan_cells(request, anchors=anchors, check_hub=False)
    found = forecast(cells, this_machine(), detect=None if detect is None else detect / 100, price=price)
    echo(json.dumps({"preset": preset, **found.plain()}, indent=1) if as_json else plan_text(preset, found))
