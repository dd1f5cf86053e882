"""The pre-flight check of a request: every check over what was planned, without training or loading weights."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.preflight import check_data as doctor_data
from tinyllm_bench.preflight import check_lengths as doctor_lengths
from tinyllm_bench.preflight import check_machine as doctor_room
from tinyllm_bench.preflight import check_models as doctor_models
from tinyllm_bench.preflight import check_plan as doctor_plan
from tinyllm_bench.preflight import check_texts as doctor_texts
from tinyllm_bench.preflight.findings import SEVERITIES, Finding
from tinyllm_bench.preflight.machine import Machine, this_machine
from tinyllm_bench.preflight.planned import Planned

Check = Callable[[Planned], list[Finding]]

# In the order in which they are shown; every name is a heading of docs/doctor.md.
CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        check.__name__: check
        for check in (
            doctor_models.models,
            doctor_models.special_tokens,
            doctor_models.vocabularies,
            doctor_models.spelling,
            doctor_lengths.contexts,
            doctor_lengths.prompts,
            doctor_lengths.targets,
            doctor_texts.texts,
            doctor_texts.junk,
            doctor_texts.leakage,
            doctor_data.digests,
            doctor_data.overlaps,
            doctor_data.duplicates,
            doctor_data.balance,
            doctor_plan.budget,
            doctor_plan.power,
            doctor_plan.seeds,
            doctor_room.memory,
            doctor_room.disk,
            doctor_room.backends,
            doctor_room.versions,
            doctor_room.keys,
        )
    }
)


def examine(
    cells: Sequence[Cell], *, machine: Machine | None = None, report: Callable[[str], None] = lambda name: None
) -> list[Finding]:
    """What every check finds, the gravest first and otherwise in the order of `CHECKS`; each finding once.

    Args:
        cells: The cells, as `plan_cells` gives them.
        machine: What they are to run on; by default this machine.
        report: Is told the name of every check before it starts.

    Raises:
        UserError: a file that a check reads is damaged.
    """
    planned = Planned(cells=cells, machine=machine or this_machine())
    found: list[Finding] = []
    for name, check in CHECKS.items():
        report(name)
        found += check(planned)
    return sorted(dict.fromkeys(found), key=lambda one: -SEVERITIES.index(one.severity))
