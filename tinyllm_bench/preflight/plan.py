"""A request planned as a whole, as plain values: its cells, its totals, and what it can tell apart."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from tinyllm_bench.base import provenance
from tinyllm_bench.experiment.cell import plan_cells
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.preflight.estimate import CellPlan, Planner, totals
from tinyllm_bench.preflight.power import detectable_of


def plan_request(
    request: Request,
    *,
    anchors: bool = False,
    probe: bool = True,
    wished: float | None = None,
    price: float | None = None,
    report: Callable[[Mapping[str, Any]], None] = lambda event: None,
) -> dict[str, Any]:
    """Plan every cell of a request, those that train first before those that need them.

    Args:
        request: What would be run.
        anchors: Also plan the anchors.
        probe: Try the models, for times; without it they are None.
        wished: A difference in accuracy (a share) that should be found.
        price: US dollars an hour of the device.
        report: Is told when a probe is over.
    """
    start = start_seconds() if probe else None
    preset, cells = plan_cells(request, anchors=anchors, check_hub=False)
    planner = Planner(probe=probe, report=report)
    for cell in cells:
        planner.add(cell)
    plans = list(planner.plans.values())
    return {
        "preset": preset,
        "device": provenance.device_name(),
        "probe_seconds": planner.probe_seconds if probe else None,
        "cells": [_plain(plan) for plan in plans],
        "totals": totals(plans, start=start, price=price),
        "detectable": [
            {**one._asdict(), "assumed": one.assumed._asdict()} for one in detectable_of(cells, wished=wished)
        ],
    }


def start_seconds() -> float:
    """How long this process took until everything that a run imports was there: what a run will take as well."""
    import psutil

    import tinyllm_bench.evaluation.memory_lm
    import tinyllm_bench.experiment.stages  # noqa: F401

    return time.time() - psutil.Process().create_time()


def _plain(plan: CellPlan) -> dict[str, Any]:
    return {**asdict(plan), "total_seconds": plan.total_seconds, "is_done": plan.is_done}
