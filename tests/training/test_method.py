"""Responses on which methods match the teacher's distributions."""

from dataclasses import replace
from typing import Any

import pytest

from tests.learning import make_method, sample_records
from tinyllm_bench.answers.parser import read_answer
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Annotation
from tinyllm_bench.models.tokens import Encoder
from tinyllm_bench.training.method import annotations_for, response_examples, scoring_modes_for

RECORDS = sample_records(24)
GEN = Ask(mode="generate")


def annotations(text: str, kind: Any = "rationale") -> list[Annotation]:
    return [Annotation(record_id=RECORDS[0].id, teacher="t", kind=kind, text=text)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.id)
def test_the_answer_after_a_rationale_is_parsed_as_the_gold_answer(record: Any) -> None:
    (example,) = response_examples(record, annotations("Heat moves from warm\nto cold things"), GEN, "rationale")
    assert "\n" not in example.target and example.channel == "label"
    assert example.target.startswith("Heat moves from warm to cold things. The answer is ")
    assert read_answer(example.target, record.choices).index == record.answer


def test_a_teacher_s_answer_is_taken_verbatim() -> None:
    (example,) = response_examples(
        RECORDS[0], annotations(" it is  the\nmoon\n", "response"), Ask(mode="cloze"), "teacher"
    )
    assert example.target == "it is  the\nmoon" and example.ends


@pytest.mark.parametrize("cut", [False, True])
def test_a_truncated_answer_has_no_end_token(cut: bool, tiny_llama: tuple[Any, Any]) -> None:
    tokenizer = tiny_llama[1]
    (answer,) = annotations("so it goes on and", "response")
    (example,) = response_examples(RECORDS[0], [replace(answer, finish="length" if cut else "stop")], GEN, "teacher")
    limits = {"max_prompt_tokens": 4000, "max_target_tokens": 256}
    encoder = Encoder(tokenizer, GEN, encoder_decoder=False, add_bos=False, **limits)
    encoded = encoder.encode(example)
    assert (encoded.target[-1] == tokenizer.eos_token_id) != cut and not encoded.cut
    assert tokenizer.decode(encoded.target, skip_special_tokens=True) == " so it goes on and"


@pytest.mark.parametrize("response", ["rationale", "teacher"])
def test_without_a_text_there_is_no_example(response: Any) -> None:
    assert response_examples(RECORDS[0], [], GEN, response) == []
    assert response_examples(RECORDS[0], annotations("  \n"), GEN, response) == []


def test_a_student_that_writes_rationales_is_evaluated_in_generate() -> None:
    assert scoring_modes_for("rationale") == ("generate",) and "cloze" in scoring_modes_for("answer")
    for name in ("kd", "gkd", "minillm"):
        method = make_method(name, response="rationale")
        assert method.scoring_modes == ("generate",)
        assert method.needs().annotations == (frozenset() if name == "minillm" else {"rationale"}), (
            "it samples them all"
        )
    assert annotations_for("teacher") == {"response"} == make_method("seqkd").needs().annotations
