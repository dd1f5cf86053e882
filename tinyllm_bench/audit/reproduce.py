"""`reproduce`: rerun a paper's table; each cell shows the paper's value, ours, and a verdict.

With the paper's own student a cell's value is judged: whether our interval contains it. With another student values
are not comparable, and the gain over the table's baseline method is judged instead. Verdicts:

    reproduced      the interval contains the paper's number, and is narrow, or the sign of the gain is clear
    not reproduced  the interval does not contain it
    underpowered    the interval contains it, but is too wide to tell
    not judged      run, but there is nothing to judge: the baseline itself has no gain, the gain could not be measured
                    (the cell says why), or the paper has no number
    not run         there is no run for this cell
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tinyllm_bench.base.config import parse_yaml
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.escaping import markdown
from tinyllm_bench.base.files import write_text
from tinyllm_bench.data.sources import load_split
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.leaderboard.analysis import SectionAnalysis
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.reported import Reported, reported_table, reported_value, reported_values
from tinyllm_bench.leaderboard.rows import Gain, make_rows
from tinyllm_bench.leaderboard.stats.intervals import Estimate
from tinyllm_bench.leaderboard.tables import percent, points, text_table

Verdict = Literal["reproduced", "not reproduced", "underpowered", "not judged", "not run"]
VariantName = Literal["as_published", "as_corrected"]
NARROW = 0.05  # largest half width of an interval that says something about a value


class _TableModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_TableModel):
    """One way to run the table: settings of all methods and of single ones, and how it still differs from the paper."""

    settings: tuple[str, ...] = ()
    methods: Mapping[str, Mapping[str, Any]] = {}
    select_on_test: bool = False
    deviations: tuple[Annotated[str, Field(min_length=1)], ...]


class Reproduction(_TableModel):
    """A paper's table: its methods and tasks, the id of the reported table, related tables to print below it."""

    name: str
    about: str
    table: str
    paper_student: str
    baseline: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    related_tables: tuple[str, ...] = ()
    settings: Mapping[Literal["cpu", "paper"], tuple[str, ...]]
    as_published: Variant
    as_corrected: Variant

    def variant(self, name: VariantName) -> Variant:
        """One of the two variants."""
        return self.as_published if name == "as_published" else self.as_corrected

    def reported(self, reported: Reported, method: str, task: str) -> float | None:
        """The paper's accuracy, as a share; None if it reports none."""
        value = reported_value(reported, method=method, task=task, student=self.paper_student, table=self.table)
        return None if value is None else float(value.value) / 100


def reproductions() -> list[str]:
    """The names of the tables that can be rerun."""
    entries = (files("tinyllm_bench.audit") / "reproductions").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_reproduction(name: str) -> Reproduction:
    """A table by name.

    Raises:
        UserError: unknown name.
    """
    if name not in reproductions():
        raise unknown_name("table", name, reproductions())
    text = (files("tinyllm_bench.audit") / "reproductions" / f"{name}.yaml").read_text(encoding="utf-8")
    return Reproduction.model_validate({"name": name, **parse_yaml(text, f"table {name}")})


def request_of(
    reproduction: Reproduction,
    variant_name: VariantName,
    preset: str,
    *,
    tasks: Sequence[str],
    settings: Sequence[str],
    seeds: int,
    runs: Path,
) -> Request:
    """The request for a table's cells. The user's settings override the table's.

    Raises:
        UserError: another preset than `cpu` or `paper`, or a task that the table does not have.
    """
    if preset not in ("cpu", "paper"):
        raise UserError(f"--preset {preset}: a table is run with cpu or paper")
    unknown = [task for task in tasks if task not in reproduction.tasks]
    if unknown:
        raise UserError(f"--task {unknown[0]}: this table has {', '.join(reproduction.tasks)}")
    variant = reproduction.variant(variant_name)
    return Request(
        methods=reproduction.methods,
        tasks=tuple(tasks) or reproduction.tasks,
        preset=preset,
        assignments=(
            *reproduction.settings["cpu" if preset == "cpu" else "paper"],
            *variant.settings,
            *settings,
        ),
        seeds=seeds,
        runs=runs,
        select_on_test=variant.select_on_test,
        method_settings=variant.methods,
    )


# --- Verdicts ---------------------------------------------------------------------------------------------------------


class JudgedCell(NamedTuple):
    """One cell: the paper's value, ours, both gains over the baseline (shares), and the verdict."""

    method: str
    task: str
    paper: float | None
    ours: Estimate | None
    paper_gain: float | None
    gain: Gain | None
    verdict: Verdict


def judge(
    reproduction: Reproduction,
    records: Sequence[RunRecord],
    reported: Reported,
    tasks: Sequence[str],
    *,
    own_student: bool,
) -> list[JudgedCell]:
    """Every cell of the table; `own_student`: the runs' student is the paper's."""
    cells = []
    for task in tasks:
        rows = make_rows([record for record in records if record.task == task], reproduction.methods)
        by_method = {row.first.name: row for row in reversed(rows) if row.first.name == row.first.label}
        analysis = SectionAnalysis(rows)
        gains = dict(zip((row.key for row in rows), analysis.gains(reproduction.baseline), strict=True))
        baseline = reproduction.reported(reported, reproduction.baseline, task)
        for method in reproduction.methods:
            paper, paper_gain = reproduction.reported(reported, method, task), None
            if paper is not None and baseline is not None and method != reproduction.baseline:
                paper_gain = paper - baseline
            row = by_method.get(method)
            ours = None if row is None else analysis.accuracies.get(row.key)
            gain = None if row is None else gains[row.key]
            verdict = verdict_of_value(paper, ours) if own_student else verdict_of_gain(paper_gain, gain)
            cells.append(JudgedCell(method, task, paper, ours, paper_gain, gain, verdict))
    return cells


