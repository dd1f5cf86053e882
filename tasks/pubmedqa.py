"""PubMedQA-L: a research question, the abstract without its conclusion, and yes, no or maybe.

A row of the release (invented here, in its form; the parts of the abstract and then the question, joined by " \\n "):

    {"id": "00000000", "question": "Forty nurses slept at noon. \\n Errors fell by half. \\n Do naps help nurses?",
     "choices": ["yes", "no", "maybe"], "answer": "yes"}

The last part is the record's question, the earlier parts are its context, in one line with single spaces.

Source: Jin et al., "PubMedQA: A Dataset for Biomedical Research Question Answering", EMNLP 2019; the 1,000 labelled
rows in the release's own split (500 / 100 / 400), so its numbers do not compare with the public leaderboard.
Licence: MIT (the texts of the abstracts stay their owners').
"""

from collections.abc import Mapping
from typing import Any

from tinyllm_bench import (
    PASSAGE_BREAK,
    HubSource,
    Split,
    TaskInfo,
    TaskRecord,
    UserError,
    multiple_choice,
    split_passages,
    text_field,
)

NAME = "pubmedqa"
CHOICES = ("yes", "no", "maybe")


def to_record(row: Mapping[str, Any], split: Split) -> TaskRecord:
    """The record of a row of the release: passages and question apart."""
    context, question = split_passages(text_field(row, "question"))
    return multiple_choice(row, task=NAME, split=split, question=question, context=context)


def from_hub(row: Mapping[str, Any], index: int, hub_split: str) -> Mapping[str, Any]:
    """The release's row of a hub row `{pubid, question, context: {contexts, ...}, final_decision}`."""
    contexts = row["context"]["contexts"]
    if isinstance(contexts, str):
        raise UserError("field 'contexts' is text, not a list of passages")
    text = PASSAGE_BREAK.join([*contexts, row["question"]])
    return {"id": row["pubid"], "question": text, "choices": CHOICES, "answer": row["final_decision"]}


TASK = TaskInfo(
    name=NAME,
    title="PubMedQA-L, re-split",
    version=1,
    sizes={"train": 500, "valid": 100, "test": 400},
    to_record=to_record,
    source="Jin et al. 2019, arXiv:1909.06146; the 1,000 labelled rows in the release's split",
    licence="MIT (abstracts: their owners')",
    rationale_keys=("flan-t5-xl", "llama-2-7b"),
    # The revision that public evaluation projects pin; not run against the real hub.
    hub=HubSource(
        path="qiaojin/PubMedQA",
        revision="9001f2853fb87cab8d220904e0de81ac6973b318",
        config="pqa_labeled",
        splits=("train", "train", "train"),
        to_row=from_hub,
    ),
)
