"""A short trial of a cell on this machine: how fast its student is read, trained, asked and written down.

The very trainer and the very validation are called, on a few questions. Nothing is kept: files go to a temporary
folder. Times of a busy machine are as they are met; the median of repeated ones is taken.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tinyllm_bench.base import provenance
from tinyllm_bench.base.files import temporary_folder
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.program_targets import fit_programs
from tinyllm_bench.experiment.train import adapted, collator_for, device_of, trainer_of
from tinyllm_bench.experiment.validate import gold_groups, validator
from tinyllm_bench.experiment.verified_texts import learns_paths
from tinyllm_bench.experiment.white_box_teacher import open_teacher_model
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded, load_model, weights_digest
from tinyllm_bench.models.tokens import count_by_channel
from tinyllm_bench.preflight.counts import Training, shortened, trial_step, with_eval
from tinyllm_bench.preflight.time import Line, line_through, question_chars
from tinyllm_bench.training.budget import Plan
from tinyllm_bench.training.layout import Row
from tinyllm_bench.training.method import TeacherSignal
from tinyllm_bench.training.trainer import Trainer

PROBE_SECONDS = 10.0
_PIECE = 2**26  # bytes that are written to see how fast that is
_STEPS = 20  # whose micro-batches are to choose from
_MOST_DRAWN = 32  # tokens of a text that is drawn on trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds of what a cell does, measured.

    micro: of a micro-batch by its work; update: the optimiser's part of a step; look: of a call of the evaluation by
    the characters it reads; draw: of one drawn text, prompt included, and `lengths` its tokens by channel, where the
    student is the one that will draw; watched: the method's own measurements at a look, per question; write: of a byte;
    peak: bytes that were added until the largest probed micro-batch `probed` was trained on.
    """

    load: float
    digest: float
    settle: float
    teacher: float
    update: float
    micro: Line
    look: Line
    write: float
    draw: float = 0.0
    watched: float = 0.0
    lengths: Mapping[str, float] = field(default_factory=dict)
    peak: int = 0
    probed: tuple[Row, ...] = ()
    took: float = 0.0


def probe_key(cell: Cell, training: Training | None) -> tuple[Any, ...]:
    """Cells with one key run at one pace: the same student, taught in the same way and asked in the same reading."""
    student, settings = cell.config.student, cell.config.train
    made = None if training is None else training.cell
    signal = None if made is None or made.signal is None else (made.signal.text, cell.name, cell.config.teacher)
    return (
        (made or cell).student.text,
        student.model_dump_json(exclude={"model", "init"}),
        None if training is None else training.collator.layout,
        str(signal),
        settings.model_dump_json(include={"gradient_checkpointing", "mixed_precision", "attention"}),
        (cell.reading, cell.config.eval.layout, cell.config.eval.batch_size, bool(cell.students)),
        device_of(cell),
    )


def probed(training: Training, *, limit: float = PROBE_SECONDS) -> Pace:
    """The pace of a cell that trains."""
    began = time.perf_counter()
    cell = training.cell
    device = device_of(cell)
    provenance.reset_peak_memory()
    before = provenance.peak_memory()
    load, loaded = _timed(
        lambda: load_model(cell.student, dtype=cell.config.student.dtype, device=device, runs=cell.runs)
    )
    digest, _ = _timed(lambda: weights_digest(loaded.model))
    fit_programs(cell, loaded, training.texts.annotations)
    lm = LM(adapted(cell, loaded))
    lm.check()
    teacher, signal = _timed(lambda: _signal(training, loaded, device))
    settle, (collator, _) = _timed(lambda: collator_for(cell, lm, loaded, signal))
    with temporary_folder("tinyllm-bench-probe") as folder:
        write = _write_speed(folder)
        sample = _by_work(training)
        trainer = trainer_of(
            cell,
            folder,
            lm,
            loaded,
            [training.groups[n] for n in sample],
            training.plan(0.0),
            collator,
            signal,
            lambda event: None,
        )
        trial = _Trial(training, trainer, signal, sample, began + limit)
        micro, update = trial.steps()
        peak = provenance.peak_memory() - before
        draw, lengths, watched = trial.draws()
        look = look_pace(_as_taught(training), loaded, lm)
    return Pace(
        load=load,
        digest=digest,
        settle=settle,
        teacher=teacher,
        update=update,
        micro=micro,
        look=look,
        write=write,
        draw=draw,
        watched=watched,
        lengths=lengths,
        peak=peak,
        probed=tuple(trial.largest),
        took=time.perf_counter() - began,
    )


