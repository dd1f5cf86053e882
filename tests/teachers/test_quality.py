"""Figures on teachers' texts: by hand on a few, against other libraries, and against the release's known ones."""

import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from tests.teachers.recorded import recorded_reports
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.data.sources import Source
from tinyllm_bench.teachers.filters import FILTERS
from tinyllm_bench.teachers.quality import (
    Share,
    TeacherReport,
    agreement_lines,
    cohen_kappa,
    figure_rows,
    filter_rows,
    teacher_reports,
)

DEFAULTS = ("empty", "nan", "short", "prompt_junk")
TRIGGER = "Let's think step by step."


def record(number: int, task: str = "toy") -> TaskRecord:
    choices = ("rust", "tin", "moss")
    return TaskRecord(
        id=f"{task}/train/{number}",
        task=task,
        split="train",
        question=f"What grows on rake {number}?",
        choices=choices,
        answer=number % 3,
    )


RECORDS = {one.id: one for one in (record(n) for n in range(12))}


def annotation(number: int, text: str, **settings: Any) -> Annotation:
    known = {"record_id": f"toy/train/{number}", "teacher": "alder", "kind": "rationale", "gold_visible": True}
    return Annotation(**{**known, "text": text, **settings})


def report(annotations: list[Annotation], filters: tuple[str, ...] = DEFAULTS, **known: Any) -> TeacherReport:
    (result,) = teacher_reports(annotations, RECORDS, filters, **known)
    return result


def own(teacher: str, answers: list[str | None], **settings: Any) -> list[Annotation]:
    return [
        annotation(n, f"It is what it is, number {n}.", teacher=teacher, answer=answer, gold_visible=False, **settings)
        for n, answer in enumerate(answers)
    ]


TEXTS = [
    "Iron left in the rain gets rust.",
    f"{TRIGGER} nan",
    f"{TRIGGER}",
    "moss",
    "The rake is old, so rust grows on it\nQuestion: What grows on a stone",
]


def test_shares_follow_their_definitions() -> None:
    result = report([annotation(n, text) for n, text in enumerate(TEXTS)])
    counts = {name: getattr(result, name).count for name in TeacherReport.model_fields if name in SHARES}
    assert counts == {
        "under_five_words": 3,
        "empty_or_nan": 2,
        "ends_on_punctuation": 2,  # the trigger alone ends on a stop
        "invented_question": 1,
        "contains_gold": 1,
        "gold_only": 0,
        "kept": 1,
    }
    assert {name: share.count for name, share in result.rejected.items()} == {
        "empty": 1,
        "nan": 1,
        "short": 1,
        "prompt_junk": 1,
    }
    assert (result.n, result.task, result.teacher, result.split) == (5, "toy", "alder", "train")


SHARES = (
    "under_five_words",
    "empty_or_nan",
    "ends_on_punctuation",
    "invented_question",
    "contains_gold",
    "gold_only",
    "kept",
)


def test_each_filter_counts_alone_and_only_what_it_can_judge() -> None:
    result = report([annotation(n, text) for n, text in enumerate(TEXTS)], ("empty",))
    assert result.alone["short"].count == 3 and result.alone["empty"].count == 1
    assert result.alone["cut"] == Share(count=0, of=0) and result.alone["cut"].share is None
    cut = report(
        [annotation(0, TEXTS[0], finish="length"), annotation(1, TEXTS[0], finish="stop"), annotation(2, TEXTS[4])]
    )
    assert cut.alone["cut"] == Share(count=1, of=2)
    assert cut.alone["duplicate"] == Share(count=1, of=3)
    assert set(cut.alone) == set(FILTERS)


@pytest.mark.parametrize(
    ("text", "expected"), [("Iron gets red rust.", 1), (f"{TRIGGER} Iron gets red rust today.", 0)]
)
def test_five_words_are_enough(text: str, expected: int) -> None:
    assert report([annotation(0, text)]).under_five_words.count == expected


@pytest.mark.parametrize(("end", "expected"), [*((end, 1) for end in '.!?")'), *((end, 0) for end in ",:'a(")])
def test_what_counts_as_punctuation_at_the_end(end: str, expected: int) -> None:
    assert report([annotation(0, f"Iron gets rust{end}\n")]).ends_on_punctuation.count == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So.\nQuestion: What", 1),
        ("So. # 17", 1),
        ("So.\n## Bees", 1),
        ("See www.example.org", 1),
        ("# bees", 0),
        ("Q. What", 0),
    ],
)
def test_what_counts_as_an_invented_question(text: str, expected: int) -> None:
    assert report([annotation(0, text)]).invented_question.count == expected


