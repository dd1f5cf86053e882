"""Files survive crashes and notice damage."""

import multiprocessing
from pathlib import Path

import pytest

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import (
    append_checked,
    cache_root,
    checked_line,
    digest,
    locked,
    read_checked,
    read_json,
    try_locked,
    write_bytes,
    write_json,
)


def test_rows_come_back(tmp_path: Path) -> None:
    file = tmp_path / "a" / "rows.jsonl"
    append_checked(file, [{"x": 1}, {"text": "line\nbreak\ttab é"}])
    append_checked(file, [{"x": 2}])
    assert list(read_checked(file)) == [{"x": 1}, {"text": "line\nbreak\ttab é"}, {"x": 2}]


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_half_last_line_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "rows.jsonl"
    append_checked(file, [{"x": 1}])
    whole = file.read_bytes()
    file.write_bytes(whole + checked_line({"x": 2}).encode()[:-cut])
    assert list(read_checked(file)) == [{"x": 1}]
    append_checked(file, [{"x": 3}])
    assert list(read_checked(file)) == [{"x": 1}, {"x": 3}]


def test_damage_in_the_middle_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_checked(file, [{"x": 1}, {"x": 2}])
    file.write_bytes(file.read_bytes().replace(b'{"x":1}', b'{"x":7}'))
    with pytest.raises(UserError, match=r"rows\.jsonl, line 1: checksum"):
        list(read_checked(file))


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    write_json(file, {"old": 1})
    with pytest.raises(TypeError):
        write_bytes(file, "not bytes")  # type: ignore[arg-type]
    assert read_json(file) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["f.json"]


def test_broken_json_is_one_line_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text('{"a": ')
    (tmp_path / "g.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"g\.json is not valid JSON \(no text\)"):
        read_json(tmp_path / "g.json")
    with pytest.raises(UserError, match=r"f\.json is not valid JSON \(line 1\)"):
        read_json(tmp_path / "f.json")
    with pytest.raises(UserError, match="file not found"):
        read_json(tmp_path / "none.json")


def _append(path: str, name: int) -> None:
    for count in range(20):
        with locked(Path(path)):
            append_checked(Path(path), [{"who": name, "count": count}])


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(str(file), name)) for name in (1, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    rows = list(read_checked(file))
    assert len(rows) == 40
    assert all([r["count"] for r in rows if r["who"] == name] == list(range(20)) for name in (1, 2))


def test_a_lock_that_is_held_is_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "a" / "rows.jsonl"
    with try_locked(file) as first, try_locked(file) as second:
        assert (first, second) == (True, False)
    with locked(file), try_locked(file) as third:
        assert not third
    with pytest.raises(RuntimeError), try_locked(file):
        raise RuntimeError
    with try_locked(file) as again:
        assert again


def test_digests_do_not_depend_on_key_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_the_cache_follows_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path))
    assert cache_root() == tmp_path


def test_unknown_names_say_what_exists_and_the_nearest() -> None:
    text = str(unknown_name("task", "obqq", ["obqa", "arc"]))
    assert text == "unknown task 'obqq'. Did you mean 'obqa'? Known: arc, obqa."
    assert "Did you mean" not in str(unknown_name("task", "zzz", ["obqa"]))
