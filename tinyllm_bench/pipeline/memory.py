"""How much memory a cell takes at its peak, estimated before anything is loaded."""

from tinyllm_bench.models.lm import CHUNK_LOGITS
from tinyllm_bench.models.load import Loaded, parameter_count
from tinyllm_bench.models.skeleton import load_skeleton
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.pipeline.cells import Cell

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LIBRARIES = 600 * 2**20  # torch, transformers and lm-eval, once imported
_KEPT_PER_LAYER = (
    34  # numbers of the hidden size that a layer keeps for its gradient (arXiv:2205.05198, table 2, bytes)
)


def peak_bytes(cell: Cell) -> int:
    """Estimated peak resident bytes of the process that trains and asks the cell.

    Weights, gradients and two AdamW moments of the student; the white-box teacher's weights; what the layers keep of
    one micro-batch for the gradient; one chunk of logits with its gradient; and the libraries.
    """
    student = load_skeleton(_begins_as(cell), runs=cell.runs)
    weights = parameter_count(student.model) * _BYTES[cell.config.student.dtype]
    trained = 1 if cell.config.student.lora is not None or cell.method is None else 4
    total = _LIBRARIES + weights * trained
    if cell.signal is not None:
        teacher = load_skeleton(_begins_as(cell.teacher_from) if cell.teacher_from else cell.signal, runs=cell.runs)
        total += parameter_count(teacher.model) * _BYTES[cell.config.teacher.dtype]
    return total + (_activations(cell, student) if cell.method is not None else 0) + 3 * 4 * CHUNK_LOGITS


def _begins_as(cell: Cell) -> ModelSpec:
    return cell.student if cell.student_from is None else _begins_as(cell.student_from)


def _activations(cell: Cell, student: Loaded) -> int:
    config = student.model.config
    hidden = getattr(config, "hidden_size", 0)
    layers = 1 if cell.config.train.gradient_checkpointing else getattr(config, "num_hidden_layers", 1)
    return cell.config.train.micro_batch_tokens * hidden * layers * _KEPT_PER_LAYER
