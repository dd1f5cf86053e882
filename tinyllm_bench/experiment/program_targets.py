"""Programs as targets of a student whose tokenizer may lose a part of them: T5's has no newline and no braces."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tinyllm_bench.answers.codec import missing_characters, round_trip_failure
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Annotation
from tinyllm_bench.experiment.verified_texts import layout_of
from tinyllm_bench.models.load import Loaded

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell


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
