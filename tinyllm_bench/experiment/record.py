"""Stage 4: the run record of a finished cell, a function of the cell and of the results of its stages."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinyllm_bench.answers.keys import question_kind
from tinyllm_bench.data.checks import clusters, overlap
from tinyllm_bench.data.records import Prediction, TaskRecord
from tinyllm_bench.evaluation.reference_baselines import chance, expected
from tinyllm_bench.evaluation.sampled_answers import policy_report
from tinyllm_bench.evaluation.scoring import TaskScore, score, shared_gold
from tinyllm_bench.experiment.cell import Cell, protocol_of
from tinyllm_bench.experiment.predict import EvaluatedStudent, predictions_digest
from tinyllm_bench.experiment.settings import NOT_RECORDED
from tinyllm_bench.leaderboard.public import public, public_text
from tinyllm_bench.leaderboard.record import (
    AnnotationInfo,
    Budget,
    DataInfo,
    EvaluationInfo,
    GitInfo,
    ModelInfo,
    RunRecord,
    Score,
    TeacherInfo,
    Training,
    ids_digest,
    protocol_hash,
)
from tinyllm_bench.leaderboard.stats.averages import UNPARSED, macro_f1
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.training.result import TrainResult

_TEACHER_SETTINGS = {"kind", "demonstrations", "sampling", "chat"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Cost of a run: wall seconds and peak memory in bytes, on which device."""

    seconds: float
    peak_memory_bytes: int
    device: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Everything of a record that does not follow from the cell and its predictions; the run's folder holds it.

    `training` is the result of the training stage (None for a reference baseline), `student_init` and `teacher_init`
    are those of the runs that made the initial student and the teacher, None without such a run. `student` is None
    where no model answers. `test_evaluations` counts the evaluations on the test split in the ledger.
    """

    run_id: str
    created: str
    training: TrainResult | None
    student_init: TrainResult | None
    teacher_init: TrainResult | None
    annotations: Sequence[AnnotationInfo]
    student: EvaluatedStudent | None
    spent: Spent
    test_evaluations: int
    git: GitInfo
    packages: Mapping[str, str]
    command: str


def make_record(cell: Cell, predictions: Sequence[Prediction], facts: RunFacts) -> RunRecord:
    """The record of a cell: a function of its arguments and the cell's data alone.

    `audit.verify` calls the two parts of it for a finished run and compares.
    """
    return RunRecord(**run_fields(cell, facts), **score_fields(cell, predictions))


def run_fields(cell: Cell, facts: RunFacts) -> dict[str, Any]:
    """The fields of a record that do not depend on the student's answers."""
    training, protocol = facts.training, protocol_of(cell)
    return {
        "run_id": facts.run_id,
        "created": facts.created,
        "kind": cell.kind,
        "name": cell.name,
        "label": cell.label,
        "sample": cell.source.kind == "sample",
        "task": cell.task.name,
        "task_version": cell.task.version,
        "mode": cell.mode,
        "seed": cell.seed,
        "request": public(dict(cell.request)),
        "config": public_config(cell),
        "own_settings": _own_settings(cell),
        "protocol": protocol,
        "protocol_hash": protocol_hash(protocol),
        "student": _student(cell, facts),
        "teachers": _teachers(cell),
        "data": _data(cell),
        "annotations": tuple(facts.annotations),
        "budget": _budget(cell, facts),
        "training": None if training is None else _training(cell, training),
        "test_evaluations": facts.test_evaluations
        + (len(training.evaluations) if training and cell.select_on_test else 0),
        "selected_on": "test" if cell.select_on_test else "valid",
        "notes": _notes(cell, training),
        "chance": chance(cell.truncated_records("test")),
        "clusters": clusters(cell.records("test")),
        "gold": shared_gold(cell.truncated_records("test")),
        "backend": None if facts.student is None else facts.student.backend,
        "git": facts.git,
        "packages": dict(facts.packages),
        "command": public_text(facts.command),
    }


