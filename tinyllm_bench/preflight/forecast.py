"""What a request will cost and which differences it can detect: the one forecast that `plan` and `doctor` read.

Every cell is forecast after those that it depends on. Finished work costs nothing more, and what two cells share
(teachers' texts, cells to start from) is counted once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tinyllm_bench.base import provenance
from tinyllm_bench.base.errors import UserError, in_one_line
from tinyllm_bench.base.files import read_checked, read_json
from tinyllm_bench.data.checks import clusters
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.experiment.cell import GUESSES, Cell, protocol_of
from tinyllm_bench.experiment.predict import part_file, predictions_file
from tinyllm_bench.experiment.train import cache_header, init_cost
from tinyllm_bench.generation.top_k import response_digest
from tinyllm_bench.leaderboard.record import RECORD_FILE, load_record, protocol_hash
from tinyllm_bench.leaderboard.stats.power import (
    Assumed,
    assumed_from,
    planned_detectable,
    questions_needed,
    seeds_needed,
)
from tinyllm_bench.models.load import load_shape, parameter_count
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.preflight.dry_training import (
    Counts,
    DryTraining,
    Memory,
    Speed,
    TextForecast,
    library_bytes,
    measured_speed,
    model_bytes,
    with_existing_models,
)
from tinyllm_bench.training.logit_cache import LogitCache
from tinyllm_bench.training.result import RESULT_FILE

_CHARACTERS_PER_TOKEN = 4  # of English text
_ANSWER_BYTES = 400  # of an answer, compressed, and of its line in the record
_TOKENIZER_BYTES = 4 * 2**20  # of the tokenizer's files beside the student's weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes that a cell adds: to its run folder when it is done, and at most while it runs; to the caches that all
    cells share, for teachers' distributions and teachers' texts."""

    final: int = 0
    peak: int = 0
    logits: int = 0
    texts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CellForecast:
    """What one cell will cost. Finished stages cost nothing more; unknown values are None.

    mode: how questions are scored; questions: by split; done: finished stages; first: run ids of the cells that run
    first; charged: what making the initial student takes of the budget, in its unit; counts: of the training;
    evaluations: on the validation split during training; seconds: by part, an estimate (`Speed`); memory: bytes at the
    peak; usd: of missing texts, if their price is set; problem: why no more is known.
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
    texts: tuple[TextForecast, ...] = ()
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    memory: int = 0
    memory_parts: Memory | None = None
    disk: Disk = field(default_factory=Disk)
    usd: float | None = None
    problem: str | None = None

    @property
    def total_seconds(self) -> float | None:
        """The sum of all parts; None if one is unknown."""
        return None if self.problem else _sum_known(list(self.seconds.values()))

    @property
    def is_done(self) -> bool:
        """Whether the cell has nothing left to do."""
        return "record" in self.done or (self.trains_only and "train" in self.done)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The request as a whole: sums over what is left to do, and the largest memory of a cell. Unknown values are None.

    disk, disk_peak: bytes in the folder of runs at the end, and at most during the run; cache: bytes added to caches;
    usd_device: at a price per hour.
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
    """Which differences the results on one task can detect, as shares of right answers.

    difference: the smallest true difference between two rows that is detected with 80 % power at the 5 % level, by the
    statistic that leaderboards and `compare` use: the two-way variance over questions and seeds, with a t distribution
    of Satterthwaite's degrees of freedom (`stats.intervals.spread`, `stats.power.planned_detectable`). An item-paired
    test on means over seeds would promise smaller differences, and rejects a true null in 12.8 to 17.5 % when runs vary
    by 2 points. units: questions, those that share a passage counted once. comparisons: each row of the table against
    one of them, as leaderboards test against their fine-tuning baseline; the level is divided by them (Holm's first
    step). assumed: how much rows and runs differ, from finished runs on the same protocol in the folder of runs, or
    common values. With one seed it holds for the trained students only. detect: a difference that should be detected;
    seeds (with these questions), more_questions (with these seeds, two at least): what that takes, None if it does not
    help.
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
    """A request's cells in the order in which they run, its totals, and which differences it can detect per task.

    matmul_flops: measured FLOP/s by number format; times assume a part of them (`dry_training.Speed`).
    """

    device: str
    matmul_flops: Mapping[str, float]
    cells: tuple[CellForecast, ...]
    totals: Totals
    detectable: tuple[Detectable, ...]

    def cell(self, run_id: str) -> CellForecast:
        """The forecast of one cell."""
        return next(cell for cell in self.cells if cell.run_id == run_id)

    def plain(self) -> dict[str, Any]:
        """As JSON: what `plan --json` and `doctor --json` print."""
        cells = [{**asdict(c), "total_seconds": c.total_seconds, "is_done": c.is_done} for c in self.cells]
        detectable = [{**asdict(task), "assumed": task.assumed._asdict()} for task in self.detectable]
        return {**asdict(self), "cells": cells, "detectable": detectable}


