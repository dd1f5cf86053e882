"""Reported values: what papers and public threads print, with source and certainty; never ranked with measured rows.

A folder holds one YAML file a paper (`leaderboards/reported/*.yaml`). A number keeps the digits it was printed with,
and a mistake in a file is an error of one line. From top to bottom: the form of a file, reading a folder, looking up
values, the Markdown block.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import markdown
from tinyllm_bench.base.files import read_text, strict_yaml
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


class _ReportedPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReportedSource(_ReportedPart):
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


class ReportedSetting(_ReportedPart):
    """How a table's numbers were measured; what the source does not say is absent."""

    metric: Text
    teachers: tuple[Text, ...] = ()
    split: Text | None = None
    decoding: Text | None = None
    seeds: Text | None = None
    note: Text | None = None

    @property
    def text(self) -> str:
        """The setting in one line."""
        parts = {
            "metric": self.metric,
            "teachers": ", ".join(self.teachers),
            "split": self.split,
            "decoding": self.decoding,
            "seeds": self.seeds,
            "setting": self.note,
        }
        return "; ".join(f"{key}: {value}" for key, value in parts.items() if value)


class ReportedColumn(_ReportedPart):
    """A column: our task of that data set (null where there is none) and the number of its scored items, if known."""

    task: Text | None = None
    n: Annotated[int, Field(ge=1)] | None = None


class ReportedRow(_ReportedPart):
    """A row as the source labels it; `method` is ours or null, `student` null for teachers or where it is unknown."""

    label: Text
    method: Text | None
    student: Text | None
    values: Annotated[dict[str, Number], Field(min_length=1)]
    note: Text | None = None


class ReportedTable(_ReportedPart):
    """Numbers of one source, setting, metric and certainty."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: Text
    kind: Kind
    certainty: Certainty
    source: ReportedSource
    setting: ReportedSetting
    note: Text | None = None
    columns: dict[str, ReportedColumn]
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
            raise ValueError(f"values name {unknown}, which columns do not have; add it there or correct the name")
        if empty := sorted(set(self.columns) - used):
            raise ValueError(f"columns {empty} hold no value; remove them")
        keys = [(row.label, row.student) for row in self.rows]
        if twice := sorted({f"{label} ({student})" for label, student in keys if keys.count((label, student)) > 1}):
            raise ValueError(f"{', '.join(twice)} is listed twice; remove one or tell them apart in label")
        return self


class LeftOut(_ReportedPart):
    """A result without a number here, and the reason."""

    what: Text
    why: Text


class ReportedFile(_ReportedPart):
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


# --- reading a folder -------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Keeps a number's printed digits."""


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Decimal:
    try:
        return Decimal(node.value)
    except InvalidOperation:
        problem = f"{node.value!r} is not a decimal number, write it as printed"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def reported_folder() -> Path:
    """The folder of the values that ship with the project, in a checkout or inside the installed package."""
    package = Path(__file__).parents[1]
    inside = package / "reported"
    return inside if inside.is_dir() else package.parent / "leaderboards" / "reported"


