"""Which of a teacher's rationales and programs lead to the right answer: those that a method of paths may learn.

A program is brought into its canonical form and run in the sandbox. A rationale is read by the answer parser; where the
teacher saw the gold answer there is nothing to check. Each rejection has a named reason that the record counts. A
student's tokenizer may lose a part of a program (T5's has no newline and no braces): `fit_programs` sees to that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinyllm_bench.answers.codec import Layout, encode_program, missing_characters, round_trip_failure
from tinyllm_bench.answers.keys import answer_of, inputs_for, question_kind
from tinyllm_bench.answers.programs import Prepared
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import LETTERS
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.evaluation.sampled_answers import gold_answer_key, parse_key
from tinyllm_bench.models.load import Loaded, is_encoder_decoder

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell

# With two options half of all nonsense programs are right: there a program must agree with the teacher's own text.
AGREE_BELOW = 3


def learns_paths(cell: "Cell") -> bool:
    """Whether the cell's method answers by paths, so that only right ones may be learned."""
    return cell.method is not None and cell.method.decoding().policy is not None


def layout_of(cell: "Cell") -> Layout | None:
    """How programs are written for the cell's student: on one line for T5, whose tokenizer loses newlines."""
    return Layout() if is_encoder_decoder(cell.student, runs=cell.runs) else None


def verified(cell: "Cell", annotations: Sequence[Annotation]) -> list[Annotation]:
    """Annotations with the wrong ones rejected and the right ones as targets; those of other methods as they are.

    Raises:
        UserError: there are programs and the sandbox cannot run them.
    """
    if not learns_paths(cell):
        return list(annotations)
    records = {record.id: record for record in cell.records("train")}
    programs = [a for a in annotations if a.kind == "program" and a.rejected is None]
    done = _programs(programs, records, layout_of(cell)) if programs else {}
    found = [
        done[id(a)] if id(a) in done else _rationale(a, records[a.record_id]) if a.kind == "rationale" else a
        for a in annotations
    ]
    return _agreeing(found, records)


def _rationale(said: Annotation, record: TaskRecord) -> Annotation:
    if said.rejected is not None:
        return said
    reason = None if said.gold_visible else _wrong(said, record)
    return replace(said, rejected=reason) if reason else replace(said, text=rationale_target(said.text, record))


def _wrong(said: Annotation, record: TaskRecord) -> str | None:
    """What a live teacher named is known; of recorded text it is read."""
    key = parse_key(said.answer if said.answer is not None else said.text, record)
    if key is None:
        return "no_answer"
    return None if key == gold_answer_key(record) else "wrong_answer"


def rationale_target(text: str, record: TaskRecord) -> str:
    """A rationale in one line that ends in `The answer is X.`: a letter in brackets, or the number."""
    line = " ".join(text.split())
    head, found, tail = line.rpartition("The answer is ")
    line = head.strip() if found and ". " not in tail else line  # what stands behind the answer is kept
    said = f"({LETTERS[record.answer]})" if record.choices else record.gold_text
    stop = "" if not line or line.endswith((".", "!", "?")) else "."
    return f"{line}{stop} The answer is {said}.".strip()


def _programs(
    said: Sequence[Annotation], records: Mapping[str, TaskRecord], layout: Layout | None
) -> dict[int, Annotation]:
    """By identity of the annotation, so that several programs of one question stay apart."""
    with Sandbox() as sandbox:
        prepared = sandbox.prepare([a.text for a in said])
        able = [(a, one) for a, one in zip(said, prepared, strict=True) if one.code is not None]
        inputs = [inputs_for(records[a.record_id].choices) for a, _ in able]
        results = sandbox.map([one.code or "" for _, one in able], inputs)
    found = {id(a): replace(a, rejected=one.reason) for a, one in zip(said, prepared, strict=True) if one.code is None}
    for (a, one), result in zip(able, results, strict=True):
        record = records[a.record_id]
        key = answer_of(result, record.choices)
        reason = key.reason or ("wrong_answer" if key.key != gold_answer_key(record) else _degenerate(one, record))
        found[id(a)] = replace(a, rejected=reason) if reason else replace(a, text=encode_program(one, layout))
    return found


def _degenerate(program: Prepared, record: TaskRecord) -> str | None:
    """A label with boilerplate is no program; a number that is computed from constants is."""
    return "degenerate" if program.degenerate and question_kind(record.choices) != "number" else None


def _agreeing(found: Sequence[Annotation], records: Mapping[str, TaskRecord]) -> list[Annotation]:
    """On questions with two options, programs of teachers who gave no right text of their own are rejected too."""
    right = {(a.teacher, a.record_id) for a in found if a.kind == "rationale" and a.rejected is None}

    def doubtful(a: Annotation) -> bool:
        few = 0 < len(records[a.record_id].choices) < AGREE_BELOW
        return few and a.kind == "program" and a.rejected is None and (a.teacher, a.record_id) not in right

    return [replace(a, rejected="disagrees") if doubtful(a) else a for a in found]


# --- programs as targets ----------------------------------------------------------------------------------------------


def fit_programs(cell: "Cell", loaded: Loaded, annotations: Sequence[Annotation]) -> tuple[list[Annotation], int]:
    """Annotations whose programs all come back from the student's tokenizer as they went in, and how many did not.

    What an encoder-decoder's tokenizer lacks (layout, characters) is added to it first; a program that is still lost is
    rejected as `not_encodable`.
    """
    layout = layout_of(cell)
    programs = [a for a in annotations if a.kind == "program" and a.rejected is None]
    if programs and layout is not None:
        known = [*layout.tokens, *missing_characters(loaded.tokenizer, [a.text for a in programs])]
        _check_lora(cell, loaded, known)
        _grow(loaded, known)
    lost = {id(a) for a in programs if round_trip_failure(loaded.tokenizer, a.text, layout) is not None}
    return [replace(a, rejected="not_encodable") if id(a) in lost else a for a in annotations], len(lost)


def _check_lora(cell: "Cell", loaded: Loaded, tokens: Sequence[str]) -> None:
    """Refuse adapters where tokens must be added: their rows would never be trained."""
    new = sorted(set(tokens) - set(loaded.tokenizer.get_vocab()))
    if cell.config.student.lora is not None and new:
        raise UserError(
            f"student.lora: programs need {len(new)} tokens that {cell.student.text} lacks, and adapters do not train "
            "these; set student.lora=null, or take a decoder-only student"
        )


def _grow(loaded: Loaded, tokens: Sequence[str]) -> None:
    """Add tokens, and rows for them where the model has none to spare; new rows start as the mean of the others."""
    loaded.tokenizer.add_tokens([token for token in tokens if token not in loaded.tokenizer.get_vocab()])
    model: Any = loaded.model
    rows = model.get_input_embeddings().weight.shape[0]
    if len(loaded.tokenizer) > rows:
        model.resize_token_embeddings(len(loaded.tokenizer), mean_resizing=True)
