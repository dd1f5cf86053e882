"""A plan as text, 80 columns wide."""

import textwrap
from collections.abc import Mapping
from typing import Any

WIDTH = 80
_NAME = 32


def plan_text(plan: Mapping[str, Any]) -> str:
    """The whole plan: a table of cells, what they need of teachers, totals, and what can be told apart."""
    probe = plan["probe_seconds"]
    how = "no probe: times are n/a" if probe is None else f"probes took {probe:.0f} s"
    lines = [f"preset {plan['preset']}, {plan['device']}; {how}", "", _line("cell", *_HEADS), "-" * WIDTH]
    lines += [line for cell in plan["cells"] for line in _cell(cell)]
    lines += ["-" * WIDTH, *_totals(plan["totals"]), ""]
    lines += [line for one in plan["detectable"] for line in _detectable(one)]
    return "\n".join(lines)


_HEADS = ("steps", "tokens", "PFLOP", "time", "memory", "disk")


def _line(name: str, *columns: str) -> str:
    widths = (6, 9, 7, 8, 7, 7)
    cells = "".join(f" {text:>{width}}"[: width + 1] for text, width in zip(columns, widths, strict=True))
    return f"{name[:_NAME]:<{_NAME - 2}}{cells}".rstrip()


def _cell(cell: Mapping[str, Any]) -> list[str]:
    name = f"{'  first: ' if cell['trains_only'] else ''}{cell['label']}, {cell['task']}, seed {cell['seed']}"
    if cell["is_done"]:
        return [f"{name[: _NAME + 12]:<{_NAME + 12}} done already"]
    counts = cell["counts"] or {}
    mark = "" if counts.get("exact", True) else "~"
    lines = [] if len(name) <= _NAME - 2 else [name]
    row = _line(
        "" if lines else name,
        f"{mark}{counts['steps']}" if counts else "-",
        f"{mark}{round(counts['tokens']):,}" if counts else "-",
        f"{counts['flops'] / 1e15:.3f}" if counts else "-",
        duration(cell["total_seconds"]),
        size(cell["memory"]),
        size(cell["disk"].get("kept", 0)),
    )
    done = [f"  done already: {', '.join(cell['done'])}"] if cell["done"] else []
    return [*lines, row, *done, *(line for text in cell["texts"] for line in _texts(text))]


def _texts(text: Mapping[str, Any]) -> list[str]:
    if text["recorded"]:
        return []
    if not text["lacking"]:
        return [f"  {text['teacher']}: all {text['kept']} texts are in the cache"]
    usd = "" if text["usd"] is None else f", {money(text['usd'])}"
    said = f"~{text['tokens_in']:,} tokens in, ~{text['tokens_out']:,} out{usd}"
    return [f"  {text['teacher']}: {text['kept']} texts kept, {text['lacking']} to be written", f"    {said}"]


def _totals(total: Mapping[str, Any]) -> list[str]:
    done = f", {total['done']} done already" if total["done"] else ""
    start = "" if total["start_seconds"] is None else f" (start {duration(total['start_seconds'])})"
    lines = [
        f"{total['cells']} cells{done}: {round(total['student_tokens']):,} student tokens,"
        f" {total['flops'] / 1e15:.3f} PFLOP",
        f"time {duration(total['seconds'])}{start}, peak memory {size(total['memory'])},"
        f" disk {size(total['disk'])} ({size(total['disk_peak'])} meanwhile)",
    ]
    if total["teacher_tokens_out"]:
        lines.append(f"teachers: ~{total['teacher_tokens_in']:,} tokens in, ~{total['teacher_tokens_out']:,} out")
    prices = {"teachers": total["usd_teachers"] if total["teacher_tokens_out"] else None, "device": total["usd_device"]}
    told = [f"{what} {money(usd)}" for what, usd in prices.items() if usd is not None]
    return lines + ([f"price: {', '.join(told)}"] if told else [])


def _detectable(one: Mapping[str, Any]) -> list[str]:
    seeds, assumed = one["seeds_planned"], one["assumed"]
    runs = "1 seed (these students only)" if seeds == 1 else f"{seeds} seeds"
    source = f"finished runs ({assumed['runs']}) tell" if assumed["runs"] else "common values"
    text = (
        f"{one['task']}: {one['questions']} questions and {runs} find a difference of"
        f" {100 * one['difference']:.1f} points or more, with 80 % power, where the table makes"
        f" {one['comparisons']} comparison{'s' * (one['comparisons'] > 1)}; {source}: two methods differ on"
        f" {100 * assumed['discordance']:.0f} % of questions, two runs on {100 * assumed['within']:.0f} %, runs vary by"
        f" {100 * assumed['run_sd']:.1f} points."
    )
    said = text if one["wished"] is None else f"{text} {_wished(one)}"
    return textwrap.wrap(said, WIDTH, subsequent_indent="  ")


def _wished(one: Mapping[str, Any]) -> str:
    wish, at = f"{100 * one['wished']:g} points", max(one["seeds_planned"], 2)
    seeds, questions = one["seeds"], one["more_questions"]
    if seeds is not None:
        instead = "" if questions is None else f", or {questions:,} questions at {at} seeds"
        return f"{wish} need {seeds} seeds of each row{instead}."
    if questions is not None:
        return f"{wish}: these questions are too few for any number of seeds; {questions:,} at {at} seeds will do."
    return f"{wish}: neither 100 seeds nor a million questions at {at} seeds will do."


def duration(seconds: float | None) -> str:
    """A time in words a table has room for."""
    if seconds is None:
        return "n/a"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def size(count: float | None) -> str:
    """Bytes in MB or GB (powers of ten)."""
    if not count:
        return "-"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def money(usd: float) -> str:
    """US dollars, with as many digits as small amounts need."""
    return f"{usd:.2f} USD" if usd >= 0.1 or usd == 0 else f"{usd:.4f} USD"
