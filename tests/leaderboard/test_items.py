"""Items as columns: what they hold, and which files hold none."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.leaderboard.fakes import flags, make_fields, make_record
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.leaderboard.items import Items
from tinyllm_bench.leaderboard.record import RunRecord, load_record, save_record

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
    assert first.items.asked is second.items.asked and first.items != second.items
    assert first.items.asked.distinct == 20 and first.items.asked.digest == first.protocol["scored_ids_digest"]


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
