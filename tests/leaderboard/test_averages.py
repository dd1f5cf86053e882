"""Averages over tasks by hand, macro-F1 by scikit-learn."""

import math

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import f1_score

from tinyllm_bench.leaderboard.stats.averages import UNPARSED, MacroF1, constant_answer, macro_average, macro_f1
from tinyllm_bench.leaderboard.stats.intervals import Estimate, accuracy, exact_accuracy, summarise
from tinyllm_bench.leaderboard.stats.significance import ANY_RUN, THESE_STUDENTS


def estimate(value: float, se: float, df: float, *, p: float | None = None, scope: str = ANY_RUN) -> Estimate:
    return Estimate(value, value - se, value + se, p, se, df, "made", scope)


def test_mean_of_accuracies_by_hand() -> None:
    # V = (0.03^2 + 0.04^2) / 4 = 0.025^2; df = 0.025^4 / ((0.015^4 / 10) + (0.02^4 / 20))
    found = macro_average([estimate(0.5, 0.03, 10), estimate(0.8, 0.04, 20)])
    df = 0.025**4 / (0.015**4 / 10 + 0.02**4 / 20)
    assert (found.value, found.se, found.df) == pytest.approx((0.65, 0.025, df))
    assert found.high == pytest.approx(0.65 + t.ppf(0.975, df) * 0.025) and found.p is None


def test_chance_correction_by_hand() -> None:
    tasks = [estimate(0.5, 0.03, 10), estimate(0.8, 0.03, 10)]
    # (0.25 / 0.75 + 0.3 / 0.5) / 2; weights 1 / 1.5 and 1 / 1
    found = macro_average(tasks, [0.25, 0.5])
    assert found.value == pytest.approx((1 / 3 + 0.6) / 2)
    assert found.se == pytest.approx(math.hypot(0.03 / 1.5, 0.03))
    assert macro_average([exact_accuracy(0.25), exact_accuracy(0.5)], [0.25, 0.5])[:3] == pytest.approx((0, 0, 0))
    differences = [estimate(0.1, 0.03, 10, p=0.5), estimate(0.2, 0.03, 10, p=0.5)]
    assert macro_average(differences, [0.25, 0.5]).value == pytest.approx((0.1 / 0.75 + 0.2 / 0.5) / 2)
    assert macro_average(differences).p == pytest.approx(2 * t.sf(0.15 / math.hypot(0.015, 0.015), 20))


def test_unknown_and_narrow_tasks_pass_their_doubt_on() -> None:
    known, unknown = estimate(0.5, 0.03, 10), accuracy(summarise(np.ones((1, 3))))
    assert macro_average([known, unknown])[1:3] == (0.0, 1.0)
    assert macro_average([known, unknown], [0.5, 0.5])[1:3] == (-1.0, 1.0)
    narrow = estimate(0.5, 0.03, 10, scope=THESE_STUDENTS)
    assert macro_average([known, narrow]).scope == THESE_STUDENTS


def test_macro_f1_by_hand() -> None:
    # yes: TP 2, claimed 3, gold 3: 2/3; no: TP 1, claimed 2 (one unparsed elsewhere), gold 2: 1/2. Mean 7/12.
    gold = np.array([0, 0, 0, 1, 1, 2])[:5]
    answers = np.array([[0], [0], [1], [1], [0]])
    assert macro_f1(gold, answers) == pytest.approx((2 / 3 + 1 / 2) / 2)
    answers[2] = UNPARSED  # yes: 2 * 2 / (3 + 3); no: 2 * 1 / (1 + 2)
    assert macro_f1(gold, answers) == pytest.approx((4 / 6 + 2 / 3) / 2)


def test_macro_f1_equals_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    gold, answers = rng.integers(0, 3, 400), rng.integers(0, 3, (400, 3))
    known = [f1_score(gold, answers[:, s], average="macro") for s in range(3)]
    assert macro_f1(gold, answers) == pytest.approx(np.mean(known))
    found = MacroF1(gold, draws=500).interval(answers)
    assert found.low < found.value < found.high and found.scope == ANY_RUN
    assert MacroF1(gold, draws=50).interval(answers[:, :1]).scope == THESE_STUDENTS


def test_a_label_that_is_rare_leaves_the_interval_finite() -> None:
    gold, answers = np.array([0] * 20 + [1]), np.zeros((21, 2), dtype=int)
    found = MacroF1(gold, draws=200).interval(answers)
    assert np.isfinite(found[:3]).all() and 0 <= found.low <= found.high <= 1


def test_the_constant_answer() -> None:
    # 82 of 123 yes: F1 of yes 2 * 82 / (123 + 82) = 0.8, of no 0
    found = constant_answer(np.array([1] * 82 + [0] * 41))
    assert found == (1, pytest.approx(82 / 123), pytest.approx(0.4))
    assert constant_answer(np.array([2, 1, 1, 2])).label == 1


def test_rows_judged_together_are_judged_as_alone() -> None:
    rng = np.random.default_rng(5)
    gold = rng.integers(0, 3, 40)
    rows = [(rng.integers(-1, 3, (40, 1 + number % 4)), number % 5 == 0) for number in range(37)]
    judge = MacroF1(gold, draws=100)
    assert list(judge.intervals(rows)) == [judge.interval(answers, fixed=fixed) for answers, fixed in rows]
