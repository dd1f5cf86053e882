"""Reported values: what papers and public threads print, with source and certainty; never ranked with measured rows.

A folder holds one YAML file a paper (`leaderboards/reported/*.yaml`). A number keeps the digits it was printed with.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import markdown
from tinyllm_bench.leaderboard.tables import Cells, text_table

Certainty = Literal["seen", "second-hand", "derived"]
Kind = Literal["score", "gain", "cost"]
_HEADS = ("reported row", "student", "source", "certainty")
_MEANING = {
    "seen": "read in the source itself",
    "second-hand": "read in somebody's account of the source, to be checked against it",
    "derived": "computed from other published numbers or outputs, printed by no paper",
}


def _printed(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise ValueError(f"{value!r} is not a number; write it as it was printed, or leave the cell out if unseen")
    return value


Number = Annotated[Decimal, BeforeValidator(_printed)]
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Where a number was printed. `via`: what was read instead of it, or what the number was computed from."""

    paper: Text
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}(v\d+)?$")] | None = None
    address: Annotated[str, Field(pattern=r"^https://\S+$")] | None = None
    table: Text | None = None
    page: int | None = None
    via: Text | None = None

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        if not (self.arxiv or self.address or self.via):
            raise ValueError("nobody can find it; give arxiv, address, or via (what was read)")
        return self

    @property
    def citation(self) -> str:
        """The source in one line."""
        parts = [self.paper, self.arxiv and f"arXiv:{self.arxiv}", self.address, self.table]
        return ", ".join(part for part in [*parts, self.page and f"p. {self.page}"] if part)


class Setting(_Part):
    """How a table's numbers came about; what the source does not say is absent."""

    metric: Text
    teachers: tuple[Text, ...] = ()
    split: Text | None = None
    decoding: Text | None = None
    seeds: Text | None = None
    note: Text | None = None

    @property
    def text(self) -> str:
        """The setting in one line."""
        told = {
            "metric": self.metric,
            "teachers": ", ".join(self.teachers),
            "split": self.split,
            "decoding": self.decoding,
            "seeds": self.seeds,
            "setting": self.note,
        }
        return "; ".join(f"{key}: {value}" for key, value in told.items() if value)


class Column(_Part):
    """A column: our task of that data set (null where there is none) and the number of its scored items, if known."""

    task: Text | None = None
    n: Annotated[int, Field(ge=1)] | None = None


class ReportedRow(_Part):
    """A row as the source labels it; `method` is ours or null, `student` null for teachers or where it is not said."""

    label: Text
    method: Text | None
    student: Text | None
    values: Annotated[dict[str, Number], Field(min_length=1)]
    note: Text | None = None


class ReportedTable(_Part):
    """Numbers of one source, setting, metric and certainty."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: Text
    kind: Kind
    certainty: Certainty
    source: Source
    setting: Setting
    note: Text | None = None
    columns: dict[str, Column]
    rows: tuple[ReportedRow, ...]

    @model_validator(mode="after")
    def _says_where_it_was_read(self) -> Self:
        if self.certainty != "seen" and not self.source.via:
            raise ValueError(f"certainty {self.certainty} needs source.via: what was read, or what it is computed from")
        if self.certainty == "seen" and self.source.via:
            raise ValueError("certainty seen has no source.via; remove it, or say second-hand or derived")
        return self

    @model_validator(mode="after")
    def _rows_fit_columns(self) -> Self:
        if reserved := sorted(set(self.columns) & set(_HEADS)):
            raise ValueError(f"columns {reserved} are heads of the printed table; choose other names")
        used = {column for row in self.rows for column in row.values}
        if unknown := sorted(used - set(self.columns)):
            raise ValueError(f"values name {unknown}, which columns lacks; add it there or correct the name")
        if empty := sorted(set(self.columns) - used):
            raise ValueError(f"columns {empty} hold no value; remove them")
        keys = [(row.label, row.student) for row in self.rows]
        if twice := sorted({f"{label} ({student})" for label, student in keys if keys.count((label, student)) > 1}):
            raise ValueError(f"{', '.join(twice)} stands twice; remove one or tell them apart in label")
        return self


class LeftOut(_Part):
    """What has no number here, and why."""

    what: Text
    why: Text


class ReportedFile(_Part):
    """One YAML file. `models` gives the hub name of students that can be loaded."""

    schema_version: Literal[1]
    about: Text
    models: dict[str, Text] = {}
    tables: Annotated[tuple[ReportedTable, ...], Field(min_length=1)]
    left_out: tuple[LeftOut, ...] = ()

    @model_validator(mode="after")
    def _models_are_students(self) -> Self:
        students = {row.student for table in self.tables for row in table.rows}
        if unused := sorted(set(self.models) - {name for name in students if name}):
            raise ValueError(f"models names {unused}, which is no row's student; remove it or correct the name")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """Everything that a folder reports; `models` maps a student to its hub name."""

    tables: tuple[ReportedTable, ...]
    models: Mapping[str, str]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedValue:
    """One number with the table, row and column that it stands in. `str(value)` has the printed digits."""

    value: Decimal
    table: ReportedTable
    row: ReportedRow
    column: str


def reported_values(
    reported: Reported,
    *,
    method: str | None = None,
    task: str | None = None,
    student: str | None = None,
    kind: Kind = "score",
    table: str | None = None,
    label: str | None = None,
) -> list[ReportedValue]:
    """Every number that fits what is given; what is None fits all.

    `task` is one of our tasks or a column's name, `student` a name as reported or the hub name or `hf:` spec of the
    same model, `table` a table's id and `label` a row's label.
    """
    return [
        ReportedValue(value=value, table=one, row=row, column=column)
        for one in reported.tables
        if one.kind == kind and table in (None, one.id)
        for row in one.rows
        if method in (None, row.method) and label in (None, row.label)
        if student is None or (row.student and _same_student(student, row.student, reported.models))
        for column, value in row.values.items()
        if task in (None, one.columns[column].task, column)
    ]


def _same_student(asked: str, name: str, models: Mapping[str, str]) -> bool:
    """A spec that cuts layers (`?layers=`) is another student, so only a plain one names the hub's model."""
    plain = re.fullmatch(r"(?:hf:)?([^@?]+)(?:@[^@?]*)?", asked)
    return asked.casefold() == name.casefold() or bool(plain and plain[1] == models.get(name))


