"""Teachers of questions that ask for a number: recorded texts, filters, controls, shots, prompts, reports."""

from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.teachers.recorded import recorded_annotations, recorded_reports
from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Annotation, Split, TaskRecord
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.teachers.few_shot import Demonstration, ShotConfig, ShotSelector
from tinyllm_bench.teachers.filters import FilterInput, named_answers, rejected_by
from tinyllm_bench.teachers.prompts import PromptKind, Reply, annotation_prompt, read_reply, without_answer
from tinyllm_bench.teachers.quality import teacher_reports
from tinyllm_bench.teachers.settings import AnnotationConfig
from tinyllm_bench.teachers.teacher import (
    ReplayTeacher,
    TeacherContext,
    open_program_teacher,
    open_teacher,
)

SAMPLE = Source("sample")
TRAIN = load_split(SAMPLE, "svamp", "train")
RECORD = TaskRecord(id="t/train/1", task="t", split="train", question="How many pens has Ada?", number="5")
SETTINGS = AnnotationConfig()


def context(task: str, **changes: Any) -> TeacherContext:
    here = {"source": SAMPLE, "data_dir": None, "max_context_words": 160, "device": "cpu", "runs": Path("runs")}
    return TeacherContext(task=task, **{**here, **changes})


def candidate(text: str, answer: str | None = None) -> FilterInput:
    return FilterInput(text, record=RECORD, answer=answer)


def quiet(_: Any) -> None:
    pass


# --- recorded texts ---------------------------------------------------------------------------------------------------


def test_recorded_programs_are_another_kind_of_annotation() -> None:
    teacher = open_program_teacher(parse_spec("replay:sample#stepwise", role="teacher"), SETTINGS, context("svamp"))
    prose = open_teacher(parse_spec("replay:sample#stepwise", role="teacher"), SETTINGS, context("svamp"))
    assert teacher is not None and prose is not None
    assert (teacher.kind, prose.kind, teacher.recorded, teacher.gold_visible) == ("program", "rationale", True, True)
    annotations = teacher.annotate(TRAIN, report=quiet)
    assert {a.kind for a in annotations} == {"program"} and not any(a.rejected for a in annotations), (
        "prose filters stay away"
    )
    assert all("answer = " in a.text and a.answer is None for a in annotations)
    assert teacher.text_digest("svamp") != prose.text_digest("svamp")


def test_where_there_are_no_programs_no_teacher_is_opened() -> None:
    spec = parse_spec("replay:sample#terse", role="teacher")
    assert open_program_teacher(spec, SETTINGS, context("svamp")) is None
    assert open_program_teacher(spec, SETTINGS, context("obqa")) is None
    with pytest.raises(UserError, match="names no programs; add #NAME, one of: stepwise"):
        open_program_teacher(parse_spec("replay:sample", role="teacher"), SETTINGS, context("gsm8k"))
    with pytest.raises(UserError, match="has no recorded programs; name some, such as replay:sample#stepwise"):
        open_program_teacher(parse_spec("bundled:smollm2-135m", role="teacher"), SETTINGS, context("gsm8k"))


def test_a_sample_teacher_saw_the_gold_and_its_text_stays_as_it_is() -> None:
    (first, *_) = recorded_annotations(SAMPLE, TRAIN, "terse")
    assert first.gold_visible and first.answer is None and first.text.endswith(f"The answer is {TRAIN[0].number}.")


@pytest.mark.release
@pytest.mark.parametrize("kind", ["rationale", "program"])
def test_blind_teachers_are_marked_and_their_answers_are_read(release: Path, kind: Any) -> None:
    if not (release.parent / plugins.load_task("svamp").file.path).is_file():
        pytest.skip("needs the task's own file beside the release folder")
    source = Source("release", str(release))
    records = load_split(source, "svamp", "train")
    annotations = ReplayTeacher("gpt4", "replay:release#gpt4", source, (), kind=kind).annotate(records, report=quiet)
    assert {(a.kind, a.gold_visible) for a in annotations} == {(kind, False)}
    right = sum(a.answer == record.number for a, record in zip(annotations, records, strict=True))
    assert right == (659 if kind == "rationale" else 0)
    spec = parse_spec(f"replay:{release}#gpt4", role="teacher")
    opened = (open_teacher if kind == "rationale" else open_program_teacher)(spec, SETTINGS, context("svamp"))
    assert opened is not None and opened.gold_visible is False
    human = ReplayTeacher("human", "replay:release#human", source, ())
    one = load_split(source, "gsm8k", "train")[:1]
    assert human.annotate(one, report=quiet)[0].gold_visible


def test_the_digest_of_read_answers_names_who_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seeing = ReplayTeacher("terse", "replay:sample#terse", SAMPLE, ())
    blind = ReplayTeacher("terse", "replay:sample#terse", SAMPLE, (), gold_visible=False)
    assert seeing.text_digest("svamp") != blind.text_digest("svamp")
    annotations = blind.annotate(TRAIN, report=quiet)
    assert [a.answer for a in annotations] == [record.number for record in TRAIN]