def probed_asking(cell: Cell) -> Pace:
    """The pace of a cell that is only asked."""
    began = time.perf_counter()
    device = device_of(cell)
    load, loaded = _timed(
        lambda: load_model(cell.student, dtype=cell.config.student.dtype, device=device, runs=cell.runs)
    )
    digest, _ = _timed(lambda: weights_digest(loaded.model))
    look = look_pace(cell, loaded, LM(loaded.model))
    nothing = Line(0.0, 0.0)
    took = time.perf_counter() - began
    return Pace(load=load, digest=digest, settle=0, teacher=0, update=0, micro=nothing, look=look, write=0, took=took)


def look_pace(cell: Cell, loaded: Loaded, lm: LM) -> Line:
    """Seconds of a call of the cell's evaluation by the characters of its questions."""
    import torch

    points = []
    lm.eval()
    for count in (1, 1, 8):
        few = with_eval(cell, valid_limit=count)
        validate = validator(few, loaded, gold_groups(few, loaded))
        with torch.no_grad():
            took, _ = _timed(partial(validate, lm))
        chars = question_chars(few, few.asked_records("test" if cell.looks_at_test else "valid"))
        points.append((float(chars), took))
    return line_through(points[1:])  # the first call builds lm-eval's index


def _as_taught(training: Training) -> Cell:
    """The cell whose answers are as long as what it is taught: an untrained student would write to the limit."""
    cell = training.cell
    if cell.reading != "gen":
        return cell
    longest = max(len(item.target) for group in training.groups for item in group.items)
    method = training.method
    if learns_paths(cell):
        return replace(cell, method=shortened(method, min(longest, method.decoding().max_new_tokens)))
    return with_eval(cell, max_new_tokens=min(longest, cell.config.eval.max_new_tokens))


def _signal(training: Training, loaded: Loaded, device: str) -> TeacherSignal | None:
    if training.cell.signal is None:
        return None
    return open_teacher_model(training.cell, loaded, device)