def forecast(
    cells: Sequence[Cell],
    *,
    speed: Callable[[str], Speed] = measured_speed,
    detect: float | None = None,
    price: float | None = None,
    tolerant: bool = False,
) -> Forecast:
    """Forecast every cell of a request; nothing is trained, no text is generated and no weights are loaded.

    Args:
        cells: As `plan_cells` gives them.
        speed: The speed of the device in a number format of torch.
        detect: A difference (a share of right answers) that should be detected.
        price: US dollars per hour of the device.
        tolerant: A cell that cannot be forecast gets a `problem` instead of ending everything.

    Raises:
        UserError: a cell cannot run as requested; with `tolerant` never because of a cell.
    """
    forecaster = _Forecaster(speed, tolerant=tolerant)
    for cell in cells:
        forecaster.add(cell)
    forecasts = tuple(forecaster.cells.values())
    return Forecast(
        device=provenance.device_name(),
        matmul_flops={dtype: measured.matmul for dtype, measured in forecaster.speeds.items()},
        cells=forecasts,
        totals=_totals(forecasts, price),
        detectable=_detectable(cells, detect),
    )


class _Forecaster:
    """Forecasts cells one after another; what an earlier one will produce is not counted again."""

    def __init__(self, speed: Callable[[str], Speed], *, tolerant: bool) -> None:
        self.cells: dict[str, CellForecast] = {}
        self.speeds: dict[str, Speed] = {}
        self._measure, self._tolerant = speed, tolerant
        self._written: set[str] = set()  # keys of texts that an earlier cell will have written
        self._scored: set[tuple[Path, str, str]] = set()  # responses whose distributions an earlier cell will cache
        self._trainings: dict[tuple[Any, ...], DryTraining] = {}

    def add(self, cell: Cell) -> None:
        """Forecast a cell, after those that it depends on."""
        if cell.run_id in self.cells:
            return
        for prerequisite in cell.prerequisites:
            self.add(prerequisite)
        forecast = CellForecast(
            run_id=cell.run_id,
            label=cell.label,
            task=cell.task.name,
            seed=cell.seed,
            mode=cell.mode,
            kind=cell.kind,
            trains_only=cell.trains_only,
            questions={split: len(cell.records(split)) for split in ("train", "valid", "test")},
            done=_stages_done(cell),
            first=tuple(prerequisite.run_id for prerequisite in cell.prerequisites),
        )
        if forecast.is_done:
            self.cells[cell.run_id] = replace(forecast, usd=0.0)
            return
        try:
            forecast = replace(forecast, charged=self._charged(cell))
            trains = cell.method is not None and not cell.students and "train" not in forecast.done
            forecast = self._trained(cell, forecast) if trains else self._evaluated(cell, forecast)
        except Exception as error:  # a model that is tried here may raise anything
            problem = (
                error
                if isinstance(error, UserError)
                else UserError(
                    f"{cell.label} on {cell.task.name}, student {cell.student.text}: its cost could not be found out"
                    f" ({in_one_line(error)}); correct what it names, in the settings or in the model's config.json"
                )
            )
            if not self._tolerant:
                raise problem from None
            forecast = replace(forecast, problem=str(problem))
        self.cells[cell.run_id] = forecast

    def _evaluated(self, cell: Cell, forecast: CellForecast) -> CellForecast:
        """A reference baseline, several students that answer together, or a student that is trained already."""
        models = {}
        if cell.name not in GUESSES:
            for cell_of_student in cell.students.values() or [cell]:
                spec, dtype = with_existing_models(cell_of_student).student, cell_of_student.config.student.dtype
                models[cell_of_student.run_id] = load_shape(spec, dtype=dtype, runs=cell.runs).model
        parameters = parameter_count(next(iter(models.values()))) if models else 0
        seconds = {"predict": self._predict_seconds(cell, parameters, _answered_count(cell))}
        memory = library_bytes(cell) + sum(map(model_bytes, models.values()))
        size = _ANSWER_BYTES * len(cell.records("test"))
        return replace(forecast, seconds=seconds, memory=memory, disk=Disk(final=size, peak=size))

    def _trained(self, cell: Cell, forecast: CellForecast) -> CellForecast:
        training = self._training(cell)
        counts = training.counts(cell, forecast.charged, self._speed(cell))
        evaluations = cell.config.train.evaluation_count(counts.steps)
        texts = tuple(cost.without(self._written) for cost in training.texts)
        self._written.update(key for cost in texts for key in cost.keys)
        logits = self._missing_logits(cell, training)
        return replace(
            forecast,
            counts=counts,
            epochs=training.epochs(counts),
            evaluations=evaluations,
            layout=training.collator.layout,
            texts=texts,
            seconds=self._seconds(cell, training, counts, texts, logits, evaluations),
            memory=training.memory.peak,
            memory_parts=training.memory,
            disk=_disk(cell, training, texts, logits, evaluations),
            usd=_sum_known([cost.usd for cost in texts if cost.missing]),
        )

    def _training(self, cell: Cell) -> DryTraining:
        """The cell's training without weights; one serves all seeds."""
        existing = with_existing_models(cell)
        models = (existing.student.text, existing.signal and existing.signal.text, cell.trains_only, cell.share)
        key = (cell.label, cell.task.name, cell.mode, *models, cell.config.model_dump_json())
        if key not in self._trainings:
            self._trainings[key] = DryTraining(cell)
        return self._trainings[key]

    def _charged(self, cell: Cell) -> float:
        """What making the initial student takes or took, in the unit of the cell's budget."""
        first, name = cell.student_from, cell.config.budget.limit[0]
        if first is None or name == "epochs":
            return 0.0
        if (cell.runs / first.run_id / RESULT_FILE).exists():
            return init_cost(first, cell.runs, name)
        planned = self.cells[first.run_id]
        if planned.counts is None:
            raise UserError(f"{first.label} on {first.task.name}, which is trained first: {planned.problem}")
        if name == "seconds":
            return float(planned.seconds["training"] or 0.0) + float(planned.seconds["sampling"] or 0.0)
        return {"student_tokens": planned.counts.tokens, "flops": planned.counts.flops}[name]

    def _missing_logits(self, cell: Cell, training: DryTraining) -> list[Encoded]:
        """Responses whose distributions are missing from the cell's cache and that no earlier cell will put there."""
        if cell.signal is None or cell.config.teacher.cache is None:
            return []
        folder = cache_header(training.cell, training.loaded).folder
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
            self.speeds[dtype] = self._measure(dtype)
        return self.speeds[dtype]

    def _seconds(
        self,
        cell: Cell,
        training: DryTraining,
        counts: Counts,
        texts: Sequence[TextForecast],
        logits: Sequence[Encoded],
        evaluations: int,
    ) -> dict[str, float | None]:
        """Seconds by part; an interrupted training resumes at its last checkpoint."""
        speed, student = self._speed(cell), parameter_count(training.loaded.model)
        left = 1.0 - _trained_share(cell, counts.steps)
        sampling = training.sampling_seconds(counts.sampled_tokens, counts.sampling_flops, speed)
        questions = cell.truncated_records("test" if cell.select_on_test else "valid")
        evaluated = (evaluations + (training.sampling is not None)) * self._answer_seconds(cell, student, questions)
        seconds: dict[str, float | None] = {
            "texts": _sum_known([self._text_seconds(cell, cost) for cost in texts if cost.missing]),
            "training": left * (counts.flops - counts.sampling_flops) / speed.training,
            "sampling": left * sampling,
            "evaluation": left * evaluated,
        }
        if training.teacher is not None and logits:
            read = sum(item.tokens for item in logits)
            seconds["logits"] = 2.0 * parameter_count(training.teacher.model) * read / speed.reading
        return seconds if cell.trains_only else seconds | {"predict": self._predict_seconds(cell, student)}

    def _text_seconds(self, cell: Cell, cost: TextForecast) -> float | None:
        """By earlier texts, else by the model's size; None if neither is known, as for an API."""
        spec = parse_spec(cost.spec, role="teacher")
        if cost.seconds is None and spec.kind == "run" and cell.teacher_from is not None:
            spec = with_existing_models(cell.teacher_from).student
        if cost.seconds is not None or not spec.has_weights:
            return cost.seconds
        speed, flops = self._speed(cell), 2.0 * parameter_count(load_shape(spec, runs=cell.runs).model)
        return flops * (cost.tokens_in / speed.reading + cost.tokens_out / speed.sampling)

    def _predict_seconds(self, cell: Cell, parameters: int, answered: int = 0) -> float:
        """Seconds of answering the test questions that are left."""
        seconds = self._answer_seconds(cell, parameters, cell.truncated_records("test")[answered:])
        if cell.students:  # a policy needs several texts per question
            texts = cell.decoding_config(None).texts_needed()
            seconds *= sum(bool(greedy) + sampled for greedy, sampled in texts.values())
        return seconds * (1 + cell.config.eval.shots if cell.name == "few_shot" else 1)

    def _answer_seconds(self, cell: Cell, parameters: int, records: Sequence[TaskRecord]) -> float:
        """Seconds of answering some questions once; options are ranked after a prompt that is read once."""
        ask, speed = cell.ask, self._speed(cell)
        read = sum(len(ask.prompt(record)) for record in records) / _CHARACTERS_PER_TOKEN
        written = 0.0
        if cell.mode == "generate":
            written = sum(len(ask.label_target(record)) / _CHARACTERS_PER_TOKEN + 1 for record in records)
        else:
            read += sum(len(option) for record in records for option in ask.options(record)) / _CHARACTERS_PER_TOKEN
        return 2.0 * parameters * (read / speed.reading + written / speed.sampling)


