"""`doctor`: every check of a request, without training or loading weights. Here: the checks of the plan itself."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from tinyllm_bench.base.config import Layer, flatten, parse_yaml, resolve
from tinyllm_bench.base.errors import UserError, in_one_line
from tinyllm_bench.base.plugins import method_defaults
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.preflight import data, environment, models, teachers
from tinyllm_bench.preflight.inspection import SEVERITIES, Finding, Preflight, Severity, place

FEW_STEPS = 10
FEW_EPOCHS = 0.5
FEW_SAMPLING_STEPS = 100  # of a method that samples: its steps are small and its gradients noisy
DETECTABLE = 0.10


def budget(preflight: Preflight) -> list[Finding]:
    """Steps and epochs that the budget buys, after what making the initial student takes.

    Below ten steps there is no room for a learning-rate schedule and four evaluations; below half an epoch most records
    are never seen. A method that learns from its own samples needs more: below a hundred steps its student is hardly
    changed. What a budget in seconds buys depends on the machine and is not judged.
    """
    findings = []
    for cell in preflight.trained:
        planned = preflight.forecast.cell(cell.run_id)
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
            steps = f"{'' if counts.exact else 'about '}{counts.steps:,} step{'s' * (counts.steps != 1)}"
            measured = f"budget.{name}={amount:,.10g} buys {steps}, {epochs:.3g} epochs"
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
                fix = (
                    f"one step takes {step:,.0f} tokens: raise the budget, or lower student.init or train.batch_records"
                )
        findings.append(Finding(severity, "budget", place(cell), measured, threshold, fix))
    return findings


def own_settings(preflight: Preflight) -> list[Finding]:
    """Values of a method's own file that a preset changes for all methods alike.

    A method's file gives the values of its paper; other values that are meant for it are in a preset's `methods` part.
    """
    findings = []
    for cell in preflight.trained:
        defaults = parse_yaml(method_defaults(cell.name), cell.name)
        defaults.pop("method", None)
        own = resolve(BenchConfig, [Layer(f"{cell.name}.yaml", defaults)])
        expected, actual = flatten(own.config), flatten(cell.config)
        by_preset = [key for key in own.origin if cell.origin.get(key, "").startswith("preset ")]
        changed = [key for key in by_preset if ", method " not in cell.origin[key] and actual.get(key) != expected[key]]
        if not changed:
            measured = f"{len(own.origin)} values of its own file, none changed by a preset"
            findings.append(Finding("ok", "own_settings", place(cell), measured))
            continue
        values = [f"{k}={actual.get(k)} by {cell.origin[k]}, {cell.name}.yaml has {expected[k]}" for k in changed]
        threshold = "warning where a preset changes a method's own value for all methods alike"
        fix = f"set {' '.join(f'{k}={expected[k]}' for k in changed)} for this method alone"
        findings.append(Finding("warning", "own_settings", place(cell), ", ".join(values), threshold, fix))
    return findings


def power(preflight: Preflight) -> list[Finding]:
    """The smallest difference between two rows that the test questions can detect (`forecast.Detectable`)."""
    limits: dict[tuple[str, str], int | None] = {
        (cell.task.name, cell.mode): cell.config.eval.limit for cell in preflight.cells
    }
    findings = []
    for task in preflight.forecast.detectable:
        seeds = f"{task.seeds_planned} seed{'s' * (task.seeds_planned > 1)}"
        smallest = f"{100 * task.difference:.1f} points"
        measured = f"{task.questions:,} test questions and {seeds} detect differences of {smallest} or more"
        if task.difference <= DETECTABLE:
            findings.append(Finding("ok", "power", task.task, measured))
            continue
        whole_split = limits[task.task, task.mode] is None
        more = "this is the whole split" if whole_split else "evaluate more of the split (eval.limit=null)"
        threshold = f"warning above {100 * DETECTABLE:g} points"
        fix = f"{more}; use this task only as part of an average"
        findings.append(Finding("warning", "power", task.task, measured, threshold, fix))
    return findings


def seeds(preflight: Preflight) -> list[Finding]:
    """With a single seed, trained students are compared and not their methods."""
    rows = {cell.label for cell in preflight.cells if cell.kind == "method"}
    count = len({cell.seed for cell in preflight.cells if cell.kind == "method"})
    measured = f"{count} seed{'s' * (count > 1)} for {len(rows)} row{'s' * (len(rows) > 1)}"
    if count != 1:
        return [Finding("ok", "seeds", "request", measured)]
    severity: Severity = "warning" if len(rows) > 1 else "note"
    fix = "--seeds 3 lets a comparison hold for methods instead of single students"
    return [Finding(severity, "seeds", "request", measured, "warning where rows are compared", fix)]


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
    """The findings of all checks, the most severe first and otherwise in the order of `CHECKS`; each finding once.

    Args:
        preflight: The request's cells, as `plan_cells` gives them, and the machine they will run on.
        report: Receives the name of every check before it starts.

    Raises:
        UserError: a file that a check reads is damaged.
    """
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        report(name)
        try:
            findings += check(preflight)
        except UserError:
            raise
        except Exception as error:  # trying a model may raise anything
            fix = "correct what it names, in the settings or in a model's config.json: a run would fail there"
            measured = f"it could not be found out ({in_one_line(error)})"
            findings.append(Finding(severity="error", check=name, where="the request", measured=measured, fix=fix))
    return sorted(dict.fromkeys(findings), key=lambda finding: -SEVERITIES.index(finding.severity))