def reported_value(
    reported: Reported,
    *,
    method: str,
    task: str,
    student: str,
    kind: Kind = "score",
    table: str | None = None,
    label: str | None = None,
) -> ReportedValue | None:
    """The one number reported for a method, a task and a student; None where none is. See `reported_values`.

    Raises:
        UserError: sources (or rows of one) differ; says how to choose.
    """
    found = reported_values(reported, method=method, task=task, student=student, kind=kind, table=table, label=label)
    if len({one.value for one in found}) > 1:
        choices = ", ".join(f"{one.value} (table={one.table.id}, label={one.row.label})" for one in found)
        raise UserError(f"{method} on {task} with {student} has several reported values; name one of: {choices}")
    return found[0] if found else None


def reported_table(
    reported: Reported,
    *,
    tasks: Collection[str] | None = None,
    methods: Collection[str] | None = None,
    kinds: Collection[str] = ("score",),
    tables: Collection[str] | None = None,
) -> str:
    """A Markdown block of reported numbers under a heading of its own; empty where nothing fits.

    `tasks` keeps the columns of these tasks, `methods` the tables with a row of one of them. Rows stand in the source's
    order: nothing is ranked, and nothing measured stands among them.
    """
    chosen = [
        (table, columns)
        for table in reported.tables
        if table.kind in kinds
        and (tables is None or table.id in tables)
        and (methods is None or any(row.method in methods for row in table.rows))
        if (columns := [name for name, column in table.columns.items() if tasks is None or column.task in tasks])
    ]
    if not chosen:
        return ""
    certainties = {table.certainty for table, _ in chosen}
    meaning = "; ".join(f"{word}: {said}" for word, said in _MEANING.items() if word in certainties)
    parts = [
        "## Reported by papers, not measured here",
        "These numbers come from the sources named in each row. They were made with other prompts, splits, parsers and "
        f"budgets, so they are neither ranked nor averaged with measured rows. Certainty: {markdown(meaning)}.",
    ]
    for table, columns in chosen:
        parts += _block(table, columns)
    if tasks is None and methods is None and reported.left_out:
        left = (f"- {markdown(one.what)}: {markdown(one.why)}" for one in reported.left_out)
        parts += ["### Left out", "\n".join(left)]
    return "\n\n".join(parts) + "\n"


def _block(table: ReportedTable, columns: Sequence[str]) -> Iterable[str]:
    rows = [row for row in table.rows if any(name in row.values for name in columns)]
    yield f"### {markdown(table.title)}"
    yield markdown(f"{table.setting.text[:1].upper()}{table.setting.text[1:]}.")
    yield text_table([_cells(table, row, columns) for row in rows], markdown=True)
    notes = [table.note, *(f"{_who(row)}: {row.note}" for row in rows if row.note)]
    if table.source.via:
        notes.insert(0, f"{'From' if table.certainty == 'derived' else 'Read in'}: {table.source.via}.")
    if told := [f"- {markdown(note)}" for note in notes if note]:
        yield "\n".join(told)


def _who(row: ReportedRow) -> str:
    return f"{row.label} ({row.student})" if row.student else row.label


def _cells(table: ReportedTable, row: ReportedRow, columns: Sequence[str]) -> Cells:
    label, student, source, certainty = _HEADS
    numbers = {name: str(row.values.get(name, "-")) for name in columns}
    told = {source: table.source.citation, certainty: table.certainty}
    return {label: row.label, student: row.student or "-"} | numbers | told
