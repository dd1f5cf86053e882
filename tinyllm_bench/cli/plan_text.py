"""A forecast as text, 80 columns wide."""

import textwrap
from typing import TYPE_CHECKING

from tinyllm_bench.preflight.inspection import size

if TYPE_CHECKING:
    from tinyllm_bench.preflight.dry_training import TextCost
    from tinyllm_bench.preflight.forecast import CellForecast, Detectable, Forecast, Totals

WIDTH = 80
_NAME = 32
_HEADS = ("steps", "tokens", "PFLOP", "time", "memory", "disk")


def plan_text(preset: str, plan: "Forecast") -> str:
    """The whole forecast: cells, what they need of teachers, totals, and the smallest detectable differences."""
    speeds = ", ".join(f"{flops / 1e9:,.0f} GFLOP/s ({dtype})" for dtype, flops in plan.matmul_flops.items())
    lines = [
        f"preset {preset}, {plan.device}",
        f"time is an estimate; matrix products run at {speeds} here" if speeds else "",
        "",
        _line("cell", *_HEADS),
        "-" * WIDTH,
    ]
    lines += [line for cell in plan.cells for line in _cell(cell)]
    lines += ["-" * WIDTH, *_totals(plan.totals), ""]
    lines += [line for one in plan.detectable for line in _detectable(one)]
    return "\n".join(lines)


def _line(name: str, *columns: str) -> str:
    widths = (6, 9, 7, 8, 7, 7)
    cells = "".join(f" {text:>{width}}"[: width + 1] for text, width in zip(columns, widths, strict=True))
    return f"{name[:_NAME]:<{_NAME - 2}}{cells}".rstrip()


def _cell(cell: "CellForecast") -> list[str]:
    name = f"{'  first: ' if cell.trains_only else ''}{cell.label}, {cell.task}, seed {cell.seed}"
    if cell.is_done:
        return [f"{name[: _NAME + 12]:<{_NAME + 12}} done already"]
    counts = cell.counts
    mark = "" if counts is None or counts.exact else "~"
    lines = [] if len(name) <= _NAME - 2 else [name]
    row = _line(
        "" if lines else name,
        f"{mark}{counts.steps}" if counts else "-",
        f"{mark}{round(counts.tokens):,}" if counts else "-",
        f"{counts.flops / 1e15:.3f}" if counts else "-",
        duration(cell.total_seconds),
        size(cell.memory),
        size(cell.disk.final),
    )
    done = [f"  done already: {', '.join(cell.done)}"] if cell.done else []
    return [*lines, row, *done, *(line for text in cell.texts for line in _texts(text))]


def _texts(text: "TextCost") -> list[str]:
    if text.recorded:
        return []
    if not text.missing:
        return [f"  {text.teacher}: all {text.cached} texts are cached"]
    usd = "" if text.usd is None else f", {money(text.usd)}"
    tokens = f"~{text.tokens_in:,} tokens in, ~{text.tokens_out:,} out{usd}"
    return [f"  {text.teacher}: {text.cached} texts cached, {text.missing} to be written", f"    {tokens}"]


def _totals(total: "Totals") -> list[str]:
    done = f", {total.done} done already" if total.done else ""
    cache = f", caches {size(total.cache)}" if total.cache else ""
    lines = [
        f"{total.cells} cells{done}: {round(total.student_tokens):,} student tokens, {total.flops / 1e15:.3f} PFLOP",
        f"time about {duration(total.seconds)}, peak memory {size(total.memory)},"
        f" disk {size(total.disk)} ({size(total.disk_peak)} meanwhile){cache}",
    ]
    if total.teacher_tokens_out:
        lines.append(f"teachers: ~{total.teacher_tokens_in:,} tokens in, ~{total.teacher_tokens_out:,} out")
    prices = {"teachers": total.usd_teachers if total.teacher_tokens_out else None, "device": total.usd_device}
    told = [f"{what} {money(usd)}" for what, usd in prices.items() if usd is not None]
    return lines + ([f"price: {', '.join(told)}"] if told else [])


def _detectable(one: "Detectable") -> list[str]:
    assumed = one.assumed
    runs = "1 seed (these students only)" if one.seeds_planned == 1 else f"{one.seeds_planned} seeds"
    source = f"finished runs ({assumed.runs}) tell" if assumed.runs else "common values"
    text = (
        f"{one.task}: {one.questions} questions and {runs} find a difference of"
        f" {100 * one.difference:.1f} points or more, with 80 % power, where the table makes"
        f" {one.comparisons} comparison{'s' * (one.comparisons > 1)}; {source}: two methods differ on"
        f" {100 * assumed.discordance:.0f} % of questions, two runs on {100 * assumed.within:.0f} %, runs vary by"
        f" {100 * assumed.run_sd:.1f} points."
    )
    said = text if one.detect is None else f"{text} {_needed(one, one.detect)}"
    return textwrap.wrap(said, WIDTH, subsequent_indent="  ")


def _needed(one: "Detectable", detect: float) -> str:
    points, at = f"{100 * detect:g} points", max(one.seeds_planned, 2)
    if one.seeds is not None:
        instead = "" if one.more_questions is None else f", or {one.more_questions:,} questions at {at} seeds"
        return f"{points} need {one.seeds} seeds of each row{instead}."
    if one.more_questions is not None:
        more = f"{one.more_questions:,} at {at} seeds will do"
        return f"{points}: these questions are too few for any number of seeds; {more}."
    return f"{points}: neither 100 seeds nor a million questions at {at} seeds will do."


def duration(seconds: float | None) -> str:
    """A time in words a table has room for."""
    if seconds is None:
        return "n/a"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def money(usd: float) -> str:
    """US dollars, with as many digits as small amounts need."""
    return f"{usd:.2f} USD" if usd >= 0.1 or usd == 0 else f"{usd:.4f} USD"
