"""All that a board's files say about one section, made at once, so that its records need not be kept."""

from collections.abc import Iterator
from typing import NamedTuple

from tinyllm_bench.leaderboard.exports import SectionData, section_data
from tinyllm_bench.leaderboard.external_forms import eval_results_yaml, every_eval_ever_lines
from tinyllm_bench.leaderboard.latex import latex_section
from tinyllm_bench.leaderboard.markdown import section_markdown
from tinyllm_bench.leaderboard.means import TaskStandings, standings_of
from tinyllm_bench.leaderboard.page import page_json, page_section
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.tables import Section
from tinyllm_bench.leaderboard.verdicts import Tier, checked


class SectionFiles(NamedTuple):
    """A section's parts of the board's files; `page` is the JSON that the page's script reads. It can be pickled."""

    slug: str
    title: str
    is_sample: bool
    standings: TaskStandings
    data: SectionData
    page: str
    markdown: str
    latex: str
    every_eval_ever: str
    eval_results: str


def section_files(section: Section, slug: str, *, organization: str) -> SectionFiles:
    """`slug` is the section's name in files, `organization` who publishes the board."""
    runs = list(_runs(section))
    return SectionFiles(
        slug=slug,
        title=section.title,
        is_sample=section.is_sample,
        standings=standings_of(section),
        data=section_data(section, slug),
        page=page_json(page_section(section, slug)),
        markdown=section_markdown(section),
        latex=latex_section(section, slug),
        every_eval_ever=every_eval_ever_lines(runs, organization),
        eval_results=eval_results_yaml(runs),
    )


def _runs(section: Section) -> Iterator[tuple[str, RunRecord, Tier]]:
    """Every run with the printed label of its row and its own tier."""
    for row in section.table:
        for record in row.source.records if row.source else ():
            yield row.title, record, checked(section.checks, record).tier
