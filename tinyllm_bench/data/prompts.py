"""The prompts of students: ONE function for training and for evaluation.

marker style (default):  context + marker, e.g. "Question: ...\nAnswer:" ; channels of one question share the context
paper style (TinyLLM):   marker + context, e.g. "predict: ...", "explain: ..."
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tinyllm_bench.data.records import Example, ScoringMode, TaskRecord

LABEL = "label"
PLAIN = "plain"  # text that belongs to no question
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def rationale_channel(teacher: str) -> str:
    """The channel that imitates one teacher's rationales."""
    return f"rationale:{teacher}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The prompt format of questions.

    `mode` decides the form of the label channel; other channels show the options unless `rationale_context` is
    `question` (the released rationales were written with the options in view). `markers` replaces the marker of a
    channel by name. `delimiter` separates the prompt from the target.
    """

    mode: ScoringMode
    style: Literal["marker", "paper"] = "marker"
    rationale_context: Literal["options", "question"] = "options"
    markers: Mapping[str, str] = field(default_factory=dict)
    delimiter: str = " "

    def context(self, record: TaskRecord, channel: str = LABEL) -> str:
        """The part of the prompt with the question, without the channel's marker.

        A question that asks for a number has no options: its form is that of `cloze` in every mode and channel.
        """
        without_options = self.mode == "cloze" if channel == LABEL else self.rationale_context == "question"
        passage = f"{record.context}\n" if record.context else ""
        if without_options or not record.choices:
            return f"{passage}Question: {record.question}"
        options = "\n".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(record.choices))
        return f"{passage}{record.question}\nAnswer Choices:\n{options}"

    def marker(self, channel: str = LABEL) -> str:
        """The text that selects the channel; it follows the context, or precedes it in the paper's style."""
        if channel in self.markers:
            return self.markers[channel]
        kind, _, teacher = channel.partition(":")
        if self.style == "paper":
            return "predict: " if channel == LABEL else f"explain {teacher}: " if teacher else f"{kind}: "
        return "\nAnswer:" if channel == LABEL else f"\n{kind.capitalize()} ({teacher}):" if teacher else f"\n{kind}:"

    def options(self, record: TaskRecord) -> tuple[str, ...]:
        """The options to rank by probability: letters in `multiple_choice`, else answer texts; empty for numbers."""
        if self.mode == "multiple_choice":
            return tuple(LETTERS[: len(record.choices)])
        return record.choices

    def label_target(self, record: TaskRecord) -> str:
        """The target of the label channel: the answer's text, its letter in `multiple_choice`, or a number."""
        return self.options(record)[record.answer] if record.choices else record.gold_text

    def example(self, record: TaskRecord, channel: str, target: str, *, ends: bool = True) -> Example:
        """One example of a channel for a record; `ends=not annotation.is_cut` for a teacher's text."""
        return Example(
            record_id=record.id,
            channel=channel,
            context=self.context(record, channel),
            marker=self.marker(channel),
            target=target,
            ends=ends,
        )

    def prompt(self, record: TaskRecord, channel: str = LABEL) -> str:
        """The whole prompt, in evaluation and in training."""
        return self.join(self.context(record, channel), self.marker(channel))

    def join(self, context: str, marker: str) -> str:
        """Context and marker in the style's order."""
        return context + marker if self.style == "marker" else marker + context
