"""What methods that learn from distributions imitate: a response to the question, in the label's channel.

`answer` is the gold answer as the task's reading asks for it. `rationale` is a teacher's rationale and the gold answer
in one line, to be read in `gen`: "... The answer is X." `teacher` is what the teacher itself answers to the student's
prompt, as in sequence-level distillation: the text as it was written, without an end where the teacher's limit cut it.
"""

from collections.abc import Sequence
from typing import Literal

from tinyllm_bench.data.prompts import LABEL, Ask
from tinyllm_bench.data.records import READINGS, Annotation, Example, Reading, TaskRecord

Response = Literal["answer", "rationale", "teacher"]
AnnotationKind = Literal["rationale", "program", "response"]


def annotations_for(response: Response) -> frozenset[AnnotationKind]:
    """The kinds of teacher text that a response is made of."""
    kinds: dict[Response, frozenset[AnnotationKind]] = {
        "answer": frozenset(),
        "rationale": frozenset({"rationale"}),
        "teacher": frozenset({"response"}),
    }
    return kinds[response]


def readings_for(response: Response) -> tuple[Reading, ...]:
    """How a student that writes such responses can be asked: a rationale is text, not an option to be ranked."""
    return ("gen",) if response == "rationale" else READINGS


def response_examples(
    record: TaskRecord, annotations: Sequence[Annotation], ask: Ask, response: Response
) -> list[Example]:
    """The response to a question as one example; none where the teacher gave no usable text."""
    if response == "answer":
        return [ask.example(record, LABEL, ask.label_target(record))]
    said = annotations[0] if annotations else None
    if said is None or not said.text.strip():
        return []
    if response == "teacher":
        return [ask.example(record, LABEL, said.text.strip(), ends=not said.is_cut)]
    line = " ".join(said.text.split())  # an answer among choices is read from the first line alone
    stop = "" if line.endswith((".", "!", "?")) else "."
    return [ask.example(record, LABEL, f"{line}{stop} The answer is {ask.label_target(record)}.")]
