"""The teachers of a cell whose texts it learns from: opened, and refused or dropped where they have none."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.sources import find_source, load_split
from tinyllm_bench.experiment.settings import BenchConfig
from tinyllm_bench.experiment.verified_texts import AGREE_BELOW
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teachers.open import Place, open_program_teacher, open_teacher
from tinyllm_bench.teachers.teacher import Teacher
from tinyllm_bench.training.method import Method


def place_of(config: BenchConfig, task: str, runs: Path) -> Place:
    """Where the settings' teachers stand for a task."""
    return Place(
        task=task,
        source=find_source(config.data.source, config.data.dir),
        data_dir=config.data.dir,
        max_context_words=config.data.max_context_words,
        device=config.backend.device,
        runs=runs,
    )


def text_teachers(
    config: BenchConfig, method: Method, task: str, runs: Path
) -> tuple[tuple[Teacher, ...], tuple[str, ...]]:
    """The teachers a method uses on a task, opened; those without a text for it are refused or dropped with a note.

    A method that learns rationales and programs has each teacher twice, once for either.
    """
    kinds = kinds_read(config, method, task, runs)
    if not kinds:
        return (), ()
    place = place_of(config, task, runs)
    found: dict[str, _Found] = {}
    for text in config.teachers:
        spec = parse_spec(text, role="teacher")
        texts = [one for kind in kinds if (one := _open(spec, kind, config, place)) is not None]
        key = texts[0].key if texts else spec.fragment or text
        if key in found:
            raise UserError(f"teachers {found[key].spec} and {text} are both called {key!r}")
        found[key] = _Found(text, texts, len(texts) == len(kinds))
    lacking = [
        one.spec for key, one in found.items() if not one.whole and (len(kinds) == 1 or key in _used(method, found))
    ]
    if lacking and config.annotations.on_missing_teacher == "refuse":
        wanted = " or no ".join(_WORDS[kind] for kind in kinds)
        raise UserError(
            f"teacher {lacking[0]} has no {wanted} for task {task}; remove it from `teachers`"
            " or set annotations.on_missing_teacher=drop"
        )
    notes = tuple(f"teacher {spec} has no text for {task} and was dropped" for spec in lacking)
    return tuple(one for key in _used(method, found) if found[key].whole for one in found[key].texts), notes


def kinds_read(config: BenchConfig, method: Method, task: str, runs: Path) -> list[str]:
    """The kinds of text that are read for a method, rationales first.

    Beside those it learns: rationales where a program must agree with one (`AGREE_BELOW`), so that students of one mode
    learn the same programs as students of both.
    """
    kinds = set(method.needs().annotations - {"response"})
    if "program" in kinds:
        records = load_split(place_of(config, task, runs).source, task, "train")
        if any(0 < len(record.choices) < AGREE_BELOW for record in records):
            kinds.add("rationale")
    return sorted(kinds, reverse=True)


class _Found(NamedTuple):
    """A teacher as it was given, what it has, and whether that is all that is needed."""

    spec: str
    texts: list[Teacher]
    whole: bool


_WORDS = {"rationale": "text", "program": "program"}


def _used(method: Method, found: Mapping[str, _Found]) -> tuple[str, ...]:
    return method.uses(tuple(found))


def _open(spec: ModelSpec, kind: str, config: BenchConfig, place: Place) -> Teacher | None:
    if kind != "program":
        return open_teacher(spec, config.annotations, place)
    if spec.kind == "replay":
        return open_program_teacher(spec, config.annotations, place)
    asked = config.annotations.model_copy(update={"kind": "program", "filters": ("empty",)})
    return open_teacher(spec, asked, place)
