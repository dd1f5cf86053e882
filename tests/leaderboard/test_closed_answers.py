"""Sets with yes, no and maybe on a board: macro-F1 with its interval, and what a constant answer is worth."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from tests.leaderboard.fakes import add, column, lines, make_fields, make_record, make_reference
from tests.leaderboard.test_page import data_of
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard.board import board_build, board_markdown, board_show
from tinyllm_bench.leaderboard.exports import BoardData
from tinyllm_bench.leaderboard.record import RunRecord, record_path, save_record
from tinyllm_bench.leaderboard.stats.averages import MacroF1
from tinyllm_bench.reporters.every_eval_ever import every_eval_ever

# 60 questions: 40 yes (0), 15 no (1), 5 maybe (2).
GOLD = np.repeat([0, 1, 2], [40, 15, 5])
CONSTANT = "constant answer, the most frequent one"


def answers(seed: int, wrong: int = 12) -> list[int]:
    """Answers that are right but for `wrong` of them, the same number each seed."""
    given = GOLD.copy()
    places = np.random.default_rng(seed).permutation(60)[:wrong]
    given[places] = (given[places] + 1) % 3
    return [int(one) for one in given]


def run(name: str, given: list[int], **changes: Any) -> RunRecord:
    flags = [int(one == gold) for one, gold in zip(given, GOLD, strict=True)]
    fields = make_fields(name, flags, n=60, **({"gold": [int(one) for one in GOLD]} | changes))
    fields["items"] = [[item[0], one, item[2]] for item, one in zip(fields["items"], given, strict=True)]
    fields["secondary"] = {"macro_f1": float(f1_score(GOLD, given, average="macro"))}
    return RunRecord.model_validate(fields)


def test_macro_f1_has_its_interval_in_every_form(board: Path) -> None:
    given = [answers(seed) for seed in range(3)]
    made = [run("tuned", one, seed=seed) for seed, one in enumerate(given)]
    add(board, *made, make_reference("guess", None, expected_accuracy=1 / 3, n=60))
    board_build(board)
    value = np.mean([f1_score(GOLD, one, average="macro") for one in given])
    by_id = sorted(range(60), key=lambda place: f"toy/test/{place}")
    found = MacroF1(GOLD[by_id]).interval(np.array(given).T[by_id])
    text_of_f1 = f"{100 * value:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"
    assert column(board, "tuned", "macro-F1 %") == text_of_f1 and column(board, "guess", "macro-F1 %") == "-"
    # F1 of yes is 2 * 40 / (60 + 40) = 0.8, of the others 0: 0.8 / 3
    assert column(board, CONSTANT, "accuracy %") == "66.7" and column(board, CONSTANT, "macro-F1 %") == "26.7"
    assert column(board, CONSTANT, "n") == "60" and column(board, CONSTANT, "trust") == "-"
    assert "macro f1 %" not in board_markdown(board) and text_of_f1 in board_show(board)
    assert "Macro-F1 is the mean of F1 over the answers" in board_markdown(board)
    section = data_of((board / "index.html").read_text())["sections"][0]
    assert [row["kind"] for row in section["rows"]] == ["reference_baseline", "reference_baseline", "method"]
    assert text_of_f1 in section["rows"][2]["cells"] and section["rows"][1]["cells"][0] == CONSTANT
    text = (board / "toy-cloze.tex").read_text()
    assert text_of_f1 in text.replace("$-$", "-") and "most frequent one" in text
    rows = list(csv.DictReader(io.StringIO((board / "board.csv").read_text())))
    assert float(rows[2]["macro_f1"]) == pytest.approx(value) and float(rows[1]["macro_f1"]) == pytest.approx(0.8 / 3)
    assert rows[2]["macro_f1_low"] == repr(found.low) and rows[1]["macro_f1_low"] == "" == rows[0]["macro_f1"]
    data = BoardData.model_validate_json((board / "data.json").read_text())
    guess, constant, tuned = data.sections[0].rows
    assert (
        guess.macro_f1 is None and constant.accuracy == pytest.approx(2 / 3) and constant.kind == "reference_baseline"
    )
    assert tuned.macro_f1 == pytest.approx(value) and constant.macro_f1_interval is None and constant.trust is None
    assert tuned.macro_f1_interval == (found.low, found.high)
    assert json.loads((board / "data.json").read_text())["sections"][0]["rows"][1]["runs"] == []


def test_clusters_and_fixed_rows_are_respected(board: Path) -> None:
    # Ten clusters of six questions: fewer independent ones, a wider interval.
    add(board, run("tuned", answers(1)))
    alone = column(board, "tuned", "macro-F1 %")
    place = next((board / "results").rglob("*.json"))
    place.unlink()
    add(board, run("tuned", answers(1), clusters=[place // 6 for place in range(60)]))
    together = column(board, "tuned", "macro-F1 %")
    assert alone != together and alone.split(" ")[0] == together.split(" ")[0]
    codes = [place // 6 for place in range(60)]
    found = MacroF1(GOLD, clusters=codes).interval(np.array([answers(1)]).T)
    assert f"({100 * found.low:.1f} to {100 * found.high:.1f})" in together


def test_a_record_without_gold_stands_beside_one_that_tells(board: Path) -> None:
    add(board, run("tuned", answers(1), gold=[]))
    value = column(board, "tuned", "macro-F1 %")
    assert "(" not in value and CONSTANT not in board_markdown(board)
    add(board, run("mine", answers(2)))
    assert column(board, "tuned", "macro-F1 %").startswith(f"{value} (") and CONSTANT in board_markdown(board)


def test_no_such_column_where_answers_are_options(board: Path) -> None:
    add(board, make_record("tuned", [1] * 10 + [0] * 10))
    assert "macro-f1" not in board_markdown(board).lower()


def test_records_that_disagree_about_the_right_answer_are_told(board: Path) -> None:
    given = answers(1)
    wrong = next(place for place, one in enumerate(given) if one != GOLD[place])
    other = [int(one) for one in GOLD]
    other[wrong] = 3 - given[wrong] - other[wrong]
    mine = run("mine", given, gold=other)
    fields = mine.model_dump() | {"secondary": {"macro_f1": float(f1_score(other, given, average="macro"))}}
    liar = RunRecord.model_validate(fields)
    add(board, run("tuned", given))
    with pytest.raises(UserError, match="different `gold`"):
        add(board, liar)
    save_record(liar, board / record_path(liar))
    with pytest.raises(UserError, match="different `gold`"):
        board_markdown(board)


def test_a_sample_board_marks_the_constant_answer(board: Path) -> None:
    add(board, run("tuned", answers(1), sample=True))
    assert lines(board, f"{CONSTANT} \\[sample\\]")


def test_the_public_form_calls_macro_f1_by_its_name() -> None:
    form = every_eval_ever("tuned", run("tuned", answers(1)), "Toy board")
    assert form
    main, second = (one.metric_config for one in form.evaluation_results)
    assert (main.metric_kind, second.metric_kind) == ("accuracy", "f1")
    assert main.evaluation_description.startswith("Share of right answers")
    assert second.evaluation_description.startswith("Unweighted mean of F1") and second.metric_name == "macro f1"