# --- filters, controls, shots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "name", "rejected"),
    [
        (candidate("9 - 4 = 5. The answer is $5."), "contradicts_gold", False),
        (candidate("9 - 3 = 6. The answer is $6."), "contradicts_gold", True),
        (candidate("She has 6 or so."), "contradicts_gold", False),
        (candidate("If the answer is 6, she lied. It is 5."), "contradicts_gold", False),
        (candidate("words", "5.0"), "wrong_answer", False),
        (candidate("words", "$6"), "wrong_answer", True),
        (candidate("words"), "wrong_answer", False),
        (candidate("How many pens has Ada?"), "prompt_echo", True),
    ],
)
def test_filters_know_numbers(candidate: FilterInput, name: str, rejected: bool) -> None:
    assert (rejected_by(candidate, (name,)) == name) is rejected


def test_named_numbers_stop_at_an_invented_question() -> None:
    assert named_answers("The answer is 5.\n\nQuestion: How many?\nThe answer is 9.", RECORD) == {"5"}


def test_stratified_shots_spread_the_numbers() -> None:
    shots = ShotSelector(ShotConfig(select="stratified", shots=6), TRAIN, None)
    shown = [one.record.number for one in shots.select(RECORD)]
    assert len(set(shown)) == len(shown) == 6


def test_the_digest_of_shots_knows_the_number() -> None:
    other = [*TRAIN[:-1], TaskRecord(id=TRAIN[-1].id, task="svamp", split="train", question="?", number="1")]
    assert ShotSelector(ShotConfig(), TRAIN, None).digest != ShotSelector(ShotConfig(), other, None).digest


# --- prompts and replies of live teachers -----------------------------------------------------------------------------


def test_prompts_show_no_options_and_the_number_where_the_letter_was() -> None:
    shown = (Demonstration(TRAIN[0], "9 - 4 = 5. The answer is 5."),)
    assert annotation_prompt(RECORD, shown, "forced") == (
        f"Question:\n{TRAIN[0].question}\nAnswer:\n5\nRationale:\nLet's think step by step. 9 - 4 = 5.\n\n"
        "Question:\nHow many pens has Ada?\nAnswer:\n5\nRationale:\nLet's think step by step."
    )
    free = annotation_prompt(RECORD, shown, "free")
    assert "think step by step. 9 - 4 = 5. The answer is 5.\n\nQuestion:" in free
    then = annotation_prompt(RECORD, shown, "rationale_then_answer")
    assert "such as: Answer: 12\n\n" in then and "\nRationale:\n9 - 4 = 5.\nAnswer: 5\n\n" in then
    program = annotation_prompt(RECORD, (), "program")
    assert "`choices`" not in program and program.endswith("Question:\nHow many pens has Ada?\nProgram:\n```python")
    for kind in get_args(PromptKind):
        assert "(a)" not in annotation_prompt(RECORD, shown, kind) and "Options:" not in annotation_prompt(
            RECORD, shown, kind
        )


@pytest.mark.parametrize(
    ("kind", "text", "reply"),
    [
        ("free", "9 - 4 = 5. The answer is $5.50.", Reply("9 - 4 = 5.", "5.5")),
        ("free", "So she has 5.\n5 pens", Reply("So she has 5.", "5")),
        ("free", "The answer is 5. No, the answer is 6.", Reply("", "6")),
        ("free", "The answer is 5. The answer is 6.", Reply("The answer is 5. The answer is 6.", None)),
        ("free", "It is hard to say.", Reply("It is hard to say.", None)),
        ("rationale_then_answer", "Rationale: 9 - 4 = 5\nAnswer: 5 pens", Reply("9 - 4 = 5", "5")),
        ("forced", "9 - 4 = 5.", Reply("9 - 4 = 5.", None)),
        ("program", "```python\nanswer = 9 - 4\n```", Reply("answer = 9 - 4", None)),
    ],
)
def test_replies_are_read(kind: Any, text: str, reply: Reply) -> None:
    assert read_reply(kind, text, RECORD) == reply


def test_only_the_sentence_that_names_the_number_goes() -> None:
    assert without_answer("9 - 4 = 5. So the answer is 5.0 pens. Done.", ()) == ("9 - 4 = 5. Done.", {"5"})
    assert without_answer("9 - 4 = 5", ()) == ("9 - 4 = 5", set())


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_reads_the_numbers() -> None:
    texts = {"first": ["The answer is 5.", "5"], "second": ["51 or 1/5", "It is 5 pens"]}
    records: dict[str, TaskRecord] = {}
    split: Split = "train"
    for i in range(2):
        name = f"t/train/{i}"
        records[name] = TaskRecord(id=name, task="t", split=split, question="?", number="5")
    blind = [
        Annotation(record_id=name, teacher=teacher, kind="rationale", text=text, answer="5" if i else "$6")
        for teacher, teacher_texts in texts.items()
        for i, (name, text) in enumerate(zip(records, teacher_texts, strict=True))
    ]
    first, second = teacher_reports(blind, records, ("empty",))
    assert (first.contains_gold.count, first.gold_only.count) == (2, 1)
    assert (second.contains_gold.count, second.gold_only.count) == (1, 0)
    assert first.own is not None and (first.own.named, first.own.correct) == (2, 1)
    assert first.agreement[0].agreed == 2 and first.samples[0].gold == "5" and first.samples[0].choices == ()


def test_recorded_reports_of_the_sample() -> None:
    reports = recorded_reports(SAMPLE, ["svamp", "gsm8k"], ("empty",))
    assert Counter(report.task for report in reports) == {"svamp": 2, "gsm8k": 2}
    assert all(report.own is None and report.contains_gold.share == 1 for report in reports)
