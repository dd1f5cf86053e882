"""Each filter on invented texts in the style of the recorded ones, for and against."""

from typing import Any

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.teachers.filters import FILTERS, NEEDS, FilterInput, apply_filters, body, check_names, rejected_by

TRIGGER = "Let's think step by step."
DEFAULTS = ("empty", "nan", "short", "prompt_junk")
QUESTION = (
    "If a gardener leaves an iron rake out on a lawn all through a wet autumn and only looks at it again in spring,"
    " the rake will most likely be"
)
RAKE = TaskRecord(
    id="toy/train/rake",
    task="toy",
    split="train",
    question=QUESTION,
    choices=("polished", "covered in rust", "made of copper", "heavier than stone"),
    answer=1,
)
STUDY = TaskRecord(
    id="toy/train/study",
    task="toy",
    split="train",
    question="Does a walk before bed improve sleep?",
    context=(
        "Forty adults walked for half an hour each evening during six weeks and kept a diary of their nights."
        " Nights were on average twenty minutes longer than before the walks began."
    ),
    choices=("yes", "no", "maybe"),
    answer=0,
)
GOOD = "Iron rusts in wet air because oxygen joins it. A rake of iron on wet grass gets rusty."


def candidate(text: str, **known: Any) -> FilterInput:
    return FilterInput(text, **{"record": RAKE, **known})


def caught(name: str, text: str, **known: Any) -> bool:
    return FILTERS[name](candidate(text, **known))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (f"{TRIGGER}  ", "empty"),
        ("nan", "nan"),
        (f"{TRIGGER}\nnan", "nan"),
        ("Iron.", "short"),
        (f"{TRIGGER} Iron rusts.", "short"),
        ("Iron rusts in wet air.\nQuestion: What else rusts?", "prompt_junk"),
        ("Iron rusts in wet air.\nQ: What else rusts?", "prompt_junk"),
        ("Iron rusts in wet air. # 17. Next", "prompt_junk"),
        ("Read more at https://example.org/iron today", "prompt_junk"),
        ("Iron rusts in wet air.\nAnswer Choices:\n(a) tin", "prompt_junk"),
        ("Iron rusts in wet air because oxygen joins it.", None),
        (f"{TRIGGER}\nWet air makes iron rust.", None),
        ("The question is what makes iron rust; water does.", None),
    ],
)
def test_the_default_filters(text: str, reason: str | None) -> None:
    assert rejected_by(text, DEFAULTS) == reason


@pytest.mark.parametrize("text", [GOOD, f"{TRIGGER} {GOOD}", f"{GOOD} So the answer is (b) covered in rust."])
def test_a_sound_text_passes_every_filter(text: str) -> None:
    known = candidate(text, prompt="Question:\nWhat rusts?", finish="stop", answer="covered in rust")
    assert [name for name, test in FILTERS.items() if test(known)] == []


@pytest.mark.parametrize("name", [name for name in FILTERS if name not in ("empty", "nan", "short")])
def test_an_empty_text_is_nothing_but_empty(name: str) -> None:
    assert not FILTERS[name](FilterInput(""))


@pytest.mark.parametrize(("finish", "expected"), [("length", True), ("stop", False), (None, False)])
def test_cut_is_the_generator_s_finish_reason(finish: str | None, expected: bool) -> None:
    assert caught("cut", GOOD, finish=finish) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Iron rusts in wet air because", True),
        ("Iron rusts in wet air,", True),
        ("Iron rusts for these reasons:", True),
        ("Iron rusts in wet air.", False),
        ("He said: 'Iron rusts!'", False),
        ("Iron rusts (as steel does.)", False),
        ("Does iron rust?\n", False),
    ],
)
def test_unfinished(text: str, expected: bool) -> None:
    assert caught("unfinished", text) is expected


@pytest.mark.parametrize(
    "text",
    [
        "Iron rusts.\nQuestion:\nWhat do bees eat?",
        "Iron rusts.\n#\nQuestion 2: What do bees eat?",
        "Iron rusts.\nQ. What do bees eat?",
        "Iron rusts.\nQ14: What do bees eat?",
        "Iron rusts.\n# 17\n# What do bees eat",
        "Iron rusts.\n## Bees\nBees eat pollen.",
        "Iron rusts.\nOptions:\n(a) tin",
        "Iron rusts.\nWhat do bees eat?\n(a) pollen\n(b) rust",
        "Iron rusts. A follow-up question would be what bees eat.",
    ],
)
def test_follow_up_questions_are_detected(text: str) -> None:
    assert caught("follow_up", text)


