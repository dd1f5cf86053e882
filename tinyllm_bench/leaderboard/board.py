"""`board add | build | show`: a folder of run records becomes pages and tables; the same folder gives the same bytes.

A board's folder: `boards/main.yaml` (baseline, order, sample rule), `results/<protocol>/<task>/<run_id>.json`
(records, append-only) and what `board_files` generates from them.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict

from tinyllm_bench.base import plugins
from tinyllm_bench.base.config import Layer, parse_yaml, resolve
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import all_visible, visible
from tinyllm_bench.base.files import check_inside, locked, read_text, write_text
from tinyllm_bench.leaderboard import exports
from tinyllm_bench.leaderboard.consistency import check_consistency
from tinyllm_bench.leaderboard.latex import GENERATED, latex_mean, latex_section
from tinyllm_bench.leaderboard.markdown import EMPTY, board_text, section_markdown
from tinyllm_bench.leaderboard.page import board_page, page_json, page_section
from tinyllm_bench.leaderboard.protocols import foreign
from tinyllm_bench.leaderboard.record import RunRecord, Track, load_record, record_path, save_record
from tinyllm_bench.leaderboard.tables import (
    MEAN_NOTE,
    BoardNames,
    Section,
    TaskAccuracies,
    make_section,
    mean_cells,
    mean_rows,
    task_accuracies,
    text_table,
)
from tinyllm_bench.leaderboard.terminal import filled, fitted
from tinyllm_bench.leaderboard.verdicts import Refutation, add_refutations, checks_on, submitted_refutations

T = TypeVar("T")
CONFIG_FILE = Path("boards") / "main.yaml"
REPORTERS_FOLDER = "reporters"


class BoardConfig(BaseModel):
    """`boards/main.yaml`; unknown keys are errors. The comments of `board.yaml` explain each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    baseline: str
    baseline_title: str
    order: tuple[str, ...] = ()
    sample: Literal["mark", "refuse"] = "mark"
    protocols: Literal["one", "many"] = "many"
    track: Track | None = None

    @property
    def names(self) -> BoardNames:
        """The part that tables need."""
        return BoardNames(baseline=self.baseline, baseline_title=self.baseline_title, order=self.order)


def board_config(folder: Path) -> BoardConfig:
    """The board's own configuration, or the default one when the folder has none."""
    file = Path(folder) / CONFIG_FILE
    text = read_text(file) if file.exists() else _default_config()
    config: BoardConfig = resolve(BoardConfig, [Layer(str(file), parse_yaml(text, str(file)))]).config
    return config


def _default_config() -> str:
    return Path(__file__).with_name("board.yaml").read_text(encoding="utf-8")


# --- board add --------------------------------------------------------------------------------------------------------


def board_add(paths: Sequence[Path], folder: Path, *, replace: bool = False) -> list[Path]:
    """Copy records (files or run folders) to a board; returns their files there.

    All are checked as `verify` checks a record, and the tables that they would be part of are tried, before the first
    is copied: `board_build` can build what was accepted. Adding a record again changes nothing. Nothing else of a
    submitted folder is trusted: a run is self-reported until the board's owner verifies it (`verify --board-dir`,
    `board add --verify`). The submitter's own refutations are stored as the submitter's. A folder without
    `boards/main.yaml` gets the default one.

    Raises:
        UserError: a record that fails its checks or that the board does not accept (sample data, another track, a
            foreign protocol, selected on test), or a run id that is there with other content (`replace` allows that).
    """
    folder = Path(folder)
    config = board_config(folder)
    added: dict[Path, RunRecord] = {}
    refutations: dict[Path, tuple[Refutation, ...]] = {}
    for path in map(Path, paths):
        record = load_record(path)
        _check_accepted(record, path, config, folder)
        check_consistency(record, path)
        place = folder / record_path(record)
        known = added.get(place) or (load_record(place) if place.exists() and not replace else record)
        if known != record:
            raise UserError(f"{path}: run {record.run_id} is known with other content; remove {place} to replace it")
        added[place] = record
        if not (place.exists() and path.is_file() and path.samefile(place)):
            refutations[place] = submitted_refutations(path, record)
    if config.protocols == "one":
        known_records = board_records(folder) if folder.is_dir() else []
        for record in added.values():
            if (reason := foreign(record, known_records)) is not None:
                raise UserError(
                    f"{reason}; {folder / CONFIG_FILE} takes one protocol a task and mode: run it under the board's "
                    "(`tinyllm-bench protocol diff` shows the fields), or add it to a board of its own"
                )
            known_records.append(record)
    _check_sections(folder, config.names, added)
    with locked(folder / ".board"):
        if not (folder / CONFIG_FILE).exists():
            write_text(folder / CONFIG_FILE, _default_config())
        places = [save_record(record, place) for place, record in added.items()]
        for place, submitted in refutations.items():
            add_refutations(submitted, place)
    return places


