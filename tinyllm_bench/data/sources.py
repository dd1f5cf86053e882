"""Where questions come from: the release's folder, the hub, or the sample that ships with the project.

Whatever the source, a split is checked before anything uses it: readable, the right number of rows, an answer among the
options, no id twice, and the content digest that ships with the project.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import json_lines, read_text
from tinyllm_bench.data import hub, release
from tinyllm_bench.data.records import SPLITS, Recorded, Split, TaskInfo, TaskRecord
from tinyllm_bench.data.rows import kind_of
from tinyllm_bench.data.splits import SplitFacts, shipped_facts, split_facts

DATA_VARIABLE = "TINYLLM_BENCH_DATA"
# Of built-in tasks; a sample of another package may have any sizes.
SAMPLE_SIZES: dict[Split, int] = {"train": 24, "valid": 8, "test": 16}
KINDS = ("auto", "release", "hub", "sample")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a run's questions come from; `folder` is the release's, None otherwise."""

    kind: Literal["release", "hub", "sample"]
    folder: str | None = None


def find_source(kind: Literal["auto", "release", "hub", "sample"], data_dir: str | None) -> Source:
    """The source that a request names; `auto` is the release's folder if there is one, else a reachable hub.

    Args:
        kind: The requested kind.
        data_dir: `--data-dir`; without it the variable TINYLLM_BENCH_DATA names the release's folder.

    Raises:
        UserError: An unknown kind, a folder that does not exist, a folder for another kind, or no source available.
    """
    if kind not in KINDS:
        raise unknown_name("data source", kind, KINDS)
    if kind in ("hub", "sample"):
        if data_dir:
            raise UserError(
                f"--data-dir {data_dir} names a release folder, but the data source is {kind!r}; drop one of them"
            )
        return Source(kind)
    path, name = (data_dir, "--data-dir") if data_dir else (os.environ.get(DATA_VARIABLE), DATA_VARIABLE)
    if path:
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise UserError(f"{name} names {path!r}, which is not a folder; give the folder of the release")
        return Source("release", str(folder))
    needs = f"--data-dir FOLDER or {DATA_VARIABLE} (the release folder)"
    if kind == "release":
        raise UserError(f"data source 'release' needs {needs}")
    if hub.reachable():
        return Source("hub")
    raise UserError(f"no data: this needs {needs} or a reachable hub; to try the sample data use `--preset quickstart`")


@functools.lru_cache(maxsize=64)
def load_split(source: Source, task: str, split: Split) -> tuple[TaskRecord, ...]:
    """A split's checked records, in the source's order; ids are `task/split/source_id`.

    Raises:
        UserError: One line with the file, the actual and the expected data, and the fix.
    """
    info: TaskInfo = plugins.load_task(task)
    if source.kind == "sample":
        where, rows = _sample_rows(info)
        rows = [row for row in rows if row["split"] == split]
        built_in = plugins.origin("task", info.name) is None
        size = SAMPLE_SIZES[split] if built_in else max(1, len(rows))
        fix = "install the package again" if built_in else "every split needs a row"
        return to_records(rows, info, split, where=where, size=size, fix=fix)
    if source.kind == "hub":
        where, rows = hub.read_rows(info, split)
        records = to_records(rows, info, split, where=where, size=info.sizes[split], fix=hub.PROVIDE_RELEASE)
        _check_digest(records, info, split, where=where, fix=hub.PROVIDE_RELEASE)
        return records
    folder = Path(source.folder or "")
    records = read_release_split(folder, info, split)
    where = str(release.origin(folder, info, split))
    _check_digest(records, info, split, where=where, fix=release.repair_advice(info))
    return records


def read_release_split(folder: Path, info: TaskInfo, split: Split) -> tuple[TaskRecord, ...]:
    """A split of the release, checked for everything but its digest."""
    path, rows = release.read_rows(folder, info, split)
    return to_records(rows, info, split, where=str(path), size=info.sizes[split], fix=release.repair_advice(info))


def to_records(
    rows: Sequence[Any], info: TaskInfo, split: Split, *, where: str, size: int, fix: str
) -> tuple[TaskRecord, ...]:
    """The records of a split's rows.

    Raises:
        UserError: Not `size` rows, a row that is not a question with its answer, or a duplicate id.
    """
    if len(rows) != size:
        raise UserError(f"{where}: {len(rows)} rows, expected {size} ({info.name} {split}); {fix}")
    records: list[TaskRecord] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        try:
            record = info.to_record(row, split)
        except UserError as error:
            raise UserError(f"{where}: row {number} of {size}: {error}; {fix}") from None
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{where}: row {number} of {size} is not of the task's form ({reason}); {fix}") from None
        if record.id in seen:
            raise UserError(f"{where}: row {number} of {size}: id {record.id!r} appears twice; {fix}")
        if records and bool(record.choices) != bool(records[0].choices):
            raise UserError(f"{where}: row {number} of {size}: a task asks for choices or for numbers, not both; {fix}")
        seen.add(record.id)
        records.append(record)
    return tuple(records)