@pytest.mark.parametrize(
    "text",
    [
        "The question is what iron does. It rusts.",
        "What does iron do in wet air? It rusts.",
        "First the options:\n(a) is wrong, since nobody polished it.\n(b) is right.",
        "The team ranks #1 in rust.",
        "IQ. is no matter here.",
    ],
)
def test_thinking_aloud_is_no_follow_up(text: str) -> None:
    assert not caught("follow_up", text)


def test_prompt_echo_is_a_long_run_of_the_question() -> None:
    assert caught("prompt_echo", f"Let me see. {QUESTION} rusty.")
    assert caught("prompt_echo", "a lawn all through a wet AUTUMN")  # nothing but a piece of it
    assert not caught("prompt_echo", "An iron rake on a lawn all through a wet autumn rusts, as iron does.")
    assert not caught("prompt_echo", "an iron rake")
    words = QUESTION.split()
    assert caught("prompt_echo", f"Say {' '.join(words[3:19])} now")
    assert not caught("prompt_echo", f"Say {' '.join(words[3:18])} now")


def test_prompt_echo_sees_the_prompt_that_was_sent() -> None:
    shown = "Bees fly from flower to flower and carry pollen on their hairy legs to the next flower of a kind"
    assert caught("prompt_echo", f"As we know: {shown}.", prompt=f"Question:\n{shown}\n{QUESTION}")
    assert not caught("prompt_echo", f"As we know: {shown}.")


def test_a_quoted_passage_is_evidence_but_a_copy_is_an_echo() -> None:
    first = STUDY.context.split(". ")[0] + "."
    quoted = f"The passage says: {first} So walks help."
    assert not caught("prompt_echo", quoted, record=STUDY)
    assert not caught("prompt_echo", quoted, record=STUDY, prompt=f"{STUDY.context}\nQuestion:\n{STUDY.question}")
    assert caught("prompt_echo", first, record=STUDY)


@pytest.mark.parametrize(
    "text",
    [
        "Iron rusts in wet air. Tin does not. Iron rusts in wet air.",
        "The rake is old and the rake is old and the rake is old and",
        "rust rust rust rust rust",
        "So it takes the rain and gives it back as water, then it takes the rain and gives it back as dew, and so it"
        " takes the rain and gives it back as ice",
    ],
)
def test_loops_are_detected(text: str) -> None:
    assert caught("loop", text)


@pytest.mark.parametrize(
    "text",
    [
        "Iron rusts in rain. Tin does not. Iron rusts in rain.",  # four words are too few for a loop
        "At first it takes the rain and gives it back as water, and later it takes the rain and gives it back as dew.",
        "(a) is wrong, because copper is no iron. (b) is right, because iron rusts. (c) is wrong, because it is dry.",
        "It is very, very, very old.",
    ],
)
def test_likeness_is_no_loop(text: str) -> None:
    assert not caught("loop", text)


WRONGLY_READ = ["Fünf Kühe im Garten", "ржавчина", "it’s rusty", "50 £", "naïve rust"]


@pytest.mark.parametrize("text", WRONGLY_READ)
@pytest.mark.parametrize("codec", ["latin-1", "cp1252"])
def test_mojibake_is_detected_and_the_right_encoding_is_not(text: str, codec: str) -> None:
    assert caught("mojibake", text.encode().decode(codec, errors="replace"))
    assert not caught("mojibake", text)


@pytest.mark.parametrize("text", ["rust\ufffd eats iron", "\u00ef\u00bb\u00bfIron rusts."])
def test_lost_signs_and_marks_are_mojibake(text: str) -> None:
    assert caught("mojibake", text)


@pytest.mark.parametrize("text", ["CAFÉ—a place", "“Café” and “Zoë”…", "NÃO", "20 °C ± 2", "ÄÖÜ ß", "東京"])
def test_foreign_words_are_no_mojibake(text: str) -> None:
    assert not caught("mojibake", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Nobody polished it. So the answer is (c).", True),
        ("So the answer is made of copper.", True),
        ("The answer is (b). Or rather, the answer is (a).", True),
        ("So the answer is (b).", False),
        ("So the answer is covered in rust.", False),
        ("It is not made of copper, since it is iron.", False),
        ("If the answer is (a), somebody polished it.", False),
        ("The answer is (b).\nQuestion: What do bees eat?\nThe answer is (a).", False),
    ],
)
def test_contradicts_gold(text: str, expected: bool) -> None:
    assert caught("contradicts_gold", text) is expected


