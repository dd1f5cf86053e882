"""Trust tiers and refutations beside records, and the arithmetic that a record alone can be held to."""

from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.fakes import add, flags, make_fields, make_record
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard.board import board_add, board_records
from tinyllm_bench.leaderboard.consistency import failed_checks
from tinyllm_bench.leaderboard.record import RunRecord, save_record
from tinyllm_bench.leaderboard.verdicts import (
    Verdict,
    content_digest,
    now,
    on_board,
    record_paths,
    refutation_file,
    refutations_of,
    refute,
    save_verdict,
    tier_of,
    verdict_file,
    verdict_of,
)


def verdict(record: RunRecord, tier: Any = "re-scored", *, ok: bool = True, date: str | None = None) -> Verdict:
    return Verdict(
        run_id=record.run_id,
        record_digest=content_digest(record),
        tier=tier,
        ok=ok,
        date=date or now(),
        parser_version="1",
        version="0",
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save_record(make_record("mine", flags(20, 13)), tmp_path / "runs" / "mine").parent


def test_a_record_is_self_reported_until_a_verdict_says_more(board: Path) -> None:
    record = make_record("mine", flags(20, 13))
    [place] = add(board, record)
    assert tier_of(place) == "self-reported" and verdict_of(place) is None
    for tier in ("re-scored", "re-run"):
        assert save_verdict(verdict(record, tier), place) == place.with_suffix(".verified") == verdict_file(place)
        assert tier_of(place) == tier
    save_verdict(verdict(record, ok=False), place)
    assert tier_of(place) == "self-reported"


def test_a_verdict_is_about_what_the_record_said(board: Path) -> None:
    [place] = add(board, make_record("mine", flags(20, 13)))
    save_verdict(verdict(make_record("mine", flags(20, 13))), place)
    save_record(make_record("mine", flags(20, 14)), place)
    assert tier_of(place) == "self-reported"


def test_a_file_that_is_no_verdict_is_named(board: Path) -> None:
    [place] = add(board, make_record("mine", flags(20, 13)))
    verdict_file(place).write_text('{"tier": "re-run"}')
    with pytest.raises(UserError, match=r"verified holds no verdict .*delete it"):
        tier_of(place)


def test_a_verdict_goes_to_the_record_of_the_same_content_alone(board: Path) -> None:
    record, other = make_record("mine", flags(20, 13)), make_record("mine", flags(20, 14))
    with pytest.raises(UserError, match=r"is not on the board .*add it first"):
        on_board(record, board)
    [place] = add(board, record)
    assert on_board(record, board) == place
    with pytest.raises(UserError, match="with other content than what was checked"):
        on_board(other, board)


def test_refutations_are_kept_in_order_and_hold_no_place(run: Path) -> None:
    assert refutations_of(run) == ()
    refute(run, "trained on\nthe test split, see file:/srv/me/log.txt", by="A")
    refute(run, "second")
    found = refutations_of(run / "run.json")
    assert [(one.reason, one.by) for one in found] == [
        ("trained on the test split, see file:log.txt", "A"),
        ("second", None),
    ]
    for reason in ("", "x" * 501):
        with pytest.raises(UserError, match="give the reason in one to 500 characters"):
            refute(run, reason)


def test_on_a_board_both_stand_beside_the_record_and_are_no_records(board: Path) -> None:
    record = make_record("mine", flags(20, 13))
    [place] = add(board, record)
    save_verdict(verdict(record), place)
    refute(place, "no")
    assert [file.name for file in (verdict_file(place), refutation_file(place))] == [
        f"{record.run_id}.verified",
        f"{record.run_id}.refutations",
    ]
    assert tier_of(place) == "re-scored" and [one.reason for one in refutations_of(place)] == ["no"]
    assert board_records(board) == [record]


def test_adding_again_takes_back_neither_a_verdict_nor_a_refutation(board: Path, run: Path) -> None:
    record = make_record("mine", flags(20, 13))
    [place] = add(board, record)
    refute(run, "from its maker")
    stored = verdict(record, "re-run")
    save_verdict(stored, place)
    refute(place, "from the owner")
    for _ in range(2):
        board_add([run], board)
        assert verdict_of(place) == stored
        assert [(one.reason, one.by) for one in refutations_of(place)] == [
            ("from the owner", None),
            ("from its maker", "its submitter"),
        ]
    board_add([place], board)
    assert len(refutations_of(place)) == 2, "the board's own file is no submitted folder"


def test_paths_stand_for_runs_records_boards_and_folders(board: Path, run: Path) -> None:
    [place] = add(board, make_record("tuned", flags(20, 10)))
    assert record_paths([run, run / "run.json"]) == [run, run / "run.json"]
    assert record_paths([run.parent, board]) == sorted(run.parent.glob("*/")) + [place]
    with pytest.raises(UserError, match="boards: no record there; give a run's folder"):
        record_paths([board / "boards"])


# --- arithmetic -------------------------------------------------------------------------------------------------------


def whole(**changes: Any) -> RunRecord:
    """A record whose every number can be derived from another."""
    budget = {
        "student_tokens_limit": 1000,
        "student_tokens": 1000,
        "computed_tokens": 900,
        "tokens_by_channel": {"a": 200, "b": 100},
        "prompt_tokens": 700,
        "target_tokens": 300,
        "steps": 5,
        "train_seconds": 8.0,
        "tokens_per_second": 125.0,
        "track": "student_tokens",
        "amount": 1000.0,
        "teacher_tokens_in": 7,
        "teacher_tokens_out": 9,
        "teacher_seconds": 1.5,
    }
    evaluation = {"fraction": 1.0, "step": 5, "n": 4, "selected": True}
    texts = {"teacher": "t", "kind": "rationale", "used": 3}
    cost = {"tokens_in": 7, "tokens_out": 9, "seconds": 1.5}
    parts: dict[str, Any] = {
        "run_id": "mine-toy-cloze-s0-abc",
        "request": {"seeds": 1},
        "config": {
            "budget": {"student_tokens": 1000},
            "eval": {"limit": 20},
            "data": {"train_limit": None, "max_context_words": 160},
            "train": {"select": "best"},
        },
        "student": {"spec": "dir:small", "parameters": 10},
        "data": {
            "source": "release",
            "splits": {"test": {"rows": 50, "digest": "d"}, "train": {"rows": 9, "digest": "d"}},
            "n_train": 9,
        },
        "annotations": [texts | {"cost": cost}],
        "budget": budget,
        "training": {"steps": 5, "select": "best", "evaluations": [evaluation]},
        "secondary": {"accuracy_plain": 0.45},
    }
    for key, value in changes.items():
        place, _, field = key.partition("__")
        parts[place] = {**parts[place], field: value} if field else value
    return RunRecord.model_validate(make_fields("mine", flags(20, 13)) | parts)


def test_a_whole_record_has_no_broken_claim() -> None:
    assert failed_checks(whole()) == []


@pytest.mark.parametrize(
    ("change", "field", "expected"),
    [
        ({"run_id": "mine-toy-cloze-s1-abc"}, "run_id", "mine-toy-cloze-s0-..."),
        ({"request": {"seeds": 0}}, "seed", "less than 0"),
        ({"sample": True}, "sample", False),
        ({"config__eval": {"limit": 30}}, "protocol.n", 30),
        ({"data__n_train": 8}, "data.n_train", 9),
        ({"config__data": {"max_context_words": 700}}, "protocol.max_context_words", 700),
        ({"budget__student_tokens_limit": 999}, "budget.student_tokens_limit", 1000),
        ({"budget__tokens_by_channel": {"a": 299}}, "budget.target_tokens", 299),
        ({"budget__tokens_per_second": 126.0}, "budget.tokens_per_second", 125.0),
        ({"budget__track": "flops"}, "budget.track and amount", [("student_tokens", 1000)]),
        ({"budget__teacher_tokens_out": 8}, "budget.teacher_tokens_out", 9),
        ({"training__steps": 4}, "training.steps", 5),
        ({"training__select": "last"}, "training.select", "best"),
        ({"secondary": {"accuracy_plain": 0.46}}, "secondary.accuracy_plain", 0.45),
    ],
)
def test_each_broken_claim_is_named(change: dict[str, Any], field: str, expected: Any) -> None:
    (check,) = failed_checks(whole(**change))
    assert (check.field, check.expected) == (field, expected) and check.reason


def test_looks_choose_once_and_rankings_always_answer() -> None:
    evaluation = {"fraction": 1.0, "step": 5, "n": 4}
    (check,) = failed_checks(whole(training__evaluations=[evaluation, evaluation]))
    assert check.actual == "0 selected"
    unread = make_fields("mine", flags(20, 13), unparsed=2, run_id="mine-toy-cloze-s0-abc", data={"source": "release"})
    (check,) = failed_checks(RunRecord.model_validate(unread | {"budget": {"student_tokens": 1}}))
    assert (check.field, check.actual) == ("score.unparsed", 2)
