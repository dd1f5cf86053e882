"""In-context examples: which questions are shown, and never the question itself."""

import random
import time
from collections import Counter
from dataclasses import replace

import pytest
from pydantic import ValidationError

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.teachers.few_shot import Select, ShotConfig, ShotSelector

SELECTS: tuple[Select, ...] = ("random", "fixed", "nearest", "stratified")
WORDS = ("kettle", "river", "moss", "copper", "lantern", "spider", "violin", "harvest", "glacier", "pepper")


def made(number: int, question: str = "", answer: int = 0, choices: tuple[str, ...] | None = None) -> TaskRecord:
    word = WORDS[number % len(WORDS)]
    return TaskRecord(
        id=f"toy/train/{number}",
        task="toy",
        split="train",
        question=question or f"What does the {word} number {number} do?",
        choices=choices or (f"it sinks {number}", f"it floats {number}", f"it burns {number}"),
        answer=answer,
    )


POOL = [made(i, answer=i % 3) for i in range(12)]


def shown_ids(shots: ShotSelector, record: TaskRecord) -> list[str]:
    return [shot.record.id for shot in shots.select(record)]


@pytest.mark.parametrize("select", SELECTS)
def test_the_record_itself_is_never_shown(select: Select) -> None:
    shots = ShotSelector(ShotConfig(select=select, shots=11), POOL, None)
    for record in POOL:
        shown = shown_ids(shots, record)
        assert sorted([*shown, record.id]) == sorted(record.id for record in POOL), "eleven of twelve: all the others"


@pytest.mark.parametrize("select", SELECTS)
def test_nor_is_the_same_question_in_other_letters(select: Select) -> None:
    twins = [made(20 + i, f"  Why is   the MOSS {'wet' if i % 2 else 'Wet'}? ", answer=i % 3) for i in range(6)]
    shots = ShotSelector(ShotConfig(select=select, shots=4), [*twins, *POOL[:4]], None)
    record = made(99, "why is the moss wet?")
    assert sorted(shown_ids(shots, record)) == sorted(record.id for record in POOL[:4])


@pytest.mark.parametrize("select", SELECTS)
def test_no_question_is_shown_twice(select: Select) -> None:
    shots = ShotSelector(
        ShotConfig(select=select, shots=3), [*POOL[:3], *(made(20 + i, "Is it raining?") for i in range(9))], None
    )
    for i in range(20):
        questions = [shot.record.question for shot in shots.select(made(100 + i, "Is it raining in the river?"))]
        assert len(set(questions)) == 3


@pytest.mark.parametrize("select", SELECTS)
def test_the_order_of_work_changes_nothing(select: Select) -> None:
    config = ShotConfig(select=select, shots=3, seed=5)
    forwards, backwards = ShotSelector(config, POOL, None), ShotSelector(config, POOL, None)
    first = {record.id: forwards.select(record) for record in POOL}
    random.seed(123)
    assert {record.id: backwards.select(record) for record in reversed(POOL)} == first


def test_random_samples_again_for_each_record_and_each_seed() -> None:
    def shown_with(seed: int) -> list[list[str]]:
        return [shown_ids(ShotSelector(ShotConfig(seed=seed), POOL, None), record) for record in POOL]

    assert len({tuple(ids) for ids in shown_with(0)}) > 6
    assert shown_with(0) != shown_with(1)


def test_random_is_uniform() -> None:
    shots = ShotSelector(ShotConfig(shots=3), POOL, None)
    counts = Counter(name for i in range(400) for name in shown_ids(shots, made(1000 + i, f"Other question {i}?")))
    assert set(counts) == {record.id for record in POOL}
    assert all(60 <= count <= 140 for count in counts.values()), counts  # 100 expected


def test_fixed_takes_the_first_and_the_next_one_in_place_of_the_record() -> None:
    shots = ShotSelector(ShotConfig(select="fixed"), POOL, None)
    assert shown_ids(shots, POOL[7]) == ["toy/train/0", "toy/train/1"]
    assert shown_ids(shots, POOL[0]) == ["toy/train/1", "toy/train/2"]


