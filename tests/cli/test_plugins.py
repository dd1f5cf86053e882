"""`--plugin` in either place, broken plugins on every command, and a whole run with a method and a teacher of files."""

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tests.packages import METHOD, REPORTER, TEACHER, Site, forget, installing
from tinyllm_bench.leaderboard.record import load_record

DRY = ("run", "--task", "obqa", "--no-reference-baselines", "--dry-run")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    with installing(folder, monkeypatch) as made:
        yield made


def write(file: Path, code: str) -> Path:
    file.write_text(textwrap.dedent(code))
    return file


def run_ids(out: str) -> list[str]:
    return re.findall(r"\[([\w.-]+)\]$", out, re.MULTILINE)


def test_a_file_is_read_wherever_it_is_named(
    call: Call, site: Site, small: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "own_method.py", METHOD)
    asked = (*DRY, "--method", "own_method", *small)
    behind = call(*asked, "--plugin", file)
    assert behind.status == 0 and behind.err == "" and "own_method on obqa" in behind.out
    monkeypatch.setenv("TINYLLM_BENCH_PLUGINS", "")
    missing = call(*asked)
    assert missing.status == 2 and "unknown method 'own_method'" in missing.err
    before = call("--plugin", file, *asked)
    assert before.out == behind.out
    monkeypatch.setenv("TINYLLM_BENCH_PLUGINS", str(file))
    assert call(*asked).out == behind.out


def test_an_edited_method_is_another_cell(call: Call, site: Site, small: list[Any], tmp_path: Path) -> None:
    file = write(tmp_path / "changing.py", METHOD)
    asked = (*DRY, "--method", "changing", *small, "--plugin", file)
    (first,), (again,) = run_ids(call(*asked).out), run_ids(call(*asked).out)
    file.write_text(file.read_text() + "\n# another line\n")
    forget()
    (edited,) = run_ids(call(*asked).out)
    assert first == again != edited


def test_broken_plugins_are_one_warning_each_and_nothing_else_stops(
    call: Call, site: Site, small: list[Any], tmp_path: Path
) -> None:
    site.add("torn_package", "import no_such_module_here", methods="torn")
    torn = write(tmp_path / "torn_file.py", "x = undefined_name")
    for command in (("list", "methods"), (*DRY, "--method", "finetune", *small)):
        result = call(*command, "--plugin", torn)
        assert result.status == 0 and "Traceback" not in result.err
    result = call("list", "plugins", "--json", "--plugin", torn)
    states = {
        row["name"]: (row["kind"], row["package"], row["version"], row["state"]) for row in json.loads(result.out)
    }
    assert states["torn"][:3] == ("method", "torn_package", "1.0") and "no_such_module_here" in states["torn"][3]
    assert states["torn_file"][0] == "file" and "NameError" in states["torn_file"][3]
    asked = call(*DRY, "--method", "torn", *small)
    assert asked.status == 2 and "No module named 'no_such_module_here'" in asked.err and "Traceback" not in asked.err


def test_a_warning_is_one_line(call: Call, site: Site) -> None:
    site.add("crooked_package", "METHOD = 5", methods="crooked")
    result = call("list", "methods", "--json")
    assert [line for line in result.err.splitlines() if "crooked" in line] == result.err.splitlines()
    assert result.err.startswith("warning: method 'crooked' is left out: ")
    assert "crooked" not in {row["name"] for row in json.loads(result.out)}


def test_a_file_that_is_not_there_is_refused(call: Call, site: Site, tmp_path: Path) -> None:
    result = call("list", "methods", "--plugin", tmp_path / "nowhere.py")
    assert result.status == 2 and "nowhere.py: no such file" in result.err


def test_method_teacher_and_reporter_of_files_make_a_row(
    call: Call, site: Site, small: list[Any], tmp_path: Path
) -> None:
    parrot = write(tmp_path / "parrot.py", TEACHER)
    method = write(tmp_path / "own.py", METHOD.replace('load_method("finetune")', 'load_method("dss")'))
    (tmp_path / "own.yaml").write_text("method: {teacher: polly, rationale_weight: 0.25}\n")
    words = [word for file in (parrot, method, write(tmp_path / "rows.py", REPORTER)) for word in ("--plugin", file)]
    asked = ("run", "--method", "own", "--task", "obqa", "--no-reference-baselines", *small, "teachers=[parrot:polly]")
    result = call(*asked, *words)
    assert result.status == 0, result.err
    (folder,) = (file.parent for file in (tmp_path / "runs").glob("*/run.json"))
    record = load_record(folder)
    assert record.config["method"]["rationale_weight"] == 0.25, "the defaults beside the file"
    assert [one.spec for one in record.teachers] == ["parrot:polly"]
    assert {"own.py", "parrot.py"} <= set(record.packages) and record.packages["own.py"].startswith("sha256:")
    assert (tmp_path / "runs" / "board" / "reporters" / "rows" / "rows.txt").read_text() == "own [sample]\n"
    assert "already finished; nothing to do" in call(*asked, *words).err
    checked = call("verify", folder, *words)
    assert checked.status == 0, checked.out + checked.err


@pytest.mark.parametrize("text", ["method: 3\n", "method: [1]\n", "method: {nothing: 1}\n", "[]\n", "a: ["])
def test_a_wrong_file_of_defaults_is_named(call: Call, site: Site, small: list[Any], text: str) -> None:
    site.add("defaulted", METHOD, methods="defaulted = METHOD")
    (site.folder / "defaulted.yaml").write_text(text)
    result = call(*DRY, "--method", "defaulted", *small)
    assert result.status == 2 and result.err.count("\n") == 1 and "defaulted.yaml" in result.err
