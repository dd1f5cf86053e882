"""`board add | build | show`: a folder of run records becomes pages and tables; the same folder gives the same bytes.

A board's folder: `boards/main.yaml` (baseline, order, sample rule), `results/<protocol>/<task>/<run_id>.json`
(records, append-only) and what `board_files` generates from them.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import all_visible, visible
from tinyllm_bench.base.files import locked, read_text, write_text
from tinyllm_bench.base.reading import check_inside, strict_yaml
from tinyllm_bench.leaderboard import exports
from tinyllm_bench.leaderboard.consistency import check_consistency
from tinyllm_bench.leaderboard.external_forms import eval_results_yaml, every_eval_ever_lines
from tinyllm_bench.leaderboard.latex import GENERATED, latex_mean, latex_section
from tinyllm_bench.leaderboard.markdown import EMPTY, board_text, section_markdown
from tinyllm_bench.leaderboard.means import MEAN_NOTE, MeanRow, TaskStandings, macro_table, mean_cells, standings_of
from tinyllm_bench.leaderboard.page import board_page, page_json, page_section
from tinyllm_bench.leaderboard.protocols import foreign
from tinyllm_bench.leaderboard.record import RunRecord, load_record, record_path, save_record
from tinyllm_bench.leaderboard.record_parts import Track
from tinyllm_bench.leaderboard.reporters import FOLDER, reporter_files
from tinyllm_bench.leaderboard.rows import slugs
from tinyllm_bench.leaderboard.tables import BoardNames, Section, make_section, text_table
from tinyllm_bench.leaderboard.terminal import filled, fitted
from tinyllm_bench.leaderboard.verdicts import Refutation, add_refutations, checked, checks_on, submitted_refutations

T = TypeVar("T")
_CONFIG = Path("boards") / "main.yaml"
_OPTIONAL = ("every_eval_ever.jsonl", "eval_results.yaml")


class BoardConfig(BaseModel):
    """`boards/main.yaml`; unknown keys are errors. Its comments say what each means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    baseline: str
    baseline_title: str
    order: tuple[str, ...] = ()
    sample: Literal["mark", "refuse"] = "mark"
    protocols: Literal["one", "many"] = "many"
    track: Track | None = None


def board_config(folder: Path) -> BoardConfig:
    """The board's own configuration, or the one that comes with the program when the folder has none."""
    file = Path(folder) / _CONFIG
    text = read_text(file) if file.exists() else _default_config()
    try:
        return BoardConfig.model_validate(strict_yaml(text))
    except (ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file}: {reason}. Allowed keys: {', '.join(BoardConfig.model_fields)}.") from None


def _default_config() -> str:
    return Path(__file__).with_name("board.yaml").read_text(encoding="utf-8")


def board_add(paths: Sequence[Path], folder: Path, *, replace: bool = False) -> list[Path]:
    """Copy records (files or run folders) to a board; returns where they lie there.

    All are checked as `verify` checks a record, and the tables that they would stand in are tried, before the first is
    copied: what is taken is what `board_build` can build. Adding one again changes nothing. Nothing else of a submitted
    folder is believed: a run is self-reported until the board's owner verifies it (`verify --board-dir`, `board add
    --verify`). What its submitter holds against it is kept as the submitter's. A folder without `boards/main.yaml` gets
    the default one.

    Raises:
        UserError: a record that fails its checks or that the board does not take (sample data, another track, a
            foreign protocol, selected on test), or a run id that is there with other content (`replace` allows that).
    """
    folder = Path(folder)
    config = board_config(folder)
    found: dict[Path, RunRecord] = {}
    against: dict[Path, tuple[Refutation, ...]] = {}
    for path in map(Path, paths):
        record = load_record(path)
        _check_taken(record, path, config, folder)
        check_consistency(record, path)
        place = folder / record_path(record)
        known = found.get(place) or (load_record(place) if place.exists() and not replace else record)
        if known != record:
            raise UserError(f"{path}: run {record.run_id} is known with other content; remove {place} to replace it")
        found[place] = record
        if not (place.exists() and path.is_file() and path.samefile(place)):
            against[place] = submitted_refutations(path, record)
    if config.protocols == "one":
        _check_protocols(found.values(), folder)
    _check_sections(folder, _names(config), partial(_all_forms, organization=config.title), found)
    with locked(folder / ".board"):
        if not (folder / _CONFIG).exists():
            write_text(folder / _CONFIG, _default_config())
        places = [save_record(record, place) for place, record in found.items()]
        for place, refutations in against.items():
            add_refutations(refutations, place)
    return places


