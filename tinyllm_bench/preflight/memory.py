"""How much memory a cell takes at its peak, counted without loading its weights.

On a CPU the peak is of the process (`base.provenance.peak_memory`): interpreter and libraries, weights, gradients,
AdamW's two moments, what the forward pass of the largest micro-batch keeps for the backward pass, logits, a white-box
teacher, and at the end the selected weights that are read back. On an accelerator libraries are not in it. What the
forward pass keeps is counted, not guessed: small random copies of the student, one and two layers deep, read that very
micro-batch, and autograd tells what it saves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm_bench.experiment.cell import Cell, device_of
from tinyllm_bench.experiment.identity import GUESSES
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.shape import load_shape
from tinyllm_bench.preflight.dry_training import DryTraining, small_copy, with_existing_models
from tinyllm_bench.training.batching import Collator, Row
from tinyllm_bench.training.settings import TrainConfig

# Resident bytes of a process that has imported what a run imports and read its questions (torch 2.13, lm-eval 0.4.13).
LIBRARIES = 660 * 2**20
_STEPS = 50  # whose micro-batches are looked at for the largest
_TRIED = 1024  # padded tokens that the small copies read; more is in proportion
# Copies of a chunk's logits that are alive at once: values, log-probabilities and their gradients; a teacher's beside.
_OF_TEXTS, _OF_DISTRIBUTIONS = 4, 8
_RETAINED = 0.75  # of the gradients' bytes, which the allocator keeps for the next step


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a training by what they hold; `micro_batches` are those of the step that has most."""

    libraries: int
    weights: int
    trained: int
    moments: int
    teacher: int
    activations: int
    logits: int
    micro_batches: int

    @property
    def training(self) -> int:
        """The peak of the training steps."""
        moving = self.activations + self.logits
        step = self.trained + moving if self.micro_batches > 1 else max(self.trained, moving)
        return self._held + step

    @property
    def end(self) -> int:
        """The peak when the selected weights are read back."""
        return self._held + round(_RETAINED * self.trained) + self.trained

    @property
    def peak(self) -> int:
        """The larger one."""
        return max(self.training, self.end)

    @property
    def _held(self) -> int:
        return self.libraries + self.weights + self.moments + self.teacher


def memory_of(training: DryTraining) -> Memory:
    """What a training holds at its largest micro-batch; cells that come first are not in it."""
    largest, micro_batches = _largest(training)
    teacher = training.teacher_in_memory
    trained = training.trained_bytes
    return Memory(
        libraries=_libraries(training.cell),
        weights=training.model_bytes,
        trained=trained,
        moments=2 * trained,
        teacher=0 if teacher is None else _bytes(teacher),
        activations=_activations(training, largest),
        logits=_logits(training.lm, largest, distributions=teacher is not None),
        micro_batches=micro_batches,
    )


def asking_memory(cell: Cell) -> int:
    """Peak bytes of a cell that only answers: libraries and weights, of several students all of them."""
    if cell.name in GUESSES:
        return _libraries(cell)
    students = list(cell.students.values()) or [cell]
    shapes = {one.run_id: load_shape(with_existing_models(one).student, runs=cell.runs) for one in students}
    return _libraries(cell) + sum(_bytes(loaded.model) for loaded in shapes.values())


def _libraries(cell: Cell) -> int:
    return LIBRARIES if device_of(cell) == "cpu" else 0


def _bytes(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _largest(training: DryTraining) -> tuple[list[Row], int]:
    """The micro-batch with the most padded tokens among the first steps, and the most micro-batches of a step."""
    groups, size = training.groups, training.cell.config.train.batch_records
    starts = range(0, min(len(groups), _STEPS * size), size)
    steps = [training.micro_batches(range(start, min(start + size, len(groups)))) for start in starts]
    longest = max(range(len(groups)), key=lambda n: groups[n].tokens)  # may be a micro-batch of its own
    every = [rows for micros in [*steps, training.micro_batches([longest])] for rows in micros]
    return max(every, key=lambda rows: (len(rows) * _width(rows), _width(rows))), max(map(len, steps))


def _width(rows: Sequence[Row]) -> int:
    return max(row.width for row in rows)


def _logits(lm: LM, rows: Sequence[Row], *, distributions: bool) -> int:
    targets = sum(len(branch.item.target) for row in rows for branch in row.branches)
    plain: Any = lm.plain
    wide = plain.get_output_embeddings().weight.shape[0]
    return min(targets, lm.chunk_positions) * wide * 4 * (_OF_DISTRIBUTIONS if distributions else _OF_TEXTS)


def _activations(training: DryTraining, rows: Sequence[Row]) -> int:
    """Bytes that the student's body keeps for the backward pass of a micro-batch."""
    config: TrainConfig = training.cell.config.train
    tried = _some(rows)
    collator = training.collator
    one, two = (_saved(training.lm, collator, tried, layers) for layers in (1, 2))
    text = training.lm.plain.config.get_text_config()
    depth, layer = int(getattr(text, "num_hidden_layers", 1)), max(two - one, 0)
    shown = len(rows) * _width(rows) / (len(tried) * _width(tried))
    if config.gradient_checkpointing:
        kept = len(tried) * _width(tried) * int(text.hidden_size) * 4
        return round(shown * (one + depth * kept))
    half = 0.6 if config.mixed_precision != "no" else 1.0
    return round(shown * half * (one + (depth - 1) * layer))


def _some(rows: Sequence[Row]) -> list[Row]:
    """The first rows, as far as the small copies read; one at least."""
    return list(rows[: max(_TRIED // _width(rows), 1)])


def _saved(lm: LM, collator: Collator, rows: Sequence[Row], layers: int) -> int:
    """Bytes that autograd saves when a small copy of the model reads some rows."""
    import torch

    small = LM(small_copy(lm.plain, layers)).train()
    plain: Any = small.plain
    size = plain.get_input_embeddings().weight.shape[0]
    batch = collator.collate(rows)
    for name in ("input_ids_BT", "decoder_input_ids_DT"):
        ids = getattr(batch, name)
        if ids is not None:
            setattr(batch, name, ids % size)
    parameters = {p.untyped_storage().data_ptr() for p in small.parameters()}
    storages: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(_counting(storages, parameters), lambda kept: kept):
        small.at_targets(batch)
    return sum(storages.values())


def _counting(storages: dict[int, int], apart: set[int]) -> Callable[[Any], Any]:
    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in apart:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    return keep
