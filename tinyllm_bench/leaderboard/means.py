"""The table of means over a board's tasks."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tinyllm_bench.leaderboard.stats.averages import macro_average
from tinyllm_bench.leaderboard.stats.intervals import Estimate
from tinyllm_bench.leaderboard.tables import Cells, Section, interval_text, percent

MEAN_NOTE = "Only rows that stand on every task of their mode. Chance-corrected: 0 at chance, 100 if all is right."


class TaskStandings(NamedTuple):
    """A section as a mean over tasks needs it: its rows' accuracies by title and student.

    `parser` is the version of the parser, which choices and numbers share.
    """

    task: str
    mode: str
    parser: str
    chance: float
    rows: Mapping[tuple[str, str], Estimate]


class MeanRow(NamedTuple):
    """A row of the table of means: `mean` of the accuracies, and the same with each corrected for chance."""

    label: str
    student: str
    mode: str
    parser: str
    tasks: int
    mean: Estimate
    corrected: Estimate


def standings_of(section: Section) -> TaskStandings:
    """The rows of a section whose accuracy is known."""
    first = section.rows[0].first
    rows = {(row.title, row.student): row.interval for row in section.table if row.source and row.interval}
    version = re.search(r"\d+", str(first.protocol["parser_version"]))
    return TaskStandings(first.task, first.mode, version[0] if version else "", first.chance, rows)


def macro_table(sections: Sequence[TaskStandings]) -> list[MeanRow]:
    """Mean accuracy and mean chance-corrected accuracy of the rows that stand on every task, per mode and parser.

    Only tasks with one protocol count: with several there is no saying which one belongs into a mean. Answers that two
    versions of the parser read are never in one mean.
    """
    lines = []
    for mode, parser in sorted({(section.mode, section.parser) for section in sections}):
        of_mode = [section for section in sections if (section.mode, section.parser) == (mode, parser)]
        tasks = [section.task for section in of_mode]
        single = [section for section in of_mode if tasks.count(section.task) == 1]
        if len(single) > 1:
            chances = [section.chance for section in single]
            for label, student in single[0].rows:
                found = [one.rows[label, student] for one in single if (label, student) in one.rows]
                if len(found) == len(single):
                    means = macro_average(found), macro_average(found, chances)
                    lines.append(MeanRow(label, student, mode, parser, len(found), *means))
    return lines


def mean_cells(rows: Sequence[MeanRow]) -> list[Cells]:
    """The table of means for people."""
    return [
        {
            "row": row.label,
            "student": row.student or "-",
            "mode": row.mode,
            "parser version": row.parser,
            "tasks": str(row.tasks),
            "mean accuracy %": percent(row.mean.value),
            "95 % interval": interval_text(row.mean),
            "mean chance-corrected %": percent(row.corrected.value),
        }
        for row in rows
    ]


def mean_keys(row: MeanRow) -> list[float | None]:
    """What the columns of `mean_cells` sort by; None for words."""
    return [None, None, None, None, row.tasks, row.mean.value, row.mean.low, row.corrected.value]
