"""What the conformance command prints, and how it finds a function."""

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Call
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.cli.conformance import conformance, find_function

LOSSES = """
from tinyllm_bench.training.conformance import package_loss

SETTING = 3

def reversed_kl(kind, student, teacher, mask, options):
    if kind not in ("forward_kl", "reverse_kl"):
        raise NotImplementedError
    return package_loss({"forward_kl": "reverse_kl", "reverse_kl": "forward_kl"}[kind], student, teacher, mask, options)
"""


@pytest.fixture
def my_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the folder one stands in."""
    (tmp_path / "my_own_losses.py").write_text(LOSSES)
    (tmp_path / "my_broken_losses.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    for name in ("my_own_losses", "my_broken_losses"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "my_own_losses"


def test_ours_passes_and_the_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance(None) == 0
    shown = capsys.readouterr().out
    assert shown.split()[:4] == ["vector", "expected", "got", "verdict"]
    assert "our losses: " in shown and " 0 fail, 0 are not offered" in shown


def test_a_wrong_function_fails_and_is_named(my_losses: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(sys.path)
    assert conformance(f"{my_losses}:reversed_kl") == 1
    shown = capsys.readouterr().out
    assert "forward_kl: value differs; " in shown and "not offered" in shown and sys.path == before


def test_json(my_losses: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance(f"{my_losses}:reversed_kl", as_json=True) == 1
    outcomes = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert {"vector", "verdict", "expected", "got", "error", "about"} == set(outcomes[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_own_losses", "must be module:function"),
        ("my_own_losses:", "must be module:function"),
        ("no_such_module_here:f", "cannot import no_such_module_here here"),
        ("my_broken_losses:f", "ZeroDivisionError"),
        ("my_own_losses:reverse_kl", "Did you mean 'reversed_kl'"),
        ("my_own_losses:SETTING", "not a function but int"),
    ],
)
def test_what_is_no_function(my_losses: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_function(name)


def test_our_losses_conform(call: Call) -> None:
    result = call("conformance")
    assert result.status == 0 and "0 fail" in result.out
