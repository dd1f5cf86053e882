"""`doctor`: every check over what was requested, nothing trained, no weights loaded; here those of the plan itself."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from tinyllm_bench.base.config import Layer, flatten, parse_yaml, resolve
from tinyllm_bench.base.plugins import method_defaults
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.leaderboard.stats.power import planned_detectable
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import parameter_count
from tinyllm_bench.preflight import data, environment, models, teachers
from tinyllm_bench.preflight.inspection import SEVERITIES, Finding, Preflight, Severity, own_signal, place
from tinyllm_bench.preflight.machine import Machine, this_machine
from tinyllm_bench.training.result import flops_per_token

FEW_STEPS = 10
FEW_EPOCHS = 0.5
FEW_SAMPLING_STEPS = 100  # of a method that samples: its steps are small and its gradients noisy
DETECTABLE = 0.10
# What is assumed of runs not yet made: two rows differ on a fifth of the questions, two seeds of one row on 14 %, and
# seeds move an accuracy by 2 points.
DISCORDANCE, WITHIN, RUN_SD = 0.20, 0.14, 0.02


class _Bought(NamedTuple):
    """Student tokens that are left after making the initial student, of one epoch, and of one step."""

    left: float
    epoch: float
    step: float


def budget(preflight: Preflight) -> list[Finding]:
    """Steps and epochs that the budget buys, after what making the initial student takes.

    Steps below ten leave no room for a learning-rate schedule and four looks; below half an epoch most records are
    never seen. A method that learns from its own samples needs more: below a hundred steps its student is still the one
    that it began as. Seconds buy what the machine gives and are not judged.
    """
    found = []
    for cell in preflight.trained:
        bought = _bought(preflight, cell)
        if bought is None:
            measured = "not judged: a budget in seconds, or nothing to learn from is there yet"
            found.append(Finding(severity="ok", check="budget", where=place(cell), measured=measured))
        else:
            found.append(_judged(cell, bought))
    return found


def _judged(cell: Cell, bought: _Bought) -> Finding:
    name, amount = cell.config.budget.asked
    steps, epochs = bought.left / bought.step, bought.left / bought.epoch
    measured = f"budget.{name}={amount:,.10g} buys about {max(steps, 0):,.3g} steps, {max(epochs, 0):.3g} epochs"
    severity: Severity = "ok"
    told, fix = "", ""
    if bought.left <= 0:
        severity, told = "error", "what is left after student.init must be above 0"
        fix = "raise the budget, or lower student.init"
    elif steps < 1:
        severity, told = "warning", "at least 1 step"
        fix = f"one step takes {bought.step:,.0f} tokens and overshoots: raise the budget or lower train.batch_records"
    elif epochs < FEW_EPOCHS or steps < FEW_STEPS:
        severity, told = "warning", f"warning below {FEW_EPOCHS:g} epochs or {FEW_STEPS} steps"
        fix = f"one epoch takes {bought.epoch:,.0f} tokens: raise the budget, or lower data.train_limit or the batch"
    elif cell.method is not None and cell.method.rolls and steps < FEW_SAMPLING_STEPS:
        severity, told = "warning", f"warning below {FEW_SAMPLING_STEPS} steps on sampled texts"
        fix = (
            f"one step takes {bought.step:,.0f} tokens: raise the budget, or lower student.init or train.batch_records"
        )
    return Finding(severity=severity, check="budget", where=place(cell), measured=measured, threshold=told, fix=fix)


def _bought(preflight: Preflight, cell: Cell) -> _Bought | None:
    """None for a budget in seconds, without a student, and where nothing is to be learned yet."""
    name, amount = cell.config.budget.asked
    most, groups = cell.config.train.max_target_tokens, preflight.groups(cell)
    assert cell.method is not None
    count = sum(len(i.prompt) + min(len(i.target), most) for group in groups for i in group.items)
    if name == "seconds" or not count:
        return None
    epoch = float(count * cell.method.inner_epochs)
    step = count / len(groups) * cell.config.train.batch_records
    if name == "epochs":
        return _Bought(amount * epoch, epoch, step)
    if name == "flops":
        amount /= _flops(preflight, cell)
    return _Bought(amount - cell.share * _spent_before(preflight, cell), epoch, step)


def _spent_before(preflight: Preflight, cell: Cell) -> float:
    """Student tokens that making the initial student takes."""
    first = cell.student_from
    bought = None if first is None else _bought(preflight, first)
    return 0.0 if bought is None else bought.left


def _flops(preflight: Preflight, cell: Cell) -> float:
    """FLOPs of one student token in training."""
    student, signal = preflight.student(cell), own_signal(cell)
    teacher = None if signal is None else preflight.model(signal)
    assert student is not None and cell.method is not None
    theirs = 0 if teacher is None else parameter_count(teacher.model)
    return flops_per_token(LM(student.model), theirs, reads_teacher=cell.method.reads_teacher).trained


def own_settings(preflight: Preflight) -> list[Finding]:
    """Values of a method's own file that a preset's common part changes without a word of the method.

    A method's file gives what its paper says; a preset's `methods` part is where other values are meant for it.
    """
    found = []
    for cell in preflight.trained:
        own = {
            key: value for key, value in parse_yaml(method_defaults(cell.name), cell.name).items() if key != "method"
        }
        said = resolve(BenchConfig, [Layer(f"{cell.name}.yaml", own)])
        wanted, now = flatten(said.config), flatten(cell.config)
        common = [key for key in said.origin if cell.origin.get(key, "").startswith("preset ")]
        changed = [k for k in common if ", method " not in cell.origin[k] and now.get(k) != wanted[k]]
        values = ", ".join(f"{k}={now.get(k)} by {cell.origin[k]}, {cell.name}.yaml has {wanted[k]}" for k in changed)
        found.append(
            Finding(
                severity="warning" if changed else "ok",
                check="own_settings",
                where=place(cell),
                measured=values or f"{len(said.origin)} values of its own file, none changed by a preset",
                threshold="warning where a preset changes a method's own value for all methods alike" * bool(changed),
                fix=f"set {' '.join(f'{k}={wanted[k]}' for k in changed)} for this method alone" if changed else "",
            )
        )
    return found


def power(preflight: Preflight) -> list[Finding]:
    """The smallest difference between two rows that the test questions can show with 80 % power.

    Computed by `leaderboard/stats/power.py` for the planned number of seeds, at a discordance of 20 %, with 2 points of
    spread between seeds.
    """
    count = len({cell.seed for cell in preflight.cells})
    found = []
    for cell in preflight.tasks:
        n = len(cell.records("test"))
        points = planned_detectable(n, discordance=DISCORDANCE, within=WITHIN, seeds=count, run_sd=RUN_SD)
        measured = f"{n:,} test questions and {count} seed{'s' * (count > 1)} show differences from"
        measured += f" {100 * points:.3g} points on"
        small = points > DETECTABLE
        more = (
            "this is the whole split" if cell.config.eval.limit is None else "ask more of the split (eval.limit=null)"
        )
        found.append(
            Finding(
                severity="warning" if small else "ok",
                check="power",
                where=cell.task.name,
                measured=measured,
                threshold=f"warning above {100 * DETECTABLE:g} points" if small else "",
                fix=f"{more}; speak of this task only inside an average" if small else "",
            )
        )
    return found


def seeds(preflight: Preflight) -> list[Finding]:
    """One seed only: what is compared are these trained students, and not their methods."""
    rows = {cell.label for cell in preflight.cells if cell.kind == "method"}
    count = len({cell.seed for cell in preflight.cells if cell.kind == "method"})
    measured = f"{count} seed{'s' * (count > 1)} for {len(rows)} row{'s' * (len(rows) > 1)}"
    if count != 1:
        return [Finding(severity="ok", check="seeds", where="request", measured=measured)]
    severity: Severity = "warning" if len(rows) > 1 else "note"
    fix = "--seeds 3 lets a comparison speak of methods instead of single students"
    told = "warning where rows are compared"
    return [Finding(severity=severity, check="seeds", where="request", measured=measured, threshold=told, fix=fix)]


Check = Callable[[Preflight], list[Finding]]

# In the order in which they are shown; every name is a heading of docs/doctor.md.
CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        check.__name__: check
        for check in (
            models.models,
            models.special_tokens,
            models.vocabularies,
            models.spelling,
            data.contexts,
            data.prompts,
            data.targets,
            teachers.texts,
            teachers.junk,
            teachers.leakage,
            data.digests,
            data.overlaps,
            data.duplicates,
            data.balance,
            budget,
            own_settings,
            power,
            seeds,
            environment.memory,
            environment.disk,
            environment.backends,
            environment.versions,
            environment.keys,
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
    preflight = Preflight(cells=cells, machine=machine or this_machine())
    found: list[Finding] = []
    for name, check in CHECKS.items():
        report(name)
        found += check(preflight)
    return sorted(dict.fromkeys(found), key=lambda one: -SEVERITIES.index(one.severity))
