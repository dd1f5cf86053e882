"""The teacher report as one small page: no script, no network, light and dark, readable on a telephone.

It shows texts of the data set, which may not be published; its first line says so.
"""

import re
from collections.abc import Iterable, Sequence

from tinyllm_bench.base.escaping import html
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.teachers.quality_report import (
    Cell,
    Row,
    Shown,
    TeacherReport,
    agreement_lines,
    by_task,
    figure_rows,
    filter_rows,
)

NOTE = "Local file: it holds texts of the data set and of the teachers; do not publish it."

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1b1b; --dim: #595959; --line: #c9c9c9; --bar: #6d9bd1;
  --note: #fff3cd; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #ececec; --dim: #a9a9a9; --line: #44484e;
  --bar: #4f7fb5; --note: #4a3c10; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
.note { background: var(--note); padding: .5rem .75rem; border-radius: .25rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem .25rem 0; vertical-align: top;
  overflow-wrap: normal; }
th { text-align: left; font-weight: 600; }
tbody th { font-weight: 400; min-width: 7.5rem; }
td { min-width: 6.5rem; font-variant-numeric: tabular-nums; }
.bar { display: block; width: 6rem; height: .35rem; background: var(--line); }
.bar span { display: block; height: 100%; background: var(--bar); }
details { border: 1px solid var(--line); border-radius: .25rem; padding: .4rem .6rem; margin: .5rem 0; }
pre { white-space: pre-wrap; font: inherit; border-left: 3px solid var(--line); margin: .5rem 0; padding-left: .6rem; }
.dim { color: var(--dim); font-size: .9rem; }
"""


def quality_page(reports: Sequence[TeacherReport]) -> str:
    """The whole page, an HTML document; every text in it is escaped."""
    tasks = by_task(reports)
    links = " ".join(f'<a href="#{_anchor(task)}">{html(task)}</a>' for task in tasks)
    sections = "\n".join(_section(task, found) for task, found in tasks.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>Teachers</title>
<style>{_STYLE}</style>
</head>
<body>
<p class="note" role="note">{html(NOTE)}</p>
<h1>Teachers</h1>
<nav aria-label="Tasks">{links}</nav>
<main>
{sections}
</main>
</body>
</html>
"""


def _anchor(task: str) -> str:
    return "task-" + re.sub(r"[^A-Za-z0-9_-]", "-", task)


def _section(task: str, reports: Sequence[TeacherReport]) -> str:
    teachers = [report.teacher for report in reports]
    split = ", ".join(dict.fromkeys(report.split for report in reports))
    filters = ", ".join(dict.fromkeys(name for report in reports for name in report.filters)) or "none"
    agreement = "".join(f"<li>{html(line)}</li>" for line in agreement_lines(reports))
    agreed = f"<h3>Agreement of own answers</h3>\n<ul>{agreement}</ul>" if agreement else ""
    return f"""<section aria-labelledby="{_anchor(task)}">
<h2 id="{_anchor(task)}">{html(task)}</h2>
<p class="dim">Split: {html(split)}. Filters in use: {html(filters)}.</p>
{_table(f"Figures, {task}", teachers, figure_rows(reports))}
{_table(f"Each filter alone, {task}", teachers, filter_rows(reports))}
{agreed}
<h3>Texts to read</h3>
{_samples(reports)}
</section>"""


def _table(caption: str, teachers: Sequence[str], rows: Sequence[Row]) -> str:
    head = "".join(f'<th scope="col">{html(teacher)}</th>' for teacher in teachers)
    lines = "\n".join(
        f'<tr><th scope="row">{html(row.label)}</th>{"".join(_cell(cell) for cell in row.cells)}</tr>' for row in rows
    )
    return f"""<div class="wide" role="region" aria-label="{html(caption)}" tabindex="0"><table>
<caption>{html(caption)}</caption>
<thead><tr><th scope="col">figure</th>{head}</tr></thead>
<tbody>
{lines}
</tbody></table></div>"""


def _cell(cell: Cell) -> str:
    if cell.share is None:
        return f"<td>{html(cell.text)}</td>"
    width = f"{100 * cell.share:.1f}"
    bar = f'<span class="bar" aria-hidden="true"><span style="width:{width}%"></span></span>'
    return f"<td>{html(cell.text)}{bar}</td>"


def _samples(reports: Iterable[TeacherReport]) -> str:
    return "\n".join(_sample(report.teacher, shown) for report in reports for shown in report.samples)


def _sample(teacher: str, shown: Shown) -> str:
    options = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, shown.choices, strict=False))
    reasons = ", ".join(shown.reasons) or "none"
    named = "" if shown.answer is None else f" It named: {shown.answer}."
    return f"""<details open><summary>{html(teacher)}: {html(shown.record_id)}</summary>
<p>{html(shown.question)}<br>{html(options)}</p>
<pre>{html(shown.text)}</pre>
<p class="dim">Right: {html(shown.gold)}.{html(named)} Filters that would reject it: {html(reasons)}.</p>
</details>"""
