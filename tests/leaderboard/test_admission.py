"""What a board takes, and what it shows of what others found about its records."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.fakes import CONFIG, add, column, flags, make_record, make_reference
from tests.leaderboard.test_page import data_of
from tests.leaderboard.test_verdicts import verdict
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import append_checked
from tinyllm_bench.leaderboard.board import (
    board_add,
    board_build,
    board_config,
    board_markdown,
    board_records,
    board_show,
)
from tinyllm_bench.leaderboard.exports import BoardData
from tinyllm_bench.leaderboard.record import load_record, save_record
from tinyllm_bench.leaderboard.verdicts import refutation_file, refute, save_verdict

ROOT = Path(__file__).parents[2]


def configure(board: Path, line: str) -> None:
    (board / "boards" / "main.yaml").write_text(f"{CONFIG}{line}\n")


# --- refused ----------------------------------------------------------------------------------------------------------


def test_what_was_selected_on_test_is_refused_also_when_it_lies_there(board: Path) -> None:
    record = make_record("mine", flags(20, 13), selected_on="test")
    with pytest.raises(UserError, match=r"was selected on test, boards take what was selected on valid; run the cell"):
        add(board, record)
    assert board_records(board) == []
    [place] = add(board, make_record("mine", flags(20, 13)))
    save_record(record, place)
    with pytest.raises(UserError, match=rf"{place.name}: run .* was selected on test"):
        board_build(board)


def test_a_foreign_protocol_is_refused_where_the_board_takes_one(board: Path) -> None:
    configure(board, "protocols: one")
    [place] = add(board, make_record("tuned", flags(20, 10)))
    foreign = make_record("tuned", flags(40, 10), n=40)
    with pytest.raises(UserError, match=r"n \(40 here, 20 there\); .*takes one protocol.*board of its own"):
        add(board, foreign)
    # another task, another mode and the same protocol are not foreign
    add(board, make_record("m", flags(10, 5), n=10, task="toy2"), make_record("m", flags(20, 5), mode="generate"))
    add(board, make_record("mine", flags(20, 12)))
    assert len(board_records(board)) == 4 and place.exists()
    configure(board, "protocols: many")
    add(board, foreign)
    assert len(board_records(board)) == 5


def test_two_protocols_at_once_are_refused_and_nothing_is_added(board: Path) -> None:
    configure(board, "protocols: one")
    with pytest.raises(UserError, match="they differ in"):
        add(board, make_record("tuned", flags(20, 10)), make_record("tuned", flags(40, 10), n=40))
    assert board_records(board) == []


def test_the_board_of_run_takes_many_protocols_and_the_repositorys_one(tmp_path: Path) -> None:
    runs = [save_record(make_record("m", flags(n, 5), n=n), tmp_path / f"run{n}") for n in (20, 40)]
    board_add(runs, tmp_path / "new", replace=True)
    assert board_config(tmp_path / "new").protocols == "many" and len(board_records(tmp_path / "new")) == 2
    assert board_config(ROOT / "leaderboards").protocols == "one"
    (tmp_path / "new" / "boards" / "main.yaml").write_text(CONFIG + "protocols: two\n")
    with pytest.raises(UserError, match=r"protocols='two' .*'one' or 'many'"):
        board_config(tmp_path / "new")


def test_another_track_is_refused_and_reference_baselines_have_none(board: Path) -> None:
    def of(track: str | None, seed: int) -> Any:
        budget = {"student_tokens": 1000, "track": track, "amount": 1000.0 if track else None}
        if track == "student_tokens":
            budget["student_tokens_limit"] = 1000
        config = {"budget": {track: 1000.0} if track else {}}
        return make_record("mine", flags(20, 13), seed=seed, budget=budget, config=config)

    configure(board, "track: student_tokens")
    add(board, of("student_tokens", 0), make_reference("guess", None, expected_accuracy=0.25))
    for track in ("flops", None):
        with pytest.raises(
            UserError, match=rf"is of track {str(track).lower()}, .* takes student_tokens; set the budget"
        ):
            add(board, of(track, 1))
    configure(board, "")
    add(board, of("flops", 1), of(None, 2))
    assert len(board_records(board)) == 4


# --- shown ------------------------------------------------------------------------------------------------------------


def test_the_tier_of_a_row_is_that_of_its_least_checked_run(board: Path) -> None:
    records = [make_record("mine", flags(20, 13), seed=seed) for seed in (0, 1)]
    tiers: tuple[Any, ...] = ("re-run", "re-scored")
    for record, tier in zip(records, tiers, strict=True):
        [place] = add(board, record)
        save_verdict(verdict(record, tier), place)
    add(board, make_record("tuned", flags(20, 10)))
    assert column(board, "mine", "trust") == "re-scored" and column(board, "tuned", "trust") == "self-reported"
    board_build(board)
    [section] = BoardData.model_validate_json((board / "data.json").read_text()).sections
    mine = next(row for row in section.rows if row.label == "mine")
    assert mine.trust == "re-scored" and [run.trust for run in mine.runs] == ["re-run", "re-scored"]
    shown = {row["cells"][0]: row for row in data_of((board / "index.html").read_text())["sections"][0]["rows"]}
    assert shown["mine"]["cells"][-1] == "re-scored" and ["trust", "re-scored"] in shown["mine"]["facts"]
    runs = list(csv.DictReader(io.StringIO((board / "runs.csv").read_text())))
    assert [run["trust"] for run in runs] == ["self-reported", "re-run", "re-scored"]
    forms = [json.loads(line) for line in (board / "every_eval_ever.jsonl").read_text().splitlines()]
    tiers = [form["source_metadata"]["additional_details"]["trust"] for form in forms]
    assert tiers == ["self-reported", "re-run", "re-scored"]


def test_an_edited_record_loses_its_tier_and_keeps_its_refutation(board: Path) -> None:
    [place] = add(board, make_record("mine", flags(20, 13)))
    save_verdict(verdict(load_record(place)), place)
    refute(place, "the test split is in its training rows", by="A reader")
    assert column(board, "mine", "trust") == "re-scored"
    save_record(make_record("mine", flags(20, 14)), place)
    assert column(board, "mine", "trust") == "self-reported"
    assert ", of what the record said then: the test split is in its training rows" in board_markdown(board)


def test_a_refutation_stands_under_its_table_everywhere(board: Path) -> None:
    places = add(board, *(make_record("mine", flags(20, 13), seed=seed) for seed in (0, 1)))
    found = refute(places[1], "trained on test", by="A reader")
    note = f"mine, seed 1: refuted by A reader on {found.date[:10]}: trained on test"
    assert f"- {note}\n" in board_markdown(board) and f"- {note}\n" in board_show(board)
    board_build(board)
    assert note in data_of((board / "index.html").read_text())["sections"][0]["notes"]
    [section] = BoardData.model_validate_json((board / "data.json").read_text()).sections
    assert note in section.notes and section.rows[0].runs[1].refutations == (found,)
    assert section.rows[0].runs[0].refutations == ()
    assert [run["refutations"] for run in csv.DictReader(io.StringIO((board / "runs.csv").read_text()))] == ["0", "1"]


def test_what_a_submitted_folder_says_of_its_own_trust_is_not_believed(board: Path, tmp_path: Path) -> None:
    record = make_record("mine", flags(20, 20))
    run = save_record(record, tmp_path / "runs" / "mine").parent
    for claim in (verdict(record, "re-run").model_dump_json(), "{}", "no verdict at all"):
        for name in ("verified.json", "run.verified", f"{record.run_id}.verified"):
            (run / name).write_text(claim)
        board_add([run], board)
        assert column(board, "mine", "trust") == "self-reported"
    # a record's file from somebody else's board, with that board's verdict beside it
    other = tmp_path / "other" / f"{record.run_id}.json"
    save_record(record, other)
    save_verdict(verdict(record, "re-run"), other)
    board_add([other], board)
    board_build(board)
    files = [file for file in board.rglob("*") if file.is_file()]
    assert column(board, "mine", "trust") == "self-reported" and not list(board.rglob("*.verified"))
    assert not [file for file in files if '"re-run"' in file.read_text() or "| re-run" in file.read_text()]


def test_what_a_submitter_holds_against_its_own_run_is_told_as_the_submitter_s(board: Path, tmp_path: Path) -> None:
    record = make_record("mine", flags(20, 13))
    run = save_record(record, tmp_path / "runs" / "mine").parent
    found = refute(run, "a bug in its filter", by="The board's owner")
    board_add([run], board)
    note = f"mine: refuted by its submitter, naming The board's owner on {found.date[:10]}: a bug in its filter"
    assert note in board_markdown(board)
    refutation_file(run).unlink()
    append_checked(refutation_file(run), [found.model_dump() | {"run_id": "of-another"}])
    with pytest.raises(UserError, match=f"is about run 'of-another', not {record.run_id}; delete the file"):
        board_add([run], board)
    refutation_file(run).unlink()
    append_checked(refutation_file(run), [found.model_dump() | {"reason": f"no. {i}"} for i in range(21)])
    with pytest.raises(UserError, match="holds 21 refutations, a board takes at most 20"):
        board_add([run], board)
    refutation_file(run).unlink()
    append_checked(refutation_file(run), [{"reason": 1}])
    with pytest.raises(UserError, match="no refutation"):
        board_add([run], board)


# --- gap --------------------------------------------------------------------------------------------------------------


def test_the_gap_to_the_teacher_stands_only_beside_a_measured_teacher(board: Path) -> None:
    teachers = ({"spec": "dir:big"},)
    add(
        board,
        make_record("tuned", flags(200, 60), n=200),
        make_record("mine", flags(200, 120), n=200, teachers=teachers),
        make_record("other", flags(200, 120), n=200, tokens=400, teachers=teachers),
    )
    assert "gap to teacher" not in board_markdown(board)
    for right, label in ((100, "teacher zero_shot"), (160, "teacher few_shot")):
        add(board, make_reference("evaluated", flags(200, right), n=200, label=label, student={"spec": "dir:big"}))
    # the better of the two: (120 - 60) / (160 - 60)
    assert column(board, "mine", "gap to teacher").startswith("60 (")
    assert column(board, "tuned", "gap to teacher") == column(board, "other", "gap to teacher") == "-"


def test_no_gap_is_printed_where_the_teacher_is_not_above_the_baseline(board: Path) -> None:
    add(
        board,
        make_record("tuned", flags(20, 10)),
        make_record("mine", flags(20, 14), teachers=({"spec": "dir:big"},)),
        make_reference("evaluated", flags(20, 11), label="teacher zero_shot", student={"spec": "dir:big"}),
    )
    assert column(board, "mine", "gap to teacher") == "n/a"
