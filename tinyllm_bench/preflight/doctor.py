"""`doctor`: every check over what was requested, nothing trained, no weights loaded; here those of the plan itself."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tinyllm_bench.base.config import Layer, flatten, parse_yaml, resolve
from tinyllm_bench.base.plugins import method_defaults
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.preflight import data, environment, models, teachers
from tinyllm_bench.preflight.forecast import CellForecast
from tinyllm_bench.preflight.inspection import SEVERITIES, Finding, Preflight, Severity, place

FEW_STEPS = 10
FEW_EPOCHS = 0.5
FEW_SAMPLING_STEPS = 100  # of a method that samples: its steps are small and its gradients noisy
DETECTABLE = 0.10


def budget(preflight: Preflight) -> list[Finding]:
    """Steps and epochs that the budget buys, after what making the initial student takes.

    Steps below ten leave no room for a learning-rate schedule and four evaluations; below half an epoch most records
    are never seen. A method that learns from its own samples needs more: below a hundred steps its student is still the
    one that it began as. Seconds buy what the machine gives and are not judged.
    """
    return [_bought(cell, preflight.forecast.cell(cell.run_id)) for cell in preflight.trained]


def _bought(cell: Cell, planned: CellForecast) -> Finding:
    name, amount = cell.config.budget.limit
    left = amount - cell.share * planned.charged
    counts, epochs = planned.counts, planned.epochs or 0.0
    severity: Severity = "ok"
    threshold, fix = "", ""
    if left <= 0:
        severity, threshold = "error", "what is left after student.init must be above 0"
        measured = f"budget.{name}={amount:,.10g}, of which student.init takes {amount - left:,.10g}"
        fix = "raise the budget, or lower student.init"
    elif counts is None or name == "seconds":
        measured = f"not judged: {planned.problem or ('a budget in seconds' if counts else 'trained already')}"
    else:
        about = "" if counts.exact else "about "
        measured = f"budget.{name}={amount:,.10g} buys {about}{counts.steps:,} steps, {epochs:.3g} epochs"
        step = counts.tokens / counts.steps
        if counts.steps == 1 and left < {"student_tokens": counts.tokens, "flops": counts.flops}.get(name, 0.0):
            severity, threshold = "warning", "at least 1 step"
            fix = f"one step takes {step:,.0f} tokens and overshoots: raise the budget or lower train.batch_records"
        elif epochs < FEW_EPOCHS or counts.steps < FEW_STEPS:
            severity, threshold = "warning", f"warning below {FEW_EPOCHS:g} epochs or {FEW_STEPS} steps"
            epoch = counts.tokens / epochs
            fix = f"one epoch takes {epoch:,.0f} tokens: raise the budget, or lower data.train_limit or the batch"
        elif cell.method is not None and cell.method.is_on_policy and counts.steps < FEW_SAMPLING_STEPS:
            severity, threshold = "warning", f"warning below {FEW_SAMPLING_STEPS} steps on sampled texts"
            fix = f"one step takes {step:,.0f} tokens: raise the budget, or lower student.init or train.batch_records"
    return Finding(
        severity=severity, check="budget", where=place(cell), measured=measured, threshold=threshold, fix=fix
    )


def own_settings(preflight: Preflight) -> list[Finding]:
    """Values of a method's own file that a preset's common part changes without a word of the method.

    A method's file gives what its paper says; a preset's `methods` part is where other values are meant for it.
    """
    found = []
    for cell in preflight.trained:
        own = {
            key: value for key, value in parse_yaml(method_defaults(cell.name), cell.name).items() if key != "method"
        }
        own_file = resolve(BenchConfig, [Layer(f"{cell.name}.yaml", own)])
        wanted, now = flatten(own_file.config), flatten(cell.config)
        common = [key for key in own_file.origin if cell.origin.get(key, "").startswith("preset ")]
        changed = [k for k in common if ", method " not in cell.origin[k] and now.get(k) != wanted[k]]
        values = ", ".join(f"{k}={now.get(k)} by {cell.origin[k]}, {cell.name}.yaml has {wanted[k]}" for k in changed)
        found.append(
            Finding(
                severity="warning" if changed else "ok",
                check="own_settings",
                where=place(cell),
                measured=values or f"{len(own_file.origin)} values of its own file, none changed by a preset",
                threshold="warning where a preset changes a method's own value for all methods alike" * bool(changed),
                fix=f"set {' '.join(f'{k}={wanted[k]}' for k in changed)} for this method alone" if changed else "",
            )
        )
    return found


def power(preflight: Preflight) -> list[Finding]:
    """The smallest difference between two rows that the test questions can show (`forecast.Detectable`)."""
    limits: dict[tuple[str, str], int | None] = {
        (cell.task.name, cell.mode): cell.config.eval.limit for cell in preflight.cells
    }
    found = []
    for one in preflight.forecast.detectable:
        small = one.difference > DETECTABLE
        whole = limits[one.task, one.mode] is None
        more = "this is the whole split" if whole else "ask more of the split (eval.limit=null)"
        found.append(
            Finding(
                severity="warning" if small else "ok",
                check="power",
                where=one.task,
                measured=f"{one.questions:,} test questions and {one.seeds_planned} seed{'s' * (one.seeds_planned > 1)}"
                f" show differences from {100 * one.difference:.1f} points on",
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
    threshold = "warning where rows are compared"
    return [Finding(severity=severity, check="seeds", where="request", measured=measured, threshold=threshold, fix=fix)]


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


def examine(preflight: Preflight, *, report: Callable[[str], None] = lambda name: None) -> list[Finding]:
    """What every check finds, the gravest first and otherwise in the order of `CHECKS`; each finding once.

    Args:
        preflight: The request's cells, as `plan_cells` gives them, and what they are to run on.
        report: Receives the name of every check before it starts.

    Raises:
        UserError: a file that a check reads is damaged.
    """
    found: list[Finding] = []
    for name, check in CHECKS.items():
        report(name)
        found += check(preflight)
    return sorted(dict.fromkeys(found), key=lambda one: -SEVERITIES.index(one.severity))
