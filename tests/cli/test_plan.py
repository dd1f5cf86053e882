"""`plan` and `doctor` on the command line: tables, JSON, exit statuses, and nothing written."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tinyllm_bench.cli.plan import duration, findings_text, money, plan_text
from tinyllm_bench.preflight.dry_training import Counts, TextForecast
from tinyllm_bench.preflight.forecast import CellForecast, Disk, Forecast, Totals
from tinyllm_bench.preflight.inspection import Finding, size


def test_a_table_and_what_it_can_tell_apart(call: Call, small: list[Any], tmp_path: Path) -> None:
    words = ("--method", "finetune,tinyllm", "--task", "obqa", "--detect", 20, *small)
    result = call("plan", *words)
    assert result.status == 0, result.err
    assert max(map(len, result.out.splitlines())) <= 80
    assert (
        "times are estimates; matmuls run at" in result.out
        and "finetune, obqa, seed 0" in result.out
        and "random" in result.out
    )
    flat = " ".join(result.out.split())
    assert "obqa: 16 questions and 1 seed (for these trained students only) can detect a difference of" in flat
    assert "Detecting 20 points takes more questions, whatever the number of seeds" in flat
    assert not (tmp_path / "runs").exists()


def test_json_holds_every_number(call: Call, small: list[Any]) -> None:
    result = call(
        "plan", "--method", "finetune", "--task", "obqa", "--no-reference-baselines", "--price", 2, "--json", *small
    )
    assert result.status == 0, result.err
    found = json.loads(result.out)
    (cell,) = found["cells"]
    assert cell["counts"]["exact"] and cell["counts"]["steps"] > 0 and cell["memory"] > 0
    assert cell["seconds"].keys() >= {"training", "sampling", "evaluation", "predict"}
    total = found["totals"]
    assert total["seconds"] > 0 and total["usd_device"] == pytest.approx(2 * total["seconds"] / 3600)


def test_what_is_done_is_said(call: Call, small: list[Any]) -> None:
    words = ("--method", "finetune", "--task", "obqa", "--no-reference-baselines", *small)
    assert call("run", *words).status == 0
    result = call("plan", *words)
    assert "already done" in result.out and "1 cell, 1 already done: 0 student tokens" in result.out
    assert "from 1 finished run, with common values" in " ".join(result.out.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [(("--detect", 0), "--detect 0: must be a difference"), (("--price", -1), "--price -1: must be US dollars")],
)
def test_wrong_options_are_one_line(words: tuple[Any, ...], says: str, call: Call, small: list[Any]) -> None:
    result = call("plan", "--method", "finetune", "--task", "obqa", *words, *small)
    assert result.status == 2 and says in result.err and "Traceback" not in result.err


def test_amounts_in_words() -> None:
    assert [duration(s) for s in (None, 12.4, 600, 9000)] == ["n/a", "12 s", "10 min", "2.5 h"]
    assert [size(b) for b in (0, 40_000, 5_000_000, 2_500_000_000)] == ["0 kB", "40 kB", "5 MB", "2.5 GB"]
    assert [money(usd) for usd in (0.0, 0.0123, 12.5)] == ["0.00 USD", "0.0123 USD", "12.50 USD"]


def test_teachers_texts_and_prices_have_lines_of_their_own() -> None:
    text = TextForecast(
        **{"teacher": "other", "kind": "rationale", "spec": "dir:other", "recorded": False, "cached": 3, "missing": 9},
        **{"tokens_in": 900, "tokens_out": 90, "seconds": None, "usd": 0.5, "keys": ()},
    )
    counts = Counts(
        **{"steps": 4, "records": 32, "tokens": 1000.4, "computed": 900.0, "sampled_texts": 0, "sampled_tokens": 0},
        **{"flops": 2e15, "sampling_flops": 0.0, "exact": False},
    )
    cell = CellForecast(
        **{"run_id": "r", "label": "some method", "task": "obqa", "seed": 0, "mode": "cloze", "kind": "method"},
        **{"trains_only": False, "questions": {}, "done": ("train",), "first": (), "counts": counts, "texts": (text,)},
        **{"seconds": {"training": 61.0}, "memory": 10**9, "disk": Disk(final=10**6), "usd": 0.5},
    )
    total = Totals(
        **{"cells": 1, "done": 0, "steps": 4, "student_tokens": 1000, "flops": 2e15, "seconds": 61.0, "memory": 1},
        **{"disk": 1, "disk_peak": 2, "cache": 3 * 10**9, "teacher_tokens_in": 900, "teacher_tokens_out": 90},
        **{"usd_teachers": 0.5, "usd_device": None},
    )
    plan = Forecast(device="d", matmul_flops={"float32": 1e11}, cells=(cell,), totals=total, detectable=())
    result = plan_text("p", plan)
    assert "~4    ~1,000   2.000     61 s  1.0 GB    1 MB" in result
    assert "other: 3 texts cached, 9 to generate" in result and "~900 tokens in, ~90 out, 0.50 USD" in result
    assert "cost: teachers 0.50 USD" in result and "already done: train" in result and "cache 3.0 GB" in result


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_findings_the_table_and_the_status(call: Call, small: list[Any], tmp_path: Path) -> None:
    asked = ["doctor", "--method", "finetune", "--task", "obqa", "--seeds", 3, *small]
    result = call(*asked)
    assert result.status == 0, result.err
    lines = result.out.splitlines()
    assert lines[0].startswith("warning: budget: finetune on obqa: budget.student_tokens=3,000 buys 6")
    assert any(line.startswith("warning: power: obqa: 16 test questions and 3 seeds detect") for line in lines)
    assert any(line.startswith("note: digests: obqa: sample questions") for line in lines)
    assert "check" in result.out and "warnings" in result.out and "ok: " not in result.out
    assert call(*asked, "--strict").status == 1
    assert "\nok: disk: runs folder" in call(*asked, "--verbose").out
    found = json.loads(call(*asked, "--json").out)["findings"]
    keys = {"severity", "check", "where", "measured", "threshold", "fix"}
    assert {"ok", "note", "warning"} <= {one["severity"] for one in found} and all(set(one) == keys for one in found)
    assert not (tmp_path / "runs").exists(), "nothing is written"


def test_an_error_is_status_1_and_a_wrong_request_status_2(call: Call, small: list[Any]) -> None:
    asked = ["doctor", "--method", "finetune", "--task", "obqa", *small]
    result = call(*asked, "backend.device=cuda", "train.attention=flex")
    assert result.status == 1 and "error: backends: finetune on obqa" in result.out
    assert call("doctor", "--method", "fintune", "--task", "obqa", *small).status == 2


def test_one_line_where_all_is_in_order() -> None:
    fine = [Finding(severity="ok", check=name, where="here", measured="fine") for name in ("one", "two", "two")]
    assert findings_text(fine, verbose=False) == "no problems found: 2 checks, 3 values"
    assert findings_text(fine, verbose=True).splitlines()[0] == "ok: one: here: fine"


def test_doctor_prints_the_forecast_that_plan_prints(call: Call, small: list[Any]) -> None:
    words = ("--method", "finetune,tinyllm", "--task", "obqa", "--seeds", 2, "--json", *small)
    plan, doctor = (json.loads(call(command, *words).out) for command in ("plan", "doctor"))
    findings = {one["check"]: one for one in doctor.pop("findings")}
    for found in (plan, doctor):  # times are of a speed that each command measures for itself
        found.pop("matmul_flops")
        found["totals"].pop("seconds")
        for cell in found["cells"]:
            cell.pop("seconds"), cell.pop("total_seconds")
    assert plan == doctor and plan["totals"]["steps"] > 0 and plan["totals"]["disk"] > 0
    told = f"{100 * plan['detectable'][0]['difference']:.1f} points"
    assert told in findings["power"]["measured"]
    assert f"about {size(plan['totals']['disk_peak'])} needed" in findings["disk"]["measured"]
