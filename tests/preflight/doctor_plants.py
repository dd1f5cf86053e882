"""A clean set-up for `doctor`: the task of another package, its data folder, its cells and a machine."""

import importlib
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.data.toy_release import rationale
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.plan_cells import plan_cells
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.preflight.dry_training import Speed
from tinyllm_bench.preflight.inspection import Machine

TASK = "toycheck"
SIZES = {"train": 60, "valid": 40, "test": 200}
MODULE = f"""
from tinyllm_bench.data.records import TaskInfo
from tinyllm_bench.data.rows import multiple_choice

def to_record(row, split):
    return multiple_choice(row, task="{TASK}", split=split, context=row.get("passage", ""))

TASK = TaskInfo(
    name="{TASK}", title="Toy", version=1, sizes={SIZES}, to_record=to_record, source="invented", licence="none",
    rationale_keys=("first", "second"),
)
"""
ENOUGH_BYTES = 2**40
Row = dict[str, Any]
Rows = dict[str, list[Row]]


@contextmanager
def installed(site: Path) -> Iterator[None]:
    """The task as an installed package: a module and its metadata on the import path."""
    (site / f"{TASK}_package.py").write_text(MODULE)
    info = site / f"{TASK}_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {TASK}-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent(f"""\
            [tinyllm_bench.tasks]
            {TASK} = {TASK}_package:TASK
        """)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        yield
    sys.modules.pop(f"{TASK}_package", None)


def rows() -> Rows:
    """Questions without any problem."""
    return {split: [_row(split, number) for number in range(size)] for split, size in SIZES.items()}


def _row(split: str, number: int) -> Row:
    choices = [f"{split} thing {number}{letter}" for letter in "xyz"]
    return {
        "id": number,
        "question": f"What is number {number} of {split}?",
        "choices": choices,
        "answer": choices[number % 3],
        "first": f"Step {number} of the reasoning rules out all of the others, so one is left.",
        "second": f"Reading it again in way {number} shows that only one of them can be meant.",
    }


def folder(place: Path, rows: Rows) -> Path:
    """A data folder in the release's layout."""
    (place / TASK / "llm").mkdir(parents=True)
    for split, split_rows in rows.items():
        (place / TASK / f"{TASK}_{split}.json").write_text(json.dumps(split_rows))
        texts = [rationale(row, row["first"], row["second"]) for row in split_rows]
        (place / TASK / "llm" / f"{split}_CoT_0.json").write_text(json.dumps(texts))
    return place


def speed(dtype: str) -> Speed:
    """100 GFLOP/s."""
    return Speed(matmul=1e11)


def machine(**changes: Any) -> Machine:
    """A machine with all that is needed."""
    defaults: Mapping[str, Any] = {
        "device": "cpu",
        "speed": speed,
        "free_memory": ENOUGH_BYTES,
        "free_disk": lambda place: ENOUGH_BYTES,
        "packages": {"torch": "2.13.0+cpu", "transformers": "5.19.0", "lm-eval": "0.4.13"},
        "requirements": {"tinyllm-bench": ("torch>=2.9", "transformers<5.20,>=5.16.1", "lm-eval[hf]==0.4.13")},
        "environment": {},
        "engines": {"hf": None, "vllm": None, "sandbox": None},
    }
    return Machine(**{**defaults, **changes})


def cells(data: Path, student: str, *settings: str, method: str = "tinyllm", **changes: Any) -> list[Cell]:
    """The planned cells of a request for the task; later settings win."""
    defaults = (
        f"student.model={student}",
        "teachers=[replay:release#first, replay:release#second]",
        "budget={student_tokens: null, epochs: 3}",
    )
    request = {"methods": (method,), "tasks": (TASK,), "preset": "cpu", "seeds": 3, "data_dir": str(data), **changes}
    return plan_cells(
        Request(assignments=(*defaults, *settings), **request), reference_baselines=True, check_hub=False
    )[1]
