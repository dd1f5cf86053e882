"""OpenBookQA: elementary science questions that need a fact and common sense; four options.

A row of the release (invented here, in its form; the file has one JSON object a line):

    {"id": "7-000", "question": "A pond is most likely to freeze over in", "choices": ["July", "a heat wave", "January",
     "a drought"], "answer": "January"}

Source: Mihaylov et al., "Can a Suit of Armor Conduct Electricity?", EMNLP 2018; the official splits.
Licence: the project's repository says Apache-2.0, the hub's card says unknown; commit no row.
Three training rows hold two equal wrong options; 23 test questions are also in train, 14 of them with equal options.
"""

from collections.abc import Mapping
from typing import Any

from tinyllm_bench import HubSource, Split, TaskInfo, TaskRecord, multiple_choice

NAME = "obqa"


def to_record(row: Mapping[str, Any], split: Split) -> TaskRecord:
    """The record of a row of the release."""
    return multiple_choice(row, task=NAME, split=split)


def from_hub(row: Mapping[str, Any], index: int, hub_split: str) -> Mapping[str, Any]:
    """The release's row of a hub row `{id, question_stem, choices: {text, label}, answerKey}`."""
    choices = row["choices"]["text"]
    answer = choices[row["choices"]["label"].index(row["answerKey"].strip())]
    return {"id": row["id"], "question": row["question_stem"], "choices": choices, "answer": answer}


TASK = TaskInfo(
    name=NAME,
    title="OpenBookQA",
    version=1,
    sizes={"train": 4957, "valid": 500, "test": 500},
    to_record=to_record,
    source="Mihaylov et al. 2018, arXiv:1809.02789; official splits",
    licence="Apache-2.0 (authors' repository); the hub's card says unknown",
    rationale_keys=("flan-t5-xl", "llama-2-7b"),
    # The revision that public evaluation projects pin; not run against the real hub.
    hub=HubSource(
        path="allenai/openbookqa",
        revision="388097ea7776314e93a529163e0fea805b8a6454",
        config="main",
        splits=("train", "validation", "test"),
        to_row=from_hub,
    ),
)