def _stages_done(cell: Cell) -> tuple[str, ...]:
    """The finished stages of a cell."""
    folder = cell.runs / cell.run_id
    trained = cell.method is not None and not cell.students and (folder / RESULT_FILE).exists()
    files = {"predict": predictions_file(cell, folder), "record": folder / RECORD_FILE}
    return (*(("train",) if trained else ()), *(stage for stage, file in files.items() if file.exists()))


def _answered_count(cell: Cell) -> int:
    """The number of test questions that an interrupted run has answered."""
    folder = cell.runs / cell.run_id
    if predictions_file(cell, folder).exists():
        return len(cell.records("test"))
    return sum(len(row["predictions"]) for row in read_checked(part_file(cell, folder)))


def _trained_share(cell: Cell, steps: int) -> float:
    """The share of its training that an interrupted run has saved in its last checkpoint."""
    manifests = sorted((cell.runs / cell.run_id / "train" / "checkpoints").glob("step-*/manifest.json"))
    return min(read_json(manifests[-1])["step"] / steps, 1.0) if manifests else 0.0


def _disk(
    cell: Cell, training: DryTraining, texts: Sequence[TextForecast], logits: Sequence[Encoded], evaluations: int
) -> Disk:
    """What a training writes, at most.

    A checkpoint holds the weights and AdamW's two moments; two exist while one replaces the other. Each evaluation may
    save weights. The student is saved before the last checkpoint is removed.
    """
    trained, answered = training.trained_bytes, 0 if cell.trains_only else len(cell.records("test"))
    final = model_bytes(training.lm) + _TOKENIZER_BYTES + _ANSWER_BYTES * answered
    if cell.config.student.lora is not None:
        final += trained  # the adapters are stored next to the merged student
    peak = evaluations * trained + max(2 * 3 * trained, 3 * trained + final)
    token = cache_header(training.cell, training.loaded).bytes_per_token if logits else 0
    return Disk(
        final=final,
        peak=peak,
        logits=token * sum(len(item.target) for item in logits),
        texts=4 * sum(cost.tokens_out for cost in texts),
    )


