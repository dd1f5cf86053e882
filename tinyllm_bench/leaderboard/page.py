"""The board as one page that works offline: tables that sort and filter, two plots, the runs behind every row.

The page is `templates/board.html` with its style and its script inside. Its content policy allows these two texts, by
their digests, and nothing else: no request can leave the file, whatever a label holds.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllm_bench.base.escaping import all_visible, visible
from tinyllm_bench.leaderboard.markdown import HOW_TO_READ
from tinyllm_bench.leaderboard.record import RunRecord, record_path
from tinyllm_bench.leaderboard.rows import BoardRow
from tinyllm_bench.leaderboard.tables import MEAN_NOTE, MeanRow, Section, TableRow, mean_cells, mean_keys, run_line

_COSTS = ("student tokens", "wall seconds", "teacher tokens", "training FLOPs")
_TEMPLATES = Path(__file__).with_name("templates")


def board_page(title: str, sections: Sequence[str], means: Sequence[MeanRow]) -> str:
    """The text of `index.html`: `sections` from `page_json`, `means` is the table of means over tasks."""
    import jinja2
    from markupsafe import Markup

    def read(name: str) -> str:
        return (_TEMPLATES / name).read_text(encoding="utf-8")

    def content_digest(text: str) -> str:
        return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    style, script = read("board.css"), read("plots.js") + read("board.js")
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    cells = mean_cells(means)
    rows = [{"cells": list(line.values()), "keys": mean_keys(row)} for line, row in zip(cells, means, strict=True)]
    mean = all_visible({"columns": list(cells[0]) if cells else [], "rows": rows})
    return environment.get_template("board.html").render(
        title=visible(title),
        how_to_read=HOW_TO_READ,
        sections=[Markup(section) for section in sections],
        mean=mean,
        mean_note=MEAN_NOTE,
        style=Markup(style),
        script=Markup(script),
        style_digest=content_digest(style),
        script_digest=content_digest(script),
    )


def page_json(section: dict[str, Any]) -> str:
    """A section's data, escaped for a script element of a page."""
    from jinja2.utils import htmlsafe_json_dumps

    return str(htmlsafe_json_dumps(all_visible(section), sort_keys=True))


def page_section(section: Section, slug: str) -> dict[str, Any]:
    """Everything the page shows of a section, as lists: a name repeated in every row would be most of the file.

    A row has the text and the sorting key of each cell; accuracies, gains and costs are numbers for the plots.
    """
    first = section.rows[0].first
    spent = [costs(row.source) for row in section.table]
    names = [name for name in _COSTS if any(name in costs_of_row for costs_of_row in spent)]
    runs = section.runs()
    return {
        "slug": slug,
        "title": section.title,
        "facts": section.facts,
        "protocol": first.protocol_hash,
        "chance": 100 * first.chance,
        "columns": [column.title for column in section.columns],
        "costs": names,
        "run_columns": [*runs[0], "record"],
        "rows": [
            _row_data(section, row, costs_of_row, names) for row, costs_of_row in zip(section.table, spent, strict=True)
        ],
        "notes": list(section.notes),
    }


def _row_data(section: Section, row: TableRow, spent: dict[str, float], names: Sequence[str]) -> dict[str, Any]:
    accuracy, gain, interval = row.accuracy, row.gain, row.interval
    limits = (interval.low, interval.high) if interval and interval.low < interval.high else (None, None)
    return {
        "kind": row.kind,
        "label": row.title,
        "student": row.student or "-",
        "cells": [column.text(row) for column in section.columns],
        "keys": [column.key(row) for column in section.columns],
        "accuracy": None if accuracy is None else _percents(accuracy, *limits),
        "gain": None if gain is None or gain.value is None else _percents(gain.value, gain.low, gain.high),
        "costs": [spent.get(name) for name in names],
        "facts": _facts(row.source, row.trust) if row.source else [],
        # Without the row's own name, which is in `label`.
        "runs": [
            [*list(run_line(row, record).values())[1:], record_path(record)]
            for record in (row.source.records if row.source else ())
        ],
    }


def _percents(*shares: float | None) -> list[float | None]:
    return [None if share is None else 100 * share for share in shares]


def costs(row: BoardRow | None) -> dict[str, float]:
    """The costs of a row, means of its runs; a cost that a run does not have is left out."""
    if row is None:
        return {}
    costs_of_runs: dict[str, list[float | None]] = {
        "student tokens": [0 if row.is_reference else row.tokens],
        "wall seconds": [row.seconds],
        "teacher tokens": [_teacher_tokens(record) for record in row.records],
        "training FLOPs": [record.budget.train_flops if record.budget else None for record in row.records],
    }
    return {name: sum(filter(None, values)) / len(values) for name, values in costs_of_runs.items() if all(values)}


def _teacher_tokens(record: RunRecord) -> int | None:
    budget = record.budget
    if budget is None or budget.teacher_tokens_in is None or budget.teacher_tokens_out is None:
        return None
    return budget.teacher_tokens_in + budget.teacher_tokens_out


def _facts(row: BoardRow, trust: str | None) -> list[list[str]]:
    """The facts of an opened row beyond its cells and runs; the record holds the rest."""
    record, budget = row.first, row.first.budget
    saw = {True: ", saw the right answer", False: ", did not see the right answer", None: ""}
    facts = {
        "kind": record.kind,
        "data": f"{record.data.source}{' (sample questions)' if record.sample else ''}",
        "training rows": None if record.data.n_train is None else f"{record.data.n_train:,}",
        "teachers": "; ".join(f"{teacher.spec}{saw[teacher.gold_visible]}" for teacher in record.teachers),
        "student-token limit": f"{budget.student_tokens_limit:,}" if budget and budget.student_tokens_limit else None,
        "teacher tokens in and out": f"{_teacher_tokens(record):,}" if _teacher_tokens(record) else None,
        "training FLOPs (estimate)": f"{budget.train_flops:.3g}" if budget and budget.train_flops else None,
        "parameters": f"{record.student.parameters:,}" if record.student and record.student.parameters else None,
        "protocol": record.protocol_hash,
        "trust": trust,
    }
    return [[name, text] for name, text in facts.items() if text]