def score_fields(cell: Cell, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The fields of a record that follow from the student's answers.

    Raises:
        AssertionError: a prediction whose `correct` disagrees with the data.
    """
    records, whole = cell.truncated_records("test"), {record.id: record for record in cell.records("test")}
    context_cut = sum(record.context != whole[record.id].context for record in records)
    result = score(predictions, records, context_cut=context_cut)
    paths: dict[str, float] = {}
    if cell.method is not None and (decoding := cell.method.decoding()).policy is not None:
        paths = policy_report(predictions, records, decoding.channels, every=decoding.every)
    return {
        "score": Score(
            n=result.n,
            correct=result.correct,
            wrong=result.wrong,
            unparsed=result.unparsed,
            hit_token_limit=result.hit_token_limit,
            context_cut=result.context_cut,
            ties=result.ties,
        ),
        "secondary": _secondary(result, predictions, records),
        "paths": paths,
        "expected_accuracy": expected(records, cell.records("train")) if cell.name == "random" else None,
        "items": tuple((p.record_id, p.answer, int(p.correct)) for p in predictions),
        "predictions_digest": predictions_digest(predictions),
    }


def public_config(cell: Cell) -> dict[str, Any]:
    """The cell's settings as they may be published: without machine paths and keys."""
    config = cell.config.model_dump(mode="json", exclude=NOT_RECORDED)
    config["data"].pop("dir")  # a folder of the user's machine; the record's `data` has digests
    return public(config)


def _own_settings(cell: Cell) -> tuple[str, ...]:
    """Settings that come with the method: from its own file, or set by the preset for it alone."""
    own = (f"{cell.name}.yaml", f", method {cell.name}")  # the names of a preset's layers end in the second
    names = (key for key, layer in cell.origin.items() if layer.endswith(own) and not key.startswith("method."))
    return tuple(sorted(names))


def _student(cell: Cell, facts: RunFacts) -> ModelInfo | None:
    if facts.student is None:
        return None
    # a method's student may be one that another run made; the record names the model that it started from
    spec = cell.student if cell.kind == "reference_baseline" else parse_spec(cell.config.student.model, role="student")
    return ModelInfo(
        spec=public_text(spec.text),
        initial_digest=None if facts.training is None else facts.training.initial_digest,
        base_digest=None if facts.student_init is None else facts.student_init.initial_digest,
        **facts.student.model_dump(exclude={"backend"}),
    )


def _data(cell: Cell) -> DataInfo:
    train, valid = (cell.records(split) for split in ("train", "valid"))
    trained = cell.kind == "method"
    return DataInfo(
        source=cell.source.kind,
        splits={split: dict(facts) for split, facts in cell.data.items()},
        train_ids_digest=ids_digest(r.id for r in train) if trained else None,
        n_train=len(train) if trained else None,
        overlap=overlap(train, cell.records("test")) if trained else None,
        valid_ids_digest=ids_digest(r.id for r in valid) if trained else None,
    )


def _teachers(cell: Cell) -> tuple[TeacherInfo, ...]:
    """Teachers of texts, then the white-box teacher."""
    teachers = []
    for teacher in cell.teachers:
        settings = {}
        if not teacher.recorded:
            settings = cell.config.annotations.model_dump(mode="json", include=_TEACHER_SETTINGS)
        teachers.append(
            TeacherInfo(
                spec=public_text(teacher.spec),
                note="recorded text" if teacher.recorded else "live",
                gold_visible=teacher.gold_visible,
                settings=public(settings),
            )
        )
    if cell.signal is not None:
        teachers.append(TeacherInfo(spec=public_text(cell.signal.text), note="distributions", gold_visible=False))
    return tuple(teachers)


def _budget(cell: Cell, facts: RunFacts) -> Budget:
    common: dict[str, Any] = asdict(facts.spent)
    costs = [counts.cost for counts in facts.annotations if counts.cost is not None]
    if costs:
        for key in ("tokens_in", "tokens_out", "seconds"):
            common[f"teacher_{key}"] = sum(getattr(cost, key) for cost in costs)
        common["teacher_shared_by"] = cell.shared_by
    training = facts.training
    if training is None:
        return Budget(**common)
    prerequisites = {"student_init_tokens": facts.student_init, "teacher_init_tokens": facts.teacher_init}
    common |= {key: result.student_tokens for key, result in prerequisites.items() if result is not None}
    tokens, seconds = training.student_tokens, training.seconds
    track, amount = cell.config.budget.limit
    targets = sum(training.tokens_by_channel.values())
    return Budget(
        track=track,
        amount=amount,
        student_tokens_limit=cell.config.budget.student_tokens,
        student_tokens=tokens,
        computed_tokens=training.computed_tokens,
        tokens_by_channel=training.tokens_by_channel,
        prompt_tokens=tokens - targets,
        target_tokens=targets,
        rollout_tokens=training.rollout_tokens,
        rollout_seconds=training.rollout_seconds,
        steps=training.steps,
        epochs=training.epochs,
        train_flops=None if training.encoder_decoder else training.flops,  # where the estimate holds
        train_seconds=seconds,
        tokens_per_second=round(tokens / seconds, 2) if seconds else None,
        **common,
    )


def _training(cell: Cell, training: TrainResult) -> Training:
    return Training(
        steps=training.steps,
        first_loss=training.first_loss,
        last_loss=training.last_loss,
        start=None if training.start is None else EvaluationInfo(**asdict(training.start)),
        evaluations=tuple(
            EvaluationInfo(**asdict(e), selected=e.step == training.selected_step) for e in training.evaluations
        ),
        measured=training.measured,
        select=cell.config.train.select,
        layout=training.layout,
        layout_reason=training.layout_reason,
    )


def _secondary(result: TaskScore, predictions: Sequence[Prediction], records: Sequence[TaskRecord]) -> dict[str, float]:
    """Accuracy by plain log-probability in rankings; macro-F1 where the answers are yes, no and maybe."""
    secondary = {} if result.accuracy_plain is None else {"accuracy_plain": result.accuracy_plain}
    if {question_kind(record.choices) for record in records} == {"yes_no"}:
        by_id = {record.id: record for record in records}
        answered = [by_id[prediction.record_id] for prediction in predictions]
        labels = sorted({choice for record in records for choice in record.choices})
        gold = [labels.index(record.choices[record.answer]) for record in answered]
        predicted = [
            [labels.index(record.choices[p.answer]) if isinstance(p.answer, int) else UNPARSED]
            for record, p in zip(answered, predictions, strict=True)
        ]
        secondary["macro_f1"] = macro_f1(gold, predicted)
    return secondary


def _notes(cell: Cell, training: TrainResult | None) -> tuple[str, ...]:
    notes = [public_text(note) for note in cell.notes]
    if cell.name == "random":
        notes.append("items are one seeded guess each; the accuracy shown is the exact expectation")
    if cell.select_on_test:
        notes.append("weights were selected on the test split, as the released code does: the number is optimistic")
    if training and training.targets_dropped:
        notes.append(f"{training.targets_dropped} programs were left out: the student's tokenizer loses a part of them")
    if training and training.targets_cut:
        limit = cell.config.train.max_target_tokens
        notes.append(f"{training.targets_cut} training targets were cut at {limit} tokens")
    return tuple(notes)