def _check_accepted(record: RunRecord, path: Path, config: BoardConfig, folder: Path) -> None:
    _check_selection(record, path)
    if record.sample and config.sample == "refuse":
        raise UserError(f"{path}: made from sample data, which {folder / CONFIG_FILE} refuses; add real runs")
    track = record.budget.track if record.budget else None
    # A reference baseline was not trained: it has no budget to compare at, and boards of every track accept it.
    if config.track is not None and record.kind == "method" and track != config.track:
        raise UserError(
            f"{path}: run {record.run_id} is of track {track or 'none'}, {folder / CONFIG_FILE} takes {config.track}; "
            f"set the budget with budget.{config.track}=N and run it again, or add it to a board of its own"
        )


def _check_sections(folder: Path, names: BoardNames, added: Mapping[Path, RunRecord]) -> None:
    """Try the sections that records would become part of, so that a board accepts only what it can be built from.

    `added` holds the records by their files on the board; records that are there already are read from it.

    Raises:
        UserError: a section cannot be made; names a record.
    """

    def every_form(section: Section, slug: str) -> None:
        _section_files(section, slug)
        _terminal_section(section, width=None)
        _terminal_section(section, width=80)

    by_section: dict[Path, list[RunRecord]] = defaultdict(list)
    for place, record in added.items():
        by_section[place.parent].append(record)
    for section, records in by_section.items():
        others = [file for file in sorted(section.glob("*.json")) if file not in added]
        known = _load_records(folder, [file.relative_to(folder).as_posix() for file in others])
        together = sorted([*known, *records], key=_sort_key)
        _render_section(folder, names, every_form, together, (), "tried")


# --- board build ------------------------------------------------------------------------------------------------------


def board_build(folder: Path) -> Path:
    """Write everything that a board generates from its records, and remove what it no longer generates.

    Returns:
        The board's `README.md`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _no_board(folder)
    with locked(folder / ".board"):
        files = _generated_files(folder)
        for name, text in files.items():
            if text:
                write_text(folder / name, text)
            else:
                (folder / name).unlink(missing_ok=True)
        tables = [file for file in folder.glob("*.tex") if file.is_file() and read_text(file).startswith(GENERATED)]
        reports = [file for file in (folder / REPORTERS_FOLDER).glob("*/*") if file.is_file()]
        for file in (*tables, *reports):
            if file.relative_to(folder).as_posix() not in files:
                file.unlink()
    return folder / "README.md"


def board_files(folder: Path) -> dict[str, str]:
    """Name and text of every generated file, a pure function of the folder's records, verdicts and configuration.

    `README.md`, `index.html`, `board.csv` (a line a row), `runs.csv` (a line a run), `data.json` and, where there is
    something to write, one `.tex` a table and the files of reporters.
    """
    return {name: text for name, text in _generated_files(folder).items() if text}


def board_markdown(folder: Path) -> str:
    """The text of the board's `README.md`: a pure function of its folder."""
    return board_files(folder)["README.md"]


class _SectionFiles(NamedTuple):
    """A section's parts of the board's files; `page` is the JSON that the page's script reads."""

    slug: str
    title: str
    is_sample: bool
    accuracies: TaskAccuracies
    data: exports.SectionData
    records: tuple[RunRecord, ...]
    page: str
    markdown: str
    latex: str