def test_fixed_takes_the_named_in_their_order_then_the_spare_one() -> None:
    named = ShotConfig(select="fixed", ids=("toy/train/9", "toy/train/4", "toy/train/8"))
    shots = ShotSelector(named, POOL, None)
    assert shown_ids(shots, POOL[0]) == ["toy/train/9", "toy/train/4"]
    assert shown_ids(shots, POOL[9]) == ["toy/train/4", "toy/train/8"]
    no_spare = ShotSelector(named.model_copy(update={"ids": named.ids[:2]}), POOL, None)
    assert shown_ids(no_spare, POOL[9]) == ["toy/train/4", "toy/train/0"]


def test_nearest_shows_the_most_alike_last() -> None:
    pool = [
        *POOL,
        made(30, "Which metal bends when the smith heats it?"),
        made(31, "Which animal sleeps through the winter?"),
    ]
    shots = ShotSelector(ShotConfig(select="nearest"), pool, None)
    record = made(99, "Which metal glows when the smith heats it?", choices=("tin", "iron"))
    assert shown_ids(shots, record) == ["toy/train/31", "toy/train/30"]


@pytest.mark.parametrize("question", ["Quite unheard of, zzz!", "???"])
def test_nearest_to_nothing_is_the_pool_s_order(question: str) -> None:
    shots = ShotSelector(ShotConfig(select="nearest"), POOL, None)
    record = made(99, question, choices=("yea", "nay"))
    assert shown_ids(shots, record) == ["toy/train/1", "toy/train/0"]


def test_nearest_works_where_no_question_has_a_word() -> None:
    pool = [made(i, "?" * (i + 1) + "!" * (i + 1) + "-", choices=("+", "-")) for i in range(4)]
    assert len(shown_ids(ShotSelector(ShotConfig(select="nearest"), pool, None), POOL[0])) == 2


def test_nearest_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    ShotSelector(ShotConfig(select="nearest"), POOL, None).select(POOL[0])
    assert capfd.readouterr() == ("", "")


def test_stratified_spreads_positions() -> None:
    pool = [made(i, answer=0 if i < 9 else i % 3) for i in range(12)]
    shots = ShotSelector(ShotConfig(select="stratified", shots=4), pool, None)
    for record in pool:
        counts = Counter(shot.record.answer for shot in shots.select(record))
        most = [1, 1, 2] if record.answer == 0 else [1, 3]
        assert sorted(counts.values()) == most, "positions 1 and 2 have one record each"


def test_stratified_spreads_texts_where_the_choices_are_closed() -> None:
    pool = [made(i, choices=("Yes", "No") if i % 2 else ("no", "yes"), answer=0) for i in range(12)]
    shots = ShotSelector(ShotConfig(select="stratified", shots=4), pool, None)
    for record in pool:
        answers = [shot.record.choices[0].lower() for shot in shots.select(record)]
        assert Counter(answers) == {"yes": 2, "no": 2}
    orders = {tuple(shot.record.choices[0].lower() for shot in shots.select(record)) for record in pool}
    assert len(orders) > 2, "no fixed order of answers"


def test_rationales_come_along_without_their_trigger_and_the_rest_is_not_shown() -> None:
    texts = {
        "toy/train/0": "Let's think step by step. It is heavy.",
        "toy/train/1": "",
        "toy/train/2": " NaN ",
        "toy/train/3": "Let's think step by step.",
        "toy/train/4": "It is light.",
        "toy/train/5": "It is dry.",
    }
    shots = ShotSelector(ShotConfig(rationales="replay:sample#any"), POOL, texts)
    rationales = {shot.record.id: shot.rationale for record in POOL for shot in shots.select(record)}
    assert rationales == {"toy/train/0": "It is heavy.", "toy/train/4": "It is light.", "toy/train/5": "It is dry."}


