"""ReferenceBaselines without a model: the same guess everywhere, and what a guess is worth."""

import pytest

from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.evaluation.reference_baselines import chance, expected, guess_majority, guess_random
from tinyllm_bench.evaluation.scoring import score


def word_problem(name: str, gold: str) -> TaskRecord:
    return TaskRecord(id=f"t/test/{name}", task="t", split="test", question="?", number=gold)


TRAIN = [word_problem(f"train{i}", gold) for i, gold in enumerate(["10", "9", "9", "10", "2.5"])]
TEST = [word_problem(f"test{i}", gold) for i, gold in enumerate(["9", "10", "9", "7"])]
CHOICES = load_split(Source("sample"), "obqa", "test")


def test_the_majority_of_numbers_is_the_most_frequent_and_the_smallest_on_a_tie() -> None:
    guesses = guess_majority(TEST, "generate", TRAIN)
    assert [guess.answer for guess in guesses] == ["9"] * 4, "as numbers, not as texts"
    assert score(guesses, TEST).accuracy == 0.5


def test_a_random_number_is_one_of_train_and_depends_on_the_id_alone() -> None:
    guesses = guess_random(TEST, "generate", TRAIN)
    assert {guess.answer for guess in guesses} <= {"10", "9", "2.5"}
    assert guess_random(TEST[::-1], "generate", TRAIN)[::-1] == guesses
    assert score(guesses, TEST).unparsed == 0


def test_a_random_number_is_worth_what_the_training_answers_say() -> None:
    exact = expected(TEST, TRAIN)
    assert exact == pytest.approx((0.4 + 0.4 + 0.4 + 0) / 4)
    many = [word_problem(f"{one.id}/{i}", one.gold_text) for one in TEST for i in range(500)]
    drawn = score(guess_random(many, "generate", TRAIN), many).accuracy
    assert drawn == pytest.approx(exact, abs=0.04)  # 2,000 draws: three standard errors are 0.031


def test_without_anything_to_draw_from_no_number_is_answered() -> None:
    assert score(guess_random(TEST, "generate"), TEST).unparsed == 4 and expected(TEST, []) == 0


def test_chance_is_one_over_the_options_and_zero_for_numbers() -> None:
    assert chance(CHOICES) == expected(CHOICES, ()) == 0.25 and chance(TEST) == 0


def test_guesses_among_choices_need_no_training_record() -> None:
    assert guess_random(CHOICES, "generate", CHOICES) == guess_random(CHOICES, "generate")
    assert all(isinstance(guess.answer, int) for guess in guess_majority(CHOICES, "multiple_choice", CHOICES))