def _by_work(training: Training) -> list[int]:
    """Questions in the order of what they take, few of many."""
    order = sorted(range(len(training.groups)), key=lambda n: training.groups[n].tokens)
    return order[:: max(len(order) // 64, 1)]


def _write_speed(folder: Path) -> float:
    """Seconds of a byte that is written as safetensors."""
    import torch

    from tinyllm_bench.training.checkpoint import save_tensors

    piece = {"piece": torch.zeros(_PIECE // 4)}
    took, _ = _timed(lambda: save_tensors(folder / "piece.safetensors", piece))
    return took / _PIECE


class _Trial:
    """A trainer on trial; `largest` is the largest micro-batch that it was given."""

    def __init__(
        self, training: Training, trainer: Trainer, signal: TeacherSignal | None, order: Sequence[int], until: float
    ) -> None:
        self.training, self.trainer, self.signal = training, trainer, signal
        self.order, self.until = order, until
        self.largest: list[Row] = []

    def steps(self) -> tuple[Line, float]:
        """Seconds of a micro-batch by its work, and of what else a step takes."""
        few = [self.training.as_trained(self.training.groups[self.order[0]])]
        least = self.training.micros_of(few)[0]
        self.trainer.optimise(few, 0)  # makes the buffers and the optimiser's state
        small, large = self._between(least)
        found: dict[int, list[float]] = {0: [self._micro(small)], 1: [self._micro(large)]}
        wholes = [_timed(lambda: self.trainer.optimise(few, 0))[0] - self._micro(least) for _ in range(2)]
        for number, rows in enumerate((small, large) * 2):
            if time.perf_counter() + max(found[number % 2]) < self.until:
                found[number % 2].append(self._micro(rows))
        works = [self.training.work_of(rows) for rows in (small, large)]
        self.largest = large
        points = [(work, statistics.median(found[n])) for n, work in enumerate(works)]
        return line_through(points), max(statistics.median(wholes), 0.0)

    def _between(self, least: list[Row]) -> tuple[list[Row], list[Row]]:
        """A small and a large micro-batch of the training's own first steps."""
        plan, training = self.training.plan(0.0), self.training
        minis = [mini for number in range(_STEPS) for mini in _round(plan, number)][:_STEPS]
        micros = sorted((rows for mini in minis for rows in training.micros(mini)), key=training.work_of)
        small, large = micros[len(micros) // 10], micros[(9 * len(micros)) // 10]
        return (least, large) if training.work_of(large) < 1.5 * training.work_of(small) else (small, large)

    def _micro(self, rows: list[Row]) -> float:
        """Seconds of a micro-batch, forward and backward."""
        items = [branch.item for row in rows for branch in row.branches]
        step = replace(trial_step(tokens=count_by_channel(items)), examples=Counter(item.channel for item in items))
        self.trainer.training_mode()
        took, _ = _timed(lambda: self.trainer.micro(rows, step, {}))
        self.trainer.optimizer.zero_grad(set_to_none=True)
        return took

    def draws(self) -> tuple[float, dict[str, float], float]:
        """Seconds of a drawn text, tokens of one by channel, and seconds of a question in the method's measurements."""
        training = self.training
        if training.drawing is None:
            return 0.0, {}, 0.0
        import torch

        is_made = training.asked.student.text == training.cell.student.text
        most = training.method.most_drawn
        short = min(_MOST_DRAWN if is_made else _longest(training), most)
        method = shortened(training.method, short)
        student = self.trainer.module.eval()
        groups = [training.groups[n] for n in self.order[:: max(len(self.order) // 16, 1)]][:16]
        step = replace(trial_step(), reread=lambda found: self.trainer.reread(found, [range(len(groups))]))
        with torch.no_grad():
            took, rolled = _timed(lambda: method.rollout(groups, student, self.signal, step))
            gold = list(self.trainer.probed)[:16]
            watching, _ = _timed(lambda: method.probe(gold, student, self.signal, step))
        items = [item for group in rolled for item in group.items if item.drawn]
        longer, lengths = _lengths(items, short, most) if is_made else (1.0, {})
        return took * longer / max(len(items), 1), lengths, watching * longer / max(len(gold), 1)


def _longest(training: Training) -> int:
    assert training.drawing is not None
    channels = training.drawing.shares
    return max(len(item.target) for group in training.groups for item in group.items if item.channel in channels)


def _lengths(items: Sequence[Any], tried: int, most: int) -> tuple[float, dict[str, float]]:
    """How many times longer drawing takes than on trial, and expected tokens by channel.

    Texts end at a constant rate, as far as the trial tells: those that it cut go on at the rate at which others ended.
    """
    lengths, longer = {}, 1.0
    for channel in {item.channel for item in items}:
        found = [item for item in items if item.channel == channel]
        tokens, ended = sum(len(item.target) for item in found), sum(not item.cut for item in found)
        ends = ended / tokens
        lengths[channel] = (1 - (1 - ends) ** most) / ends if ends else float(most)
        if ended < len(found):
            longer = most / tried
    return longer, lengths


def _round(plan: Plan, number: int) -> list[tuple[int, ...]]:
    return list(plan.steps_of(number)) if number < len(plan.rounds) else []


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work()
    return time.perf_counter() - began, found
