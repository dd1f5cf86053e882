"""RiddleSense: riddles in everyday English; five options.

A row of the release (invented here, in its form):

    {"id": "aaaa0000-1", "question": "I have hands but cannot clap. What am I?", "choices": ["clock", "drummer", "tree",
     "glove", "crowd"], "answer": "clock"}

Source: Lin et al., "RiddleSense: Reasoning about Riddle Questions", Findings of ACL 2021; the official training set,
and the official development set cut in two (511 / 510) because the test labels are not public.
Licence: non-commercial, given out on request, no redistribution: never fetched, use the release folder.
"""

from collections.abc import Mapping
from typing import Any

from tinyllm_bench import Split, TaskInfo, TaskRecord, multiple_choice

NAME = "riddle"


def to_record(row: Mapping[str, Any], split: Split) -> TaskRecord:
    """The record of a row of the release."""
    return multiple_choice(row, task=NAME, split=split)


TASK = TaskInfo(
    name=NAME,
    title="RiddleSense",
    version=1,
    sizes={"train": 3510, "valid": 511, "test": 510},
    to_record=to_record,
    source="Lin et al. 2021, arXiv:2101.00376; official train, official development set cut in two",
    licence="non-commercial, no redistribution",
    rationale_keys=("flan-t5-xl", "llama-2-7b"),
)