def _section_files(section: Section, slug: str) -> _SectionFiles:
    return _SectionFiles(
        slug=slug,
        title=section.title,
        is_sample=section.is_sample,
        accuracies=task_accuracies(section),
        data=exports.section_data(section, slug),
        records=section.records,
        page=page_json(page_section(section, slug)),
        markdown=section_markdown(section),
        latex=latex_section(section, slug),
    )


def _generated_files(folder: Path) -> dict[str, str]:
    """All files that this build may write; one with an empty text is removed."""
    config = board_config(folder)
    sections = _render_sections(folder, config.names, _section_files)
    title = _title(config, [section.is_sample for section in sections])
    means = mean_rows([section.accuracies for section in sections])
    data = exports.board_data(title, (section.data for section in sections), means).model_copy(
        update={
            "publisher": config.title,
            "records": {record_path(record): record for section in sections for record in section.records},
        }
    )
    return {
        "README.md": board_text(title, [(section.title, section.markdown) for section in sections], means),
        "index.html": board_page(title, [section.page for section in sections], means),
        "board.csv": exports.rows_csv(data),
        "runs.csv": exports.runs_csv(data),
        "data.json": exports.json_text(data),
        **{f"{section.slug}.tex": section.latex for section in sections},
        "mean-over-tasks.tex": latex_mean(means) if means else "",
        **_reporter_files(data),
    }


def _reporter_files(board: exports.BoardData) -> dict[str, str]:
    """Name and text of every file of every reporter that works; one that fails is left out with a warning.

    Files of built-in reporters are in the board's folder, those of plugins in `reporters/<name>/`.
    """
    files: dict[str, str] = {}
    for name in plugins.loadable_names("reporter"):
        place = f"{REPORTERS_FOLDER}/{name}/" if plugins.origin("reporter", name) else ""
        try:
            report = plugins.load("reporter", name)(board)
            if not isinstance(report, Mapping):
                raise ValueError(f"it returned {type(report).__name__}, not a mapping of file names to texts")
            for file, text in report.items():
                if not isinstance(file, str) or PurePath(file).name != file or file.startswith(".") or "\\" in file:
                    raise ValueError(f"{file!r} is no plain file name")
                if not isinstance(text, str):
                    raise ValueError(f"{file}: {type(text).__name__} is no text")
        except Exception as error:
            plugins.warn(f"reporter {name!r} is left out: {error!r}")
        else:
            files |= {f"{place}{file}": text for file, text in report.items()}
    return files


# --- board show -------------------------------------------------------------------------------------------------------


class _TerminalSection(NamedTuple):
    is_sample: bool
    accuracies: TaskAccuracies
    texts: list[str]


def board_show(folder: Path, width: int | None = None) -> str:
    """The same tables and notes for a terminal: in full, or fitted to a number of columns."""
    config = board_config(folder)
    sections = _render_sections(folder, config.names, lambda section, _: _terminal_section(section, width=width))
    parts = [_title(config, [section.is_sample for section in sections]), *([] if sections else [EMPTY])]
    parts += [text for section in sections for text in section.texts]
    if means := mean_rows([section.accuracies for section in sections]):
        table, notes = all_visible(mean_cells(means)), MEAN_NOTE
        if width is not None:
            table, more = fitted(table, width)
            notes = "\n".join(filled(f"- {note}", width, "  ") for note in (*more, MEAN_NOTE))
        parts += ["Mean over tasks", text_table(table, markdown=False), notes]
    return "\n\n".join(parts) + "\n"