def test_without_texts_there_is_no_rationale() -> None:
    assert [shot.rationale for shot in ShotSelector(ShotConfig(), POOL, None).select(POOL[0])] == [None, None]


def test_no_shots_need_no_pool() -> None:
    shots = ShotSelector(ShotConfig(shots=0), (), None)
    assert shots.select(POOL[0]) == () and shots.digest


@pytest.mark.parametrize(
    ("config", "pool", "texts", "says"),
    [
        ({"shots": 12}, POOL, None, "shots=12: .* hold 12 different questions, .* at most 11 shots"),
        ({}, [made(i, "The same?") for i in range(9)], None, "hold 1 different questions, .* at most 0 shots"),
        (
            {},
            POOL,
            {"toy/train/1": "It is.", "toy/train/2": "nan"},
            "1 different questions with a usable rationale, of 12",
        ),
        ({"select": "fixed", "ids": ("toy/train/1", "toy/trian/11")}, POOL, None, "Did you mean 'toy/train/11'"),
        (
            {"select": "fixed", "ids": ("toy/train/1", "xyzzy")},
            POOL,
            None,
            "12 training records .* such as 'toy/train/0'",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(config: dict, pool: list, texts: dict | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ShotSelector(ShotConfig(**config), pool, texts)


def test_a_record_whose_own_question_was_changed_may_leave_too_few() -> None:
    shots = ShotSelector(ShotConfig(shots=2), POOL[:3], None)
    with pytest.raises(UserError, match="toy/train/0: only 1 other questions"):
        shots.select(replace(POOL[0], question=POOL[1].question))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ids": ("a", "b")}, "select=fixed"),
        ({"select": "fixed", "ids": ("a",)}, "at least 2"),
        ({"select": "fixed", "ids": ("a", "b", "a")}, "different"),
        ({"shots": -1}, "greater than or equal to 0"),
        ({"select": "best"}, "stratified"),
        ({"shot": 2}, "[Ee]xtra"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ShotConfig(**settings)


def test_the_digest_follows_everything_that_a_prompt_depends_on() -> None:
    texts = {record.id: f"Reason {record.id}." for record in POOL}
    other = {**texts, "toy/train/3": "Another reason."}
    digests = [
        ShotSelector(ShotConfig(), POOL, None).digest,
        ShotSelector(ShotConfig(shots=3), POOL, None).digest,
        ShotSelector(ShotConfig(seed=1), POOL, None).digest,
        ShotSelector(ShotConfig(select="nearest"), POOL, None).digest,
        ShotSelector(ShotConfig(select="fixed"), POOL, None).digest,
        ShotSelector(ShotConfig(select="fixed", ids=("toy/train/1", "toy/train/2")), POOL, None).digest,
        ShotSelector(ShotConfig(), POOL[1:], None).digest,
        ShotSelector(ShotConfig(), [*POOL[1:], replace(POOL[0], context="A passage.")], None).digest,
        ShotSelector(ShotConfig(), [replace(POOL[0], answer=2), *POOL[1:]], None).digest,
        ShotSelector(ShotConfig(), POOL, texts).digest,
        ShotSelector(ShotConfig(), POOL, other).digest,
        ShotSelector(ShotConfig(shots=0), POOL, None).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert ShotSelector(ShotConfig(rationales="replay:here#a"), POOL, texts).digest == digests[9], (
        "texts, not where they lie"
    )
    assert ShotSelector(ShotConfig(shots=0, seed=7), (), None).digest == digests[-1], "nothing is shown"


def test_a_large_pool_is_quick() -> None:
    pool = [made(i, answer=i % 3) for i in range(16_000)]
    shots = [ShotSelector(ShotConfig(select=select), pool, None) for select in ("random", "stratified")]
    for selector in shots:
        selector.select(pool[0])
    start = time.process_time()
    for selector in shots:
        for record in pool[:500]:
            selector.select(record)
    assert time.process_time() - start < 2, "a whole shuffle for each record takes 8 s here"
