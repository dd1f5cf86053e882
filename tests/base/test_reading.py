"""Files from others: none hangs, fills the memory or ends in a traceback."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tinyllm_bench.base.config import read_yaml
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import append_checked, checked_line, read_checked, read_json
from tinyllm_bench.base.reading import check_inside, read_bytes, strict_json, strict_yaml

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
    ("text", "told"),
    [
        ("9" * 5000, "a number of 5000 digits"),
        ("[" * 10**5, "nested too deep"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ("NaN", "NaN"),
        ("1e400", "too large"),
        ('"\\udc00"', "half a character"),
        ("{", "line 1"),
    ],
)
def test_json_that_is_not_strict(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        strict_json(text)
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(UserError, match=told):
        read_json(tmp_path / "f.json")
    import zlib

    (tmp_path / "f.jsonl").write_text(f"{zlib.crc32(text.encode()):08x}\t{text}\n")
    with pytest.raises(UserError, match=rf"f.jsonl, line 1 .*{told}"):
        list(read_checked(tmp_path / "f.jsonl"))


def test_json_that_is_strict(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, 1e-300, None, True, "\u2028 \U0001f642", {}], "": 10**39}
    append_checked(tmp_path / "f", [value])
    assert list(read_checked(tmp_path / "f")) == [value] == [strict_json(checked_line(value).partition("\t")[2])]
    assert strict_json(b'\xef\xbb\xbf"\\ud83d\\ude42"') == "\U0001f642"
    with pytest.raises(ValueError, match="no UTF-8"):
        strict_json(b'"\xff"')


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "unfold to more than 100,000 values"),
        ("a: &a [*a]", "an anchor holds itself"),
        ("a: &a\n  b: *a", "an anchor holds itself"),
        ("[" * 10**5, "nested too deep"),
        ("a: " + "9" * 5000, "integer string conversion|digits"),
        ("a: 2026-21-01", "month must be in"),
        ("a: 1\na: 2", "'a' stands twice"),
        ("a: {b: 1, b: 2}", "'b' stands twice"),
        ("? [a]\n: 1", "unhashable"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("a: 'x", "while scanning"),
        ("x" * 10**6, "1,000,000 characters"),
        ("- 1\n" * 10**5, "values"),
    ],
)
def test_yaml_that_is_not_read(tmp_path: Path, text: str, told: str) -> None:
    began = time.monotonic()
    with pytest.raises(ValueError, match=told) as error:
        strict_yaml(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"f.yaml is not valid YAML: .*({told})"):
        read_yaml(tmp_path / "f.yaml")
    assert time.monotonic() - began < 60


def test_yaml_that_is_read() -> None:
    assert strict_yaml("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }
    assert strict_yaml("") is None and strict_yaml("# nothing") is None