def test_the_answer_that_was_parsed_counts_as_well() -> None:
    assert caught("contradicts_gold", GOOD, answer="polished")
    assert not caught("contradicts_gold", GOOD, answer="covered in rust")
    assert not caught("contradicts_gold", "The answer is (a).", record=None)


def test_a_gold_option_that_is_listed_twice_is_right_in_both_places() -> None:
    twice = TaskRecord(id="t", task="toy", split="train", question="?", choices=("rust", "tin", "Rust."), answer=0)
    assert not caught("contradicts_gold", "The answer is (c).", record=twice)
    assert caught("contradicts_gold", "The answer is (b).", record=twice)


def test_wrong_answer_needs_an_answer_of_its_own() -> None:
    assert caught("wrong_answer", GOOD, answer="polished")
    assert not caught("wrong_answer", GOOD, answer="Covered in rust.")
    assert not caught("wrong_answer", "The answer is (a).")


def test_too_long_begins_behind_two_hundred_words() -> None:
    assert not caught("too_long", f"{TRIGGER} " + "rust " * 200)
    assert caught("too_long", "rust " * 201)


def annotation(record_id: str, text: str, **settings: Any) -> Annotation:
    return Annotation(**{"record_id": record_id, "teacher": "t", "kind": "rationale", "text": text, **settings})


def reasons(annotations: list[Annotation], *filters: str, **known: Any) -> list[str | None]:
    return [a.rejected for a in apply_filters(annotations, {RAKE.id: RAKE, STUDY.id: STUDY}, filters, **known)]


def test_duplicates_are_detected_over_the_whole_list_and_per_teacher() -> None:
    annotations = [
        annotation(RAKE.id, GOOD),
        annotation(STUDY.id, f"{TRIGGER} {GOOD.upper()}"),
        annotation(STUDY.id, GOOD, teacher="another"),
        annotation(RAKE.id, GOOD, sample=1),  # the same record: two samples may well be alike
        annotation(STUDY.id, "", sample=1),
        annotation(RAKE.id, "", sample=2),
    ]
    assert reasons(annotations, "duplicate") == [None, "duplicate", None, None, None, None]
    assert reasons(annotations) == [None] * 6


def test_rejections_name_the_first_reason_and_leave_the_text() -> None:
    annotations = [
        annotation(RAKE.id, "The answer is (a)", finish="length"),
        annotation(STUDY.id, GOOD, rejected="old"),
    ]
    assert reasons(annotations, "cut", "unfinished") == ["cut", None]
    assert reasons(annotations, "unfinished", "cut") == ["unfinished", None]
    assert reasons(annotations, "contradicts_gold") == ["contradicts_gold", None]
    assert [a.text for a in apply_filters(annotations, {RAKE.id: RAKE}, ("cut",))] == [a.text for a in annotations]


def test_rejections_know_the_prompt() -> None:
    shown = "Bees fly from flower to flower and carry pollen on their hairy legs to the next flower of a kind"
    annotations = [annotation(RAKE.id, f"Well: {shown}."), annotation(STUDY.id, f"Well: {shown}.")]
    assert reasons(annotations, "prompt_echo", prompts={RAKE.id: shown}) == ["prompt_echo", None]


def test_only_the_named_filters_act() -> None:
    assert rejected_by("nan", ("empty",)) is None
    assert rejected_by("", ()) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: rejected_by("x", ("emty",)),
        lambda: check_names(("empty", "emty")),
        lambda: apply_filters([], {}, ("emty",)),
    ],
)
def test_an_unknown_filter_is_named(call: Any) -> None:
    with pytest.raises(UserError, match="'emty'. Did you mean 'empty'"):
        call()


def test_what_filters_need_is_known_of_a_candidate() -> None:
    assert set(NEEDS) <= set(FILTERS) and set(NEEDS.values()) <= set(FilterInput._fields)


def test_the_trigger_is_not_part_of_the_rationale() -> None:
    assert body("  let's think step by step:\nIron rusts.") == "Iron rusts."