def _sum_known(values: Sequence[float | None]) -> float | None:
    """The sum; None if a value is unknown."""
    return None if any(value is None for value in values) else float(sum(value or 0.0 for value in values))


def _totals(cells: Sequence[CellForecast], price: float | None) -> Totals:
    left = [cell for cell in cells if not cell.is_done]
    trained = [(cell, cell.counts) for cell in left if cell.counts is not None]
    texts = [text for cell in left for text in cell.texts]
    seconds = _sum_known([cell.total_seconds for cell in left])
    disk = sum(cell.disk.final for cell in left)
    return Totals(
        cells=len(cells),
        done=len(cells) - len(left),
        steps=sum(counts.steps for _, counts in trained),
        student_tokens=sum(counts.tokens for _, counts in trained),
        flops=sum(counts.flops for _, counts in trained),
        teacher_tokens_in=sum(text.tokens_in for text in texts),
        teacher_tokens_out=sum(text.tokens_out for text in texts),
        seconds=seconds,
        memory=max((cell.memory for cell in left), default=0),
        disk=disk,
        disk_peak=disk + max((cell.disk.peak - cell.disk.final for cell in left), default=0),
        cache=sum(cell.disk.logits + cell.disk.texts for cell in left),
        usd_teachers=_sum_known([cell.usd for cell, _ in trained]),
        usd_device=None if price is None or seconds is None else price * seconds / 3600,
    )


