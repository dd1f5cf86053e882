"""Correct, wrong and unparsed add up; ties and limits are counted beside them."""

import math
from typing import Any

import pytest

from tinyllm_bench.data.records import Prediction, TaskRecord
from tinyllm_bench.evaluation.scoring import TaskScore, argmax, option_scores, score


def record(number: int, answer: int) -> TaskRecord:
    return TaskRecord(
        id=f"t/test/{number}", task="t", split="test", question="?", choices=("x", "longer", "z"), answer=answer
    )


def cloze(number: int, answer: int, correct: bool, logprobs: tuple[float, ...]) -> Prediction:
    return Prediction(
        record_id=f"t/test/{number}",
        mode="cloze",
        answer=answer,
        correct=correct,
        option_logprobs=logprobs,
        option_chars=(1, 6, 1),
    )


def gen(number: int, answer: int | None, correct: bool, stopped: str = "stop") -> Prediction:
    return Prediction(record_id=f"t/test/{number}", mode="generate", answer=answer, correct=correct, stopped=stopped)


def test_best_takes_the_lowest_index_on_a_tie() -> None:
    assert argmax([1.0, 3.0, 3.0]) == 1 and argmax([0.0, 0.0]) == 0 and argmax([-2.0, -1.0]) == 1


def test_cloze_counts_ties_plain_accuracy_and_gold_probability() -> None:
    records = [record(0, 1), record(1, 0)]
    predictions = [
        cloze(0, 1, True, (-2.0, -6.0, -3.0)),  # per character -2, -1, -3; plain picks 0
        cloze(1, 0, True, (-1.0, -6.0, -4.0)),  # tie of 0 and 1 per character; plain picks 0
    ]
    assert option_scores(predictions[0]) == (-2.0, -1.0, -3.0)
    found = score(predictions, records, context_cut=3)
    assert (found.n, found.correct, found.wrong, found.unparsed) == (2, 2, 0, 0)
    assert (found.ties, found.context_cut, found.accuracy, found.accuracy_plain) == (1, 3, 1.0, 0.5)
    e = math.exp
    wanted = (e(-1) / (e(-1) + e(-2) + e(-3)) + e(-1) / (2 * e(-1) + e(-4))) / 2
    assert found.gold_probability == pytest.approx(wanted)


def test_unparsed_are_counted_apart_from_wrong() -> None:
    records = [record(i, 0) for i in range(4)]
    predictions = [gen(0, 0, True), gen(1, 2, False), gen(2, None, False, "limit"), gen(3, None, False)]
    found = score(predictions, records)
    assert (found.n, found.correct, found.wrong, found.unparsed, found.hit_token_limit) == (4, 1, 1, 2, 1)
    assert found.accuracy == 0.25 and found.accuracy_plain is None and found.gold_probability is None


def test_a_score_that_does_not_add_up_or_disagrees_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        TaskScore(n=3, correct=1, wrong=1, unparsed=0)
    with pytest.raises(AssertionError, match="t/test/0"):
        score([gen(0, 2, True)], [record(0, 0)])


def test_nothing_asked_scores_nothing() -> None:
    empty: Any = score([], [])
    assert (empty.n, empty.accuracy) == (0, 0.0)
