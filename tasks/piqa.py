"""PIQA: a goal of everyday life and two ways to reach it, of which one works.

A row of the release (invented here, in its form; ids are whole numbers and a choice may end in white space):

    {"id": 0, "question": "To keep paint from drying in the can,", "choices": ["press the lid on tightly. ",
     "leave the lid beside the can. "], "answer": "press the lid on tightly. "}

Source: Bisk et al., "PIQA: Reasoning about Physical Commonsense in Natural Language", AAAI 2020; the official
training set, and the official development set cut in two (919 / 919) because the test labels are not public. The ids of
valid and test are positions in that development set, so they also occur in train: a record's id names its split.
Where `piqa_train.json` is missing, it is rebuilt from the rationale files, which embed every question.
Licence: unclear (copies say AFL-3.0 and CC BY-SA 4.0, the authors none); research use, commit no row.
The release holds the rationales of one teacher only.
"""

from collections.abc import Mapping
from typing import Any

from tinyllm_bench import HubSource, Split, TaskInfo, TaskRecord, UserError, multiple_choice

NAME = "piqa"


def to_record(row: Mapping[str, Any], split: Split) -> TaskRecord:
    """The record of a row of the release."""
    return multiple_choice(row, task=NAME, split=split)


def from_hub(row: Mapping[str, Any], index: int, hub_split: str) -> Mapping[str, Any]:
    """The release's row of a hub row `{goal, sol1, sol2, label}`, whose id is its position."""
    choices = [row["sol1"], row["sol2"]]
    if row["label"] not in (0, 1, "0", "1"):  # hidden labels are -1, which would be the last choice
        raise UserError(f"label {row['label']!r} is neither 0 nor 1")
    return {"id": index, "question": row["goal"], "choices": choices, "answer": choices[int(row["label"])]}


TASK = TaskInfo(
    name=NAME,
    title="PIQA",
    version=1,
    sizes={"train": 16113, "valid": 919, "test": 919},
    to_record=to_record,
    source="Bisk et al. 2020, arXiv:1911.11641; official train, official development set cut in two",
    licence="unclear: AFL-3.0 or CC BY-SA 4.0 according to copies; research use",
    rationale_keys=("flan-t5-xl",),
    # The revision that public evaluation projects pin; not run against the real hub.
    hub=HubSource(
        path="baber/piqa",
        revision="142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
        config=None,
        splits=("train", "validation", "validation"),
        to_row=from_hub,
    ),
    rebuild_train=True,
)
