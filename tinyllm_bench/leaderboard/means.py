"""The table of means over a board's tasks."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tinyllm_bench.leaderboard.stats.averages import macro_average
from tinyllm_bench.leaderboard.stats.intervals import Estimate
from tinyllm_bench.leaderboard.tables import Cells, Section, interval_text, marked, percent

MEAN_NOTE = "Only rows that stand on every task of their reading. Chance-corrected: 0 at chance, 100 if all is right."


class Standings(NamedTuple):
    """A section as a mean over tasks needs it: its rows' accuracies by printed label and student.

    `parser` is the version of the parser, which choices and numbers share.
    """

    task: str
    reading: str
    parser: str
    chance: float
    rows: Mapping[tuple[str, str], Estimate]


def standings_of(section: Section) -> Standings:
    """The rows of a section whose accuracy is known."""
    first, known = section.rows[0].first, section.accuracies
    rows = {(marked(row), row.student): known[row.key] for row in section.rows if row.key in known}
    version = re.search(r"\d+", str(first.protocol["parser_version"]))
    return Standings(first.task, first.reading, version[0] if version else "", first.chance, rows)


def macro_table(sections: Sequence[Standings]) -> list[Cells]:
    """Mean accuracy and mean chance-corrected accuracy of the rows that stand on every task, per reading and parser.

    Only tasks with one protocol count: with several there is no saying which one belongs into a mean. Answers that two
    versions of the parser read are never in one mean.
    """
    lines = []
    for reading, parser in sorted({(section.reading, section.parser) for section in sections}):
        of_reading = [section for section in sections if (section.reading, section.parser) == (reading, parser)]
        tasks = [section.task for section in of_reading]
        single = [section for section in of_reading if tasks.count(section.task) == 1]
        if len(single) > 1:
            lines += [_line(key, single) for key in single[0].rows if all(key in one.rows for one in single)]
    return lines


def _line(key: tuple[str, str], sections: Sequence[Standings]) -> Cells:
    found = [section.rows[key] for section in sections]
    mean, corrected = macro_average(found), macro_average(found, [section.chance for section in sections])
    return {
        "row": key[0],
        "student": key[1] or "-",
        "reading": sections[0].reading,
        "parser version": sections[0].parser,
        "tasks": str(len(found)),
        "mean accuracy %": percent(mean.value),
        "95 % interval": interval_text(mean),
        "mean chance-corrected %": percent(corrected.value),
    }