# --- The smallest detectable difference -------------------------------------------------------------------------------


def _detectable(cells: Sequence[Cell], detect: float | None) -> tuple[Detectable, ...]:
    """Per task and scoring mode of the methods' cells."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.method is not None:
            groups.setdefault((cell.task.name, cell.mode), []).append(cell)
    tasks = []
    for (task, mode), group in groups.items():
        records = group[0].records("test")
        units = len(set(clusters(records)) or records)
        seeds = len({cell.seed for cell in group})
        comparisons = max(len({cell.label for cell in group}) - 1, 1)
        assumed = assumed_from(_finished_rows(group[0]))
        seeds_to_detect = questions_to_detect = None
        if detect is not None:
            seeds_to_detect = seeds_needed(units, detect, assumed, comparisons=comparisons)
            questions_to_detect = questions_needed(max(seeds, 2), detect, assumed, comparisons=comparisons)
        difference = planned_detectable(
            units,
            seeds=seeds,
            comparisons=comparisons,
            discordance=assumed.discordance,
            within=assumed.within,
            run_sd=assumed.run_sd,
        )
        tasks.append(
            Detectable(
                task=task,
                mode=mode,
                questions=len(records),
                units=units,
                seeds_planned=seeds,
                comparisons=comparisons,
                difference=difference,
                assumed=assumed,
                detect=detect,
                seeds=seeds_to_detect,
                more_questions=questions_to_detect,
            )
        )
    return tuple(tasks)


def _finished_rows(cell: Cell) -> list[list[list[int]]]:
    """Right and wrong answers of the finished runs of the same protocol in the folder of runs, by row."""
    expected = protocol_hash(protocol_of(cell))
    rows: dict[tuple[str, str | None], list[list[int]]] = {}
    for file in sorted(Path(cell.runs).glob(f"*/{RECORD_FILE}")):
        try:
            record = load_record(file)
        except UserError:  # a record that cannot be read is of no use here
            continue
        if record.kind == "method" and record.protocol_hash == expected:
            key = (record.label, record.student.spec if record.student else None)
            right = {record_id: flag for record_id, _, flag in record.items}
            rows.setdefault(key, []).append([right[record_id] for record_id in sorted(right)])
    return list(rows.values())
