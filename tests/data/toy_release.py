"""A tiny task of another package with a folder in the release's layout, installed the way a real package is."""

import json
import textwrap
from pathlib import Path

SIZES = {"train": 6, "valid": 2, "test": 3}
TASK = "toyquiz"
MODULE = """
from tinyllm_bench.data.records import TaskInfo
from tinyllm_bench.data.rows import multiple_choice

TASK = TaskInfo(
    name="toyquiz", title="Toy", version=1, sizes={"train": 6, "valid": 2, "test": 3},
    to_record=lambda row, split: multiple_choice(row, task="toyquiz", split=split),
    source="invented", licence="none", rationale_keys=("first", "second"), rebuild_train=True,
)
"""


def install(site: Path) -> None:
    """Write the package and the metadata that make `toyquiz` a task by entry point; `site` goes on the import path."""
    (site / "toyquiz_package.py").write_text(MODULE)
    info = site / "toyquiz_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toyquiz-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        textwrap.dedent("""\
            [tinyllm_bench.tasks]
            toyquiz = toyquiz_package:TASK
        """)
    )


def row(split: str, number: int) -> dict[str, object]:
    """A row whose texts carry stray white space, as some real ones do."""
    choices = [f"{split} thing {number}{letter} " for letter in "xyz"]
    return {"id": number, "question": f" What is number {number} of {split}? ", "choices": choices,
            "answer": choices[number % 3]}  # fmt: skip


def rationale(made_of: dict[str, object], first: str, second: str) -> str:
    """A string of the release's rationale files."""
    choices = [str(choice).strip() for choice in made_of["choices"]]  # type: ignore[attr-defined]
    gold = choices.index(str(made_of["answer"]).strip())
    options = "\n".join(f"({letter}) {choice}" for letter, choice in zip("abc", choices, strict=True))
    question = str(made_of["question"]).strip()
    return (
        f"{first} Thus, the answer is ({'abc'[gold]}) {choices[gold]}\n\nQ: {question}\nAnswer Choices:\n{options} "
        f"llama rationale: {second}"
    )


def write(folder: Path, *, lines: bool = False) -> Path:
    """A whole release folder of the toy task; `lines` writes JSON lines instead of arrays."""
    (folder / TASK / "llm").mkdir(parents=True)
    for split, size in SIZES.items():
        rows = [row(split, number) for number in range(size)]
        text = "\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows, indent=4)
        (folder / TASK / f"{TASK}_{split}.json").write_text(text)
        strings = [rationale(r, f"One {split} {i}.", "" if i == 1 else f" Two {i}") for i, r in enumerate(rows)]
        (folder / TASK / "llm" / f"{split}_CoT_0.json").write_text(json.dumps(strings))
    return folder
