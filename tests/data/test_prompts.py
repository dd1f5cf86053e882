"""Golden prompts: what a student reads, to the letter. A change here is a new task version, not an edit."""

from dataclasses import replace
from typing import Any

import pytest

from tinyllm_bench.data.prompts import LABEL, Ask, rationale_channel
from tinyllm_bench.data.records import TaskRecord, cut_context

RECORD = TaskRecord(
    id="t/test/1",
    task="t",
    split="test",
    question="Is ice colder than steam?",
    choices=("yes", "no"),
    answer=0,
    context="Steam is hot. Ice is not.",
)
OPTIONS = "Steam is hot. Ice is not.\nIs ice colder than steam?\nAnswer Choices:\n(a) yes\n(b) no"


@pytest.mark.parametrize(
    ("mode", "prompt", "target", "options"),
    [
        ("generate", f"{OPTIONS}\nAnswer:", "yes", ("yes", "no")),
        ("multiple_choice", f"{OPTIONS}\nAnswer:", "a", ("a", "b")),
        ("cloze", "Steam is hot. Ice is not.\nQuestion: Is ice colder than steam?\nAnswer:", "yes", ("yes", "no")),
    ],
)
def test_label_prompts(mode: Any, prompt: str, target: str, options: tuple[str, ...]) -> None:
    ask = Ask(mode=mode)
    assert (ask.prompt(RECORD), ask.label_target(RECORD), ask.options(RECORD)) == (prompt, target, options)


def test_rationale_channels_keep_the_options_in_view_by_default() -> None:
    channel = rationale_channel("big")
    assert Ask(mode="cloze").prompt(RECORD, channel) == f"{OPTIONS}\nRationale (big):"
    hidden = Ask(mode="cloze", rationale_context="question")
    assert hidden.context(RECORD, channel) == hidden.context(RECORD, LABEL)


def test_the_paper_s_style() -> None:
    ask = Ask(mode="generate", style="paper", markers={rationale_channel("big"): "rationale: "})
    assert ask.prompt(RECORD) == f"predict: {OPTIONS}"
    assert ask.prompt(RECORD, rationale_channel("big")) == f"rationale: {OPTIONS}"
    assert ask.prompt(RECORD, rationale_channel("other")).startswith("explain other: ")


def test_without_a_context_the_question_stands_first() -> None:
    bare = replace(RECORD, context="")
    assert Ask(mode="cloze").prompt(bare) == "Question: Is ice colder than steam?\nAnswer:"


def test_only_the_context_is_cut_and_from_its_start() -> None:
    assert cut_context(RECORD, 3).context == "Ice is not."
    assert cut_context(RECORD, 3).question == RECORD.question
    assert cut_context(RECORD, 0).context == ""
    assert cut_context(RECORD, 6) is RECORD
