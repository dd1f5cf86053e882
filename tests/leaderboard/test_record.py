"""A record loads only when its numbers agree; items as columns."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.leaderboard.fakes import flags, make_fields, make_record, make_reference, protocol
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard.consistency import failed_checks
from tinyllm_bench.leaderboard.record import (
    Items,
    RunRecord,
    load_record,
    protocol_difference,
    protocol_hash,
    save_record,
)


def edited(folder: Path, **changes: Any) -> Path:
    """A record's file with top-level fields changed behind its back."""
    file = save_record(make_record("m", flags(20, 9), unparsed=2), folder)
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(content))
    return file


def test_round_trip_through_the_run_folder(tmp_path: Path) -> None:
    record = make_record("m", flags(20, 9), unparsed=2)
    file = save_record(record, tmp_path / "run")
    assert file == tmp_path / "run" / "run.json"
    assert load_record(tmp_path / "run") == record == load_record(file)
    assert record.accuracy == 9 / 20


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    record = make_record("m", flags(20, 9))
    first = save_record(record, tmp_path / "a").read_bytes()
    assert save_record(load_record(tmp_path / "a"), tmp_path / "b").read_bytes() == first


def test_a_copy_with_changed_numbers_is_not_saved(tmp_path: Path) -> None:
    record = make_record("m", flags(20, 9))
    with pytest.raises(ValidationError, match="distinct ids|in items"):
        save_record(record.model_copy(update={"items": record.items[:-1]}), tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_an_item_may_hold_the_key_of_a_number_and_no_other_text(tmp_path: Path) -> None:
    keys = ["51", "-2.5", "1e+20", None, 3]
    items = [[name, keys[i % 5] if i >= 9 else 0, flag] for i, (name, _, flag) in enumerate(ITEMS)]
    unparsed = sum(answer is None for _, answer, _ in items)
    score = SCORE | {"unparsed": unparsed, "wrong": 11 - unparsed}
    record = RunRecord.model_validate(make_fields("m", flags(20, 9)) | {"items": items, "score": score})
    assert load_record(save_record(record, tmp_path)) == record
    for text in ("five", "$5", "5 pens", "", "nan", "5\n"):
        with pytest.raises(ValidationError, match="items"):
            RunRecord.model_validate(make_fields("m", flags(20, 9)) | {"items": [[ITEMS[0][0], text, 1], *ITEMS[1:]]})


SCORE = {"n": 20, "correct": 9, "wrong": 9, "unparsed": 2, "hit_token_limit": 0, "context_cut": 0, "ties": 0}
ITEMS = make_fields("m", flags(20, 9), unparsed=2)["items"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": SCORE | {"correct": 10}}, r"correct \+ wrong \+ unparsed = 21, but n = 20"),
        ({"score": SCORE | {"correct": 10, "wrong": 8}}, "correct 9 in items, 10 in score"),
        ({"score": SCORE | {"wrong": 11, "unparsed": 0}}, "unparsed 2 in items, 0 in score"),
        ({"score": SCORE | {"ties": 21}}, "may not exceed"),
        ({"items": ITEMS[:-1]}, "n 19 in items, 20 in score"),
        ({"items": [*ITEMS[:-1], ITEMS[0][:1] + ITEMS[-1][1:]]}, "distinct ids 19 in items"),
        ({"items": [["toy/test/x", *ITEMS[0][1:]], *ITEMS[1:]]}, "not the protocol's scored ids"),
        (
            {"items": [[ITEMS[0][0], None, 1], *ITEMS[1:-1], [ITEMS[-1][0], 0, 0]]},
            "without an answer is marked correct",
        ),
        ({"items": [[ITEMS[0][0], 0, 2], *ITEMS[1:]]}, "items.0.2"),
        ({"protocol_hash": "0" * 64}, "protocol_hash is not the digest"),
        ({"protocol": protocol("toy", 20, metric="other")}, "protocol_hash is not the digest"),
        ({"protocol": protocol("toy", 20) | {"shots": 3}}, "needs exactly"),
        ({"task": "other"}, "disagree on task"),
        ({"mode": "multiple_choice"}, "disagree on mode"),
        ({"mode": "spoken"}, "mode"),
        ({"schema_version": 2}, r"not a run record of schema 1 \(found 2\)"),
        ({"run_id": "../../etc"}, "run_id"),
        ({"label": "two\nlines"}, "label"),
        ({"seed": "0"}, "seed"),
        ({"surprise": 1}, "surprise"),
        ({"budget": None}, "needs budget"),
        ({"command": "run --data-dir /srv/me/data"}, "a record holds no machine paths: run --data-dir /srv/me/data"),
        ({"request": {"settings": ["student.model=dir:/srv/me/x"]}}, "machine paths: student.model=dir:/srv/me/x"),
        ({"config": {"student": {"model": "dir:~/x"}}}, "machine paths: dir:~/x"),
        ({"student": {"spec": "dir:/srv/me/x"}}, "machine paths: dir:/srv/me/x"),
        ({"teachers": [{"spec": "replay:/srv/me/x#big"}]}, "machine paths: replay:/srv/me/x#big"),
        ({"notes": [r"kept in C:\Users\me"]}, r"machine paths: kept in C:"),
        ({"data": {"source": "release", "overlap": -1}}, "data.overlap"),
        ({"expected_accuracy": 0.5}, "belongs to reference baselines"),
        ({"budget": {"student_tokens": 9, "prompt_tokens": 3, "target_tokens": 4}}, "= 7, student_tokens = 9"),
    ],
)
def test_what_does_not_agree_is_refused_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    file = edited(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        load_record(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_broken_missing_and_foreign_files(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    with pytest.raises(UserError, match="file not found"):
        load_record(tmp_path)
    file.write_text('{"schema_version": 1,')
    with pytest.raises(UserError, match="not valid JSON"):
        load_record(file)
    file.write_text("[1]")
    with pytest.raises(UserError, match="not a run record"):
        load_record(file)


def test_reference_baselines_need_no_model_budget_or_score() -> None:
    assert make_reference("guess", None, expected_accuracy=0.25).accuracy == 0.25
    assert make_reference("recorded", None).accuracy is None
    with pytest.raises(ValidationError, match="has no items"):
        make_reference("recorded", None, items=(("toy/test/0", 0, 1),))


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_record("m", flags(20, 9)).seed = 3  # type: ignore[misc]


def test_protocol_hash_and_difference() -> None:
    one, other = protocol("toy", 20), protocol("toy", 30)
    assert protocol_hash(one) == protocol_hash(dict(reversed(one.items()))) != protocol_hash(other)
    assert protocol_difference(one, other) == ["n", "scored_ids_digest"]


def test_every_field_of_the_schema_survives(tmp_path: Path) -> None:
    record = make_record(
        "m",
        flags(20, 9),
        teachers=({"spec": "replay:release#big", "note": "recorded text", "gold_visible": True},),
        annotations=(
            {"teacher": "big", "kind": "rationale", "used": 3, "missing": 1, "rejected": {"empty": 2}, "control": None}
            | {"text_digest": "d"},
        ),
        data={"source": "release", "train_ids_digest": "t", "n_train": 8, "overlap": 2},
        training={
            "steps": 5,
            "first_loss": 2.5,
            "last_loss": 1.5,
            "evaluations": [
                {"fraction": 0.25, "step": 1, "accuracy": 0.5, "gold_probability": 0.3, "n": 8, "selected": True}
            ],
            "select": "accuracy",
        },
        secondary={"accuracy_plain": 0.4},
        request={"method": "m"},
        config={"train": {"lr": 5e-5}},
        packages={"torch": "2"},
        predictions_digest="x",
    )
    assert load_record(save_record(record, tmp_path)) == record
    assert set(RunRecord.model_fields) == set(json.loads((tmp_path / "run.json").read_text()))


def closed(**changes: Any) -> dict[str, Any]:
    """A record of six questions with yes, no and maybe as answers 0, 1 and 2; the last was not read."""
    ids = [f"toy/test/{i}" for i in range(6)]
    fields = make_fields("m", [1, 1, 0, 1, 0, 0], n=6, unparsed=1)
    items = [
        [name, answer, flag] for name, answer, flag in zip(ids, [0, 0, 0, 1, 0, None], [1, 1, 0, 1, 0, 0], strict=True)
    ]
    return fields | {"items": items, "gold": [0, 0, 1, 1, 2, 2]} | changes


def test_gold_numbers_agree_with_answers_and_marks() -> None:
    assert RunRecord.model_validate(closed()).gold == (0, 0, 1, 1, 2, 2)
    for gold, message in (([0] * 5, "5 gold answers for 6 items"), ([0, 0, 0, 1, 2, 2], "mark does not say")):
        with pytest.raises(ValueError, match=message):
            RunRecord.model_validate(closed(gold=gold))
    with pytest.raises(ValueError, match="mark does not say"):
        RunRecord.model_validate(closed(gold=[1, 0, 1, 1, 2, 2]))


def test_a_macro_f1_that_gold_contradicts_is_a_broken_claim() -> None:
    # yes: TP 2, claimed 4, gold 2: 2/3; no: TP 1, claimed 1, gold 2: 2/3; maybe: 0
    fields = closed(secondary={"macro_f1": 4 / 9})
    assert not [one for one in failed_checks(RunRecord.model_validate(fields)) if "macro_f1" in one.field]
    fields["secondary"] = {"macro_f1": 0.5}
    [check] = [one for one in failed_checks(RunRecord.model_validate(fields)) if "macro_f1" in one.field]
    assert check.actual == 0.5 and check.expected == pytest.approx(4 / 9)


# --- scored items -----------------------------------------------------------------------------------------------------

ROWS = [("toy/test/0", 2, 1), ("toy/test/1", None, 0), ("toy/test/2", "-2.5", 0)]


def test_items_are_a_sequence_of_rows() -> None:
    items = Items.of(ROWS)
    assert list(items) == ROWS and len(items) == 3 and items[1] == ROWS[1] and items[-1] == ROWS[-1]
    assert items[:2] == Items.of(ROWS[:2]) != items and list(Items.of()) == []
    assert (items.ids, items.answers, items.marks) == (tuple(row[0] for row in ROWS), (2, None, "-2.5"), b"\1\0\0")
    assert pickle.loads(pickle.dumps(items)) == items and repr(items) == f"Items.of({ROWS})"


def test_runs_that_were_asked_the_same_share_their_questions(tmp_path: Path) -> None:
    files = [save_record(make_record("m", flags(20, right), seed=right), tmp_path / str(right)) for right in (9, 10)]
    first, second = map(load_record, files)
    assert first.items.questions is second.items.questions and first.items != second.items
    assert first.items.questions.distinct == 20 and first.items.questions.digest == first.protocol["scored_ids_digest"]


def test_a_saved_record_is_read_back_the_same(tmp_path: Path) -> None:
    keys = ["51", "-2.5", "1e+20", None, 3]
    fields = make_fields("m", flags(20, 9))
    items = [[name, keys[i % 5] if i >= 9 else 0, flag] for i, (name, _, flag) in enumerate(fields["items"])]
    score = fields["score"] | {"unparsed": 2, "wrong": 9}
    file = save_record(RunRecord.model_validate(fields | {"items": items, "score": score}), tmp_path)
    found = load_record(file)
    assert list(map(list, found.items)) == items
    assert json.loads(found.model_dump_json())["items"] == items == found.model_dump(mode="json")["items"]


def test_any_other_layout_is_read_too(tmp_path: Path) -> None:
    record = make_record("m", flags(20, 9), unparsed=2)
    file = save_record(record, tmp_path)
    content = json.loads(file.read_text())
    for indent in (None, 0, 2):
        file.write_text(json.dumps(content, indent=indent))
        assert load_record(file) == record
    file.write_text(json.dumps(dict(sorted(content.items())), indent=1))
    assert load_record(file) == record


ITEM = '  [\n   "toy/test/0",\n   0,\n   1\n  ]'


@pytest.mark.parametrize(
    "other",
    [
        '  [\n   "toy/test/0",\n   0.0,\n   1\n  ]',
        '  [\n   "toy/test/0",\n   true,\n   1\n  ]',
        '  [\n   "toy/test/0",\n   "five",\n   1\n  ]',
        '  [\n   "toy/test/0",\n   NaN,\n   1\n  ]',
        '  [\n   "toy/test/0",\n   [],\n   1\n  ]',
        '  [\n   "toy/test/0",\n   0,\n   2\n  ]',
        '  [\n   "toy/test/0",\n   0,\n   1,\n   1\n  ]',
        '  [\n   "toy/test/0",\n   0,\n   1,\n  ]',
        '  [\n   "toy/test/0",\n   0\n  ]',
        "  [\n   7,\n   0,\n   1\n  ]",
        '  [\n   "toy/test/0"\n   0,\n   1\n  ]',
        '  [\n   "toy/test/0", "x",\n   0,\n   1\n  ]',
        '  [\n   "toy/test/19",\n   0,\n   1\n  ]',
        "  [\n  ]",
        "  7",
    ],
)
def test_items_of_another_kind_are_refused(tmp_path: Path, other: str) -> None:
    file = save_record(make_record("m", flags(20, 9)), tmp_path)
    text = file.read_text()
    assert text.count(ITEM) == 1
    file.write_text(text.replace(ITEM, other))
    with pytest.raises(UserError):
        load_record(file)


def test_items_elsewhere_in_a_file_are_not_taken_for_the_record_s(tmp_path: Path) -> None:
    record = make_record("m", flags(20, 9), request={"seeds": 1}, config={"train": {}})
    file = save_record(record, tmp_path)
    text, block = file.read_text(), json.loads(file.read_text())["items"]
    for name in ("request", "config"):
        key = f'\n "{name}": {{'
        file.write_text(text.replace(key, f'{key}\n "items": {json.dumps(block, indent=1)},', 1))
        loaded = load_record(file)
        assert getattr(loaded, name)["items"] == block and loaded.items == record.items


@pytest.mark.parametrize("items", [[["a", 0, 1.0]], [["a", "b", 1]], [["a", 0]], [[1, 0, 1]], "abc", None, 5, [5], {}])
def test_rows_of_other_kinds_are_no_items(items: Any) -> None:
    fields = make_fields("m", flags(20, 9)) | {"items": items}
    with pytest.raises(ValidationError, match="items"):
        RunRecord.model_validate(fields)
    with pytest.raises(ValidationError, match="items"):
        RunRecord.model_validate_json(json.dumps(fields), strict=True)
