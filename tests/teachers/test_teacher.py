"""Teachers: recorded ones, the requests, cache and cost of live ones, and how a spec becomes one."""

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
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.teachers.few_shot import ShotConfig, ShotSelector
from tinyllm_bench.teachers.prompts import AnnotationPrompts, StudentPrompts
from tinyllm_bench.teachers.settings import AnnotationConfig, TeacherSamplingConfig
from tinyllm_bench.teachers.teacher import LiveTeacher, TeacherContext, cost_of, live_key, open_teacher

RECORDS = load_split(SAMPLE, "obqa", "train")[:6]


@dataclass
class Echo:
    """A generator that answers with a text made from the request, and remembers the requests."""

    engine: str = "fake"
    batch: int = 4
    fails: tuple[str, ...] = ()
    requested: list[GenerationRequest] = field(default_factory=list)
    opened: int = 0

    def __enter__(self) -> Self:
        self.opened += 1
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        for number, request in enumerate(requests):
            self.requested.append(request)
            if any(word in request.prompt for word in self.fails):
                yield number, FailedRequest("the server was tired")
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
        prompts=AnnotationPrompts(
            prompt_kind=config.kind,
            shots=ShotSelector(config.demonstrations, load_split(SAMPLE, "obqa", "train"), None),
            max_context_words=160,
        ),
        open_generator=lambda: generator,
    )


def annotate(live: LiveTeacher, records: Sequence[TaskRecord] = RECORDS) -> list[Any]:
    return live.annotate(records, report=lambda event: None)


def test_every_record_gets_its_texts_in_order_and_the_second_call_generates_nothing() -> None:
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
            w.prompt
            for w in generator.requested
            if w.prompt.rpartition(own)[2].count("Question:") == 0 and own in w.prompt
        ]
        assert prompt.count("Question:") == 3 and prompt.count(record.question) == 1


def test_neither_order_nor_company_changes_a_prompt() -> None:
    whole, alone = Echo(), Echo()
    annotate(teacher(whole))
    annotate(teacher(alone, sampling=TeacherSamplingConfig(max_new_tokens=99)), RECORDS[3:4])
    assert alone.requested[0].prompt in {request.prompt for request in whole.requested}


def test_a_free_teacher_names_its_answer_and_does_not_see_the_gold() -> None:
    free = annotate(teacher(Echo(), kind="free"))
    assert [a.answer for a in free] == [record.choices[0] for record in RECORDS]
    assert not any(a.gold_visible or "answer is" in a.text for a in free)


def test_samples_have_seeds_of_their_own_and_greedy_texts_share_theirs() -> None:
    sampled = Echo()
    annotations = annotate(teacher(sampled, sampling=TeacherSamplingConfig(temperature=0.7, samples=3)))
    assert len(annotations) == 3 * len(RECORDS) == len({a.text for a in annotations})
    assert [a.sample for a in annotations[:3]] == [0, 1, 2]
    greedy = Echo()
    annotate(teacher(greedy))
    assert {request.seed for request in greedy.requested} == {0}


def test_a_failure_stops_the_run_and_the_texts_before_it_stay_cached() -> None:
    word = RECORDS[4].question
    with pytest.raises(UserError, match="the server was tired"):
        annotate(teacher(Echo(fails=(f"Question:\n{word}",)), demonstrations=ShotConfig(shots=0)))
    rest = Echo()
    assert len(annotate(teacher(rest, demonstrations=ShotConfig(shots=0)))) == len(RECORDS)
    assert 1 <= len(rest.requested) < len(RECORDS)


def test_a_failure_may_be_skipped() -> None:
    word = RECORDS[4].question
    settings: dict[str, Any] = {"demonstrations": ShotConfig(shots=0), "on_teacher_error": "skip"}
    annotations = annotate(teacher(Echo(fails=(word,)), **settings))
    assert [a.record_id for a in annotations] == [record.id for record in RECORDS if record.question != word]


def test_filters_reject_and_leave_the_text() -> None:
    annotations = annotate(teacher(Echo(), filters=("duplicate",)))
    assert [a.rejected for a in annotations] == [None, *["duplicate"] * (len(RECORDS) - 1)]
    assert all(a.text for a in annotations)


def test_the_bill_is_the_sum_over_texts() -> None:
    annotations = annotate(teacher(Echo()))
    assert cost_of(annotations, (2.0, 10.0))._asdict() == {
        "tokens_in": 60,
        "tokens_out": 30,
        "seconds": 3.0,
        "usd": pytest.approx(60 * 2e-6 + 30 * 10e-6),
        "engines": ["fake"],
    }
    assert cost_of(annotations, None).usd is None


@dataclass
class Cut(Echo):
    """Writes the same text to every request until its limit."""

    text: str = ""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        self.requested += requests
        for number, _ in enumerate(requests):
            yield number, Completion(self.text, tokens_in=10, tokens_out=99, finish="length", seconds=0.5)


