"""`reproduce`: a paper's table run again, each cell with the paper's value, ours, and a verdict.

With the paper's own student a cell's value is judged: whether ours can be the paper's. With another student a value
means nothing beside the paper's, and the gain over the table's baseline method is judged instead. Verdicts:

    reproduced      the interval holds the paper's number, and it is narrow, or its gain's sign is clear
    not reproduced  the interval does not hold it
    underpowered    the interval holds it, and also too much else
    not judged      run, but there is nothing to judge: the baseline itself has no gain, the gain could not be measured
                    (its place says why), or the paper has no number
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
from tinyllm_bench.leaderboard.rows import BoardRow, Gain, make_rows
from tinyllm_bench.leaderboard.stats.intervals import Estimate
from tinyllm_bench.leaderboard.tables import Cells, percent, points, text_table

Verdict = Literal["reproduced", "not reproduced", "underpowered", "not judged", "not run"]
How = Literal["as_published", "as_corrected"]
NARROW = 0.05  # half width of an interval that is narrow enough to speak of a value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mode(_Part):
    """Settings of one way to run the table, for all of its methods and for single ones, and how it still differs."""

    settings: tuple[str, ...] = ()
    methods: Mapping[str, Mapping[str, Any]] = {}
    select_on_test: bool = False
    deviations: tuple[Annotated[str, Field(min_length=1)], ...]


class Reproduction(_Part):
    """A paper's table: which methods and tasks, the reported table's id, other tables to print beside it."""

    name: str
    about: str
    table: str
    paper_student: str
    baseline: str
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    beside: tuple[str, ...] = ()
    settings: Mapping[Literal["cpu", "paper"], tuple[str, ...]]
    as_published: Mode
    as_corrected: Mode

    def mode(self, how: How) -> Mode:
        """One of the two ways."""
        return self.as_published if how == "as_published" else self.as_corrected


class Judged(NamedTuple):
    """One cell: the paper's value, ours, both gains over the baseline (shares), and the verdict."""

    method: str
    task: str
    paper: float | None
    ours: Estimate | None
    paper_gain: float | None
    gain: Gain | None
    verdict: Verdict


class Rejected(NamedTuple):
    """What the filters leave of a teacher's texts about a whole training split: how many there are, and how many are
    rejected for which reason."""

    task: str
    teacher: str
    texts: int
    reasons: Mapping[str, int]


def rejected_texts(cells: Sequence[Cell]) -> list[Rejected]:
    """What filters reject of the texts that the cells learn from, counted over the training split, not a cell's part of
    it. Of live teachers what is written already; programs are judged by running them and are not counted here.

    Raises:
        UserError: a file of recorded texts is damaged.
    """
    found = {}
    for cell in cells:
        for teacher in cell.teachers:
            if teacher.kind != "program" and (cell.task.name, teacher.key) not in found:
                texts, _ = teacher.cached(load_split(cell.source, cell.task.name, "train"))
                reasons = Counter(text.rejected for text in texts if text.rejected is not None)
                found[cell.task.name, teacher.key] = Rejected(cell.task.name, teacher.key, len(texts), dict(reasons))
    return list(found.values())


def reproductions() -> list[str]:
    """The tables that can be run again."""
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
    found: Reproduction, how: How, preset: str, *, tasks: Sequence[str], settings: Sequence[str], seeds: int, runs: Path
) -> Request:
    """The cells of a table. Settings given by hand win over the table's."""
    if preset not in ("cpu", "paper"):
        raise UserError(f"--preset {preset}: a table is run with cpu or paper")
    unknown = [task for task in tasks if task not in found.tasks]
    if unknown:
        raise UserError(f"--task {unknown[0]}: this table has {', '.join(found.tasks)}")
    mode = found.mode(how)
    own = found.settings["cpu" if preset == "cpu" else "paper"]
    return Request(
        methods=found.methods,
        tasks=tuple(tasks) or found.tasks,
        preset=preset,
        assignments=(*own, *mode.settings, *settings),
        seeds=seeds,
        runs=runs,
        select_on_test=mode.select_on_test,
        own=mode.methods,
    )


def judge(
    found: Reproduction, records: Sequence[RunRecord], reported: Reported, tasks: Sequence[str], *, own_student: bool
) -> list[Judged]:
    """Every cell of the table; `own_student`: the runs' student is the paper's."""
    cells = []
    for task in tasks:
        rows = make_rows([record for record in records if record.task == task], found.methods)
        verdicts = SectionAnalysis(rows)
        gains = dict(zip((row.key for row in rows), verdicts.gains(found.baseline), strict=True))
        baseline = _paper(found, reported, found.baseline, task)
        for method in found.methods:
            row = next((row for row in rows if row.first.name == method and row.first.label == method), None)
            cells.append(_judged(found, reported, verdicts, row, gains, (method, task, baseline), own_student))
    return cells