def test_the_gold_text_is_compared_in_its_normal_form() -> None:
    result = report(
        [annotation(0, f"{TRIGGER} RUST."), annotation(1, "It is rust, not moss."), annotation(2, "Moss, I think.")]
    )
    assert (result.contains_gold.count, result.gold_only.count) == (2, 1)


@pytest.mark.parametrize("size", [1, 2, 7, 12])
def test_lengths_are_those_of_numpy(size: int) -> None:
    lengths = [random.randint(1, 90) for _ in range(size)]
    words = report([annotation(n, "rust " * length) for n, length in enumerate(lengths)]).words
    assert words.mean == pytest.approx(statistics.fmean(lengths)) and words.max == max(lengths)
    assert words.median == pytest.approx(float(np.median(lengths)))
    assert words.p95 == pytest.approx(float(np.percentile(lengths, 95)))


def test_own_accuracy_is_of_named_answers_of_teachers_that_did_not_see_the_gold() -> None:
    accuracy = report(own("alder", ["Rust", "tin.", "rust", None])).own
    interval = binomtest(2, 3).proportion_ci(method="wilson")
    assert accuracy is not None
    assert (accuracy.texts, accuracy.named, accuracy.correct) == (4, 3, 2)
    assert (accuracy.low, accuracy.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert report([annotation(0, TEXTS[0], answer="rust")]).own is None


def test_without_a_named_answer_any_accuracy_is_possible() -> None:
    result = report(own("alder", [None, None]))
    assert result.own is not None and (result.own.named, result.own.low, result.own.high) == (0, 0.0, 1.0)
    assert dict(figure_rows([result]))["own accuracy"] == "-, 2 unread"


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_sklearn(seed: int) -> None:
    from sklearn.metrics import cohen_kappa_score

    draw = random.Random(seed)
    first = [draw.randrange(4) for _ in range(60)]
    second = [a if draw.random() < 0.5 else draw.randrange(5) for a in first]
    kappa = cohen_kappa(list(zip(first, second, strict=True)))
    assert kappa == pytest.approx(float(cohen_kappa_score(first, second)))


def test_kappa_by_hand() -> None:
    assert cohen_kappa([(0, 0), (1, 1)]) == 1.0
    assert cohen_kappa([(0, 1), (1, 0)]) == -1.0
    assert cohen_kappa([(0, 0), (0, 1), (1, 0), (1, 1)]) == 0.0
    assert cohen_kappa([(2, 2), (2, 2)]) is None
    assert cohen_kappa([]) is None


def test_agreement_is_over_records_that_both_answered_in_their_first_sample() -> None:
    alder = own("alder", ["rust", "tin", "moss", None, "rust"])
    birch = own("birch", ["rust", "tin", "rust", "tin"])
    again = own("birch", ["moss"] * 5, sample=1)
    first, second = teacher_reports([*alder, *birch, *again], RECORDS, ())
    (agreement,) = first.agreement
    assert (agreement.other, agreement.n, agreement.agreed) == ("birch", 3, 2)
    assert agreement.kappa == cohen_kappa([(0, 0), (1, 1), (2, 0)])
    assert second.agreement[0].kappa == agreement.kappa
    assert agreement_lines([first, second]) == [f"alder and birch: 2 of 3 alike, kappa {agreement.kappa:.2f}"]


def test_a_teacher_that_saw_the_gold_has_no_agreement() -> None:
    forced = own("birch", ["rust", "tin"])
    forced = [Annotation(**{**_fields(a), "gold_visible": True}) for a in forced]
    assert [r.agreement for r in teacher_reports([*own("alder", ["rust", "tin"]), *forced], RECORDS, ())] == [(), ()]


def _fields(annotation: Annotation) -> dict[str, Any]:
    return {name: getattr(annotation, name) for name in Annotation.__dataclass_fields__}


def test_costs_are_sums_and_unknown_where_none_was_measured() -> None:
    live = report([annotation(n, TEXTS[0], tokens_in=10, tokens_out=n, seconds=0.5) for n in range(3)])
    assert (live.tokens_in, live.tokens_out, live.seconds) == (30, 3, 1.5)
    replayed = report([annotation(0, TEXTS[0])])
    assert (replayed.tokens_in, replayed.tokens_out, replayed.seconds) == (None, None, None)
    labels = [row[0] for row in figure_rows([live, replayed])]
    assert "tokens in" in labels and "tokens in" not in [row[0] for row in figure_rows([replayed])]


def test_samples_depend_on_the_seed_and_not_on_the_order() -> None:
    annotations = [annotation(n, f"It is number {n} of many.") for n in range(12)]
    shown = report(annotations, samples=4).samples
    assert len(shown) == 4 and shown == report(annotations[::-1], samples=4).samples
    assert shown != report(annotations, samples=4, seed=1).samples
    assert len(report(annotations[:2], samples=4).samples) == 2


def test_a_sample_carries_its_question_and_every_reason() -> None:
    (shown,) = report([annotation(2, "Rust. The answer is (a)", finish="length")]).samples
    assert (shown.question, shown.gold) == ("What grows on rake 2?", "moss")
    assert shown.reasons == ("cut", "unfinished", "contradicts_gold")


def test_prompts_belong_to_a_teacher() -> None:
    words = "the long words that stand in front of each and every question that is sent to this one teacher"
    annotations = [annotation(0, f"Now {words}."), annotation(0, f"Now {words}.", teacher="birch")]
    reports = teacher_reports(annotations, RECORDS, (), prompts={"birch": {"toy/train/0": words}})
    assert [r.alone["prompt_echo"].count for r in reports] == [0, 1]


def test_tasks_and_teachers_have_separate_reports() -> None:
    other = record(0, "play")
    annotations = [
        annotation(0, TEXTS[0]),
        annotation(0, TEXTS[0], record_id=other.id),
        annotation(1, TEXTS[0], teacher="birch"),
    ]
    reports = teacher_reports(annotations, {**RECORDS, other.id: other}, ())
    assert [(r.task, r.teacher, r.n) for r in reports] == [
        ("toy", "alder", 1),
        ("toy", "birch", 1),
        ("play", "alder", 1),
    ]
    assert teacher_reports([], RECORDS, ()) == []


def test_a_report_survives_json() -> None:
    result = report(own("alder", ["rust", None]))
    dumped = result.model_dump(mode="json")
    assert dumped["kept"] == {"count": 2, "of": 2, "share": 1.0}
    assert TeacherReport.model_validate_json(result.model_dump_json()) == result


def test_unknown_filters_are_refused() -> None:
    with pytest.raises(UserError, match="'shrot'. Did you mean 'short'"):
        teacher_reports([], {}, ("shrot",))


def test_the_samples_recorded_teachers_need_no_model() -> None:
    reports = recorded_reports(Source("sample"), ["obqa", "arc"], DEFAULTS)
    assert {r.task for r in reports} == {"obqa", "arc"} and len({r.teacher for r in reports}) >= 2
    assert {r.n for r in reports} == {24} and all(r.gold_visible and r.own is None for r in reports)
    one = reports[0].teacher
    assert {r.teacher for r in recorded_reports(Source("sample"), ["obqa"], (), keys=[one])} == {one}


def test_every_share_is_in_the_rows() -> None:
    result = report([annotation(n, text) for n, text in enumerate(TEXTS)])
    shown = dict([*figure_rows([result]), *filter_rows([result])])
    assert shown["under five words"] == "60.0 % (3)" and shown["short"] == "60.0 % (3)"
    assert shown["cut"] == "-" and shown["own accuracy"] == "saw the gold"


# What was measured on the release before this code was written, LLaMA-2's part of the train splits, in per cent:
# under five words, invented question and the like, ends on punctuation, contains the gold text.
RELEASE = {
    "obqa": (6.5, 36.7, 13, 41),
    "arc": (3.2, 28.0, 13, 48),
    "riddle": (6.8, 27.6, 15, 33),
    "pubmedqa": (0.8, 4.2, 7, 31),
    "bioasq": (3.1, 0.2, 31, 36),
}
LENGTHS = {  # words of the same texts: mean, median, 95th percentile, most
    "obqa": (55.6, 65, 83, 98),
    "arc": (65.3, 70, 84, 96),
    "riddle": (56.0, 64, 82, 104),
    "pubmedqa": (64.2, 65, 82, 92),
    "bioasq": (57.1, 60, 73, 84),
}


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("task", RELEASE)
def test_the_releases_figures_come_out_within_one_point(task: str, release: Path) -> None:
    result = recorded_reports(Source("release", str(release)), [task], DEFAULTS, keys=["llama-2-7b"])[0]
    shares = (result.under_five_words, result.invented_question, result.ends_on_punctuation, result.contains_gold)
    measured = [100 * (share.share or 0.0) for share in shares]
    assert measured == pytest.approx(RELEASE[task], abs=1.0)
    words = result.words
    assert (words.mean, words.median, words.p95, words.max) == pytest.approx(LENGTHS[task], abs=0.5)


@pytest.mark.slow
@pytest.mark.release
def test_the_first_teachers_figures_come_out_too(release: Path) -> None:
    expected = {"obqa": 66, "arc": 65, "piqa": 57, "riddle": 53, "pubmedqa": 32, "bioasq": 98}
    reports = recorded_reports(Source("release", str(release)), list(expected), DEFAULTS, keys=["flan-t5-xl"])
    assert {r.task: 100 * (r.contains_gold.share or 0.0) for r in reports} == pytest.approx(expected, abs=1.0)
