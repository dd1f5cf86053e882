"""ARC-Challenge: grade-school science questions that simple retrieval gets wrong; the rows with four options.

A row of the release (invented here, in its form):

    {"id": "Example_SC_000000", "question": "Which tool measures the mass of a rock?", "choices": ["a balance",
     "a ruler", "a thermometer", "a stopwatch"], "answer": "a balance"}

Source: Clark et al., "Think you have Solved Question Answering? Try ARC", 2018; official splits without the rows that
have three or five options (1,119 / 299 / 1,172 become 1,117 / 295 / 1,165).
Licence: CC BY-SA 4.0.
"""

from collections.abc import Mapping
from typing import Any

from tinyllm_bench import HubSource, Split, TaskInfo, TaskRecord, multiple_choice

NAME = "arc"


def to_record(row: Mapping[str, Any], split: Split) -> TaskRecord:
    """The record of a row of the release."""
    return multiple_choice(row, task=NAME, split=split)


def from_hub(row: Mapping[str, Any], index: int, hub_split: str) -> Mapping[str, Any]:
    """The release's row of a hub row `{id, question, choices: {text, label}, answerKey}`; labels are A.. or 1.. ."""
    choices = row["choices"]["text"]
    answer = choices[row["choices"]["label"].index(row["answerKey"])]
    return {"id": row["id"], "question": row["question"], "choices": choices, "answer": answer}


TASK = TaskInfo(
    name=NAME,
    title="ARC-Challenge, four-option rows",
    version=1,
    sizes={"train": 1117, "valid": 295, "test": 1165},
    to_record=to_record,
    source="Clark et al. 2018, arXiv:1803.05457; official splits, four-option rows",
    licence="CC BY-SA 4.0",
    rationale_keys=("flan-t5-xl", "llama-2-7b"),
    # The revision that public evaluation projects pin; not run against the real hub.
    hub=HubSource(
        path="allenai/ai2_arc",
        revision="210d026faf9955653af8916fad021475a3f00453",
        config="ARC-Challenge",
        splits=("train", "validation", "test"),
        to_row=from_hub,
    ),
)