def load_reported(folder: Path) -> Reported:
    """Read and check every `*.yaml` of a folder, in the order of their names.

    Raises:
        UserError: no such folder, broken YAML, an unknown or missing key, a value of the wrong kind, a table id or a
            model that is in two files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no reported values at {folder}; give a folder with one YAML file a paper")
    files = {file: _load_file(file) for file in sorted(folder.glob("*.yaml"))}
    home: dict[str, Path] = {}
    models: dict[str, str] = {}
    for file, content in files.items():
        for table in content.tables:
            if table.id in home:
                raise UserError(f"{file}: tables[{table.id}].id is in {home[table.id]} too; choose another id")
            home[table.id] = file
        for name, hub in content.models.items():
            if models.setdefault(name, hub) != hub:
                raise UserError(f"{file}: models.{name} is {models[name]} in another file; make them agree")
    return Reported(
        tables=tuple(table for content in files.values() for table in content.tables),
        models=models,
        left_out=tuple(missing for content in files.values() for missing in content.left_out),
    )


def _load_file(file: Path) -> ReportedFile:
    try:
        raw = strict_yaml(read_text(file), _Loader)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from None
    try:
        return ReportedFile.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{file}: {_first_problem(error, raw)}") from None


_MODELS: dict[str, type[BaseModel]] = {
    "tables": ReportedTable,
    "rows": ReportedRow,
    "source": ReportedSource,
    "setting": ReportedSetting,
    "columns": ReportedColumn,
    "left_out": LeftOut,
}


def _first_problem(error: ValidationError, raw: Any) -> str:
    """Place, problem and fix of the first error; our own messages include their fix."""
    first = error.errors(include_url=False)[0]
    place = _place(first["loc"], raw)
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    if first["type"] == "extra_forbidden":
        inside = next((_MODELS[str(part)] for part in reversed(first["loc"][:-1]) if part in _MODELS), ReportedFile)
        return f"{place} is no key here; allowed: {', '.join(inside.model_fields)}"
    fix = {
        "missing": "; add it, null where there is none",
        "string_type": "; put it in quotes",
        "string_pattern_mismatch": "; write it like that, in quotes",
        "value_error": "",
    }.get(first["type"], "; correct the value")
    return f"{place}: {message}{fix}" if place else f"{message}{fix}"


def _place(loc: Sequence[int | str], raw: Any) -> str:
    """`tables[main].rows[Label, student].values.X`: list items by name instead of by number."""
    parts: list[str] = []
    for part in loc:
        if isinstance(part, int):
            raw = raw[part] if isinstance(raw, list) and part < len(raw) else None
            named = raw if isinstance(raw, dict) else {}
            name = ", ".join(str(named[key]) for key in ("id", "label", "student") if named.get(key))
            parts[-1] += f"[{name or part}]"
        else:
            raw = raw.get(part) if isinstance(raw, dict) else None
            parts.append(part)
    return ".".join(parts)


# --- looking up values ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedValue:
    """One number with its table, row and column. `str(value)` has the printed digits."""

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
    """Every number that matches the arguments given; None matches all.

    `task` is one of our tasks or a column's name, `student` a name as reported or the hub name or `hf:` spec of the
    same model, `table` a table's id and `label` a row's label.
    """
    return [
        ReportedValue(value=value, table=source, row=row, column=column)
        for source in reported.tables
        if source.kind == kind and table in (None, source.id)
        for row in source.rows
        if method in (None, row.method) and label in (None, row.label)
        if student is None or (row.student and _same_student(student, row.student, reported.models))
        for column, value in row.values.items()
        if task in (None, source.columns[column].task, column)
    ]


def _same_student(spec: str, name: str, models: Mapping[str, str]) -> bool:
    """A spec that cuts layers (`?layers=`) is another student, so only a plain one names the hub's model."""
    plain = re.fullmatch(r"(?:hf:)?([^@?]+)(?:@[^@?]*)?", spec)
    return spec.casefold() == name.casefold() or bool(plain and plain[1] == models.get(name))


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
    matches = reported_values(reported, method=method, task=task, student=student, kind=kind, table=table, label=label)
    if len({match.value for match in matches}) > 1:
        choices = ", ".join(f"{match.value} (table={match.table.id}, label={match.row.label})" for match in matches)
        raise UserError(f"{method} on {task} with {student} has several reported values; name one of: {choices}")
    return matches[0] if matches else None


def reported_table(
    reported: Reported,
    *,
    tasks: Collection[str] | None = None,
    methods: Collection[str] | None = None,
    kinds: Collection[str] = ("score",),
    tables: Collection[str] | None = None,
) -> str:
    """A Markdown block of reported numbers under a heading of its own; empty where nothing matches.

    `tasks` selects the columns of these tasks, `methods` the tables with a row of one of them. Rows are in the source's
    order: nothing is ranked, and no measured row is among them.
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
    meaning = "; ".join(f"{word}: {text}" for word, text in _MEANING.items() if word in certainties)
    parts = [
        "## Reported by papers, not measured here",
        "These numbers come from the sources named in each row. They were made with other prompts, splits, parsers and "
        f"budgets, so they are neither ranked nor averaged with measured rows. Certainty: {markdown(meaning)}.",
    ]
    for table, columns in chosen:
        parts += _block(table, columns)
    if tasks is None and methods is None and reported.left_out:
        left_out = (f"- {markdown(missing.what)}: {markdown(missing.why)}" for missing in reported.left_out)
        parts += ["### Left out", "\n".join(left_out)]
    return "\n\n".join(parts) + "\n"


def _block(table: ReportedTable, columns: Sequence[str]) -> Iterable[str]:
    rows = [row for row in table.rows if any(name in row.values for name in columns)]
    yield f"### {markdown(table.title)}"
    yield markdown(f"{table.setting.text[:1].upper()}{table.setting.text[1:]}.")
    yield text_table([_cells(table, row, columns) for row in rows], markdown=True)
    notes = [table.note]
    for row in rows:
        if row.note:
            notes.append(f"{row.label} ({row.student}): {row.note}" if row.student else f"{row.label}: {row.note}")
    if table.source.via:
        notes.insert(0, f"{'From' if table.certainty == 'derived' else 'Read in'}: {table.source.via}.")
    if lines := [f"- {markdown(note)}" for note in notes if note]:
        yield "\n".join(lines)


def _cells(table: ReportedTable, row: ReportedRow, columns: Sequence[str]) -> Cells:
    label, student, source, certainty = _HEADS
    numbers = {name: str(row.values.get(name, "-")) for name in columns}
    cited = {source: table.source.citation, certainty: table.certainty}
    return {label: row.label, student: row.student or "-"} | numbers | cited
