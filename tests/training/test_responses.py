"""What methods that learn from distributions imitate."""

from typing import Any

import pytest

from tests.learning import make_method, sample_records
from tinyllm_bench.answers.parser import read_answer
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Annotation
from tinyllm_bench.training.responses import annotations_for, readings_for, response_examples

RECORDS = sample_records(24)
GEN = Ask(reading="gen")


def said(text: str, kind: Any = "rationale") -> list[Annotation]:
    return [Annotation(record_id=RECORDS[0].id, teacher="t", kind=kind, text=text)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_the_answer_behind_a_rationale_is_read_as_the_gold_answer(record: Any) -> None:
    (example,) = response_examples(record, said("Heat moves from warm\nto cold things"), GEN, "rationale")
    assert "\n" not in example.target and example.channel == "label"
    assert example.target.startswith("Heat moves from warm to cold things. The answer is ")
    assert read_answer(example.target, record.choices).index == record.answer


def test_a_teacher_s_answer_is_taken_as_it_is() -> None:
    (example,) = response_examples(RECORDS[0], said(" it is  the\nmoon", "response"), Ask(reading="cloze"), "teacher")
    assert example.target == "it is the moon"


@pytest.mark.parametrize("response", ["rationale", "teacher"])
def test_without_a_text_there_is_nothing_to_imitate(response: Any) -> None:
    assert response_examples(RECORDS[0], [], GEN, response) == []
    assert response_examples(RECORDS[0], said("  \n"), GEN, response) == []


def test_a_student_that_writes_rationales_is_asked_for_text() -> None:
    assert readings_for("rationale") == ("gen",) and "cloze" in readings_for("answer")
    for name in ("kd", "gkd", "minillm"):
        method = make_method(name, response="rationale")
        assert method.readings == ("gen",) and method.needs().annotations == {"rationale"}
    assert annotations_for("teacher") == {"response"} == make_method("seqkd").needs().annotations
