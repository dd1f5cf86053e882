"""BioASQ: yes/no questions of biomedical experts, with the snippets that they found.

A row of the release (invented here, in its form; the snippets and then the question, joined by " \\n "):

    {"id": "000000000000000000000000", "question": "Zinc is an essential trace element. \\n Is zinc essential?",
     "choices": ["yes", "no"], "answer": "yes"}

The last part is the record's question, the earlier parts are its context, in one line with single spaces; the longest
contexts have some 3,500 words.

Source: Tsatsaronis et al. 2015, "An overview of the BIOASQ large-scale biomedical semantic indexing and question
answering competition"; the yes/no questions with gold snippets in the release's split (976 / 109 / 123).
Licence: registration at bioasq.org and the terms of the NLM, no redistribution: never fetched, use the
release folder.
"""

from collections.abc import Mapping
from typing import Any

from tinyllm_bench import Split, TaskInfo, TaskRecord, multiple_choice, split_passages, text_field

NAME = "bioasq"


def to_record(row: Mapping[str, Any], split: Split) -> TaskRecord:
    """The record of a row of the release: passages and question apart."""
    context, question = split_passages(text_field(row, "question"))
    return multiple_choice(row, task=NAME, split=split, question=question, context=context)


TASK = TaskInfo(
    name=NAME,
    title="BioASQ yes/no with snippets",
    version=1,
    sizes={"train": 976, "valid": 109, "test": 123},
    to_record=to_record,
    source="Tsatsaronis et al. 2015 (bioasq.org, task b); yes/no questions in the release's split",
    licence="registration, NLM terms, no redistribution",
    rationale_keys=("flan-t5-xl", "llama-2-7b"),
)
