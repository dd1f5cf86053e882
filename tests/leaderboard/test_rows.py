"""Which runs make one row, what a row is called, and which rows get a gain from each other."""

from pathlib import Path
from typing import Any

import pytest

from tests.leaderboard.fakes import add, column, flags, make_fields, make_record
from tinyllm_bench.base.escaping import markdown as escaped
from tinyllm_bench.leaderboard.board import board_markdown
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.rows import make_rows

TEXTS = {"teacher": "big", "kind": "rationale", "used": 3}
LORA = {"r": 4, "alpha": 8, "target_modules": ["q", "v"]}


def student(lora: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    return {"student": {"dtype": "float32", "lora": lora}, "train": {"lr": 1, "batch": 8}} | changes


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"config": student(None)}, {"config": student(LORA)}),
        *(
            ({"config": {root: {"key": 1}}}, {"config": {root: {"key": 2}}})
            for root in ("student", "data", "annotations", "method", "train", "eval", "budget", "backend")
        ),
        ({"config": {"teachers": ["a"]}}, {"config": {"teachers": ["a", "b"]}}),
        ({"name": "one"}, {"name": "two"}),
        ({}, {"sample": True}),
        ({}, {"teachers": [{"spec": "replay:release#big"}]}),
        ({"student": {"spec": "dir:s", "initial_digest": "a"}}, {"student": {"spec": "dir:s", "initial_digest": "b"}}),
        *(
            ({"annotations": [TEXTS]}, {"annotations": [TEXTS | change]})
            for change in ({"control": "shuffled"}, {"text_digest": "d"})
        ),
        ({"backend": {"name": "hf", "dtype": "float32", "device": "cpu"}}, {"backend": None}),
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_two_rows_with_two_labels(
    changes: dict[str, Any], other: dict[str, Any]
) -> None:
    fields = [make_fields("m", flags(20, 12), seed=seed) | {"label": "mine"} for seed in (0, 1)]
    first, second = (RunRecord.model_validate(f | c) for f, c in zip(fields, (changes, other), strict=True))
    rows = make_rows([first, second], ())
    assert [len(row.records) for row in rows] == [1, 1]
    assert rows[0].label != rows[1].label


def test_seeds_of_one_configuration_are_one_row() -> None:
    student_of = {"spec": "dir:s", "initial_digest": "a"}
    rows = make_rows(
        [
            make_record("mine", flags(20, 12), seed=seed, config=student(LORA), student=student_of, annotations=[TEXTS])
            for seed in range(3)
        ],
        (),
    )
    assert [(row.label, len(row.records)) for row in rows] == [("mine", 3)]


def labels_of(*configs: dict[str, Any]) -> list[str]:
    rows = make_rows([make_record("m", flags(20, 9), run_id=f"r{i}", config=c) for i, c in enumerate(configs)], ())
    return [row.label for row in rows]


def test_a_label_says_shortly_what_differs() -> None:
    assert labels_of(student(None)) == ["m"]
    assert labels_of(student(LORA), student(None)) == ["m (student.lora.r=4)", "m (student.lora=null)"]
    assert labels_of(student(LORA), student(LORA | {"r": 8}), student(None)) == [
        "m (student.lora.r=4)",
        "m (student.lora.r=8)",
        "m (student.lora=null)",
    ]
    assert labels_of(student(None), student(None, train={"lr": 2, "batch": 8}), student(LORA)) == [
        "m (student.lora=null, train.lr=1)",
        "m (student.lora=null, train.lr=2)",
        "m (student.lora.r=4, train.lr=1)",
    ]
    assert labels_of({"data": {"markers": {}}}, {"data": {"markers": {"label": "answer: "}}}) == [
        "m (data.markers={})",
        "m (data.markers.label=answer:)",
    ]


def test_students_of_one_name_are_told_apart_and_get_no_gain_from_each_other(board: Path) -> None:
    one, two = ({"spec": "dir:student", "initial_digest": letter * 64} for letter in "ab")
    add(
        board,
        make_record("tuned", flags(20, 10), student=one),
        make_record("mine", flags(20, 15), student=one, run_id="mine-toy-cloze-s0-one"),
        make_record("mine", flags(20, 16), student=two, run_id="mine-toy-cloze-s0-two"),
    )
    assert column(board, escaped("mine (student.initial_digest=aaaaaaaa)"), "gain").startswith("+25.0")
    assert column(board, escaped("mine (student.initial_digest=bbbbbbbb)"), "gain") == "no baseline row"


@pytest.mark.parametrize(
    ("config", "lifted"),
    [
        (student(LORA), False),
        (student(None, train={"lr": 2, "batch": 8}), False),
        (student(None, method={"alpha": 0.5}), True),
    ],
)
def test_a_gain_needs_equal_training_and_student_settings(board: Path, config: dict[str, Any], lifted: bool) -> None:
    add(
        board,
        make_record("tuned", flags(20, 10), config=student(None)),
        make_record("mine", flags(20, 15), config=config),
    )
    cell, text = column(board, "mine", "gain"), board_markdown(board)
    assert cell.startswith("+25.0") if lifted else cell == "other training settings"
    assert ("Other training settings: no baseline row" in text) != lifted


def test_the_baseline_of_the_same_settings_is_chosen(board: Path) -> None:
    add(
        board,
        make_record("tuned", flags(20, 10), config=student(None), run_id="tuned-toy-cloze-s0-full"),
        make_record("tuned", flags(20, 5), config=student(LORA), run_id="tuned-toy-cloze-s0-lora"),
        make_record("mine", flags(20, 15), config=student(LORA)),
    )
    assert column(board, "mine", "gain").startswith("+50.0")


def test_a_method_s_own_training_settings_do_not_keep_it_from_the_baseline(board: Path) -> None:
    configs = ({"train": {"learning_rate": 1}}, {"train": {"learning_rate": 2}})
    add(
        board,
        make_record("tuned", flags(20, 9), config=configs[0]),
        make_record("own", flags(20, 14), config=configs[1], own_settings=("train.learning_rate",)),
        make_record("requested", flags(20, 14), config=configs[1]),
    )
    assert (
        column(board, "own", "gain").startswith("+25.0")
        and column(board, "requested", "gain") == "other training settings"
    )
    assert "own: trained with settings of its own paper" in board_markdown(board)