def _terminal_section(section: Section, *, width: int | None) -> _TerminalSection:
    table, runs = all_visible(section.cells()), all_visible(section.runs())
    title, facts, notes = visible(section.title), visible(section.facts), [visible(note) for note in section.notes]
    if width is None:
        run_list = "Runs: " + ", ".join(f"{run['row']} seed {run['seed']} = {run['run']}" for run in runs)
        note_list = ["\n".join(f"- {note}" for note in notes)] if notes else []
        texts = [f"{title}\n{facts}", text_table(table, markdown=False), *note_list, run_list]
    else:  # fitted; the names of its runs are in the board's files
        table, more = fitted(table, width)
        lines = [filled(f"- {note}", width, "  ") for note in (*more, *notes)]
        texts = [f"{title}\n{filled(facts, width)}", text_table(table, markdown=False), "\n".join(lines)]
    return _TerminalSection(section.is_sample, task_accuracies(section), texts)


def _title(config: BoardConfig, are_sample: Sequence[bool]) -> str:
    return f"{config.title} (sample data)" if are_sample and all(are_sample) else config.title


# --- sections ---------------------------------------------------------------------------------------------------------


def _render_sections(folder: Path, names: BoardNames, render: Callable[[Section, str], T]) -> list[T]:
    """`render` of every section and its file name, in the board's order.

    Raises:
        UserError: as `board_records`.
    """
    groups: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
    for record in board_records(folder):
        groups[record.task, record.mode, record.protocol_hash].append(record)
    rendered = []
    for (task, mode, protocol_hash), records in groups.items():
        # A record of each other protocol of the same task and mode; with one, file names hold the protocol.
        rivals = [other[0] for key, other in groups.items() if key[:2] == (task, mode) and key[2] != protocol_hash]
        slug = f"{task}-{mode}-{protocol_hash[:12]}" if rivals else f"{task}-{mode}"
        rendered.append(_render_section(folder, names, render, records, rivals, slug))
    return rendered


def _render_section(
    folder: Path,
    names: BoardNames,
    render: Callable[[Section, str], T],
    records: Sequence[RunRecord],
    rivals: Sequence[RunRecord],
    slug: str,
) -> T:
    """`render` of the section of some records; an error names the record that causes it."""
    try:
        checks = checks_on(folder, records)
        return render(make_section(records, rivals, names, checks), slug)
    except UserError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        for record in records:
            try:
                render(make_section([record], [], names, {}), slug)
            except Exception:
                raise UserError(
                    f"{folder / record_path(record)} cannot be put on a board ({reason}); remove it"
                ) from error
        raise UserError(
            f"the records in {(folder / record_path(records[0])).parent} cannot share a table ({reason}); remove "
            "the one that was added last"
        ) from error


# --- records ----------------------------------------------------------------------------------------------------------


def board_records(folder: Path) -> list[RunRecord]:
    """Every record of a board, checked, ordered by task, mode, protocol and run id.

    Raises:
        UserError: no such folder, a record that fails its checks, was selected on test or is in the wrong folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise _no_board(folder)
    names: list[str] = []
    for place, below, files in os.walk(folder / "results"):
        below.sort()
        start = os.path.relpath(place, folder)
        names += [os.path.join(start, file) for file in sorted(files) if file.endswith(".json")]
    return sorted(_load_records(folder, names), key=_sort_key)


def _load_records(folder: Path, names: Iterable[str]) -> Iterator[RunRecord]:
    """Records by their names below the board's folder. Plain strings: a `Path` a record is slow for thousands."""
    for name in names:
        file = os.path.join(folder, name)
        if os.path.islink(file):
            check_inside(file, folder)
        record = load_record(file)
        _check_selection(record, file)
        check_consistency(record, Path(file))
        if name.replace(os.sep, "/") != record_path(record):
            raise UserError(f"{file} belongs at {folder / record_path(record)}; use `tinyllm-bench board add`")
        yield record


def _check_selection(record: RunRecord, path: str | Path) -> None:
    if record.selected_on == "test":
        raise UserError(
            f"{path}: run {record.run_id} was selected on test, boards take what was selected on valid; run the cell "
            "with `tinyllm-bench run`, which selects on valid"
        )


def _sort_key(record: RunRecord) -> tuple[str, str, str, str]:
    return record.task, record.mode, record.protocol_hash, record.run_id


def _no_board(folder: Path) -> UserError:
    return UserError(f"no board at {folder}; `tinyllm-bench board add RUN` makes one")