def _check_digest(records: Sequence[TaskRecord], info: TaskInfo, split: Split, *, where: str, fix: str) -> None:
    expected = shipped_facts().get(info.name, {}).get(split)
    if expected is None:  # a task of another package
        return
    actual = split_facts(records)
    if actual["digest"] != expected["digest"]:
        raise UserError(
            f"{where}: {actual['rows']} rows as expected, but content digest {actual['digest'][:12]}, "
            f"expected {expected['digest'][:12]} ({info.name} {split}): the text was changed; {fix}"
        )


def manifest(source: Source, task: str) -> dict[str, SplitFacts]:
    """Per split, the number of records and their content digest, as stored in run records."""
    return {split: split_facts(load_split(source, task, split)) for split in SPLITS}


def rationale_keys(source: Source, task: str) -> tuple[str, ...]:
    """The teachers with recorded rationales for a task in a source; the hub has none."""
    return _keys(source, task, "rationale")


def program_keys(source: Source, task: str) -> tuple[str, ...]:
    """The teachers with recorded programs for a task in a source; most tasks have none."""
    return _keys(source, task, "program")


def _keys(source: Source, task: str, kind: Recorded) -> tuple[str, ...]:
    info: TaskInfo = plugins.load_task(task)
    if source.kind == "release":
        return info.rationale_keys if kind == "rationale" else info.program_keys
    if source.kind == "hub":
        return ()
    keys = (key for row in _sample_rows(info)[1] for key in _recorded(row, kind))
    return tuple(dict.fromkeys(keys))


def gold_visible(source: Source, task: str, key: str) -> bool:
    """Whether a recorded teacher was given the right answer; the sample's authors knew it."""
    return source.kind != "release" or key not in plugins.load_task(task).blind_keys


def load_rationales(
    source: Source, task: str, split: Split, key: str, *, kind: Recorded = "rationale"
) -> dict[str, str]:
    """Record id to the recorded text of one teacher, for every record of a split; empty for a missing text.

    With `kind="program"` its programs, as they were written: nothing is run here.

    Raises:
        UserError: No such teacher in this source (the message names those it has), or files that do not match the rows.
    """
    keys = _keys(source, task, kind)
    if key not in keys:
        known = ", ".join(keys) or f"none; recorded {kind}s come with the release folder"
        raise UserError(
            f"no {kind}s of teacher {key!r} for task {task!r} in data source {source.kind!r}; it has: {known}"
        )
    records, info = load_split(source, task, split), plugins.load_task(task)
    if source.kind == "sample":
        rows = [row for row in _sample_rows(info)[1] if row["split"] == split]
        where = _sample_file(info)
        return {
            record.id: release.recorded_text(
                _recorded(row, kind).get(key), f"{where}: {record.id}: the {kind} of {key!r}", "correct the sample"
            )
            for record, row in zip(records, rows, strict=True)
        }
    folder = Path(source.folder or "")
    if info.file is not None:
        return release.read_own_texts(folder, info, records, key=key, kind=kind)
    return release.read_rationales(folder, info, records, key=key)


def _sample_file(info: TaskInfo) -> Traversable:
    return plugins.home("task", info.name) / "samples" / f"{info.name}.jsonl"


def _sample_rows(info: TaskInfo) -> tuple[str, list[Any]]:
    file = _sample_file(info)
    if not file.is_file():
        raise UserError(f"task {info.name!r} has no sample ({file}); use the release folder (--data-dir)")
    try:
        rows = list(json_lines(read_text(file)))
    except ValueError as error:
        raise UserError(
            f"{file}: {error}, expected JSON lines (truncated?); correct it, or install the package again"
        ) from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise UserError(f"{file}: row {number} is {kind_of(row)}, not an object of fields; correct it")
        if row.get("split") not in SPLITS:
            raise UserError(f"{file}: row {number}: split {row.get('split')!r} is none of {', '.join(SPLITS)}")
    return str(file), rows


def _recorded(row: Mapping[str, Any], kind: Recorded) -> Mapping[str, Any]:
    """The teachers' texts in a sample's row, by teacher."""
    texts = row.get(f"{kind}s") or {}
    if not isinstance(texts, Mapping):
        raise UserError(f"id {row.get('id')!r}: field '{kind}s' is {kind_of(texts)}, not an object of teachers' texts")
    return texts
