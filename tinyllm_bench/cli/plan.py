"""`plan` shows what a request will cost and which differences it can detect, `doctor` what is wrong with it.

Both run before anything is spent, and read the same forecast.
"""

import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.cli.options import AsJson, BoardDir, ReferenceBaselines, takes_request
from tinyllm_bench.cli.output import echo, echo_json
from tinyllm_bench.cli.run import check_writable_folders

if TYPE_CHECKING:
    from tinyllm_bench.experiment.request import Request
    from tinyllm_bench.preflight.dry_training import TextForecast
    from tinyllm_bench.preflight.forecast import CellForecast, Detectable, Forecast, Totals
    from tinyllm_bench.preflight.inspection import Finding, Severity

WIDTH = 80
NAME_WIDTH = 32
QUIET_SECONDS = 3.0  # checks that are done by then need no progress report


# --- plan -------------------------------------------------------------------------------------------------------------


@takes_request()
def plan(
    request: "Request",
    *,
    reference_baselines: ReferenceBaselines = True,
    detect: Annotated[
        float | None,
        typer.Option("--detect", help="Also print the seeds and questions needed to detect this many points."),
    ] = None,
    price: Annotated[float | None, typer.Option("--price", help="US dollars per hour of this device.")] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the cost of a run before starting it. Takes the arguments of `run`.

    Tokens, FLOPs, time, memory, disk and money, and the smallest difference that the results could detect.
    """
    from tinyllm_bench.experiment.plan_cells import plan_cells
    from tinyllm_bench.preflight.forecast import forecast

    if price is not None and not 0 <= price <= 1e9:
        raise UserError(f"--price {price:g}: must be US dollars per hour, from 0 to 1e9")
    if detect is not None and not 0 < detect <= 100:
        raise UserError(f"--detect {detect:g}: must be a difference in points, above 0 and at most 100, e.g. 5")
    preset, cells = plan_cells(request, reference_baselines=reference_baselines, check_hub=False)
    result = forecast(cells, detect=None if detect is None else detect / 100, price=price)
    if as_json:
        echo_json({"preset": preset, **result.plain()})
    else:
        echo(plan_text(preset, result))


def plan_text(preset: str, plan: "Forecast") -> str:
    """The forecast, 80 columns wide: cells and the annotations they need, totals, smallest detectable differences."""
    speeds = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s ({dtype})" for dtype, flops in plan.matmul_flops.items())
    lines = [
        f"preset {preset}, {plan.device}",
        f"times are estimates; matmuls run at {speeds} on this machine" if speeds else "",
        "",
        _line("cell", "steps", "tokens", "PFLOP", "time", "memory", "disk"),
        "-" * WIDTH,
    ]
    lines += [line for cell in plan.cells for line in _cell_lines(cell)]
    lines += ["-" * WIDTH, *_totals(plan.totals), ""]
    lines += [line for detectable in plan.detectable for line in _detectable_lines(detectable)]
    return "\n".join(lines)


def _line(name: str, *columns: str) -> str:
    widths = (6, 9, 7, 8, 7, 7)
    cells = "".join(f" {text:>{width}}"[: width + 1] for text, width in zip(columns, widths, strict=True))
    return f"{name[:NAME_WIDTH]:<{NAME_WIDTH - 2}}{cells}".rstrip()


def _cell_lines(cell: "CellForecast") -> list[str]:
    from tinyllm_bench.preflight.inspection import size

    name = f"{'  first: ' if cell.trains_only else ''}{cell.label}, {cell.task}, seed {cell.seed}"
    if cell.is_done:
        return [f"{name[: NAME_WIDTH + 12]:<{NAME_WIDTH + 12}} already done"]
    counts = cell.counts
    mark = "" if counts is None or counts.exact else "~"
    lines = [] if len(name) <= NAME_WIDTH - 2 else [name]
    row = _line(
        "" if lines else name,
        f"{mark}{counts.steps}" if counts else "-",
        f"{mark}{round(counts.tokens):,}" if counts else "-",
        f"{counts.flops / 1e15:.3f}" if counts else "-",
        duration(cell.total_seconds),
        size(cell.memory),
        size(cell.disk.final),
    )
    done = [f"  already done: {', '.join(cell.done)}"] if cell.done else []
    return [*lines, row, *done, *(line for text in cell.texts for line in _annotation_lines(text))]


def _annotation_lines(text: "TextForecast") -> list[str]:
    if text.recorded:
        return []
    if not text.missing:
        return [f"  {text.teacher}: {text.cached} texts cached"]
    usd = "" if text.usd is None else f", {money(text.usd)}"
    tokens = f"~{text.tokens_in:,} tokens in, ~{text.tokens_out:,} out{usd}"
    return [f"  {text.teacher}: {text.cached} texts cached, {text.missing} to generate", f"    {tokens}"]


def _totals(total: "Totals") -> list[str]:
    from tinyllm_bench.preflight.inspection import size

    done = f", {total.done} already done" if total.done else ""
    cache = f", cache {size(total.cache)}" if total.cache else ""
    lines = [
        f"{total.cells} cell{'s' * (total.cells != 1)}{done}: {round(total.student_tokens):,} student tokens,"
        f" {total.flops / 1e15:.3f} PFLOP",
        f"time about {duration(total.seconds)}, peak memory {size(total.memory)},"
        f" disk {size(total.disk)} ({size(total.disk_peak)} at peak){cache}",
    ]
    if total.teacher_tokens_out:
        lines.append(f"teachers: ~{total.teacher_tokens_in:,} tokens in, ~{total.teacher_tokens_out:,} out")
    costs = {"teachers": total.usd_teachers if total.teacher_tokens_out else None, "device": total.usd_device}
    known = [f"{what} {money(usd)}" for what, usd in costs.items() if usd is not None]
    return lines + ([f"cost: {', '.join(known)}"] if known else [])


def _detectable_lines(task: "Detectable") -> list[str]:
    """The smallest difference that a task's results can detect, what that assumes, and what `--detect` would need."""
    assumed = task.assumed
    seeds = "1 seed (for these trained students only)" if task.seeds_planned == 1 else f"{task.seeds_planned} seeds"
    runs = f"{assumed.runs} finished run{'s' * (assumed.runs != 1)}"
    source = f"from {runs}, with common values for what these cannot show" if assumed.runs else "assuming"
    text = (
        f"{task.task}: {task.questions} questions and {seeds} can detect a difference of"
        f" {100 * task.difference:.1f} points, at 80 % power with"
        f" {task.comparisons} comparison{'s' * (task.comparisons > 1)} in the table; {source}: two methods differ on"
        f" {100 * assumed.discordance:.0f} % of questions, two runs of one method on {100 * assumed.within:.0f} %,"
        f" standard deviation between runs {100 * assumed.run_sd:.1f} points."
    )
    if task.detect is not None:
        points, at = f"{100 * task.detect:g} points", max(task.seeds_planned, 2)
        if task.seeds is not None:
            instead = "" if task.more_questions is None else f", or {task.more_questions:,} questions at {at} seeds"
            text += f" Detecting {points} takes {task.seeds} seeds per row{instead}."
        elif task.more_questions is not None:
            text += (
                f" Detecting {points} takes more questions, whatever the number of seeds:"
                f" {task.more_questions:,} at {at} seeds."
            )
        else:
            text += f" Detecting {points} takes more than 100 seeds, and more than a million questions at {at} seeds."
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def duration(seconds: float | None) -> str:
    """A time, short enough for a column of the table."""
    if seconds is None:
        return "n/a"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def money(usd: float) -> str:
    """US dollars, with as many digits as small amounts need."""
    return f"{usd:.2f} USD" if usd >= 0.1 or usd == 0 else f"{usd:.4f} USD"


# --- doctor -----------------------------------------------------------------------------------------------------------


@takes_request()
def doctor(
    request: "Request",
    *,
    board_dir: BoardDir = None,  # of `run`: its command line can be given as it is
    reference_baselines: ReferenceBaselines = True,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 on warnings too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also print the checks that pass.")] = False,
    as_json: AsJson = False,
) -> int:
    """Check a run before starting it. Takes the arguments of `run`; trains nothing and loads no weights.

    Status 1 when there is an error; with --strict, also when there is a warning.
    """
    from tinyllm_bench.experiment.plan_cells import plan_cells
    from tinyllm_bench.preflight.doctor import examine
    from tinyllm_bench.preflight.inspection import Preflight, this_machine

    preset, cells = plan_cells(request, reference_baselines=reference_baselines, check_hub=False)
    check_writable_folders(cells, request.runs, board_dir or request.runs / "board")
    preflight = Preflight(cells=cells, machine=this_machine())
    findings = examine(preflight, report=_progress())
    if as_json:
        echo_json(
            {"preset": preset, **preflight.forecast.plain(), "findings": [asdict(finding) for finding in findings]}
        )
    else:
        echo(findings_text(findings, verbose=verbose))
    failing = {"error", "warning"} if strict else {"error"}
    return int(any(finding.severity in failing for finding in findings))


def _progress() -> Callable[[str], None]:
    """Prints which check is running, once they take longer."""
    started = time.monotonic()

    def report(name: str) -> None:
        seconds = time.monotonic() - started
        if seconds > QUIET_SECONDS:
            echo(f"{seconds:4.0f} s: checking {name}", err=True)

    return report


def findings_text(findings: "Sequence[Finding]", *, verbose: bool) -> str:
    """The findings, a line each, then a table of how many each check has; one line where there are none."""
    from tabulate import tabulate

    lines = [finding.text for finding in findings if verbose or finding.severity != "ok"]
    checks = list(dict.fromkeys(finding.check for finding in findings if finding.severity != "ok"))
    if not checks:
        lines.append(
            f"no problems found: {len({finding.check for finding in findings})} checks, {len(findings)} values"
        )
        return "\n".join(lines)
    severities: tuple[Severity, ...] = ("error", "warning", "note")
    counted = Counter((finding.check, finding.severity) for finding in findings)
    rows = [[name, *(counted[name, severity] or "" for severity in severities)] for name in checks]
    rows.append(["all", *(sum(finding.severity == severity for finding in findings) for severity in severities)])
    table = tabulate(rows, headers=["check", "errors", "warnings", "notes"])
    return "\n".join([*lines, "", table, "what each check means: docs/doctor.md"])
