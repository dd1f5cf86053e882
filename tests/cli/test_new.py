"""`new method` and `new task`: what is written, what is refused. That it installs and runs: tests/test_packages.py."""

import ast
import json
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Call


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_method_package_is_whole(call: Call, tmp_path: Path) -> None:
    result = call("new", "method", "my_kd", "--to", tmp_path)
    folder = tmp_path / "my_kd"
    assert result.status == 0 and result.out.splitlines()[0] == f"wrote {folder}"
    assert f"  pip install --editable '{folder}[test]'" in result.out and "run --method my_kd" in result.out
    inside = ("src/my_kd/__init__.py", "src/my_kd/my_kd.yaml", "tests/test_my_kd.py", "pyproject.toml", "README.md")
    assert files_in(folder) == set(inside)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "my-kd"
    assert project["entry-points"] == {"tinyllm_bench.methods": {"my_kd": "my_kd:MyKd"}}
    assert yaml.safe_load((folder / "src/my_kd/my_kd.yaml").read_text()) == {"method": {"alpha": 0.5}}
    for name in ("src/my_kd/__init__.py", "tests/test_my_kd.py"):
        assert ast.get_docstring(ast.parse((folder / name).read_text()))
    assert not any("{{" in path.read_text() or "{%" in path.read_text() for path in folder.rglob("*") if path.is_file())


def test_a_task_package_is_whole(call: Call, tmp_path: Path) -> None:
    assert call("new", "task", "sums", "--to", tmp_path).status == 0
    folder = tmp_path / "sums"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"tinyllm_bench.tasks": {"sums": "sums:TASK"}}
    rows = [json.loads(line) for line in (folder / "src/sums/samples/sums.jsonl").read_text().splitlines()]
    assert len(rows) == 48 and len({row["question"] for row in rows}) == 48
    assert all(row["choices"].count(row["answer"]) == 1 for row in rows)
    for row in rows:
        words = row["question"].rstrip("?").split()
        assert int(words[2]) + int(words[4]) == int(row["answer"])


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("method", "My-kd", "must be a Python name in snake_case, such as my_method"),
        ("method", "class", "snake_case"),
        ("method", "../up", "snake_case"),
        ("method", "finetune", "method 'finetune' already exists"),
        ("task", "obqa", "task 'obqa' already exists"),
        ("task", "json", "a Python package 'json' is already installed"),
    ],
)
def test_a_name_that_will_not_do(call: Call, tmp_path: Path, kind: str, name: str, says: str) -> None:
    result = call("new", kind, name, "--to", tmp_path)
    assert result.status == 2 and says in result.err and list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    result = call("new", "method", "mine", "--to", tmp_path)
    assert result.status == 2 and "mine already exists" in result.err and not list((tmp_path / "mine").iterdir())
