"""`doctor` on the command line: its lines, its table, its JSON and its exit statuses."""

import json
from pathlib import Path
from typing import Any

from tests.cli.conftest import Call
from tinyllm_bench.cli.checking import told
from tinyllm_bench.preflight.inspection import Finding


def test_findings_the_table_and_the_status(call: Call, small: list[Any], tmp_path: Path) -> None:
    asked = ["doctor", "--method", "finetune", "--task", "obqa", "--seeds", 3, *small]
    said = call(*asked)
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("warning: budget: finetune on obqa: budget.student_tokens=3,000 buys 6")
    assert any(line.startswith("warning: power: obqa: 16 test questions and 3 seeds show") for line in lines)
    assert any(line.startswith("note: digests: obqa: sample questions") for line in lines)
    assert "check" in said.out and "warnings" in said.out and "ok: " not in said.out
    assert call(*asked, "--strict").status == 1
    assert "\nok: disk: runs folder" in call(*asked, "--verbose").out
    found = json.loads(call(*asked, "--json").out)["findings"]
    keys = {"severity", "check", "where", "measured", "threshold", "fix"}
    assert {"ok", "note", "warning"} <= {one["severity"] for one in found} and all(set(one) == keys for one in found)
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_an_error_is_status_1_and_a_wrong_request_status_2(call: Call, small: list[Any]) -> None:
    asked = ["doctor", "--method", "finetune", "--task", "obqa", *small]
    said = call(*asked, "backend.device=cuda", "train.attention=flex")
    assert said.status == 1 and "error: backends: finetune on obqa" in said.out
    assert call("doctor", "--method", "fintune", "--task", "obqa", *small).status == 2


def test_one_line_where_all_is_in_order() -> None:
    fine = [Finding(severity="ok", check=name, where="here", measured="fine") for name in ("one", "two", "two")]
    assert told(fine, verbose=False) == "nothing found: 2 checks, 3 values in order"
    assert told(fine, verbose=True).splitlines()[0] == "ok: one: here: fine"