def _all_forms(section: Section, slug: str, *, organization: str) -> None:
    """Everything that a board makes of a section."""
    _section_files(section, slug, organization=organization)
    _shown(section, slug, width=None)
    _shown(section, slug, width=80)


def _check_taken(record: RunRecord, path: Path, config: BoardConfig, folder: Path) -> None:
    _check_selection(record, path)
    if record.sample and config.sample == "refuse":
        raise UserError(f"{path}: made from sample data, which {folder / _CONFIG} refuses; add real runs")
    track = record.budget.track if record.budget else None
    # A reference baseline was not trained: it has no budget to be compared at, and stands on boards of every track.
    if config.track is not None and record.kind == "method" and track != config.track:
        raise UserError(
            f"{path}: run {record.run_id} is of track {track or 'none'}, {folder / _CONFIG} takes {config.track}; "
            f"set the budget with budget.{config.track}=N and run it again, or add it to a board of its own"
        )


def _check_protocols(records: Iterable[RunRecord], folder: Path) -> None:
    """Refuse records that would open a second protocol of their task and mode."""
    known = board_records(folder) if folder.is_dir() else []
    for record in records:
        reason = foreign(record, known)
        if reason is not None:
            raise UserError(
                f"{reason}; {folder / _CONFIG} takes one protocol a task and mode: run it under the board's "
                "(`tinyllm-bench protocol diff` shows the fields), or add it to a board of its own"
            )
        known.append(record)


def board_build(folder: Path) -> Path:
    """Write everything that a board generates from its records, and remove what it no longer does.

    Returns:
        The board's `README.md`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _no_board(folder)
    with locked(folder / ".board"):
        files = board_files(folder)
        for name, text in files.items():
            write_text(folder / name, text)
        for file in _generated(folder):
            if file.relative_to(folder).as_posix() not in files:
                file.unlink()
    return folder / "README.md"


def board_files(folder: Path) -> dict[str, str]:
    """Name and text of every generated file, a pure function of the folder's records, what was found
    about them, and configuration.

    `README.md`, `index.html`, `board.csv` (a line a row), `runs.csv` (a line a run), `data.json` and, where there is
    something to write, one `.tex` a table, `every_eval_ever.jsonl`, `eval_results.yaml` and what reporter plugins make.
    """
    config = board_config(folder)
    make = partial(_section_files, organization=config.title)
    sections = _of_sections(folder, _names(config), make)
    title = _title(config, [section.is_sample for section in sections])
    macro = macro_table([section.standings for section in sections])
    data = exports.board_data(title, (section.data for section in sections), macro)
    files = {
        "README.md": board_text(title, [(section.title, section.markdown) for section in sections], macro),
        "index.html": board_page(title, [section.page for section in sections], macro),
        "board.csv": exports.rows_csv(data),
        "runs.csv": exports.runs_csv(data),
        "data.json": exports.json_text(data),
        **{f"{section.slug}.tex": section.latex for section in sections},
        "mean-over-tasks.tex": latex_mean(macro) if macro else "",
        "every_eval_ever.jsonl": "".join(section.every_eval_ever for section in sections),
        "eval_results.yaml": "".join(section.eval_results for section in sections),
        **reporter_files(data),
    }
    return {name: text for name, text in files.items() if text}


def _generated(folder: Path) -> list[Path]:
    """The files of earlier builds that a later one may not write again."""
    tables = [file for file in sorted(folder.glob("*.tex")) if file.is_file() and read_text(file).startswith(GENERATED)]
    reports = [file for file in sorted((folder / FOLDER).glob("*/*")) if file.is_file()]
    return [*tables, *reports, *(file for name in _OPTIONAL if (file := folder / name).is_file())]


def board_markdown(folder: Path) -> str:
    """The text of the board's `README.md`: a pure function of its folder."""
    return board_files(folder)["README.md"]


