"""What is said of one teacher on one task, and the rows in which a terminal and a page show it."""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, computed_field

NOTHING = "-"


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class Share(_Figures):
    """`count` out of `of`."""

    count: int
    of: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share(self) -> float | None:
        """Between 0 and 1; None where nothing could be judged."""
        return self.count / self.of if self.of else None


class Words(_Figures):
    """Lengths in white-space words."""

    mean: float
    median: float
    p95: float
    max: int


class Accuracy(_Figures):
    """Own answers of a teacher that did not see the gold: right ones among the named, with a 95 % Wilson interval.

    `asked` counts all its texts: the rest named no answer that could be read.
    """

    asked: int
    named: int
    correct: int
    low: float
    high: float


class Agreement(_Figures):
    """With another teacher, on the records where both named an answer of their own (their first samples).

    `kappa` is Cohen's over the answers' positions among the choices; None where chance alone agrees always.
    """

    other: str
    n: int
    agreed: int
    kappa: float | None


class Shown(_Figures):
    """One text to read, with every filter that would reject it."""

    record_id: str
    question: str
    choices: tuple[str, ...]
    gold: str
    text: str
    answer: str | None
    reasons: tuple[str, ...]


class TeacherReport(_Figures):
    """One teacher on one task. `alone`: each filter on its own; `rejected`: by the first of `filters` that acts.

    Tokens and `seconds` are sums, None where nobody counted. `own` is None for a teacher that saw the gold answer.
    """

    teacher: str
    task: str
    split: str
    gold_visible: bool
    n: int
    words: Words
    under_five_words: Share
    empty_or_nan: Share
    ends_on_punctuation: Share
    invented_question: Share
    contains_gold: Share
    gold_only: Share
    filters: tuple[str, ...]
    kept: Share
    rejected: dict[str, Share]
    alone: dict[str, Share]
    own: Accuracy | None
    agreement: tuple[Agreement, ...] = ()
    tokens_in: int | None
    tokens_out: int | None
    seconds: float | None
    samples: tuple[Shown, ...]


class Cell(NamedTuple):
    """What a table shows; `share` between 0 and 1 where a bar makes sense."""

    text: str
    share: float | None = None


class Row(NamedTuple):
    """One figure of all teachers of a task."""

    label: str
    cells: tuple[Cell, ...]


def by_task(reports: Sequence[TeacherReport]) -> dict[str, list[TeacherReport]]:
    """The reports of each task, in the order given."""
    found: dict[str, list[TeacherReport]] = {}
    for report in reports:
        found.setdefault(report.task, []).append(report)
    return found


def figure_rows(reports: Sequence[TeacherReport]) -> list[Row]:
    """Lengths, flaws, own accuracy and cost of the teachers of one task, a column each."""
    rows = [
        Row("texts", tuple(Cell(f"{r.n:,}") for r in reports)),
        Row("words: mean", tuple(Cell(f"{r.words.mean:.1f}") for r in reports)),
        Row("words: median", tuple(Cell(f"{r.words.median:g}") for r in reports)),
        Row("words: 95th percentile", tuple(Cell(f"{r.words.p95:.0f}") for r in reports)),
        Row("words: most", tuple(Cell(f"{r.words.max:,}") for r in reports)),
        Row("kept by the filters in use", tuple(share_cell(r.kept) for r in reports)),
        Row("under five words", tuple(share_cell(r.under_five_words) for r in reports)),
        Row("empty or nan", tuple(share_cell(r.empty_or_nan) for r in reports)),
        Row("ends on punctuation", tuple(share_cell(r.ends_on_punctuation) for r in reports)),
        Row("invented question", tuple(share_cell(r.invented_question) for r in reports)),
        Row("contains the gold text", tuple(share_cell(r.contains_gold) for r in reports)),
        Row("is only the gold text", tuple(share_cell(r.gold_only) for r in reports)),
        Row("own accuracy", tuple(own_cell(r) for r in reports)),
    ]
    costs = [
        Row("tokens in", tuple(_count(r.tokens_in) for r in reports)),
        Row("tokens out", tuple(_count(r.tokens_out) for r in reports)),
        Row("seconds", tuple(_count(r.seconds) for r in reports)),
    ]
    return rows + [row for row in costs if any(cell.text != NOTHING for cell in row.cells)]


def filter_rows(reports: Sequence[TeacherReport]) -> list[Row]:
    """The share that each filter would reject on its own."""
    names = reports[0].alone
    return [Row(name, tuple(share_cell(r.alone[name]) for r in reports)) for name in names]


def share_cell(share: Share) -> Cell:
    """A share in per cent with its count; nothing where nothing could be judged."""
    if share.share is None:
        return Cell(NOTHING)
    return Cell(f"{100 * share.share:.1f} % ({share.count:,})", share.share)


def own_cell(report: TeacherReport) -> Cell:
    """Own accuracy with its interval, and how many named no answer."""
    if report.own is None:
        return Cell("saw the gold")
    own = report.own
    silent = f", {own.asked - own.named:,} unread" if own.asked > own.named else ""
    if not own.named:
        return Cell(f"{NOTHING}{silent}")
    share = own.correct / own.named
    interval = f"{100 * own.low:.1f} to {100 * own.high:.1f}"
    return Cell(f"{100 * share:.1f} % of {own.named:,} ({interval}){silent}", share)


def _count(value: float | None) -> Cell:
    return Cell(NOTHING if value is None else f"{value:,.0f}")


def agreement_lines(reports: Sequence[TeacherReport]) -> list[str]:
    """Each pair of teachers once, in words."""
    lines, done = [], set()
    for report in reports:
        for other in report.agreement:
            if (other.other, report.teacher) in done:
                continue
            done.add((report.teacher, other.other))
            kappa = "not defined" if other.kappa is None else f"{other.kappa:.2f}"
            lines.append(f"{report.teacher} and {other.other}: {other.agreed:,} of {other.n:,} alike, kappa {kappa}")
    return lines
