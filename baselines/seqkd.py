"""Sequence-level knowledge distillation: the student learns what the teacher writes, by plain cross-entropy.

Paper: Kim and Rush, arXiv:1606.07947 (there the teacher decodes by beam search); here, as in the released code of
MiniLLM (arXiv:2306.08543), one text per question is sampled at temperature 1. What that code's scripts call SeqKD adds
word-level KD on the same texts: that is `kd` with `method.kd.response=teacher`.
The teacher answers the student's own prompt, and sees no gold answer. Its tokenizer does not matter.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyllm_bench import (
    Annotation,
    Ask,
    Example,
    Method,
    MethodConfig,
    Needs,
    Step,
    TaskRecord,
    TeacherSignal,
    Term,
    annotations_for,
    channel_cross_entropy,
    choose_teacher,
    response_examples,
)

if TYPE_CHECKING:
    from tinyllm_bench import LM, Batch


class SeqkdConfig(MethodConfig):
    """Settings: teacher, if several are given."""

    teacher: str | None = None


class Seqkd(Method):
    """Learn what the teacher answers."""

    paper = "arXiv:1606.07947"
    Config = SeqkdConfig

    def needs(self) -> Needs:
        """The teacher's answers to the student's prompts."""
        return Needs(annotations=annotations_for("teacher"))

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The one teacher: the only one given, or `method.seqkd.teacher`."""
        return (choose_teacher("seqkd", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The teacher's answer; nothing where it gave none."""
        return response_examples(record, annotations, ask, "teacher")

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """Cross-entropy on the teacher's answer."""
        return [Term(channel, 1.0, total) for channel, total in channel_cross_entropy(batch, student).items()]


METHOD = Seqkd
