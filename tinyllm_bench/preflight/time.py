"""From a pace to seconds: what each stage of a cell takes on this machine."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.predict import CHUNK
from tinyllm_bench.experiment.sample_answers import how_to_ask
from tinyllm_bench.experiment.validate import PROBED
from tinyllm_bench.generation.worker import vllm_installed
from tinyllm_bench.models.specs import parse_spec

if TYPE_CHECKING:
    from tinyllm_bench.preflight.counts import Counts, Training
    from tinyllm_bench.preflight.probe import Pace
    from tinyllm_bench.preflight.texts import Bill

_BETTER = 0.5  # of the looks keep weights: the first always does
_DRAWN_SLOWER, _READ_FASTER = 8, 10  # a token that is written takes longer than one that is read among many
VLLM_START = 45.0  # seconds until an engine is built on two CPU cores (specs/product.md 7)
VLLM_TOKENS = 150.0 * 135e6  # parameters times tokens a second, the same machine


class Line(NamedTuple):
    """Seconds of something: a part that is always there, and so much for each unit."""

    fixed: float
    each: float

    def __call__(self, amount: float) -> float:
        """Seconds of an amount."""
        return self.fixed + self.each * amount


def line_through(points: Sequence[tuple[float, float]]) -> Line:
    """The line through a small and a large amount; where noise would make a part negative, it is 0."""
    (small, short), (large, long) = points[0], points[-1]
    if large <= small:
        return Line(0.0, long / large if large else 0.0)
    fixed = (short * large - long * small) / (large - small)
    fixed = min(max(fixed, 0.0), short, long)
    return Line(fixed, (long - fixed) / large)


def question_chars(cell: Cell, records: Sequence[TaskRecord]) -> int:
    """Characters that are read to answer some questions; options are ranked behind a prompt that is read once."""
    ask = cell.ask
    prompts = sum(len(ask.prompt(record)) for record in records)
    if cell.reading == "gen":
        return prompts
    return prompts + sum(len(option) for record in records for option in ask.options(record))


def step_seconds(training: "Training", pace: "Pace", mini: Sequence[int]) -> float:
    """Seconds of one optimiser step, its part of the drawing included."""
    taken = sum(pace.micro(training.work_of(rows)) for rows in training.micros(mini))
    return taken + pace.update + training.amounts(mini).texts * pace.draw / training.method.inner_epochs


def look_seconds(training: "Training", pace: "Pace") -> float:
    """Seconds of one look at validation."""
    cell = training.cell
    records = cell.asked_records("test" if cell.looks_at_test else "valid")
    watched = min(len(cell.asked_records("valid")), PROBED) if training.drawing else 0
    return pace.look(question_chars(cell, records)) + watched * pace.watched


def predict_seconds(cell: Cell, pace: "Pace", *, done: int = 0, shots: float = 1.0) -> float:
    """Seconds of asking the test questions that are left, chunk by chunk, the student's loading included.

    `shots`: how many times longer the prompts are than without examples.
    """
    records = cell.asked_records("test")[done:]
    if not records:
        return 0.0
    asked = math.ceil(len(records) / CHUNK) * pace.look.fixed + pace.look.each * question_chars(cell, records) * shots
    if cell.method is not None and cell.students:
        asked *= _texts_a_question(cell)
    return pace.load + pace.digest + pace.settle + asked


def _texts_a_question(cell: Cell) -> float:
    """How many texts are drawn for a test question, for each that is drawn at a look."""

    def texts(greedy: bool) -> int:
        return sum(bool(first) + drawn for first, drawn in how_to_ask(cell, greedy=greedy).wanted().values())

    return texts(False) / texts(True)


def live_seconds(training: "Training", pace: "Pace", bills: "Sequence[Bill]") -> float | None:
    """Seconds until the teachers' lacking texts are written; None where nobody can tell."""
    found = [_written_in(training, pace, bill) for bill in bills if bill.lacking]
    return None if None in found else sum(part or 0.0 for part in found)


def _written_in(training: "Training", pace: "Pace", bill: "Bill") -> float | None:
    """By earlier texts, else by the model's size: vLLM by its known speed, transformers by the speed of training."""
    if bill.seconds is not None or parse_spec(bill.spec, role="teacher").kind == "api":
        return bill.seconds
    settings = training.cell.config.annotations
    size = sum(p.numel() for p in training.lm.parameters())
    if settings.engine != "hf" and vllm_installed():
        return VLLM_START + (bill.tokens_in / _READ_FASTER + bill.tokens_out) * size / VLLM_TOKENS
    return pace.load + 2 * size * (bill.tokens_in + _DRAWN_SLOWER * bill.tokens_out) * pace.micro.each


def training_seconds(
    training: "Training", counts: "Counts", pace: "Pace", looks: int, *, scored: int = 0
) -> dict[str, float]:
    """Seconds of a training by part, without the teachers' texts.

    `scored`: tokens that a teacher reads for a cache of its distributions.
    """
    size = trained_bytes(training)
    steps = counts.steps * pace.update + pace.micro.fixed * counts.micros + pace.micro.each * counts.work
    drawing = counts.texts * pace.draw
    started = 1 if training.drawing else 0  # the look before the first step, which keeps no weights
    kept = (1 + max(looks - 1, 0) * _BETTER) * size * pace.write
    work = steps + drawing
    every = training.cell.config.train.checkpoint_seconds
    saves = work // every if every else counts.steps
    return {
        "load": pace.load + pace.settle + pace.teacher + pace.digest + training.encoded_in,
        "logits": 2 * model_bytes(training) / 4 * scored * pace.micro.each,
        "steps": steps,
        "drawing": drawing,
        "looks": (looks + started) * look_seconds(training, pace) + kept,
        "checkpoints": saves * (3 * size * pace.write + 3 * size * pace.digest / max(model_bytes(training), 1)),
        "save": pace.digest + model_bytes(training) * pace.write,
    }


def trained_bytes(training: "Training") -> int:
    """Bytes of the parameters that are trained, as they are kept."""
    return sum(p.numel() * p.element_size() for p in training.lm.parameters() if p.requires_grad)


def model_bytes(training: "Training") -> int:
    """Bytes of the student."""
    return sum(p.numel() * p.element_size() for p in training.lm.parameters())


def looks_of(training: "Training", steps: int) -> int:
    """Looks at validation of a training of so many steps."""
    config = training.cell.config.train
    if config.look_every is not None:
        return steps // config.look_every + (steps % config.look_every > 0)
    return len({max(1, round(share * steps)) for share in config.looks})
