"""Sequence-level knowledge distillation: the student is trained on the teacher's answers with plain cross-entropy.

Paper: Kim and Rush, arXiv:1606.07947, where the teacher decodes by beam search. Here, as in the released code of
MiniLLM (arXiv:2306.08543), one text per question is sampled at temperature 1. What that code's scripts call SeqKD adds
word-level KD on the same texts: that is `kd` with `method.kd.response=teacher`.
The teacher answers the student's own prompt and does not see the gold answer. It may have any tokenizer.
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
    """Train on the teacher's answers."""

    paper = "arXiv:1606.07947"
    Config = SeqkdConfig

    def needs(self) -> Needs:
        """The teacher's answers to the student's prompts."""
        return Needs(annotations=annotations_for("teacher"))

    def uses(self, teachers: Sequence[str]) -> tuple[str, ...]:
        """The only teacher given, or `method.seqkd.teacher`."""
        return (choose_teacher("seqkd", self.config.teacher, teachers),)

    def examples(self, record: TaskRecord, annotations: Sequence[Annotation], ask: Ask) -> list[Example]:
        """The teacher's answer, if there is a usable one."""
        return response_examples(record, annotations, ask, "teacher")

    def loss(self, batch: "Batch", student: "LM", teacher: TeacherSignal | None, step: Step) -> list[Term]:
        """Cross-entropy on the teacher's answer."""
        return [Term(channel, 1.0, total) for channel, total in channel_cross_entropy(batch, student).items()]


METHOD = Seqkd
