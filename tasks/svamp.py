"""SVAMP: short arithmetic word problems, varied so that surface patterns mislead.

A row of the task's file (invented here, in its form), with the texts of two teachers:

    {"id": "chal-0", "split": "train", "question": "Ada had 9 pens and gave 4 away. How many pens does she have now?",
     "gold": 5.0, "equation": "( 9.0 - 4.0 )", "type": "Subtraction",
     "gpt-3.5-turbo": {"cot": "Ada had 9 pens. 9 - 4 = 5. The answer is 5.", "pot": "answer = 9 - 4", ...},
     "gpt4": {"cot": "...", "pot": "...", ...}}

The answer is a number. The 800 / 200 split is that of Distilling Step-by-Step (arXiv:2305.02301), which the row names;
`valid` is the 80 of those 800 rows whose ids have the lowest SHA-256, `train` the other 720. The rationale is the
teacher's text as it was written: it names the teacher's own answer, right or wrong. Neither teacher saw the gold.

Source: Patel et al., "Are NLP Models really able to Solve Simple Math Word Problems?", 2021 (SVAMP.json); texts of
gpt-3.5-turbo and gpt-4 from Faithful-COT (Lyu et al. 2023), which were written for its evaluation.
Licence: MIT, the questions and the teachers' texts alike.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tinyllm_bench import FileSource, Recorded, Split, TaskInfo, TaskRecord, lowest_hashes, word_problem

NAME = "svamp"
TEACHERS = ("gpt-3.5-turbo", "gpt4")
VALID = 80


def to_record(row: Mapping[str, Any], split: Split) -> TaskRecord:
    """The record of a row of the file."""
    return word_problem(row, task=NAME, split=split)


def splits_of(rows: Sequence[Mapping[str, Any]]) -> list[Split]:
    """The split of every row: `test` as the row says, the rest cut in two by the hash of the id."""
    valid = set(lowest_hashes(row["id"] for row in rows if row["split"] == "train")[:VALID])
    return [row["split"] if row["split"] != "train" else "valid" if row["id"] in valid else "train" for row in rows]


def text_of(row: Mapping[str, Any], kind: Recorded, key: str) -> str | None:
    """A teacher's chain of thought or program, as it was written."""
    text: str | None = row[key]["cot" if kind == "rationale" else "pot"]
    return text


TASK = TaskInfo(
    name=NAME,
    title="SVAMP word problems",
    version=1,
    sizes={"train": 720, "valid": 80, "test": 200},
    to_record=to_record,
    source="Patel et al. 2021, arXiv:2103.07191; the split of Distilling Step-by-Step, 80 of its 800 for valid",
    licence="MIT",
    scoring_modes=("generate",),
    rationale_keys=TEACHERS,
    program_keys=TEACHERS,
    blind_keys=TEACHERS,
    file=FileSource(path="mixed_distillation/svamp_gpt35_gpt4.jsonl", splits_of=splits_of, text_of=text_of),
    suite="native",
)