def _judged(
    found: Reproduction,
    reported: Reported,
    verdicts: SectionAnalysis,
    row: BoardRow | None,
    gains: Mapping[str, Gain],
    place: tuple[str, str, float | None],
    own_student: bool,
) -> Judged:
    method, task, baseline = place
    paper = _paper(found, reported, method, task)
    paper_gain = paper - baseline if paper is not None and baseline is not None and method != found.baseline else None
    ours = None if row is None else verdicts.accuracies.get(row.key)
    gain = None if row is None else gains[row.key]
    verdict = of_value(paper, ours) if own_student else of_gain(paper_gain, gain)
    return Judged(method, task, paper, ours, paper_gain, gain, verdict)


def _paper(found: Reproduction, reported: Reported, method: str, task: str) -> float | None:
    value = reported_value(reported, method=method, task=task, student=found.paper_student, table=found.table)
    return None if value is None else float(value.value) / 100


def of_value(paper: float | None, ours: Estimate | None) -> Verdict:
    """Whether our accuracy can be the paper's."""
    if paper is None or ours is None:
        return "not run" if ours is None else "not judged"
    if not ours.low <= paper <= ours.high:
        return "not reproduced"
    return "reproduced" if (ours.high - ours.low) / 2 <= NARROW else "underpowered"


def of_gain(paper: float | None, ours: Gain | None) -> Verdict:
    """Whether our gain over the baseline can be the paper's, and has its sign."""
    if ours is None:
        return "not run"
    if paper is None or ours.low is None or ours.high is None:
        return "not judged"
    if not ours.low <= paper <= ours.high:
        return "not reproduced"
    clear = ours.low > 0 if paper > 0 else ours.high < 0 if paper < 0 else False
    return "reproduced" if clear else "underpowered"


def table_text(
    found: Reproduction,
    how: How,
    cells: Sequence[Judged],
    reported: Reported,
    *,
    preset: str,
    student: str,
    own: bool,
    rejected: Sequence[Rejected] = (),
) -> str:
    """The whole page in Markdown: title, cells, deviations, texts that filters reject, and what others report."""
    scale = "" if own else f", at {preset.upper()} scale with another student ({student}): gains are judged, not values"
    judged = "values" if own else "gains over the baseline"
    beside = "\n\n".join(
        part for name in found.beside if (part := reported_table(reported, tables=(name,), kinds=("score", "gain")))
    )
    return (
        "\n\n".join(
            part
            for part in (
                f"# {markdown(found.about)}, {how.replace('_', ' ')}{markdown(scale)}",
                text_table([_cells(cell) for cell in cells], markdown=True),
                f"Judged: {judged}. Values of the paper are of {found.paper_student}; they are never ranked with ours.",
                "Deviations:\n\n" + "\n".join(f"- {text}" for text in found.mode(how).deviations),
                rejected and _REJECTED + text_table([_counted(one) for one in rejected], markdown=True),
                beside and f"## What others report\n\n{beside}",
            )
            if part
        )
        + "\n"
    )


_REJECTED = """## Texts that are not learned

What `annotations.filters` reject of each teacher's texts, counted over the whole training split.

"""


def _counted(one: Rejected) -> Cells:
    count = sum(one.reasons.values())
    reasons = sorted(one.reasons.items(), key=lambda reason: -reason[1])
    return {
        "task": one.task,
        "teacher": one.teacher,
        "texts": f"{one.texts:,}",
        "rejected": f"{count:,}",
        "%": percent(count / one.texts) if one.texts else "-",
        "reasons": ", ".join(f"{name} {n:,}" for name, n in reasons) or "-",
    }


def _cells(cell: Judged) -> Cells:
    ours, gain = cell.ours, cell.gain
    both = None if ours is None or cell.paper is None else ours.value - cell.paper
    return {
        "method": cell.method,
        "task": cell.task,
        "paper %": "-" if cell.paper is None else percent(cell.paper),
        "ours %": "-" if ours is None else percent(ours.value),
        "95 % interval": "-" if ours is None else f"{percent(ours.low)} to {percent(ours.high)}",
        "difference": "-" if both is None else points(both),
        "paper's gain": "-" if cell.paper_gain is None else points(cell.paper_gain),
        "our gain": "-" if gain is None else _gain(gain),
        "verdict": cell.verdict,
    }


def _gain(gain: Gain) -> str:
    return gain.why_not or f"{_p(gain.value)} ({_p(gain.low)} to {_p(gain.high)})"


def _p(share: float | None) -> str:
    return "-" if share is None else points(share)


def is_papers(reported: Reported, student: str, found: Reproduction) -> bool:
    """Whether a student's spec is the paper's own model."""
    return bool(reported_values(reported, student=student, table=found.table))


def write_page(runs: Path, name: str, how: How, text: str) -> Path:
    """Keep the page beside the runs it was made from."""
    file = runs / f"{name}-{how}.md"
    write_text(file, text)
    return file
