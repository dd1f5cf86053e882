"""The question x seed bootstrap beside what it checks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyllm_bench.leaderboard.stats.arithmetic import ANY_RUN, THESE_STUDENTS
from tinyllm_bench.leaderboard.stats.intervals import difference, row_of
from tinyllm_bench.leaderboard.stats.resampling import Runs, Stratum, bootstrap, question_shares, seed_shares


def answers(share: float, seed: int, seeds: int = 5, n: int = 500) -> NDArray[np.bool_]:
    """Questions of shared difficulty, with a part that only this row finds easy."""
    easy = np.random.default_rng(0).normal(0, 1, (n, 1))
    own = np.random.default_rng(seed)
    return easy + own.normal(0, 0.7, (n, 1)) + own.normal(0, 0.3, (n, seeds)) < 3 * (share - 0.5)


def pair(first: Runs, second: Runs) -> Stratum:
    return Stratum([first, second], (1.0, -1.0))


def test_it_agrees_with_the_two_way_interval() -> None:
    a, b = answers(0.60, 1), answers(0.52, 2)
    found, known = bootstrap([pair(Runs(a), Runs(b))]), difference(row_of(a), row_of(b))
    assert found.value == pytest.approx(known.value) and found.se == pytest.approx(known.se, rel=0.15)
    assert found.low < known.value < found.high and found.speaks_of == ANY_RUN


def test_one_run_each_is_the_paired_standard_error() -> None:
    a, b = answers(0.6, 3, 1), answers(0.5, 4, 1)
    found = bootstrap([pair(Runs(a), Runs(b))], draws=8000)
    d = a[:, 0].astype(int) - b[:, 0]
    assert found.se == pytest.approx(d.std() / np.sqrt(500), rel=0.04)
    assert found.speaks_of == THESE_STUDENTS


def test_copies_in_clusters_count_once() -> None:
    a, b = answers(0.6, 5, 3), answers(0.5, 6, 3)
    single = bootstrap([pair(Runs(a), Runs(b))], draws=8000)
    a2, b2 = np.repeat(a, 3, axis=0), np.repeat(b, 3, axis=0)
    copies = Stratum([Runs(a2), Runs(b2)], (1.0, -1.0), np.repeat(np.arange(500), 3).tolist())
    assert bootstrap([copies], draws=8000).se == pytest.approx(single.se, rel=0.05)


def test_same_seed_same_result_and_p_has_a_smallest_value() -> None:
    strata = [pair(Runs(answers(0.9, 7)), Runs(answers(0.2, 8)))]
    assert bootstrap(strata, draws=100) == bootstrap(strata, draws=100)
    assert bootstrap(strata, draws=100).p == pytest.approx(2 / 101)
    same = [pair(Runs(answers(0.5, 7, 1)), Runs(answers(0.5, 7, 1)))]
    assert bootstrap(same, draws=100)[:4] == (0.0, 0.0, 0.0, 1.0)


def test_strata_are_drawn_on_their_own() -> None:
    # Two tasks with the same answers: the mean's variance is half of one's.
    one = pair(Runs(answers(0.6, 9, 1)), Runs(answers(0.5, 10, 1)))
    half = one._replace(weights=(0.5, -0.5))
    found = bootstrap([half, half], draws=8000)
    assert found.se == pytest.approx(bootstrap([one], draws=8000).se / np.sqrt(2), rel=0.04)


def test_shares_add_up() -> None:
    rng = np.random.default_rng(1)
    assert question_shares(5, ["a", "a", "b", "c", "c"], 50, rng).sum(axis=1) == pytest.approx(np.ones(50))
    assert seed_shares(3, False, 50, rng).sum(axis=1) == pytest.approx(np.ones(50))
    assert (seed_shares(3, True, 50, rng) == 1 / 3).all() and (seed_shares(1, False, 9, rng) == 1).all()
