"""GSM8K: grade-school word problems of two to eight steps. Its public TRAINING set only, cut in three.

`test` here is a held-out part of the training set, NOT the official test set: numbers measured on it are not
comparable with published ones.

A row of the task's file (invented here, in its form):

    {"id": "gsm8k-train-0", "split": "train", "question": "A box holds 6 eggs. Bo buys 3 boxes and breaks 2 eggs. How
     many whole eggs are left?", "gold": 16.0, "cot": "Bo buys 6*3 = 18 eggs.\\n18-2 = 16 are whole.\\nThe answer is
     16.", "pot": "eggs = 6*3\\nanswer = eggs-2", "pot_source": "derived from gold calculator annotations"}

The answer is a number. By rising SHA-256 of the id, the first 500 rows are `test`, the next 500 `valid`, the other
6,473 `train`. The rationale (`human`) is the solution that the set's authors collected, without the calculator marks.
The program comes from those marks mechanically, no teacher wrote it; a row without one gives no text.

Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021 (train.jsonl).
Licence: MIT.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tinyllm_bench import FileSource, Recorded, Split, TaskInfo, TaskRecord, lowest_hashes, word_problem

NAME = "gsm8k"
TEST, VALID = 500, 500


def to_record(row: Mapping[str, Any], split: Split) -> TaskRecord:
    """The record of a row of the file."""
    return word_problem(row, task=NAME, split=split)


def splits_of(rows: Sequence[Mapping[str, Any]]) -> list[Split]:
    """The split of every row, by the hash of its id: the field `split` of the file says `train` everywhere."""
    order = lowest_hashes(row["id"] for row in rows)
    test, valid = set(order[:TEST]), set(order[TEST : TEST + VALID])
    return ["test" if row["id"] in test else "valid" if row["id"] in valid else "train" for row in rows]


def text_of(row: Mapping[str, Any], kind: Recorded, _key: str) -> str | None:
    """The human solution, or the program that was derived from its calculator marks."""
    text: str | None = row["cot" if kind == "rationale" else "pot"]
    return text


TASK = TaskInfo(
    name=NAME,
    title="GSM8K word problems, a part of the training set held out",
    version=1,
    sizes={"train": 6473, "valid": 500, "test": 500},
    to_record=to_record,
    source="Cobbe et al. 2021, arXiv:2110.14168; a part of the TRAINING set held out, not the official test set",
    licence="MIT",
    scoring_modes=("generate",),
    rationale_keys=("human",),
    program_keys=("human",),
    file=FileSource(
        path="mixed_distillation/gsm8k_train_gold_cot_derived_pot.jsonl", splits_of=splits_of, text_of=text_of
    ),
    suite="native",
)
