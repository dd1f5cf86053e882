"""`plan` on the command line: a table people can read, the numbers as JSON, and nothing written."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Call
from tinyllm_bench.cli.plan_text import duration, money, plan_text, size


def test_a_table_and_what_it_can_tell_apart(call: Call, small: list[Any], tmp_path: Path) -> None:
    words = ("--method", "finetune,tinyllm", "--task", "obqa", "--detect", 20, "--no-probe", *small)
    said = call("plan", *words)
    assert said.status == 0, said.err
    assert max(map(len, said.out.splitlines())) <= 80
    assert "no probe: times are n/a" in said.out and "finetune, obqa, seed 0" in said.out and "random" in said.out
    flat = " ".join(said.out.split())
    assert "obqa: 16 questions and 1 seed (these students only) find a difference of" in flat
    assert "20 points: these questions are too few for any number of seeds" in flat
    assert not (tmp_path / "runs").exists()


def test_json_holds_every_number(call: Call, small: list[Any]) -> None:
    said = call("plan", "--method", "finetune", "--task", "obqa", "--no-anchors", "--price", 2, "--json", *small)
    assert said.status == 0, said.err
    found = json.loads(said.out)
    (cell,) = found["cells"]
    assert cell["counts"]["exact"] and cell["counts"]["steps"] > 0 and cell["memory"] > 0
    assert cell["seconds"].keys() >= {"load", "steps", "looks", "predict"}
    total = found["totals"]
    assert total["seconds"] > 0 and total["usd_device"] == pytest.approx(2 * total["seconds"] / 3600)
    assert "probe 1 took" in said.err


def test_what_is_done_is_said(call: Call, small: list[Any]) -> None:
    words = ("--method", "finetune", "--task", "obqa", "--no-anchors", *small)
    assert call("run", *words).status == 0
    said = call("plan", *words, "--no-probe")
    assert "done already" in said.out and "1 cells, 1 done already: 0 student tokens" in said.out
    assert "finished runs (1) tell" in " ".join(said.out.split())


@pytest.mark.parametrize(
    ("words", "says"), [(("--detect", 0), "--detect 0: a difference"), (("--price", -1), "--price -1: US dollars")]
)
def test_wrong_options_are_one_line(words: tuple[Any, ...], says: str, call: Call, small: list[Any]) -> None:
    said = call("plan", "--method", "finetune", "--task", "obqa", *words, *small)
    assert said.status == 2 and says in said.err and "Traceback" not in said.err


def test_amounts_in_words() -> None:
    assert [duration(s) for s in (None, 12.4, 600, 9000)] == ["n/a", "12 s", "10 min", "2.5 h"]
    assert [size(b) for b in (0, 5_000_000, 2_500_000_000)] == ["-", "5 MB", "2.5 GB"]
    assert [money(usd) for usd in (0.0, 0.0123, 12.5)] == ["0.00 USD", "0.0123 USD", "12.50 USD"]


def test_teachers_texts_and_prices_have_lines_of_their_own() -> None:
    text = {
        "recorded": False,
        "kept": 3,
        "lacking": 9,
        "teacher": "other",
        "tokens_in": 900,
        "tokens_out": 90,
        "usd": 0.5,
    }
    counts = {"exact": False, "steps": 4, "tokens": 1000.4, "flops": 2e15}
    cell = {
        **{
            "label": "some method",
            "task": "obqa",
            "seed": 0,
            "trains_only": False,
            "is_done": False,
            "done": ("train",),
        },
        **{"counts": counts, "total_seconds": 61.0, "memory": 10**9, "disk": {"kept": 10**6}, "texts": [text]},
    }
    total = {
        **{"cells": 1, "done": 0, "student_tokens": 1000, "flops": 2e15, "seconds": 61.0, "start_seconds": 1.0},
        **{"memory": 1, "disk": 1, "disk_peak": 2, "teacher_tokens_in": 900, "teacher_tokens_out": 90},
        **{"usd_teachers": 0.5, "usd_device": None},
    }
    plan = {"preset": "p", "device": "d", "probe_seconds": 1.0, "cells": [cell], "totals": total, "detectable": []}
    said = plan_text(plan)
    assert "~4    ~1,000   2.000     61 s  1.0 GB    1 MB" in said
    assert "other: 3 texts kept, 9 to be written" in said and "~900 tokens in, ~90 out, 0.50 USD" in said
    assert "price: teachers 0.50 USD" in said and "done already: train" in said
