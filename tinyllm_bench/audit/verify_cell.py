"""A finished run's cell, put together again from what its folder and its record say; nothing is planned or loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_json
from tinyllm_bench.base.plugins import load_method, load_task
from tinyllm_bench.data.sources import Source, find_source, manifest
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.cell_teachers import model_teacher, place_of, text_teachers
from tinyllm_bench.experiment.identity import GUESSES
from tinyllm_bench.experiment.sample_answers import joint_digest
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.leaderboard.record import RunRecord, public_text
from tinyllm_bench.models.load import check_spec
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teachers.open import open_responder
from tinyllm_bench.training.method import Method

# What several trainings of one cell spent together.
SUMMED = ("steps", "student_tokens", "computed_tokens", "rollout_tokens")


def source_of(record: RunRecord, data_dir: str | None) -> Source:
    """The data that a record was made from, where it is at hand.

    It is the checker's own: a folder that the run's settings name may have come with the run, right answers included. A
    task of the hub has the same questions in the release's folder: where one is named, it serves as well.

    Args:
        record: Of the run.
        data_dir: The release's folder, if not where the environment says.

    Raises:
        UserError: it is not at hand.
    """
    kind: Any = record.data.source
    if kind == "sample" or (kind == "hub" and data_dir is None):
        return find_source(kind, None)
    return find_source("release", data_dir)


def cell_of(record: RunRecord, settings: Mapping[str, Any], source: Source, runs: Path) -> Cell:
    """The cell as far as asking and scoring need it: its teachers are not opened.

    Raises:
        UserError: settings that this version does not know, an unknown task or method, unreadable data.
    """
    config = _config(settings, source)
    method = None
    if record.kind == "method":
        kind: type[Method] = load_method(record.name)
        method = kind(_checked(kind.Config, config.method, "method"))
    task = load_task(record.task)
    return Cell(
        kind=record.kind,
        name=record.name,
        label=record.label,
        task=task,
        reading=record.reading,
        seed=record.seed,
        config=config,
        origin={},
        method=method,
        student=parse_spec(_asked_model(record, config), role="teacher"),
        source=source,
        data=manifest(source, task.name),
        teachers=(),
        notes=(),
        asked=record.asked,
        runs=runs,
        looks_at_test=record.selected_on == "test",
    )


def _config(settings: Mapping[str, Any], source: Source) -> BenchConfig:
    data = {**(settings.get("data") or {}), "source": source.kind, "dir": source.folder}
    return _checked(BenchConfig, {**settings, "data": data}, "config.yaml")


def _checked(kind: Any, values: Any, what: str) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{what}: {place}: {first['msg']}, which this version does not read") from None


def _asked_model(record: RunRecord, config: BenchConfig) -> str:
    """The settings' student, or the teacher that an anchor asks: the one whose published spec the record names."""
    told = record.student.spec if record.student else None
    models = [config.student.model, *config.teachers]
    return next((text for text in models if public_text(text) == told), config.student.model)


def whole_cell(cell: Cell, record: RunRecord) -> Cell:
    """The cell with teachers and the models that other cells made, so that its identity can be worked out again.

    Raises:
        UserError: a teacher, or a run that this one builds on, is not at hand.
    """
    _check_local(cell, cell.student)
    if cell.method is None:
        return cell
    teachers, _ = text_teachers(cell.config, cell.method, cell.task.name, cell.runs)
    cell = replace(cell, teachers=teachers)
    if cell.config.student.init is not None:
        made = _maker(cell.runs, record.student.initial_digest if record.student else None)
        cell = replace(cell, student=parse_spec(f"run:{made}", role="student"))
    return _taught_by_model(cell, record)


def _taught_by_model(cell: Cell, record: RunRecord) -> Cell:
    assert cell.method is not None
    needs, config = cell.method.needs(), cell.config
    if needs.signal == "none" and "response" not in needs.annotations:
        return cell
    spec = model_teacher(cell.method, config.teacher.model, config.teachers)
    if config.teacher.init is not None and spec.has_weights:
        made = next((one.spec for one in record.teachers if one.spec.startswith("run:")), None)
        if made is None:
            raise UserError("the record names no run that made its teacher")
        spec = parse_spec(made, role="teacher")
    _check_local(cell, spec)
    if needs.signal != "none":
        cell = replace(cell, signal=spec)
    if "response" in needs.annotations:
        place = place_of(config, cell.task.name, cell.runs)
        cell = replace(cell, teachers=(open_responder(spec, config.annotations, place, cell.ask),))
    return cell


def _check_local(cell: Cell, spec: ModelSpec) -> None:
    """A model whose files are part of the identity must lie here; others are named by their spec."""
    if spec.has_weights and spec.kind not in ("hf", "run") and cell.name not in GUESSES:
        check_spec(spec, runs=cell.runs)


def _maker(runs: Path, digest: str | None) -> str:
    found = next((folder.name for folder, made in _trainings(runs) if made["student_digest"] == digest), None)
    if found is None:
        raise UserError("the run that made the initial student is not beside it")
    return found


def _trainings(runs: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for file in sorted(runs.glob("*/train/result.json")):
        yield file.parent.parent, read_json(file)


def trainings_of(record: RunRecord, folder: Path) -> list[Path]:
    """The folders whose training made the student: the run's own, or those of the cells that trained its students.

    Empty where they are not at hand. Where several trainings made the same weights, those that the record's budget
    tells of are meant.
    """
    if (folder / "train" / "result.json").exists():
        return [folder]
    start = f"{record.name.replace('/', '.')}-training-{record.task}-"
    others = [one for one in _trainings(folder.parent) if one[0].name.startswith(start)]
    sets = [(one,) for one in others] + [(a, b) for a in others for b in others if a is not b]
    digest = record.student.digest if record.student else None
    made = [found for found in sets if joint_digest([one["student_digest"] for _, one in found]) == digest]
    best = max(made, key=lambda found: _agreeing(record, [one for _, one in found]), default=())
    return [one for one, _ in best]


def _agreeing(record: RunRecord, made: Sequence[Mapping[str, Any]]) -> int:
    told = record.budget.model_dump() if record.budget else {}
    return sum(told.get(key) == sum(one.get(key, 0) for one in made) for key in SUMMED)
