"""Intervals against hand arithmetic and published examples."""

import pytest
from statsmodels.stats.proportion import proportion_confint

from tinyllm_bench.leaderboard.stats.arithmetic import newcombe, over_seeds, paired_difference, wilson


def test_wilson_by_hand() -> None:
    # z^2 = 3.841459, n = 20, p = 1/2: centre 1/2; half width z / (1 + z^2/n) * sqrt(p q / n + z^2 / (4 n^2))
    # = 1.959964 / 1.192073 * sqrt(0.0125 + 0.0024009) = 1.644164 * 0.122069 = 0.200702
    assert wilson(10, 20) == pytest.approx((0.299298, 0.700702), abs=1e-6)


def test_wilson_at_the_ends_stays_inside() -> None:
    # correct = 0: low 0, high z^2 / (n + z^2) = 3.841459 / 13.841459
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)


@pytest.mark.parametrize(("correct", "n"), [(0, 123), (82, 123), (300, 500), (1165, 1165)])
def test_wilson_equals_statsmodels(correct: int, n: int) -> None:
    assert wilson(correct, n) == pytest.approx(proportion_confint(correct, n, method="wilson"), abs=1e-12)


def test_newcombe_published_example() -> None:
    # Fagerland, Lydersen, Laake 2014 ("Recommended tests and confidence intervals for paired binomial proportions",
    # Statistics in Medicine 33), airway hyper-responsiveness, counts 1, 1, 7, 12: -0.286 (-0.507 to -0.026).
    assert newcombe(1, 1, 7, 12) == pytest.approx((-0.286, -0.507, -0.026), abs=5e-4)


def test_paired_difference_counts_pairs_and_is_antisymmetric() -> None:
    first, second = [1, 1, 1, 0, 0, 1], [1, 0, 0, 1, 0, 1]
    found, turned = paired_difference(first, second), paired_difference(second, first)
    assert found == newcombe(2, 2, 1, 1)
    assert turned == pytest.approx((-found.value, -found.high, -found.low))


def test_the_same_answers_differ_by_nothing() -> None:
    found = paired_difference([1, 0, 1, 0], [1, 0, 1, 0])
    assert found.value == 0.0 and found.low <= 0.0 <= found.high


def test_constant_rows_have_an_interval() -> None:
    # All right against all wrong: phi is 0; down = sqrt((1 - low_1)^2 + (high_2 - 0)^2), both 0.277533 at n = 10
    found = newcombe(0, 10, 0, 0)
    assert found == pytest.approx((1.0, 1 - 0.277533 * 2**0.5, 1.0), abs=1e-6)


def test_pairs_must_be_complete() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1, 0], [1])


def test_seeds() -> None:
    assert over_seeds([0.5, 0.25, 0.75]) == (0.5, 0.25, 0.75, 3)
