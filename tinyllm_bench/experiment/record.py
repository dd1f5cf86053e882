"""Stage 4: the run record of a finished cell, a function of the cell and of what the stages left behind."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinyllm_bench.answers.keys import question_kind
from tinyllm_bench.data.checks import clusters, overlap
from tinyllm_bench.data.records import Prediction, TaskRecord
from tinyllm_bench.evaluation.reference_baselines import chance, expected
from tinyllm_bench.evaluation.sampled_answers import policy_report
from tinyllm_bench.evaluation.scoring import TaskScore, score, shared_gold
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.identity import protocol_of
from tinyllm_bench.experiment.predict import predictions_digest
from tinyllm_bench.experiment.settings import WATCHING
from tinyllm_bench.leaderboard.public import public, public_text
from tinyllm_bench.leaderboard.record import (
    BackendInfo,
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
from tinyllm_bench.teachers.teacher import Teacher
from tinyllm_bench.training.result import TrainResult

_ASKED = {"kind", "demonstrations", "sampling", "chat"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a run took: wall seconds, the peak of memory in bytes, on which device."""

    seconds: float
    peak_memory_bytes: int
    device: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What a record tells beside its cell and its predictions; those of a finished run are in its folder.

    `training` is the result of the training stage (None for a reference baseline), `student_init` and `teacher_init`
    are those of the runs that made the initial student and the teacher, None without such a run. `annotations` are the
    counts of `annotate.annotation_counts`, `asked` is what `predictions/asked.json` holds of student and backend (empty
    where no model is asked), `test_evaluations` how often the ledger tells of the test split. The others say when,
    where, by which code and at what cost.
    """

    run_id: str
    created: str
    training: TrainResult | None
    student_init: TrainResult | None
    teacher_init: TrainResult | None
    annotations: Sequence[Mapping[str, Any]]
    asked: Mapping[str, Any]
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
        "teachers": (*(_teacher(cell, teacher) for teacher in cell.teachers), *_white_box(cell)),
        "data": _data(cell),
        "annotations": tuple(dict(counts) for counts in facts.annotations),
        "budget": _budget(cell, facts),
        "training": None if training is None else _training(cell, training),
        "test_evaluations": facts.test_evaluations
        + (len(training.evaluations) if training and cell.select_on_test else 0),
        "selected_on": "test" if cell.select_on_test else "valid",
        "notes": _notes(cell, training),
        "chance": chance(cell.asked_records("test")),
        "clusters": clusters(cell.records("test")),
        "gold": shared_gold(cell.asked_records("test")),
        "backend": BackendInfo(**facts.asked["backend"]) if "backend" in facts.asked else None,
        "git": facts.git,
        "packages": dict(facts.packages),
        "command": public_text(facts.command),
    }


def score_fields(cell: Cell, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The fields of a record that follow from the student's answers.

    Raises:
        AssertionError: a prediction whose `correct` is not what the data says.
    """
    records, whole = cell.asked_records("test"), {record.id: record for record in cell.records("test")}
    found = score(predictions, records, context_cut=sum(one.context != whole[one.id].context for one in records))
    paths: dict[str, float] = {}
    if cell.method is not None and (decoding := cell.method.decoding()).policy is not None:
        paths = policy_report(predictions, records, decoding.channels, every=decoding.every)
    return {
        "score": _score(found),
        "secondary": _secondary(found, predictions, records),
        "paths": paths,
        "expected_accuracy": expected(records, cell.records("train")) if cell.name == "random" else None,
        "items": tuple((p.record_id, p.answer, int(p.correct)) for p in predictions),
        "predictions_digest": predictions_digest(predictions),
    }


def public_config(cell: Cell) -> dict[str, Any]:
    """The cell's settings as they may be published: no place on a machine, no key."""
    config = cell.config.model_dump(mode="json", exclude=WATCHING)
    config["data"].pop("dir")  # a place on somebody's machine; the data's digests stand in `data`
    return public(config)


def _own_settings(cell: Cell) -> tuple[str, ...]:
    """Settings that the method itself brings along: by its own file, or by what the preset sets for it alone."""
    own = (f"{cell.name}.yaml", f", method {cell.name}")  # the second closes the name of a preset's layer
    found = (key for key, layer in cell.origin.items() if layer.endswith(own) and not key.startswith("method."))
    return tuple(sorted(found))


def _student(cell: Cell, facts: RunFacts) -> ModelInfo | None:
    if "student" not in facts.asked:
        return None
    # a method's student may be one that another run made; the record names the model that it began with
    spec = cell.student if cell.kind == "reference_baseline" else parse_spec(cell.config.student.model, role="student")
    return ModelInfo(
        spec=public_text(spec.text),
        initial_digest=None if facts.training is None else facts.training.initial_digest,
        base_digest=None if facts.student_init is None else facts.student_init.initial_digest,
        **facts.asked["student"],
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


def _teacher(cell: Cell, teacher: Teacher) -> TeacherInfo:
    settings = {} if teacher.recorded else cell.config.annotations.model_dump(mode="json", include=_ASKED)
    note = "recorded text" if teacher.recorded else "live"
    return TeacherInfo(
        spec=public_text(teacher.spec), note=note, gold_visible=teacher.gold_visible, settings=public(settings)
    )


def _white_box(cell: Cell) -> tuple[TeacherInfo, ...]:
    if cell.signal is None:
        return ()
    return (TeacherInfo(spec=public_text(cell.signal.text), note="distributions", gold_visible=False),)


def _budget(cell: Cell, facts: RunFacts) -> Budget:
    common: dict[str, Any] = asdict(facts.spent)
    costs = [found["cost"] for found in facts.annotations if found["cost"] is not None]
    if costs:
        common |= {f"teacher_{key}": sum(cost[key] for cost in costs) for key in ("tokens_in", "tokens_out", "seconds")}
        common["teacher_shared_by"] = cell.shared_by
    training = facts.training
    if training is None:
        return Budget(**common)
    made = {"student_init_tokens": facts.student_init, "teacher_init_tokens": facts.teacher_init}
    common |= {key: result.student_tokens for key, result in made.items() if result is not None}
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


def _score(found: TaskScore) -> Score:
    return Score(
        n=found.n,
        correct=found.correct,
        wrong=found.wrong,
        unparsed=found.unparsed,
        hit_token_limit=found.hit_token_limit,
        context_cut=found.context_cut,
        ties=found.ties,
    )


def _secondary(found: TaskScore, predictions: Sequence[Prediction], records: Sequence[TaskRecord]) -> dict[str, float]:
    """Accuracy by plain log-probability in rankings; macro-F1 where the answers are yes, no and maybe."""
    second = {} if found.accuracy_plain is None else {"accuracy_plain": found.accuracy_plain}
    if {question_kind(record.choices) for record in records} == {"yes_no"}:
        by_id = {record.id: record for record in records}
        asked = [by_id[prediction.record_id] for prediction in predictions]
        labels = sorted({choice for record in records for choice in record.choices})
        gold = [labels.index(record.choices[record.answer]) for record in asked]
        said = [
            [labels.index(record.choices[p.answer]) if isinstance(p.answer, int) else UNPARSED]
            for record, p in zip(asked, predictions, strict=True)
        ]
        second["macro_f1"] = macro_f1(gold, said)
    return second


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