def verdict_of_value(paper: float | None, ours: Estimate | None) -> Verdict:
    """Whether our accuracy agrees with the paper's."""
    if paper is None or ours is None:
        return "not run" if ours is None else "not judged"
    if not ours.low <= paper <= ours.high:
        return "not reproduced"
    return "reproduced" if (ours.high - ours.low) / 2 <= NARROW else "underpowered"


def verdict_of_gain(paper: float | None, ours: Gain | None) -> Verdict:
    """Whether our gain over the baseline agrees with the paper's, and has its sign."""
    if ours is None:
        return "not run"
    if paper is None or ours.low is None or ours.high is None:
        return "not judged"
    if not ours.low <= paper <= ours.high:
        return "not reproduced"
    clear = ours.low > 0 if paper > 0 else ours.high < 0 if paper < 0 else False
    return "reproduced" if clear else "underpowered"


def is_paper_student(reported: Reported, student: str, reproduction: Reproduction) -> bool:
    """Whether a student's spec is the paper's own model."""
    return bool(reported_values(reported, student=student, table=reproduction.table))


# --- The page ---------------------------------------------------------------------------------------------------------


class FilteredTexts(NamedTuple):
    """A teacher's texts on a whole training split: how many there are, and how many the filters reject by reason."""

    task: str
    teacher: str
    texts: int
    reasons: Mapping[str, int]


def filtered_texts(cells: Sequence[Cell]) -> list[FilteredTexts]:
    """What filters reject of the texts that the cells learn from, counted over the whole training split rather than a
    cell's part of it.

    Of live teachers only cached texts are counted; programs are filtered by running them and are not counted here.

    Raises:
        UserError: a file of recorded texts is damaged.
    """
    counts = {}
    for cell in cells:
        for teacher in cell.teachers:
            if teacher.kind != "program" and (cell.task.name, teacher.key) not in counts:
                texts, _ = teacher.cached(load_split(cell.source, cell.task.name, "train"))
                reasons = Counter(text.rejected for text in texts if text.rejected is not None)
                key = (cell.task.name, teacher.key)
                counts[key] = FilteredTexts(*key, len(texts), dict(reasons))
    return list(counts.values())


def table_text(
    reproduction: Reproduction,
    variant_name: VariantName,
    cells: Sequence[JudgedCell],
    reported: Reported,
    *,
    preset: str,
    student: str,
    own_student: bool,
    filtered: Sequence[FilteredTexts] = (),
) -> str:
    """The whole page in Markdown: title, cells, deviations, texts that filters reject, and what others report."""
    judged = "values" if own_student else "gains over the baseline"
    scale = f", at {preset.upper()} scale with another student ({student}): gains are judged, not values"
    title = f"# {markdown(reproduction.about)}, {variant_name.replace('_', ' ')}"
    deviations = "\n".join(f"- {text}" for text in reproduction.variant(variant_name).deviations)
    tables = [reported_table(reported, tables=(name,), kinds=("score", "gain")) for name in reproduction.related_tables]
    others = "\n\n".join(filter(None, tables))
    parts = [
        title if own_student else title + markdown(scale),
        text_table([_result_row(cell) for cell in cells], markdown=True),
        f"Judged: {judged}. Values of the paper are of {reproduction.paper_student}; they are never ranked with ours.",
        f"Deviations:\n\n{deviations}",
    ]
    if filtered:
        parts += [
            "## Texts that are not learned",
            "What `annotations.filters` reject of each teacher's texts, counted over the whole training split.",
            text_table([_filter_row(counts) for counts in filtered], markdown=True),
        ]
    if others:
        parts.append(f"## What others report\n\n{others}")
    return "\n\n".join(parts) + "\n"


def _result_row(cell: JudgedCell) -> dict[str, str]:
    ours, gain = cell.ours, cell.gain

    def signed(share: float | None) -> str:
        return "-" if share is None else points(share)

    our_gain = "-"
    if gain is not None:
        our_gain = gain.why_not or f"{signed(gain.value)} ({signed(gain.low)} to {signed(gain.high)})"
    return {
        "method": cell.method,
        "task": cell.task,
        "paper %": "-" if cell.paper is None else percent(cell.paper),
        "ours %": "-" if ours is None else percent(ours.value),
        "95 % interval": "-" if ours is None else f"{percent(ours.low)} to {percent(ours.high)}",
        "difference": signed(None if ours is None or cell.paper is None else ours.value - cell.paper),
        "paper's gain": signed(cell.paper_gain),
        "our gain": our_gain,
        "verdict": cell.verdict,
    }


def _filter_row(counts: FilteredTexts) -> dict[str, str]:
    rejected = sum(counts.reasons.values())
    reasons = sorted(counts.reasons.items(), key=lambda reason: -reason[1])
    return {
        "task": counts.task,
        "teacher": counts.teacher,
        "texts": f"{counts.texts:,}",
        "rejected": f"{rejected:,}",
        "%": percent(rejected / counts.texts) if counts.texts else "-",
        "reasons": ", ".join(f"{name} {n:,}" for name, n in reasons) or "-",
    }


def write_page(runs: Path, name: str, variant_name: VariantName, text: str) -> Path:
    """Write the page into the folder of its runs."""
    file = runs / f"{name}-{variant_name}.md"
    write_text(file, text)
    return file
