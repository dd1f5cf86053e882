"""A live teacher: what it is asked, what is kept, and what it costs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import pytest

from tests.learning import SAMPLE
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.data.sources import load_split
from tinyllm_bench.generation.requests import Completion, Failed, GenerationRequest
from tinyllm_bench.teachers.costs import cost_of
from tinyllm_bench.teachers.few_shot import ShotConfig, Shots
from tinyllm_bench.teachers.live import LiveTeacher
from tinyllm_bench.teachers.prompting import AsStudent, Elicited
from tinyllm_bench.teachers.settings import AnnotationConfig, TeacherSamplingConfig

RECORDS = load_split(SAMPLE, "obqa", "train")[:6]


@dataclass
class Echo:
    """A generator that answers with a text made from the request, and remembers what it was asked."""

    engine: str = "fake"
    batch: int = 4
    fails: tuple[str, ...] = ()
    asked: list[GenerationRequest] = field(default_factory=list)
    opened: int = 0

    def __enter__(self) -> Self:
        self.opened += 1
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | Failed]]:
        for number, request in enumerate(requests):
            self.asked.append(request)
            if any(word in request.prompt for word in self.fails):
                yield number, Failed("the server was tired")
            else:
                text = f"It follows from what is known about draw {request.seed}. So the answer is (a)."
                yield number, Completion(text, tokens_in=10, tokens_out=5, finish="stop", seconds=0.5)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path))


def teacher(generator: Echo, **settings: Any) -> LiveTeacher:
    config = AnnotationConfig(**{"filters": (), "demonstrations": ShotConfig(shots=2), **settings})
    return LiveTeacher(
        key="echo",
        spec="api:http://localhost:1/v1#echo",
        identity={"model": "echo"},
        settings=config,
        words=Elicited(
            asked=config.kind,
            shots=Shots(config.demonstrations, load_split(SAMPLE, "obqa", "train"), None),
            max_context_words=160,
        ),
        open_generator=lambda: generator,
    )


def annotate(asked: LiveTeacher, records: Sequence[TaskRecord] = RECORDS) -> list[Any]:
    return asked.annotate(records, report=lambda event: None)


def test_every_record_gets_its_texts_in_order_and_the_second_call_asks_nobody() -> None:
    generator = Echo()
    first = annotate(teacher(generator))
    assert [a.record_id for a in first] == [record.id for record in RECORDS]
    assert all(a.gold_visible and a.answer is None and a.finish == "stop" and a.engine == "fake" for a in first)
    again = Echo()
    assert annotate(teacher(again)) == first
    assert (generator.opened, again.opened) == (1, 0)


def test_the_prompt_shows_the_gold_and_two_other_questions() -> None:
    generator = Echo()
    annotate(teacher(generator))
    for record in RECORDS:
        own = f"Question:\n{record.question}"
        (prompt,) = [
            w.prompt for w in generator.asked if w.prompt.rpartition(own)[2].count("Question:") == 0 and own in w.prompt
        ]
        assert prompt.count("Question:") == 3 and prompt.count(record.question) == 1


def test_neither_order_nor_company_changes_a_prompt() -> None:
    whole, alone = Echo(), Echo()
    annotate(teacher(whole))
    annotate(teacher(alone, sampling=TeacherSamplingConfig(max_new_tokens=99)), RECORDS[3:4])
    assert alone.asked[0].prompt in {request.prompt for request in whole.asked}


def test_a_free_teacher_names_its_answer_and_does_not_see_the_gold() -> None:
    free = annotate(teacher(Echo(), kind="free"))
    assert [a.answer for a in free] == [record.choices[0] for record in RECORDS]
    assert not any(a.gold_visible or "answer is" in a.text for a in free)


def test_drawn_samples_have_seeds_of_their_own_and_greedy_ones_share_theirs() -> None:
    drawn = Echo()
    said = annotate(teacher(drawn, sampling=TeacherSamplingConfig(temperature=0.7, samples=3)))
    assert len(said) == 3 * len(RECORDS) == len({a.text for a in said})
    assert [a.sample for a in said[:3]] == [0, 1, 2]
    greedy = Echo()
    annotate(teacher(greedy))
    assert {request.seed for request in greedy.asked} == {0}


def test_a_failure_stops_the_run_and_keeps_what_was_written() -> None:
    word = RECORDS[4].question
    with pytest.raises(UserError, match="the server was tired"):
        annotate(teacher(Echo(fails=(f"Question:\n{word}",)), demonstrations=ShotConfig(shots=0)))
    rest = Echo()
    assert len(annotate(teacher(rest, demonstrations=ShotConfig(shots=0)))) == len(RECORDS)
    assert 1 <= len(rest.asked) < len(RECORDS)


def test_a_failure_may_be_skipped() -> None:
    word = RECORDS[4].question
    settings: dict[str, Any] = {"demonstrations": ShotConfig(shots=0), "on_teacher_error": "skip"}
    said = annotate(teacher(Echo(fails=(word,)), **settings))
    assert [a.record_id for a in said] == [record.id for record in RECORDS if record.question != word]


def test_filters_reject_and_keep_the_text() -> None:
    said = annotate(teacher(Echo(), filters=("duplicate",)))
    assert [a.rejected for a in said] == [None, *["duplicate"] * (len(RECORDS) - 1)]
    assert all(a.text for a in said)


def test_the_bill_is_the_sum_over_texts() -> None:
    said = annotate(teacher(Echo()))
    assert cost_of(said, (2.0, 10.0)) == {
        "tokens_in": 60,
        "tokens_out": 30,
        "seconds": 3.0,
        "joules": None,
        "usd": pytest.approx(60 * 2e-6 + 30 * 10e-6),
        "engines": ["fake"],
    }
    assert cost_of(said, None)["usd"] is None


@dataclass
class Cut(Echo):
    """Writes the same text to every request until its limit."""

    text: str = ""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | Failed]]:
        self.asked += requests
        for number, _ in enumerate(requests):
            yield number, Completion(self.text, tokens_in=10, tokens_out=99, finish="length", seconds=0.5)


def test_an_answer_to_the_student_s_prompt_is_kept_as_it_was_written() -> None:
    text = "First the ice melts.\n\nThen the water warms, line by line,\n  and after " + "more " * 80 + "words"
    generator = Cut(text=f" {text}\n")
    words = AsStudent(ask=Ask(mode="generate"), max_context_words=160)
    asked = replace(teacher(generator, sampling=TeacherSamplingConfig(max_new_tokens=99)), words=words)
    (found,) = annotate(asked, RECORDS[:1])
    assert found.text == text and found.is_cut and found.rejected is None
    assert generator.asked[0].sampling.stop == () and generator.asked[0].sampling.max_new_tokens == 99
    cutting = replace(asked, settings=asked.settings.model_copy(update={"filters": ("empty", "cut")}))
    assert [one.rejected for one in annotate(cutting, RECORDS[:1])] == ["cut"]


@pytest.mark.parametrize(
    ("text", "kept", "cut"),
    [
        ("Ice melts when it is warm, and so it", "Ice melts when it is warm, and so it", True),
        ("Ice melts when it is warm.\nAnswer: (a)\nFor another ques", "Ice melts when it is warm.", False),
    ],
)
def test_a_text_is_cut_where_what_is_kept_of_it_reaches_the_limit(text: str, kept: str, cut: bool) -> None:
    (found,) = annotate(teacher(Cut(text=text), kind="rationale_then_answer"), RECORDS[:1])
    assert (found.text, found.is_cut) == (kept, cut)


class Thinker(Echo):
    """A writer whose texts begin with a thought; every second one does not end."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | Failed]]:
        for number, _ in enumerate(requests):
            end = "</think>\nIron rusts in wet air. The answer is (b)." if number % 2 else ""
            text = f"<think>Is it (a)? The answer is (a).{end}"
            yield number, Completion(text, 10, 5, "stop" if end else "length", 0.5)


@pytest.mark.parametrize("filters", [(), AnnotationConfig().filters])
def test_a_thought_is_no_rationale_and_the_answer_is_read_behind_it(filters: tuple[str, ...]) -> None:
    found = teacher(Thinker(), kind="free", filters=filters).annotate(RECORDS[:2], report=lambda _: None)
    kept = {one.rejected: one for one in found}
    assert kept.keys() == {"thought", None}
    record = next(record for record in RECORDS if record.id == kept[None].record_id)
    assert (kept[None].text, kept[None].answer) == ("Iron rusts in wet air.", record.choices[1])


class AtTheLimit(Echo):
    """A writer that the limit cuts each time."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | Failed]]:
        for number, _ in enumerate(requests):
            yield number, Completion("Iron rusts in wet air and", 10, 5, "length", 0.5)


def test_texts_that_the_limit_cut_are_rejected_by_default() -> None:
    found = teacher(AtTheLimit(), filters=AnnotationConfig().filters).annotate(RECORDS[:2], report=lambda _: None)
    assert [one.rejected for one in found] == ["cut", "cut"]
