"""`plan`: what a request will cost and what it can tell apart, before anything is spent."""

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllm_bench.cli.options import (
    Anchors,
    AsJson,
    takes_request,
)

if TYPE_CHECKING:
    from tinyllm_bench.experiment.request import Request

Detect = Annotated[
    float | None, typer.Option("--detect", help="A difference in points: how many seeds and questions it needs.")
]
Price = Annotated[float | None, typer.Option("--price", help="US dollars for an hour of this device.")]
Probe = Annotated[bool, typer.Option(help="Try the models for some seconds, to tell how long everything takes.")]


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
    probe: Probe = True,
    as_json: AsJson = False,
) -> None:
    """Say what `run` with the same arguments will cost: tokens, time, memory, disk, money; nothing is spent."""
    from tinyllm_bench.base.errors import UserError
    from tinyllm_bench.cli.plan_text import plan_text
    from tinyllm_bench.preflight.plan import plan_request
    from tinyllm_bench.preflight.power import share_of

    if price is not None and price < 0:
        raise UserError(f"--price {price:g}: US dollars an hour, 0 or more")
    began = time.perf_counter()
    wished = None if detect is None else share_of(detect)
    found = plan_request(request, anchors=anchors, probe=probe, wished=wished, price=price, report=_tell)
    found["took"] = time.perf_counter() - began
    typer.echo(json.dumps(found, indent=1) if as_json else plan_text(found))


def _tell(event: Mapping[str, Any]) -> None:
    if "probed" in event:
        typer.echo(f"  probe {event['probed']} took {event['seconds']:.0f} s", err=True)