def test_an_answer_to_the_student_s_prompt_is_used_as_it_is() -> None:
    text = "First the ice melts.\n\nThen the water warms, line by line,\n  and after " + "more " * 80 + "words"
    generator = Cut(text=f" {text}\n")
    prompts = StudentPrompts(ask=Ask(mode="generate"), max_context_words=160)
    live = replace(teacher(generator, sampling=TeacherSamplingConfig(max_new_tokens=99)), prompts=prompts)
    (annotation,) = annotate(live, RECORDS[:1])
    assert annotation.text == text and annotation.is_cut and annotation.rejected is None
    assert generator.requested[0].sampling.stop == () and generator.requested[0].sampling.max_new_tokens == 99
    cutting = replace(live, settings=live.settings.model_copy(update={"filters": ("empty", "cut")}))
    assert [one.rejected for one in annotate(cutting, RECORDS[:1])] == ["cut"]


@pytest.mark.parametrize(
    ("text", "used", "cut"),
    [
        ("Ice melts when it is warm, and so it", "Ice melts when it is warm, and so it", True),
        ("Ice melts when it is warm.\nAnswer: (a)\nFor another ques", "Ice melts when it is warm.", False),
    ],
)
def test_a_text_is_cut_where_its_used_part_reaches_the_limit(text: str, used: str, cut: bool) -> None:
    (annotation,) = annotate(teacher(Cut(text=text), kind="rationale_then_answer"), RECORDS[:1])
    assert (annotation.text, annotation.is_cut) == (used, cut)


class Thinker(Echo):
    """A writer whose texts begin with a thought; every second one does not end."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        for number, _ in enumerate(requests):
            end = "</think>\nIron rusts in wet air. The answer is (b)." if number % 2 else ""
            text = f"<think>Is it (a)? The answer is (a).{end}"
            yield number, Completion(text, 10, 5, "stop" if end else "length", 0.5)


@pytest.mark.parametrize("filters", [(), AnnotationConfig().filters])
def test_reasoning_is_no_rationale_and_the_answer_is_read_after_it(filters: tuple[str, ...]) -> None:
    annotations = teacher(Thinker(), kind="free", filters=filters).annotate(RECORDS[:2], report=lambda _: None)
    by_reason = {annotation.rejected: annotation for annotation in annotations}
    assert by_reason.keys() == {"thought", None}
    record = next(record for record in RECORDS if record.id == by_reason[None].record_id)
    assert (by_reason[None].text, by_reason[None].answer) == ("Iron rusts in wet air.", record.choices[1])


class AtTheLimit(Echo):
    """A writer that the limit cuts each time."""

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        for number, _ in enumerate(requests):
            yield number, Completion("Iron rusts in wet air and", 10, 5, "length", 0.5)


def test_texts_that_the_limit_cut_are_rejected_by_default() -> None:
    annotations = teacher(AtTheLimit(), filters=AnnotationConfig().filters).annotate(RECORDS[:2], report=lambda _: None)
    assert [annotation.rejected for annotation in annotations] == ["cut", "cut"]


# --- from a spec to a teacher ---


def opened(text: str, task: str = "obqa", **settings: Any) -> Any:
    context = TeacherContext(
        task=task, source=SAMPLE, data_dir=None, max_context_words=160, device="cpu", runs=Path("runs")
    )
    return open_teacher(
        parse_spec(text, role="teacher"), AnnotationConfig(**{"filters": ("empty",), **settings}), context
    )


def ignore(event: Any) -> None:
    """No reporter."""


def test_a_recorded_teacher_answers_every_record_in_order() -> None:
    teacher = opened("replay:sample#terse")
    assert teacher is not None and (teacher.key, teacher.gold_visible) == ("terse", True)
    records = load_split(SAMPLE, "obqa", "train")
    annotations = teacher.annotate(records, report=ignore)
    assert [a.record_id for a in annotations] == [r.id for r in records]
    assert all(a.text and a.rejected is None and a.teacher == "terse" for a in annotations)


def test_an_empty_text_stays_with_its_reason() -> None:
    teacher = opened("replay:sample#terse")
    assert teacher is not None
    annotations = teacher.annotate(load_split(SAMPLE, "obqa", "valid"), report=ignore)
    assert {a.rejected for a in annotations} == {"empty"}, "the sample has rationales for train only"


def test_a_key_that_is_not_in_the_source_is_none() -> None:
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


def test_nothing_is_sent_when_a_live_teacher_is_opened() -> None:
    teacher = opened("api:http://localhost:1/v1#big")
    assert (teacher.key, teacher.recorded, teacher.gold_visible) == ("big", False, True)
    assert opened("api:http://localhost:1/v1#big", kind="free").gold_visible is False


def test_an_address_is_no_part_of_a_teacher_but_all_of_its_prompt_is() -> None:
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
    assert any(a.rejected for a in teacher.annotate(load_split(teacher.source, "arc", "train"), report=ignore))
