"""What a request takes and which differences it detects, before anything is spent: the forecast of `plan` and `doctor`.

Every cell is forecast after those that it needs first. What is finished takes nothing more, and what two cells share
(teachers' texts, cells to start from) is counted once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyllm_bench.base import provenance
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_checked, read_json
from tinyllm_bench.data.checks import clusters
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.experiment.cached_logits import header_of
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.identity import GUESSES, protocol_of
from tinyllm_bench.experiment.predict import part_file, predictions_file
from tinyllm_bench.experiment.sample_answers import how_to_ask
from tinyllm_bench.experiment.train import init_cost
from tinyllm_bench.generation.top_k import response_digest
from tinyllm_bench.leaderboard.record import RECORD_FILE, RunRecord, load_record, protocol_hash
from tinyllm_bench.leaderboard.stats.power import (
    Assumed,
    assumed_from,
    planned_detectable,
    questions_needed,
    seeds_needed,
)
from tinyllm_bench.models.load import parameter_count
from tinyllm_bench.models.shape import load_shape
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.preflight.dry_training import Counts, DryTraining, TextCost, with_existing_models
from tinyllm_bench.preflight.machine import Machine, Speed
from tinyllm_bench.preflight.memory import Memory, asking_memory, memory_of
from tinyllm_bench.training.logit_cache import LogitCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes that a cell adds: to its run folder when it is done, and at most while it runs; to the caches that all
    cells share, with teachers' distributions and teachers' texts."""

    final: int = 0
    peak: int = 0
    logits: int = 0
    texts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellForecast:
    """What one cell will take. What is done takes nothing more; None is what is not known.

    mode: how questions are scored; questions: by split; done: stages that are finished; first: run ids of the cells
    that come first; charged: what making the initial student takes of the budget, in its unit; counts: of the training;
    evaluations: on validation questions while it trains; seconds: by part, an estimate (`Speed`); memory: bytes at the
    peak; usd: of texts that are missing, where their price is set; problem: why no more is known.
    """

    run_id: str
    label: str
    task: str
    seed: int
    mode: str
    kind: str
    trains_only: bool
    questions: Mapping[str, int]
    done: tuple[str, ...]
    first: tuple[str, ...]
    charged: float = 0.0
    counts: Counts | None = None
    epochs: float | None = None
    evaluations: int | None = None
    layout: str | None = None
    texts: tuple[TextCost, ...] = ()
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    memory: int = 0
    memory_parts: Memory | None = None
    disk: Disk = field(default_factory=Disk)
    usd: float | None = None
    problem: str | None = None

    @property
    def total_seconds(self) -> float | None:
        """All parts; None where one is not known."""
        return None if self.problem else _sum(list(self.seconds.values()))

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return "record" in self.done or (self.trains_only and "train" in self.done)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The request as a whole: sums over what is left to do, and the largest of what is held at a time.

    disk, disk_peak: bytes in the folder of runs when all is done, and at most meanwhile; cache: bytes added to the
    caches; usd_device: by a price an hour; None is what is not known.
    """

    cells: int
    done: int
    steps: int
    student_tokens: float
    flops: float
    teacher_tokens_in: int
    teacher_tokens_out: int
    seconds: float | None
    memory: int
    disk: int
    disk_peak: int
    cache: int
    usd_teachers: float | None
    usd_device: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Detectable:
    """Which differences are detected on one task; they are shares of right answers.

    difference: the smallest true difference between two rows that is found with 80 % power at the 5 % level, by the
    statistic that boards and `compare` use: the two-way variance over questions and seeds, with a t distribution of
    Satterthwaite's degrees of freedom (`stats.intervals.spread`, `stats.power.planned_detectable`). An item-paired test
    on means over seeds would promise smaller differences, and rejects a true null in 12.8 to 17.5 % when runs vary by
    2 points. units: questions, those that share a passage counted once. comparisons: each row of the table against one
    of them, as boards test against their fine-tuning baseline; the level is divided by them (Holm's first step).
    assumed: how much rows and runs differ, from finished runs on the same protocol in the folder of runs, or common
    values. With one seed it speaks of the trained students alone. detect: a difference that should be found; seeds (at
    these questions), more_questions (at these seeds, two at least): what it needs, None where that does not help.
    """

    task: str
    mode: str
    questions: int
    units: int
    seeds_planned: int
    comparisons: int
    difference: float
    assumed: Assumed
    detect: float | None
    seeds: int | None
    more_questions: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A request's cells in the order in which they run, its totals, and which differences it detects per task.

    matmul_flops: measured FLOP/s by number format; times assume a part of them (`machine.Speed`).
    """

    device: str
    matmul_flops: Mapping[str, float]
    cells: tuple[CellForecast, ...]
    totals: Totals
    detectable: tuple[Detectable, ...]

    def cell(self, run_id: str) -> CellForecast:
        """The forecast of one cell."""
        return next(one for one in self.cells if one.run_id == run_id)

    def plain(self) -> dict[str, Any]:
        """As JSON: what `plan --json` and `doctor --json` print."""
        cells = [{**asdict(one), "total_seconds": one.total_seconds, "is_done": one.is_done} for one in self.cells]
        detectable = [{**asdict(one), "assumed": one.assumed._asdict()} for one in self.detectable]
        return {**asdict(self), "cells": cells, "detectable": detectable}


def forecast(
    cells: Sequence[Cell],
    machine: Machine,
    *,
    detect: float | None = None,
    price: float | None = None,
    tolerant: bool = False,
    report: Callable[[Cell], None] = lambda cell: None,
) -> Forecast:
    """Forecast every cell of a request; nothing is trained, no teacher is asked and no weights are loaded.

    Args:
        cells: As `plan_cells` gives them.
        machine: What they are to run on.
        detect: A difference (a share of right answers) that should be found.
        price: US dollars an hour of the device.
        tolerant: A cell that cannot be forecast gets a `problem` instead of ending everything.
        report: Receives every cell before it is forecast.

    Raises:
        UserError: a cell cannot run as it is asked for; with `tolerant` never because of a cell.
    """
    forecaster = _Forecaster(machine, tolerant=tolerant, report=report)
    for cell in cells:
        forecaster.add(cell)
    found = tuple(forecaster.cells.values())
    return Forecast(
        device=provenance.device_name(),
        matmul_flops={name: speed.matmul for name, speed in forecaster.speeds.items()},
        cells=found,
        totals=_totals(found, price),
        detectable=_detectable(cells, detect),
    )


class _Forecaster:
    """Forecasts cells one after another; what an earlier one will make is not counted again."""

    def __init__(self, machine: Machine, *, tolerant: bool, report: Callable[[Cell], None]) -> None:
        self.cells: dict[str, CellForecast] = {}
        self.speeds: dict[str, Speed] = {}
        self._machine, self._tolerant, self._report = machine, tolerant, report
        self._written: set[str] = set()  # keys of texts that an earlier cell has had written
        self._scored: set[tuple[Path, str, str]] = set()  # responses whose distributions an earlier cell has cached
        self._trainings: dict[tuple[Any, ...], tuple[DryTraining, Memory]] = {}

    def add(self, cell: Cell) -> None:
        """Forecast a cell; those that it needs first are forecast before it."""
        if cell.run_id in self.cells:
            return
        for first in cell.earlier:
            self.add(first)
        self._report(cell)
        found = CellForecast(
            run_id=cell.run_id,
            label=cell.label,
            task=cell.task.name,
            seed=cell.seed,
            mode=cell.mode,
            kind=cell.kind,
            trains_only=cell.trains_only,
            questions={split: len(cell.records(split)) for split in ("train", "valid", "test")},
            done=stages_done(cell),
            first=tuple(first.run_id for first in cell.earlier),
        )
        if found.is_done:
            self.cells[cell.run_id] = replace(found, usd=0.0)
            return
        try:
            found = replace(found, charged=self._charged(cell))
            trains = cell.method is not None and not cell.students and "train" not in found.done
            found = self._trained(cell, found) if trains else self._asked(cell, found)
        except UserError as error:
            if not self._tolerant:
                raise
            found = replace(found, problem=str(error))
        self.cells[cell.run_id] = found

    def _asked(self, cell: Cell, found: CellForecast) -> CellForecast:
        """A reference baseline, several students who answer together, or a student that is trained already."""
        parameters = 0 if cell.name in GUESSES else parameter_count(_first_student(cell))
        seconds = {"predict": self._predict_seconds(cell, parameters, answered_already(cell))}
        size = _ANSWER * len(cell.records("test"))
        return replace(found, seconds=seconds, memory=asking_memory(cell), disk=Disk(final=size, peak=size))

    def _trained(self, cell: Cell, found: CellForecast) -> CellForecast:
        training, memory = self._training(cell)
        counts = training.counts(cell, found.charged, self._speed(cell))
        evaluations = _evaluations(cell, counts.steps)
        texts = tuple(cost.without(self._written) for cost in training.texts)
        self._written.update(key for cost in texts for key in cost.keys)
        logits = self._missing_logits(cell, training)
        return replace(
            found,
            counts=counts,
            epochs=training.epochs(counts),
            evaluations=evaluations,
            layout=training.collator.layout,
            texts=texts,
            seconds=self._seconds(cell, training, counts, texts, logits, evaluations),
            memory=memory.peak,
            memory_parts=memory,
            disk=_disk(cell, training, texts, logits, evaluations),
            usd=_sum([cost.usd for cost in texts if cost.missing]),
        )

    def _training(self, cell: Cell) -> tuple[DryTraining, Memory]:
        """The cell's training without weights; one serves all seeds."""
        found = with_existing_models(cell)
        models = (found.student.text, found.signal and found.signal.text, cell.trains_only, cell.share)
        key = (cell.label, cell.task.name, cell.mode, *models, cell.config.model_dump_json())
        if key not in self._trainings:
            training = DryTraining(cell)
            self._trainings[key] = (training, memory_of(training))
        return self._trainings[key]

    def _charged(self, cell: Cell) -> float:
        """What making the initial student takes or took, in the unit of the cell's budget."""
        first, name = cell.student_from, cell.config.budget.limit[0]
        if first is None or name == "epochs":
            return 0.0
        if (cell.runs / first.run_id / "train" / "result.json").exists():
            return init_cost(first, cell.runs, name)
        made = self.cells[first.run_id]
        if made.counts is None:
            raise UserError(f"{first.label} on {first.task.name}, which is trained first: {made.problem}")
        if name == "seconds":
            return float(made.seconds["training"] or 0.0) + float(made.seconds["sampling"] or 0.0)
        return {"student_tokens": made.counts.tokens, "flops": made.counts.flops}[name]

    def _missing_logits(self, cell: Cell, training: DryTraining) -> list[Encoded]:
        """Responses whose distributions missing from the cell's cache, that no earlier cell will have put there."""
        if cell.signal is None or cell.config.teacher.cache is None:
            return []
        folder = header_of(training.cell, training.loaded).folder
        exists = training.cell.signal == cell.signal and (folder / "header.json").exists()
        cached = LogitCache.open(folder).has if exists else None
        items = {
            (folder, item.record_id, response_digest(item.prompt, item.target)): item
            for group in training.groups
            for item in group.items
        }
        missing = {
            key: item
            for key, item in items.items()
            if key not in self._scored and (cached is None or not cached(*key[1:]))
        }
        self._scored.update(missing)
        return list(missing.values())

    # --- Time: FLOPs by an assumed speed ------------------------------------------------------------------------------

    def _speed(self, cell: Cell) -> Speed:
        mixed = {"no": None, "fp16": "float16", "bf16": "bfloat16"}[cell.config.train.mixed_precision]
        dtype = mixed or cell.config.student.dtype
        if dtype not in self.speeds:
            self.speeds[dtype] = self._machine.speed(dtype)
        return self.speeds[dtype]

    def _seconds(
        self,
        cell: Cell,
        training: DryTraining,
        counts: Counts,
        texts: Sequence[TextCost],
        logits: Sequence[Encoded],
        evaluations: int,
    ) -> dict[str, float | None]:
        """Seconds by part; an interrupted training resumes at its last checkpoint."""
        speed, student = self._speed(cell), parameter_count(training.loaded.model)
        left = 1.0 - trained_share(cell, counts.steps)
        sampling = training.sampling_seconds(counts.sampled_tokens, counts.sampling_flops, speed)
        asked = cell.asked_records("test" if cell.select_on_test else "valid")
        evaluated = (evaluations + (training.sampling is not None)) * self._answer_seconds(cell, student, asked)
        found: dict[str, float | None] = {
            "texts": _sum([self._text_seconds(cell, cost) for cost in texts if cost.missing]),
            "training": left * (counts.flops - counts.sampling_flops) / speed.training,
            "sampling": left * sampling,
            "evaluation": left * evaluated,
        }
        if training.teacher is not None and logits:
            read = sum(item.tokens for item in logits)
            found["logits"] = 2.0 * parameter_count(training.teacher.model) * read / speed.reading
        return found if cell.trains_only else found | {"predict": self._predict_seconds(cell, student)}

    def _text_seconds(self, cell: Cell, cost: TextCost) -> float | None:
        """By earlier texts, else by the model's size; None where neither is known, as of an API."""
        spec = parse_spec(cost.spec, role="teacher")
        if cost.seconds is None and spec.kind == "run" and cell.teacher_from is not None:
            spec = with_existing_models(cell.teacher_from).student
        if cost.seconds is not None or not spec.has_weights:
            return cost.seconds
        speed, flops = self._speed(cell), 2.0 * parameter_count(load_shape(spec, runs=cell.runs).model)
        return flops * (cost.tokens_in / speed.reading + cost.tokens_out / speed.sampling)

    def _predict_seconds(self, cell: Cell, parameters: int, answered: int = 0) -> float:
        """Seconds of answering the test questions that are left."""
        seconds = self._answer_seconds(cell, parameters, cell.asked_records("test")[answered:])
        if cell.students:  # a policy asks several texts of each question
            wanted = how_to_ask(cell, None).texts_needed()
            seconds *= sum(bool(greedy) + sampled for greedy, sampled in wanted.values())
        return seconds * (1 + cell.config.eval.shots if cell.name == "few_shot" else 1)

    def _answer_seconds(self, cell: Cell, parameters: int, records: Sequence[TaskRecord]) -> float:
        """Seconds of answering some questions once; options are ranked behind a prompt that is read once."""
        ask, speed = cell.ask, self._speed(cell)
        read = sum(len(ask.prompt(record)) for record in records) / _CHARACTERS
        written = 0.0
        if cell.mode == "generate":
            written = sum(len(ask.label_target(record)) / _CHARACTERS + 1 for record in records)
        else:
            read += sum(len(option) for record in records for option in ask.options(record)) / _CHARACTERS
        return 2.0 * parameters * (read / speed.reading + written / speed.sampling)


_CHARACTERS = 4  # of English text in a token
_ANSWER = 400  # bytes of an answer, compressed, and of its line in the record
_TOKENIZER = 4 * 2**20  # bytes beside the student's weights


def _first_student(cell: Cell) -> Any:
    """The cell's student without weights, of several the first."""
    one = with_existing_models(next(iter(cell.students.values()), cell))
    return load_shape(one.student, dtype=one.config.student.dtype, runs=one.runs).model


def _evaluations(cell: Cell, steps: int) -> int:
    """Evaluations on validation questions in a training of so many steps."""
    config = cell.config.train
    if config.eval_every is not None:
        return steps // config.eval_every + (steps % config.eval_every > 0)
    return len({max(1, round(share * steps)) for share in config.evaluations})


def stages_done(cell: Cell) -> tuple[str, ...]:
    """The stages of a cell that are finished."""
    folder = cell.runs / cell.run_id
    trained = cell.method is not None and not cell.students and (folder / "train" / "result.json").exists()
    files = {"predict": predictions_file(cell, folder), "record": folder / RECORD_FILE}
    return (*(("train",) if trained else ()), *(stage for stage, file in files.items() if file.exists()))


def answered_already(cell: Cell) -> int:
    """Test questions that an interrupted run has answers for."""
    folder = cell.runs / cell.run_id
    if predictions_file(cell, folder).exists():
        return len(cell.records("test"))
    return sum(len(row["predictions"]) for row in read_checked(part_file(cell, folder)))


def trained_share(cell: Cell, steps: int) -> float:
    """How much of its training an interrupted run has saved in its last checkpoint."""
    places = sorted((cell.runs / cell.run_id / "train" / "checkpoints").glob("step-*/manifest.json"))
    return min(read_json(places[-1])["step"] / steps, 1.0) if places else 0.0


def _disk(
    cell: Cell, training: DryTraining, texts: Sequence[TextCost], logits: Sequence[Encoded], evaluations: int
) -> Disk:
    """What a training writes, at most.

    A checkpoint holds the weights and AdamW's two moments, two exist while one replaces the other; each evaluation may
    save weights; the student is saved before the last checkpoint goes.
    """
    trained, answered = training.trained_bytes, 0 if cell.trains_only else len(cell.records("test"))
    final = training.model_bytes + _TOKENIZER + _ANSWER * answered
    if cell.config.student.lora is not None:
        final += trained  # the adapters stay beside the merged student
    peak = evaluations * trained + max(2 * 3 * trained, 3 * trained + final)
    token = header_of(training.cell, training.loaded).bytes_per_token if logits else 0
    return Disk(
        final=final,
        peak=peak,
        logits=token * sum(len(item.target) for item in logits),
        texts=4 * sum(cost.tokens_out for cost in texts),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    """The sum; None where one is not known."""
    return None if any(value is None for value in values) else float(sum(value or 0.0 for value in values))


def _totals(cells: Sequence[CellForecast], price: float | None) -> Totals:
    left = [one for one in cells if not one.is_done]
    counted = [one for one in left if one.counts is not None]
    counts = [one.counts for one in left if one.counts is not None]
    texts = [text for one in left for text in one.texts]
    seconds = _sum([one.total_seconds for one in left])
    disk = sum(one.disk.final for one in left)
    return Totals(
        cells=len(cells),
        done=len(cells) - len(left),
        steps=sum(one.steps for one in counts),
        student_tokens=sum(one.tokens for one in counts),
        flops=sum(one.flops for one in counts),
        teacher_tokens_in=sum(text.tokens_in for text in texts),
        teacher_tokens_out=sum(text.tokens_out for text in texts),
        seconds=seconds,
        memory=max((one.memory for one in left), default=0),
        disk=disk,
        disk_peak=disk + max((one.disk.peak - one.disk.final for one in left), default=0),
        cache=sum(one.disk.logits + one.disk.texts for one in left),
        usd_teachers=_sum([one.usd for one in counted]),
        usd_device=None if price is None or seconds is None else price * seconds / 3600,
    )


# --- The smallest detectable difference -------------------------------------------------------------------------------


def _detectable(cells: Sequence[Cell], detect: float | None) -> tuple[Detectable, ...]:
    """Per task and scoring mode of the methods' cells."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.method is not None:
            groups.setdefault((cell.task.name, cell.mode), []).append(cell)
    found = []
    for (task, mode), of_task in groups.items():
        records = of_task[0].records("test")
        units = len(set(clusters(records)) or records)
        seeds = len({cell.seed for cell in of_task})
        comparisons = max(len({cell.label for cell in of_task}) - 1, 1)
        assumed = assumed_from(_finished(of_task[0]))
        known = {"discordance": assumed.discordance, "within": assumed.within, "run_sd": assumed.run_sd}
        needs: tuple[int | None, int | None] = (None, None)
        if detect is not None:
            needs = (
                seeds_needed(units, detect, assumed, comparisons=comparisons),
                questions_needed(max(seeds, 2), detect, assumed, comparisons=comparisons),
            )
        found.append(
            Detectable(
                task=task,
                mode=mode,
                questions=len(records),
                units=units,
                seeds_planned=seeds,
                comparisons=comparisons,
                difference=planned_detectable(units, seeds=seeds, comparisons=comparisons, **known),
                assumed=assumed,
                detect=detect,
                seeds=needs[0],
                more_questions=needs[1],
            )
        )
    return tuple(found)


def _finished(cell: Cell) -> list[list[list[int]]]:
    """Right and wrong answers of the finished runs in the same folder on the same protocol, by row."""
    wanted = protocol_hash(protocol_of(cell))
    rows: dict[tuple[str, str | None], list[list[int]]] = {}
    for file in sorted(Path(cell.runs).glob(f"*/{RECORD_FILE}")):
        record = _record_at(file)
        if record is not None and record.kind == "method" and record.protocol_hash == wanted:
            key = (record.label, record.student.spec if record.student else None)
            right = {record_id: flag for record_id, _, flag in record.items}
            rows.setdefault(key, []).append([right[record_id] for record_id in sorted(right)])
    return list(rows.values())


def _record_at(file: Path) -> RunRecord | None:
    """A record, or None for one that cannot be read: it decides nothing here."""
    try:
        return load_record(file)
    except UserError:
        return None
