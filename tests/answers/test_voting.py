"""Votes of hand-made tables: majorities, every kind of tie, failures, and what the paths are like."""

import pytest

from tinyllm_bench.answers.keys import number
from tinyllm_bench.answers.voting import COT, POLICIES, POT, ReasoningPath, decide, needed, path_statistics


def cot(key: str | None, **settings: object) -> ReasoningPath:
    return ReasoningPath(channel=COT, key=key, **settings)  # type: ignore[arg-type]


def pot(key: str | None, **settings: object) -> ReasoningPath:
    return ReasoningPath(channel=POT, key=key, **settings)  # type: ignore[arg-type]


TABLES = [
    ("majority", [cot("2"), cot("3"), pot("3"), pot("3")], "3", "majority"),
    ("failed paths abstain", [cot(None), cot(None), pot(None), pot("7")], "7", "majority"),
    ("all failed", [cot(None), pot(None)], None, "all paths failed"),
    ("a key of both kinds wins a tie", [cot("1"), cot("1"), cot("2"), pot("2")], "2", "tie: both kinds"),
    ("then log-probability", [cot("1", logprob=-0.5), pot("2", logprob=-0.2)], "2", "tie: log-probability"),
    ("two of both kinds, by log-probability", [
        cot("1", logprob=-1.0), pot("1", logprob=-1.0), cot("2", logprob=-0.1), pot("2", logprob=-0.1)
    ], "2", "tie: log-probability"),
    ("then the greedy program", [cot("1"), pot("2"), pot("2", greedy=True)], "2", "tie: greedy program"),
    ("log-probabilities of some paths only do not count", [
        cot("1", logprob=-0.1), pot("2"), pot("2", greedy=True)
    ], "2", "tie: greedy program"),
    ("then the first seen", [cot("1"), pot("2"), pot("9", greedy=True)], "1", "tie: first seen"),
    ("equal log-probabilities", [cot("1", logprob=-0.5), pot("2", logprob=-0.5)], "1", "tie: first seen"),
]  # fmt: skip


@pytest.mark.parametrize(("paths", "key", "rule"), [row[1:] for row in TABLES], ids=[row[0] for row in TABLES])
def test_votes_of_hand_made_tables(paths: list[ReasoningPath], key: str | None, rule: str) -> None:
    result = decide(paths, "vote")
    assert (result.key, result.rule) == (key, rule)
    assert not any(path.greedy for path in result.used)
    assert decide(paths, "vote") == result


def test_numbers_that_are_written_otherwise_are_one_key() -> None:
    written = ["2", 2, 2.0, "$2", "$1,200", 1200, "1200.00"]
    keys = [number(value).key for value in written]
    assert decide([cot(key) for key in keys], "vote").key == "2" and set(keys) == {"2", "1200"}
    for failed in (float("nan"), float("inf"), None, True, [1, 2], (1, 2)):
        assert decide([pot(number(failed).key)], "vote") == (None, "all paths failed", (pot(None),))


def test_single_paths_have_no_silent_fallback() -> None:
    paths = [cot("5", greedy=True), pot(None, greedy=True), cot("6"), pot("6")]
    assert decide(paths, "single_cot").key == "5"
    assert decide(paths, "single_pot").key is None
    assert decide(paths, "pot_then_cot") == ("5", "fallback to text", (paths[1], paths[0]))
    ran = [cot("5", greedy=True), pot("4", greedy=True)]
    assert decide(ran, "pot_then_cot") == ("4", "program", (ran[1],))


def test_early_stop_takes_two_paths_where_they_agree() -> None:
    paths = [cot("5", tokens=3), pot("5", tokens=2), cot("6", tokens=4), pot("6", tokens=4), cot("6", tokens=4)]
    result = decide(paths, "vote_early_stop")
    assert result.key == "5" and sum(path.tokens for path in result.used) == 5
    other = [cot("1"), pot("2"), cot("2"), pot("2")]
    assert decide(other, "vote_early_stop").key == "2" and len(decide(other, "vote_early_stop").used) == 4
    failed = [cot(None), pot(None), cot("2")]
    assert decide(failed, "vote_early_stop").key == "2", "two failures do not agree"


def test_what_a_policy_needs() -> None:
    samples = {COT: 5, POT: 4}
    assert needed("single_cot", samples) == {COT: (True, 0)}
    assert needed("pot_then_cot", samples) == {COT: (True, 0), POT: (True, 0)}
    assert needed("vote", samples) == {COT: (False, 5), POT: (True, 4)} == needed("vote_early_stop", samples)
    assert len(POLICIES) == 5


def test_facts_by_hand() -> None:
    questions = [
        ([cot("1", greedy=True, tokens=4), pot("1", greedy=True, tokens=2)], "1"),
        ([cot("2", greedy=True, tokens=4), pot("2", greedy=True, tokens=2), pot("3", tokens=2)], "3"),
        ([cot("4", greedy=True, tokens=4), pot(None, greedy=True, tokens=2)], "5"),
    ]
    result = path_statistics(questions)
    assert (result.executed, result.agreement, result.right_given_agreement) == (3 / 4, 2 / 3, 1 / 2)
    assert (result.oracle, result.tokens) == (2 / 3, 20 / 3)
    assert path_statistics([([cot("1")], "1")]).executed is None
