"""Detectable differences: a published table's formula, statsmodels, and what seeds do."""

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower

from tinyllm_bench.leaderboard.stats.intervals import difference, summarise
from tinyllm_bench.leaderboard.stats.power import detectable, planned_detectable


@pytest.mark.parametrize(
    ("n", "share", "points"), [(500, 0.1, 4.0), (1165, 0.2, 3.7), (123, 0.3, 13.8), (3617, 0.1, 1.5)]
)
def test_one_run_each(n: int, share: float, points: float) -> None:
    # (1.95996 + 0.84162) * sqrt(share / n), t instead of z
    assert 100 * planned_detectable(n, discordance=share) == pytest.approx(points, abs=0.15)


def test_it_is_the_one_sample_t_test_of_statsmodels() -> None:
    effect = TTestPower().solve_power(nobs=400, alpha=0.05, power=0.8)
    assert planned_detectable(400, discordance=0.2) == pytest.approx(effect * 0.2**0.5, rel=2e-3)


def test_of_a_result_at_hand() -> None:
    rng = np.random.default_rng(1)
    found = difference(summarise(rng.random((300, 3)) < 0.6), summarise(rng.random((300, 3)) < 0.5))
    assert 2.8 * found.se < detectable(found) < detectable(found, comparisons=5) < 8 * found.se
    assert detectable(found._replace(df=0.0)) == 1.0


def test_seeds_help_against_luck_and_not_against_few_questions() -> None:
    luck = [planned_detectable(1165, discordance=0.2, within=0.14, seeds=s, run_sd=0.02) for s in (2, 3, 5, 10)]
    assert luck == sorted(luck, reverse=True) and luck[3] < 0.6 * luck[1]
    few = [planned_detectable(123, discordance=0.2, seeds=s) for s in (5, 50)]
    assert few[1] == pytest.approx(few[0], rel=0.08)


def test_ends() -> None:
    assert planned_detectable(1, discordance=0.2) == 1.0
    assert 0 < planned_detectable(500, discordance=0.0) < 0.01
    with pytest.raises(ValueError, match="within <= discordance"):
        planned_detectable(100, discordance=0.1, within=0.2)