def board_show(folder: Path, width: int | None = None) -> str:
    """The same tables and notes for a terminal: in full, or made to fit so many columns."""
    config = board_config(folder)
    sections = _of_sections(folder, _names(config), partial(_shown, width=width))
    macro = macro_table([section.standings for section in sections])
    parts = [_title(config, [section.is_sample for section in sections]), *([] if sections else [EMPTY])]
    parts += [text for section in sections for text in section.texts]
    return "\n\n".join([*parts, *_means(macro, width)]) + "\n"


class _Shown(NamedTuple):
    is_sample: bool
    standings: TaskStandings
    texts: list[str]


def _shown(section: Section, slug: str, *, width: int | None) -> _Shown:
    table, runs = all_visible(section.cells()), all_visible(section.runs())
    title, facts, notes = visible(section.title), visible(section.facts), [visible(note) for note in section.notes]
    if width is None:
        told = "Runs: " + ", ".join(f"{run['row']} seed {run['seed']} = {run['run']}" for run in runs)
        list_of_notes = ["\n".join(f"- {note}" for note in notes)] if notes else []
        texts = [f"{title}\n{facts}", text_table(table, markdown=False), *list_of_notes, told]
    else:  # made to fit; the names of its runs are in the board's files
        table, more = fitted(table, width)
        lines = [filled(f"- {note}", width, "  ") for note in (*more, *notes)]
        texts = [f"{title}\n{filled(facts, width)}", text_table(table, markdown=False), "\n".join(lines)]
    return _Shown(section.is_sample, standings_of(section), texts)


def _means(macro: Sequence[MeanRow], width: int | None) -> list[str]:
    if not macro:
        return []
    cells = all_visible(mean_cells(macro))
    if width is None:
        return ["Mean over tasks", text_table(cells, markdown=False), MEAN_NOTE]
    table, notes = fitted(cells, width)
    lines = [filled(f"- {note}", width, "  ") for note in (*notes, MEAN_NOTE)]
    return ["Mean over tasks", text_table(table, markdown=False), "\n".join(lines)]


def _names(config: BoardConfig) -> BoardNames:
    return BoardNames(baseline=config.baseline, baseline_title=config.baseline_title, order=config.order)


def _title(config: BoardConfig, are_sample: Sequence[bool]) -> str:
    return f"{config.title} (sample data)" if are_sample and all(are_sample) else config.title


# --- sections ---------------------------------------------------------------------------------------------------------


def board_records(folder: Path) -> list[RunRecord]:
    """Every record of a board, checked, ordered by task, mode, protocol and run id.

    Raises:
        UserError: no such folder, a record that fails its checks, was selected on test or lies where it does not
            belong.
    """
    return sorted(_loaded(folder, _files(folder)), key=_place)


def _of_sections(folder: Path, names: BoardNames, make: Callable[[Section, str], T]) -> list[T]:
    """What `make` makes of every section and its file name (`slugs`), in the board's order.

    Raises:
        UserError: as `board_records`.
    """
    groups: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
    for record in board_records(folder):
        groups[_place(record)[:3]].append(record)
    heads = [records[0] for records in groups.values()]
    return [
        _section_of(folder, names, make, records, _rivals(records[0], heads), slug)
        for slug, records in zip(slugs(heads), groups.values(), strict=True)
    ]


def _rivals(head: RunRecord, heads: Sequence[RunRecord]) -> list[RunRecord]:
    """A record of each other protocol of the same task and mode."""
    same = [one for one in heads if (one.task, one.mode) == (head.task, head.mode)]
    return [one for one in same if one is not head]


