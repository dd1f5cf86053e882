"""From a spec to a teacher: recorded texts, local models, APIs; and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from tests.learning import SAMPLE
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.sources import load_split
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.teachers.few_shot import ShotConfig
from tinyllm_bench.teachers.open import Place, live_key, open_teacher
from tinyllm_bench.teachers.settings import AnnotationConfig


def opened(text: str, task: str = "obqa", **settings: Any) -> Any:
    place = Place(task=task, source=SAMPLE, data_dir=None, max_context_words=160, device="cpu", runs=Path("runs"))
    return open_teacher(
        parse_spec(text, role="teacher"), AnnotationConfig(**{"filters": ("empty",), **settings}), place
    )


def say_nothing(event: Any) -> None:
    """Nobody watches."""


def test_a_recorded_teacher_answers_every_record_in_order() -> None:
    teacher = opened("replay:sample#terse")
    assert teacher is not None and (teacher.key, teacher.gold_visible) == ("terse", True)
    records = load_split(SAMPLE, "obqa", "train")
    said = teacher.annotate(records, report=say_nothing)
    assert [a.record_id for a in said] == [r.id for r in records]
    assert all(a.text and a.rejected is None and a.teacher == "terse" for a in said)


def test_an_empty_text_is_kept_with_its_reason() -> None:
    teacher = opened("replay:sample#terse")
    assert teacher is not None
    said = teacher.annotate(load_split(SAMPLE, "obqa", "valid"), report=say_nothing)
    assert {a.rejected for a in said} == {"empty"}, "the sample has rationales for train only"


def test_a_key_that_a_source_lacks_is_none() -> None:
    assert opened("replay:sample#llama") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("replay:sample", "add #NAME, one of: terse, stepwise"),
        ("bundled:smollm2-135mm", "smollm2-135mm"),
        ("dir:/no/such/folder", "no such folder"),
        ("replay:/no/such/folder#terse", "not a folder"),
    ],
)
def test_what_cannot_teach_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        opened(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("api:http://localhost:8000/v1#Qwen/Qwen3-8B", "qwen3-8b"),
        ("hf:google/flan-t5-xl@main", "flan-t5-xl"),
        ("dir:some/folder/teacher-a", "teacher-a"),
        ("gguf:some/folder/big.Q4.gguf", "big.q4"),
        ("bundled:gemma3-270m", "gemma3-270m"),
    ],
)
def test_a_live_teacher_s_channel_is_called_by_its_last_name(text: str, key: str) -> None:
    assert live_key(parse_spec(text, role="teacher")) == key


def test_nothing_is_asked_when_a_live_teacher_is_opened() -> None:
    teacher = opened("api:http://localhost:1/v1#big")
    assert (teacher.key, teacher.recorded, teacher.gold_visible) == ("big", False, True)
    assert opened("api:http://localhost:1/v1#big", kind="free").gold_visible is False


def test_an_address_is_no_part_of_a_teacher_but_everything_that_is_asked_is() -> None:
    here, there = opened("api:http://localhost:1/v1#big"), opened("api:http://other.example/v1#big")
    assert here.text_digest("obqa") == there.text_digest("obqa") and here.folder == there.folder
    others = [
        opened("api:http://localhost:1/v1#small"),
        opened("api:http://localhost:1/v1#big", kind="free"),
        opened("api:http://localhost:1/v1#big", chat="never"),
        opened("api:http://localhost:1/v1#big", demonstrations=ShotConfig(shots=0)),
        opened("api:http://localhost:1/v1#big", demonstrations=ShotConfig(rationales="replay:sample#terse")),
        opened("api:http://localhost:1/v1#big", sampling={"max_new_tokens": 7}),
        opened("api:http://localhost:1/v1#big", filters=()),
    ]
    digests = [teacher.text_digest("obqa") for teacher in (here, *others)]
    assert len(set(digests)) == len(digests)


def test_demonstrations_carry_recorded_texts_only() -> None:
    with pytest.raises(UserError, match="recorded texts are needed"):
        opened("api:http://localhost:1/v1#big", demonstrations=ShotConfig(rationales="bundled:smollm2-135m"))


@pytest.mark.release
def test_the_release_s_teachers(release: Path) -> None:
    spec = f"replay:{release}#llama-2-7b"
    assert opened(spec, "piqa") is None
    teacher = opened(spec, "arc", filters=("empty", "nan"))
    assert any(a.rejected for a in teacher.annotate(load_split(teacher.source, "arc", "train"), report=say_nothing))
