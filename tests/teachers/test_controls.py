"""Controls change the texts and nothing else."""

from collections import Counter

import pytest

from tests.learning import SAMPLE, make_method, sample_annotations, sample_records
from tinyllm_bench.base.plugins import names
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.data.sources import load_split
from tinyllm_bench.teachers.controls import apply_control


def given(task: str) -> tuple[list[Annotation], dict[str, TaskRecord]]:
    by_channel = sample_annotations(make_method("tinyllm"), task)
    records = {r.id: r for r in load_split(SAMPLE, task, "train")}
    return [a for annotations in by_channel.values() for a in annotations], records


@pytest.mark.parametrize("task", names("task"))
def test_shuffled_never_meets_its_own_answer(task: str) -> None:
    annotations, records = given(task)
    shuffled = apply_control("shuffled", annotations, records)
    owners = {(a.teacher, a.text): records[a.record_id] for a in annotations}
    assert [(a.record_id, a.teacher) for a in shuffled] == [(a.record_id, a.teacher) for a in annotations]
    for annotation in shuffled:
        if annotation.rejected:
            assert annotation.rejected == "no_partner_with_another_answer"
            continue
        giver, taker = owners[annotation.teacher, annotation.text], records[annotation.record_id]
        assert giver.gold_text != taker.gold_text


def test_shuffled_uses_each_text_at_most_once() -> None:
    annotations, records = given("obqa")
    texts = Counter((a.teacher, a.text) for a in apply_control("shuffled", annotations, records) if not a.rejected)
    assert max(texts.values()) == 1 and len(texts) == len(annotations)


def test_a_majority_answer_loses_only_those_without_a_partner() -> None:
    records = {
        str(i): TaskRecord(
            id=str(i), task="t", split="train", question=str(i), choices=("yes", "no"), answer=int(i > 6)
        )
        for i in range(10)
    }
    annotations = [Annotation(record_id=key, teacher="one", kind="rationale", text=f"text {key}") for key in records]
    shuffled = apply_control("shuffled", annotations, records)
    # 7 yes and 3 no: three yes can get a no's text and three no a yes's; four are left over
    assert sum(a.rejected is not None for a in shuffled) == 4


@pytest.mark.parametrize("task", ["arc", "svamp"])
def test_gold_is_the_answer_s_text(task: str) -> None:
    annotations, records = given(task)
    for annotation in apply_control("gold", annotations, records):
        record = records[annotation.record_id]
        assert annotation.text == (record.choices[record.answer] if record.choices else record.number)


def test_rejected_texts_stay_rejected_and_no_control_is_no_change() -> None:
    annotations, records = given("arc")
    rejected = Annotation(record_id=annotations[0].record_id, teacher="x", kind="rationale", text="", rejected="empty")
    assert apply_control("gold", [rejected], records) == [rejected]
    assert apply_control("shuffled", [rejected], records) == [rejected]
    assert apply_control(None, annotations, records) == annotations


def test_a_text_that_was_cut_is_cut_wherever_it_goes() -> None:
    records = {record.id: record for record in sample_records(8)}
    annotations = [
        Annotation(record_id=key, teacher="t", kind="rationale", text=f"text {n}", finish=("stop", "length")[n % 2])
        for n, key in enumerate(records)
    ]
    cut = {one.text for one in annotations if one.is_cut}
    shuffled = [one for one in apply_control("shuffled", annotations, records) if one.rejected is None]
    assert shuffled and all(one.is_cut == (one.text in cut) for one in shuffled)
    assert not any(one.is_cut for one in apply_control("gold", annotations, records)), "a gold answer is whole"