def _section_of(
    folder: Path,
    names: BoardNames,
    make: Callable[[Section, str], T],
    records: Sequence[RunRecord],
    others: Sequence[RunRecord],
    slug: str,
) -> T:
    """What `make` makes of some records; a record that it cannot be made of is named."""
    try:
        checks = checks_on(folder, records)
        return make(make_section(records, others, names, checks), slug)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        for record in records:
            try:
                make(make_section([record], [], names, {}), slug)
            except Exception:
                raise UserError(
                    f"{folder / record_path(record)} cannot stand on a board ({reason}); remove it"
                ) from error
        raise UserError(
            f"the records in {(folder / record_path(records[0])).parent} cannot stand in one table ({reason}); remove "
            "the one that was added last"
        ) from error


def _check_sections(
    folder: Path, names: BoardNames, make: Callable[[Section, str], Any], added: Mapping[Path, RunRecord]
) -> None:
    """Try the sections that some records would become part of, so that a board takes only what it can be built of.

    `added` are the records by their places on the board; those that stand there already are read from it.

    Raises:
        UserError: a section cannot be made; names a record.
    """
    by_section: dict[Path, list[RunRecord]] = defaultdict(list)
    for place, record in added.items():
        by_section[place.parent].append(record)
    for section, records in by_section.items():
        there = [file for file in sorted(section.glob("*.json")) if file not in added]
        known = _loaded(folder, [file.relative_to(folder).as_posix() for file in there])
        together = sorted([*known, *records], key=_place)
        _section_of(folder, names, make, together, (), "tried")


class _SectionFiles(NamedTuple):
    """A section's parts of the board's files; `page` is the JSON that the page's script reads."""

    slug: str
    title: str
    is_sample: bool
    standings: TaskStandings
    data: exports.SectionData
    page: str
    markdown: str
    latex: str
    every_eval_ever: str
    eval_results: str


def _section_files(section: Section, slug: str, *, organization: str) -> _SectionFiles:
    """`slug` is the section's name in files, `organization` who publishes the board."""
    # Every run with the printed label of its row and its own tier.
    runs = [
        (row.title, record, checked(section.checks, record).tier)
        for row in section.table
        for record in (row.source.records if row.source else ())
    ]
    return _SectionFiles(
        slug=slug,
        title=section.title,
        is_sample=section.is_sample,
        standings=standings_of(section),
        data=exports.section_data(section, slug),
        page=page_json(page_section(section, slug)),
        markdown=section_markdown(section),
        latex=latex_section(section, slug),
        every_eval_ever=every_eval_ever_lines(runs, organization),
        eval_results=eval_results_yaml(runs),
    )


# --- records ----------------------------------------------------------------------------------------------------------


def _no_board(folder: Path) -> UserError:
    """The refusal of a folder that is not there."""
    return UserError(f"no board at {folder}; `tinyllm-bench board add RUN` makes one")


def _check_selection(record: RunRecord, path: str | Path) -> None:
    """Refuse what was selected on test.

    Raises:
        UserError: it was.
    """
    if record.selected_on == "test":
        raise UserError(
            f"{path}: run {record.run_id} was selected on test, boards take what was selected on valid; run the cell "
            "with `tinyllm-bench run`, which selects on valid"
        )


def _files(folder: Path) -> Iterator[str]:
    """The records' files, as names below the board's."""
    if not Path(folder).is_dir():
        raise _no_board(folder)
    for place, below, files in os.walk(Path(folder) / "results"):
        below.sort()
        start = os.path.relpath(place, folder)
        yield from (os.path.join(start, file) for file in sorted(files) if file.endswith(".json"))


def _loaded(folder: Path, files: Iterable[str]) -> Iterator[RunRecord]:
    for name in files:
        file = os.path.join(folder, name)
        if os.path.islink(file):
            check_inside(file, folder)
        record = load_record(file)
        _check_selection(record, file)
        check_consistency(record, Path(file))
        if name.replace(os.sep, "/") != record_path(record):
            raise UserError(f"{file} belongs at {folder / record_path(record)}; use `tinyllm-bench board add`")
        yield record


def _place(record: RunRecord) -> tuple[str, str, str, str]:
    return record.task, record.mode, record.protocol_hash, record.run_id
