"""What reaches a terminal: nothing of a record, a file or an argument acts there, and an error is one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tests.leaderboard.fakes import flags, make_record
from tests.leaderboard.test_hostile import ALL, HIDDEN, ONE_LINE
from tinyllm_bench.cli.output import echo, echo_error
from tinyllm_bench.leaderboard.record import save_record

CLI = Path(__file__).parents[2] / "tinyllm_bench" / "cli"


def test_there_is_one_way_to_the_terminal() -> None:
    for file in CLI.glob("*.py"):
        if file.name != "output.py":
            assert not re.search(r"(typer|click)\.(s?echo)\b|(?<![\w.])print\(", file.read_text()), file.name


@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_nothing_acts_there(capsys: pytest.CaptureFixture[str], text: str) -> None:
    echo(f"first\n{text}")
    echo(json.dumps([text], ensure_ascii=False))
    echo_error(f"error: {text}")
    result = capsys.readouterr()
    assert not HIDDEN.search(result.out + result.err)
    assert result.err.count("\n") == 1 and result.out.startswith("first\n")
    assert json.loads(result.out.splitlines()[-1]) == [text]


@pytest.mark.parametrize("text", ALL, ids=ascii)
def test_an_error_that_quotes_a_record_is_one_line(call: Call, tmp_path: Path, text: str) -> None:
    file = save_record(make_record("mine", flags(20, 13)), tmp_path / "run")
    record = json.loads(file.read_text())
    changes: list[dict[str, Any]] = [
        {"notes": [f"{text} /srv/me/x"]},
        {"secondary": {text: 7.5}},
        {text: 1},
        {"schema_version": text},
        {"data": record["data"] | {"source": text}, "sample": True},
    ]
    for change in changes:
        file.write_text(json.dumps(record | change))
        for command in (("board", "add", file.parent, "--board-dir", tmp_path / "board"), ("verify", file)):
            result = call(*command)
            assert result.status in (1, 2) and not HIDDEN.search(result.out + result.err)
            assert len(result.err.splitlines()) + len(result.out.splitlines()) <= 5 and "Traceback" not in result.err


@pytest.mark.parametrize("text", ONE_LINE, ids=ascii)
def test_what_is_shown_of_a_record_does_not_act(call: Call, tmp_path: Path, text: str) -> None:
    folders = [
        save_record(make_record(name, flags(20, 13), label=label, notes=(text,), command=text), tmp_path / name).parent
        for name, label in (("mine", text), ("tuned", "tuned"))
    ]
    board = tmp_path / "board"
    assert call("board", "add", *folders, "--board-dir", board).status == 0
    for command in (
        ("board", "show", "--board-dir", board),
        ("compare", *folders),
        ("compare", *folders, "--json"),
        ("protocol", "diff", *folders),
        ("verify", *folders),
        ("compare", text, "tuned", "--in", board),
    ):
        result = call(*command)
        assert not HIDDEN.search(result.out + result.err), command
    assert call("compare", *folders, "--json").out and json.loads(call("compare", *folders, "--json").out)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--method", "x" * 10**5),
        ("--task", "x " * 10**5),
        ("--config", "9" * 5000),
        ("--seeds", "9" * 5000),
        ("--" + "y" * 10**5,),
        ("method={}",),
        ("method={1: 2}",),
        ("method=" + "[" * 5000,),
    ],
    ids=lambda arguments: " ".join(arguments)[:20],
)
def test_an_error_shows_the_ends_of_what_is_very_long(call: Call, small: list[Any], arguments: tuple[str, ...]) -> None:
    said = call("run", "--method", "finetune", "--task", "obqa", *small, "--dry-run", *arguments)
    assert said.status == (0 if arguments == ("method={}",) else 2), said.err
    assert len(said.err) < 5000 and said.err.count("\n") == said.status / 2


@pytest.mark.parametrize("text", ["method:", "method: {1: 2}", "method: {~: 2}"])
def test_a_group_of_methods_settings_may_be_empty(call: Call, small: list[Any], tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    said = call("run", "--method", "finetune", "--task", "obqa", *small, "--dry-run", "--config", tmp_path / "c.yaml")
    assert (said.status, said.err.count("\n")) == ((0, 0) if text == "method:" else (2, 1)), said.err
