"""Recorded teachers."""

from pathlib import Path

import pytest

from tests.learning import SAMPLE
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.sources import load_split
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.teach.teachers import open_teacher


def opened(text: str, task: str = "obqa", filters: tuple[str, ...] = ("empty",)):  # type: ignore[no-untyped-def]
    return open_teacher(parse_spec(text, role="teacher"), task, data_dir=None, filters=filters)


def test_a_recorded_teacher_answers_every_record_in_order() -> None:
    teacher = opened("replay:sample#terse")
    assert teacher is not None and (teacher.key, teacher.gold_visible) == ("terse", True)
    records = load_split(SAMPLE, "obqa", "train")
    said = list(teacher.annotate(records))
    assert [a.record_id for a in said] == [r.id for r in records]
    assert all(a.text and a.rejected is None and a.teacher == "terse" for a in said)


def test_an_empty_text_is_kept_with_its_reason() -> None:
    teacher = opened("replay:sample#terse")
    assert teacher is not None
    said = list(teacher.annotate(load_split(SAMPLE, "obqa", "valid")))
    assert {a.rejected for a in said} == {"empty"}, "the sample has rationales for train only"


def test_a_key_that_a_source_lacks_is_none() -> None:
    assert opened("replay:sample#llama") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("replay:sample", "add #NAME, one of: terse, stepwise"),
        ("bundled:smollm2-135m", "only recorded rationales"),
        ("replay:/no/such/folder#terse", "not a folder"),
    ],
)
def test_what_cannot_teach_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        opened(text)


@pytest.mark.release
def test_the_release_s_teachers(release: Path) -> None:
    spec = parse_spec(f"replay:{release}#llama-2-7b", role="teacher")
    assert open_teacher(spec, "piqa", data_dir=None, filters=()) is None
    teacher = open_teacher(spec, "arc", data_dir=None, filters=("empty", "nan"))
    assert teacher is not None
    assert any(a.rejected for a in teacher.annotate(load_split(teacher.source, "arc", "train")))  # type: ignore[attr-defined]
