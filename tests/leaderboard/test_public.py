"""What of a text may be published."""

from typing import Any

import pytest

from tests.leaderboard.fakes import flags, make_fields
from tinyllm_bench.leaderboard.public import machine_paths, public, public_text
from tinyllm_bench.leaderboard.record import RunRecord

PRIVATE = [
    ("dir:/srv/me/student", "dir:student"),
    ("dir:/srv/me/student/", "dir:student"),
    ("dir:/srv/me/student?layers=0:30:3", "dir:student?layers=0:30:3"),
    ("dir:/student", "dir:student"),
    ("dir:/Users/Jane Doe/my models/x", "dir:x"),
    ("student.model=dir:/Users/Jane Doe/x?layers=0:2", "student.model=dir:x?layers=0:2"),
    ("dir://srv/me/x", "dir:x"),
    ("bundled:x?layers=0:30:3&adapter=/law", "bundled:x?layers=0:30:3&adapter=law"),
    ("teacher.model=bundled:x?adapter=/home/my name/law", "teacher.model=bundled:x?adapter=law"),
    ("dir:/srv/me/base?adapter=~/my adapters/law", "dir:base?adapter=law"),
    ("file:///srv/me/x", "file:x"),
    ("replay:/srv/me/said.jsonl#org/name", "replay:said.jsonl#org/name"),
    ("--data-dir=/x/y", "--data-dir=y"),
    ("--runs-dir /a/b --task toy", "--runs-dir b --task toy"),
    ("/usr/bin/tinyllm-bench run --data-dir /a/b/c", "tinyllm-bench run --data-dir c"),
    ("run '--data-dir=/srv/Jane Doe/x y' --set 'student.model=dir:/a b/c?layers=0:2' z", None),
    ("~/student", "student"),
    ("dir:~me/a/student", "dir:student"),
    ("--data-dir ~/", "--data-dir "),
    (r"dir:C:\\Users\\me\\student", "dir:student"),
    (r"--data-dir=C:\Users\me\x", "--data-dir=x"),
    ("D:/models/x", "x"),
    ("{student: {model: /srv/jörg/x, lora: null}}", "{student: {model: x, lora: null}}"),
    ("[/a/b,/c/d]", "[b,d]"),
    ("PATH=/a/b:/c/d", "PATH=b:d"),
]
ADDRESSES = [
    ("https://user:key@host/v1?key=secret", "https://host/v1"),
    ("api:https://me:k@host:8000/v1/chat?key=k&x=/a/b#org/model", "api:https://host:8000/v1/chat#org/model"),
    ("see 'http://key@localhost:8000/a/b?c' there", "see 'http://localhost:8000/a/b' there"),
]
PUBLIC = [
    "hf:google/flan-t5-small@main",
    "bundled:smollm2-135m?layers=0:30:3",
    "bundled:smollm2-135m?layers=0:30:3&adapter=law",
    "replay:release#flan-t5-xl",
    "api:https://host/v1/a#org/model",
    "https://example.org/a/b/c",
    "runs/a/b ../x/y ./z and/or 1/2 yes/no ~5 % </s> /think",
    "answer: ",
    "tinyllm-bench run --method a,b --task toy --set train.evaluations=[0.25,1.0]",
    "",
]


@pytest.mark.parametrize(("text", "expected"), PRIVATE)
def test_paths_become_their_last_part(text: str, expected: str | None) -> None:
    assert public_text(text) == (expected or "run '--data-dir=x y' --set 'student.model=dir:c?layers=0:2' z")
    assert list(machine_paths([text])) == [text]


@pytest.mark.parametrize(("text", "expected"), ADDRESSES)
def test_addresses_lose_user_and_query_and_are_no_paths(text: str, expected: str) -> None:
    assert public_text(text) == expected
    assert list(machine_paths(text)) == []


@pytest.mark.parametrize("text", [*PUBLIC, *(text for _, text in [*PRIVATE, *ADDRESSES] if text)])
def test_what_is_public_stays(text: str) -> None:
    assert public_text(text) == text
    assert list(machine_paths(text)) == []


def test_nested_values_keep_their_shape() -> None:
    value: dict[str, Any] = {"a": ["/x/y", ("~/z", 1)], "b": {"c": None, "d": 0.5}}
    assert public(value) == {"a": ["y", ("z", 1)], "b": {"c": None, "d": 0.5}}
    assert value["a"][0] == "/x/y"


def test_a_record_made_public_is_accepted() -> None:
    private = {
        "command": "run --data-dir /srv/me/data",
        "request": {"settings": ["student.model=dir:/srv/me/x"]},
        "config": {"student": {"model": "dir:/srv/me/x"}, "teachers": ("replay:~/said#big",)},
        "student": {"spec": "dir:/srv/me/x"},
        "notes": ("kept in /var/tmp/x",),
    }
    made = RunRecord.model_validate(public(make_fields("m", flags(20, 9)) | private))
    assert made.student and made.student.spec == "dir:x" and made.command == "run --data-dir data"
