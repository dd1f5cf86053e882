"""A cell's models without weights: their shapes, and a small random model of the same kind that can be run."""

from dataclasses import replace
from typing import Any

from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded, spec_folder
from tinyllm_bench.models.shape import load_shape
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.training.batching import Collator, collator_of
from tinyllm_bench.training.layout import Layout
from tinyllm_bench.training.sharing import choose_layout

_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
_SMALL_VOCABULARY = 64


def as_it_can_be_read(cell: Cell) -> Cell:
    """The cell with models that are there: one that an earlier cell still has to make is as large as its first."""
    student, signal = cell.student, cell.signal
    if cell.student_from is not None and not _is_made(cell, student):
        student = as_it_can_be_read(cell.student_from).student
    if cell.teacher_from is not None and signal is not None and not _is_made(cell, signal):
        signal = as_it_can_be_read(cell.teacher_from).student
    return replace(cell, student=student, signal=signal)


def _is_made(cell: Cell, spec: ModelSpec) -> bool:
    folder = spec_folder(spec, runs=cell.runs)
    return folder is None or (folder / "config.json").is_file()


def shape_of(cell: Cell) -> Loaded:
    """The student's shape and its tokenizer."""
    return load_shape(cell.student, dtype=cell.config.student.dtype, runs=cell.runs)


def teacher_shape(cell: Cell) -> Loaded | None:
    """The white-box teacher's shape, where the cell has one in memory."""
    if cell.signal is None:
        return None
    return load_shape(cell.signal, dtype=cell.config.teacher.dtype, runs=cell.runs)


def small_copy(model: Any, layers: int = 1) -> Any:
    """A random model of the same kind and width with few layers and a small vocabulary, on the CPU, in float32."""
    import copy

    import torch

    config = copy.deepcopy(model.config)
    for key in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if getattr(config, key, None) is not None:
            setattr(config, key, layers)
    for key in _PER_LAYER:
        if getattr(config, key, None) is not None:
            setattr(config, key, list(getattr(config, key))[:layers])
    config.vocab_size = _SMALL_VOCABULARY
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if getattr(config, key, None) is not None:
            setattr(config, key, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(model)._from_config(config, dtype=torch.float32).eval()


def collator_without_weights(cell: Cell, lm: LM, loaded: Loaded, teacher: Loaded | None) -> Collator:
    """The collator in the layout that training will choose, tried on small copies of the models."""
    collator = collator_of(loaded.model, loaded.tokenizer)
    draws = cell.method is not None and cell.method.rolls  # and is trained without dropout
    layout = _layout(cell, lm.plain, collator, training=not draws)
    if teacher is not None and layout == "shared" and cell.config.teacher.cache is None and _reads_ids(cell):
        layout = _layout(cell, teacher.model, collator, training=False)
    return replace(collator, layout=layout)


def _reads_ids(cell: Cell) -> bool:
    """Whether the teacher reads the student's very batch, which only one with the same tokenizer does."""
    assert cell.method is not None
    return cell.method.needs().same_tokenizer


def _layout(cell: Cell, model: Any, collator: Collator, *, training: bool) -> Layout:
    small = replace(collator, pad_id=0, decoder_start_id=0)
    return choose_layout(LM(small_copy(model)), small, cell.config.train.layout, training=training)[0]
