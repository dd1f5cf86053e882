"""Files survive crashes and notice damage; none from others hangs, fills the memory or ends in a traceback."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tinyllm_bench.base.config import read_yaml
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.files import (
    append_checked,
    cache_root,
    check_inside,
    checked_line,
    digest,
    json_lines,
    locked,
    read_bytes,
    read_checked,
    read_json,
    strict_json,
    strict_yaml,
    temporary_folder,
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
    (tmp_path / "g.json").write_bytes(b"{}\n\xff\xfe")
    with pytest.raises(UserError, match=r"g\.json, line 2: byte 0xff is not UTF-8"):
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


def test_a_byte_order_mark_is_read_over_and_other_encodings_are_named(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(file) == {"a": 1}
    for encoding, name in (("utf-16", "UTF-16"), ("utf-16-be", "UTF-16"), ("utf-32", "UTF-32")):
        file.write_bytes('{"a": 1}'.encode(encoding))
        with pytest.raises(UserError, match=f"f.json is {name} text and must be UTF-8"):
            read_json(file)
    with pytest.raises(UserError, match="is a folder"):
        read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        read_json(tmp_path / "pipe")


def test_json_lines_end_at_a_newline_only() -> None:
    rows = [{"text": f"a{chr(code)}b"} for code in (0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x85, 0x2028, 0x2029, 0x0D)]
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\r\n" for row in rows)
    assert list(json_lines(text)) == rows and list(json_lines("\ufeff" + text)) == rows
    with pytest.raises(ValueError, match=r"not valid JSON \(line 2\)"):
        list(json_lines('{"a": 1}\n{"a": \n'))


def _write_and_stop(path: str, word: str) -> None:
    """Write a file, and stop for good where `word` says: before it is renamed, or while a temporary folder is open."""

    def stop(*_: object) -> None:
        print("here", flush=True)
        time.sleep(60)

    if word == "file":
        os.replace = stop  # type: ignore[assignment]
        write_bytes(Path(path) / "f.json", b"half")
    else:
        with temporary_folder("work", Path(path)) as folder:
            (folder / "inner").mkdir()
            stop()


@pytest.mark.parametrize("word", ["file", "folder"])
def test_what_a_killed_process_left_is_swept_and_what_a_living_one_has_is_not(tmp_path: Path, word: str) -> None:
    def write() -> None:
        if word == "file":
            write_bytes(tmp_path / "other.json", b"whole")
        else:
            with temporary_folder("work", tmp_path):
                pass

    call = f"from tests.base.test_files import _write_and_stop; _write_and_stop({str(tmp_path)!r}, {word!r})"
    with subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"here\n"
        (left,) = tmp_path.iterdir()
        write()
        assert left.exists()
        process.kill()
    stranger = tmp_path / ".other.json.kept"
    stranger.touch()
    write()
    assert not left.exists() and stranger.exists()


def test_a_temporary_folder_that_died_before_its_lock_is_swept_when_it_is_old(tmp_path: Path) -> None:
    new, old = tmp_path / "work-new", tmp_path / "work-old"
    for folder in (new, old):
        folder.mkdir()
    os.utime(old, (0, 0))
    with temporary_folder("work", tmp_path) as folder:
        assert new.exists() and not old.exists() and folder.is_dir()
    assert not folder.exists()


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))


def odd(kind: str, place: Path) -> Path:
    """A file that is none, at `place`."""
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "folder":
        place.mkdir()
    elif kind == "loop":
        place.symlink_to(place.name)
    elif kind == "huge":
        with place.open("wb") as file:
            file.truncate(10**13)
    return place


ODD = ("pipe", "device", "folder", "loop", "huge")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("read", [read_bytes, read_json, read_yaml, lambda path: list(read_checked(path))])
def test_what_is_no_file_to_read_is_one_line_at_once(tmp_path: Path, kind: str, read: Any) -> None:
    place, began = odd(kind, tmp_path / "it"), time.monotonic()
    if kind == "loop" and not place.exists() and read is not read_bytes and read is not read_json:
        return  # as one that is not there
    with pytest.raises(UserError, match=str(place)) as error:
        read(place)
    assert "\n" not in str(error.value) and time.monotonic() - began < 5


def test_a_link_out_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "own").write_text("o")
    (folder / "inner").symlink_to("own")
    (folder / "outer").symlink_to("../secret")
    assert read_bytes(folder / "inner", inside=folder) == b"o"
    for name in ("outer", "../secret"):
        with pytest.raises(UserError, match="leads out of"):
            read_bytes(folder / name, inside=folder)
    (tmp_path / "named").symlink_to("run")
    check_inside(tmp_path / "named" / "own", tmp_path / "named")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9" * 5000, "a number of 5000 digits"),
        ("[" * 10**5, "nested too deep"),
        ('{"a": 1, "a": 2}', "appears twice"),
        ("NaN", "NaN"),
        ("1e400", "too large"),
        ('"\\udc00"', "lone surrogate"),
        ("{", "line 1"),
    ],
)
def test_json_that_is_not_strict(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strict_json(text)
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "f.json")
    import zlib

    (tmp_path / "f.jsonl").write_text(f"{zlib.crc32(text.encode()):08x}\t{text}\n")
    with pytest.raises(UserError, match=rf"f.jsonl, line 1 .*{message}"):
        list(read_checked(tmp_path / "f.jsonl"))


def test_json_that_is_strict(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, 1e-300, None, True, "\u2028 \U0001f642", {}], "": 10**39}
    append_checked(tmp_path / "f", [value])
    assert list(read_checked(tmp_path / "f")) == [value] == [strict_json(checked_line(value).partition("\t")[2])]
    assert strict_json(b'\xef\xbb\xbf"\\ud83d\\ude42"') == "\U0001f642"
    with pytest.raises(ValueError, match="not UTF-8"):
        strict_json(b'"\xff"')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "unfold to more than 100,000 values"),
        ("a: &a [*a]", "an anchor holds itself"),
        ("a: &a\n  b: *a", "an anchor holds itself"),
        ("[" * 10**5, "nested too deep"),
        ("a: " + "9" * 5000, "integer string conversion|digits"),
        ("a: 2026-21-01", "month must be in"),
        ("a: 1\na: 2", "'a' appears twice"),
        ("a: {b: 1, b: 2}", "'b' appears twice"),
        ("? [a]\n: 1", "unhashable"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 'x", "while scanning"),
        ("x" * 10**6, "1,000,000 characters"),
        ("- 1\n" * 10**5, "values"),
    ],
)
def test_yaml_that_is_not_read(tmp_path: Path, text: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=message) as error:
        strict_yaml(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"f.yaml is not valid YAML: .*({message})"):
        read_yaml(tmp_path / "f.yaml")
    assert time.monotonic() - began < 60


def test_yaml_that_is_read() -> None:
    assert strict_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }
    assert strict_yaml("") is None and strict_yaml("# nothing") is None
