"""`verify`: rebuild the record of a finished run from its folder and one's own data, and show where it differs.

1. The record must add up by itself. 2. The files of its folder are read. 3. The cell is resolved from the run's
settings as a request's is; the questions and right answers are the checker's own. 4. Every stored answer is derived
again: option scores are compared, texts parsed, programs run. 5. The record is made by the functions that a run makes
it with, and compared field by field. A record whose score was rebuilt is `re-scored`.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from pydantic import TypeAdapter, ValidationError

from tinyllm_bench import __version__
from tinyllm_bench.answers.codec import LayoutTokens
from tinyllm_bench.answers.parser import reader_version
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.answers.voting import POT
from tinyllm_bench.base import provenance
from tinyllm_bench.base.config import Resolved, read_yaml
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import visible
from tinyllm_bench.base.events import CellStarted, RunRecorded, TrainingStep, from_json
from tinyllm_bench.base.files import check_inside, read_checked
from tinyllm_bench.base.plugins import load_method
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import Prediction, TaskRecord
from tinyllm_bench.data.sources import Source, find_source
from tinyllm_bench.evaluation.sampled_answers import DecodingConfig, sample_answers
from tinyllm_bench.evaluation.scoring import with_answer
from tinyllm_bench.experiment.cell import GUESSES, Cell
from tinyllm_bench.experiment.plan_cells import resolved_cell, with_teachers
from tinyllm_bench.experiment.predict import (
    GuessEvaluator,
    load_evaluated_student,
    load_predictions,
    predictions_digest,
    student_file,
)
from tinyllm_bench.experiment.record import RunFacts, Spent, run_fields, score_fields
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.experiment.settings import BenchConfig, InitConfig, TeacherInitConfig
from tinyllm_bench.experiment.train import joint_digest, joint_training
from tinyllm_bench.generation.requests import Completion, Generate, GenerationRequest
from tinyllm_bench.leaderboard import verdicts
from tinyllm_bench.leaderboard.consistency import failed_checks
from tinyllm_bench.leaderboard.public import public, public_text
from tinyllm_bench.leaderboard.record import RECORD_FILE, Budget, RunRecord, load_record
from tinyllm_bench.leaderboard.verdicts import RE_RUN, RE_SCORED, SELF_REPORTED, Rerun, Tier, Verdict
from tinyllm_bench.models.load import check_spec
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.training.result import RESULT_FILE, TrainResult, load_result

# Fields of a record that cannot be rebuilt from its folder and the data, and why. All others are rebuilt and compared.
NOT_REBUILT: Mapping[str, str] = {
    "created": "measured by a clock",
    "budget.seconds": "measured by a clock",
    "budget.peak_memory_bytes": "measured on the machine",
    "budget.device": "reported by the machine",
    "git": "the state of the code that made the record",
    "packages": "the environment of the run",
    "command": "as the user typed it",
    "request": "the request that this cell is a part of",
    "label": "the request chose the row's name",
    "own_settings": "which layer of the request set a value; the values themselves are compared",
    "annotations": "the teachers' texts are in the cache of the user who requested them",
    "budget.teacher_shared_by": "the other methods of the request",
    "config": "it is compared with config.yaml as it is: the rebuilt cell reads the checker's own data",
    "protocol.parser_version": "if it is not this code's, no text is parsed again",
    "protocol_hash": "every load compares it with the protocol",
    "predictions_digest": "it is compared with the stored file",
}
# Where the rebuilt value of a field comes from, for the messages.
_FROM: Mapping[str, str] = {
    "config": "as config.yaml says",
    "test_evaluations": "as ledger.jsonl says",
    "student": "as predictions/student.json and train/result.json say",
    "backend": "as predictions/student.json says",
    "budget": "from train/result.json and config.yaml",
    "training": "from train/result.json",
    "run_id": "from settings, data and code",
    **dict.fromkeys(("score", "secondary", "paths", "items"), "from the stored predictions"),
}
# Raised by files of a run that hold JSON, but not what a run writes there.
_MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Problem(NamedTuple):
    """One thing that does not hold: the file, what is wrong, what was expected (empty if `wrong` says it all)."""

    file: Path
    wrong: str
    expected: str = ""

    @property
    def text(self) -> str:
        """One line for a terminal."""
        return visible(f"{self.file}: {self.wrong}" + (f"; expected {self.expected}" if self.expected else ""))


def abbreviated(value: Any) -> str:
    """A value as messages show it: the first digits of a digest, long values cut."""
    text = str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:57]}..."


class Verification:
    """The result of checking one path: its record, the problems, what was checked and what could not be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / RECORD_FILE if path.is_dir() else path
        self.record: RunRecord | None = None
        self.problems: list[Problem] = []
        self.checked: list[str] = []
        self.not_checked: list[str] = []
        self.scored = False
        self.rerun: Rerun | None = None

    @property
    def ok(self) -> bool:
        """Whether everything that was checked holds."""
        return not self.problems

    @property
    def tier(self) -> Tier:
        """The trust tier that this check gives the record."""
        if not self.ok or not self.scored:
            return SELF_REPORTED
        return RE_SCORED if self.rerun is None else RE_RUN

    @contextmanager
    def check(self, what: str) -> Iterator[None]:
        """Run one check; what it cannot read is a problem, not the end of the verification."""
        try:
            yield
        except UserError as error:
            self.problems.append(Problem(self.path, str(error)))
        except _MALFORMED as error:
            reason = f"{what} cannot be checked ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            self.problems.append(Problem(self.path, reason, "files as a run writes them"))
        self.checked.append(what)


def verify(path: Path, *, data_dir: str | None = None, rerun: Path | None = None) -> Verification:
    """Check a run's folder, or a record's file alone.

    Args:
        path: The folder or the file.
        data_dir: The release's folder; by default the one that the environment names.
        rerun: The folder of a second run of the same cell, made by the person who verifies.
    """
    result = Verification(Path(path))
    try:
        record = result.record = load_record(result.path)
    except UserError as error:
        result.problems.append(Problem(result.file, str(error).removeprefix(f"{result.file} ")))
        return result
    with result.check("the record's arithmetic"):
        for claim in failed_checks(record):
            expected = f"{abbreviated(claim.expected)} ({claim.reason})"
            result.problems.append(Problem(result.file, f"{claim.field} is {abbreviated(claim.actual)}", expected))
    folder = result.path if result.path.is_dir() else result.path.parent
    if result.path != folder and not (result.path.name == RECORD_FILE and (folder / "predictions").is_dir()):
        result.not_checked.append("everything but arithmetic (that needs the run's folder)")
        return result
    no_link_leads_out = False
    with result.check("links"):
        for place in (folder, folder / "predictions", folder / "train"):
            for entry in sorted(place.iterdir()) if place.is_dir() else ():
                if entry.is_symlink():
                    check_inside(entry, folder)
        no_link_leads_out = True
    if no_link_leads_out:
        _check_folder(result, folder, record, data_dir)
    if rerun is not None:
        with result.check("a second run"):
            _check_rerun(result, record, rerun, data_dir)
    return result


def _check_folder(result: Verification, folder: Path, record: RunRecord, data_dir: str | None) -> None:
    """Read the run's files, rebuild the record from them, and compare."""
    settings: dict[str, Any] = {}
    with result.check("config"):
        settings = read_yaml(folder / "config.yaml")
        data = {key: value for key, value in (settings.get("data") or {}).items() if key != "dir"}
        published = public({**settings, "data": data})  # a record holds no path of a machine
        result.problems += _differences(folder / RECORD_FILE, {"config": record.config}, {"config": published})

    predictions: list[Prediction] = []
    with result.check("predictions"):
        file = folder / "predictions" / f"{record.task}.jsonl.zst"
        if not file.exists():
            raise UserError(f"{file}: missing; expected the predictions that the record was made from")
        try:
            predictions = load_predictions(file)
        except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError, MemoryError):
            raise UserError(f"{file}: cannot be read; expected JSON lines of predictions, compressed") from None
        if (digest := predictions_digest(predictions)) != record.predictions_digest:
            expected = f"{abbreviated(record.predictions_digest)} as {RECORD_FILE} says"
            result.problems.append(Problem(file, f"its predictions have digest {abbreviated(digest)}", expected))

    with result.check("evaluations on the test split"):
        file = folder / "ledger.jsonl"
        if evaluations := _test_evaluations(folder):
            last = evaluations[-1]
            if last["mark"] != record.predictions_digest:
                wrong = f"the last evaluation is of predictions {abbreviated(last['mark'])}"
                expected = f"{abbreviated(record.predictions_digest)} as {RECORD_FILE} says"
                result.problems.append(Problem(file, wrong, expected))
            if last["items"] != len(record.items):
                wrong = f"the last evaluation is of {last['items']} items"
                result.problems.append(Problem(file, wrong, str(len(record.items))))

    with result.check("events"):
        file = folder / "events.jsonl"
        events = [from_json(row, file) for row in read_checked(file)]
        cells = {event.run_id for event in events if isinstance(event, CellStarted)}
        if cells != {record.run_id}:
            result.problems.append(Problem(file, f"is of {', '.join(sorted(cells)) or 'no run'}", record.run_id))
        recorded = [event.accuracy for event in events if isinstance(event, RunRecorded)]
        if recorded and recorded[-1] != record.accuracy:
            expected = f"{record.accuracy} as {RECORD_FILE} says"
            result.problems.append(Problem(file, f"recorded accuracy {recorded[-1]}", expected))

    if not settings or not predictions:
        return
    # The data are the checker's own, of the kind that the record was made from: a folder that the settings name may
    # have come with the run, right answers included. The release's folder holds the same questions as the hub.
    kind: Any = record.data.source
    own = kind == "sample" or (kind == "hub" and data_dir is None)
    try:
        source = find_source(kind, None) if own else find_source("release", data_dir)
    except UserError as error:
        result.not_checked.append(f"answers, score and protocol: the data is not available ({error})")
        return
    try:
        cell = _resolved_cell(folder, record, settings, source)
    except UserError as error:
        result.not_checked.append(f"answers, score and protocol ({error})")
        return
    with result.check("fields of the run"):
        _check_run_fields(result, cell, folder, record)
    with result.check("answers"):
        _check_answers(result, cell, folder, record, predictions)


def _test_evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_checked(folder / "ledger.jsonl") if "test_evaluation" in row]


# --- The cell ---------------------------------------------------------------------------------------------------------


def _resolved_cell(folder: Path, record: RunRecord, settings: Mapping[str, Any], source: Source) -> Cell:
    """The cell of the run's settings on the checker's data, resolved as a request's is.

    Raises:
        UserError: settings that this version does not know, an unknown task or method, unreadable data.
    """
    data = {**(settings.get("data") or {}), "source": source.kind, "dir": source.folder}
    config: BenchConfig = _validated(BenchConfig, {**settings, "data": data}, "config.yaml")
    method = load_method(record.name) if record.kind == "method" else None
    spec = record.student.spec if record.student else None
    # a reference baseline may evaluate a teacher: the one whose published spec the record names
    teacher = next((text for text in config.teachers if public_text(text) == spec), None)
    evaluates_teacher = method is None and public_text(config.student.model) != spec and teacher is not None
    return resolved_cell(
        Resolved(config, {}),
        Request(runs=folder.parent, select_on_test=record.selected_on == "test"),
        name=record.name,
        label=record.label,
        task=record.task,
        seed=record.seed,
        method=None if method is None else method(_validated(method.Config, config.method, "method")),
        model=parse_spec(str(teacher), role="teacher") if evaluates_teacher else None,
    )


def _validated(model: Any, values: Any, what: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{what}: {place}: {first['msg']}, which this version does not read") from None


# --- The record except its score --------------------------------------------------------------------------------------


def _check_run_fields(result: Verification, cell: Cell, folder: Path, record: RunRecord) -> None:
    """Rebuild the fields that do not depend on the answers."""
    missing: dict[str, tuple[str, ...]] = {}  # what is not available: the fields that it decides
    neighbours = _training_results(cell.runs)
    makers: dict[str, str] = {}

    def maker(cell: Cell, model: str, init: InitConfig, seed: int) -> tuple[str, None]:
        """The neighbouring run that made the cell's teacher or its initial student."""
        of_teacher = isinstance(init, TeacherInitConfig)
        if of_teacher:
            names = [teacher.spec[4:] for teacher in record.teachers if teacher.spec.startswith("run:")]
        else:
            digest = record.student.initial_digest if record.student else None
            names = [name for name, training in neighbours.items() if training.student_digest == digest]
        if not names:
            raise UserError(f"the run that made {'its teacher' if of_teacher else 'the initial student'} is missing")
        makers["teacher_init" if of_teacher else "student_init"] = names[0]
        return names[0], None

    run_id = record.run_id
    try:
        if cell.student.has_weights and cell.student.kind not in ("hf", "run") and cell.name not in GUESSES:
            check_spec(cell.student, runs=cell.runs)  # its files are part of the run id
        cell = cell if cell.method is None else with_teachers(cell, maker)
        run_id = cell.run_id
    except UserError as error:
        missing[f"the digest in the run id, teachers and notes ({error})"] = ("run_id", "teachers", "notes")
    if run_id != record.run_id:
        commit, dirty = provenance.git_state()
        same_code = commit is not None and record.git.commit == commit and not dirty and not record.git.dirty
        if not same_code:  # the digest in a run id covers the code of the method
            other = f"the digest in the run id: this code makes {run_id}, the record was made by other code"
            missing[other] = ("run_id",)

    folders = trainings_of(record, folder) if record.kind == "method" else []
    trainings = [load_result(path) for path in folders]
    training = joint_training(trainings) if trainings else None
    for path, part in zip(folders, trainings, strict=True):
        file = path / "train" / "metrics.jsonl"
        events = [from_json(row, file) for row in read_checked(file)]
        steps = [(event.step, event.tokens) for event in events if isinstance(event, TrainingStep)]
        if steps and steps[-1] != (part.steps, part.student_tokens):
            wrong = f"ends at step {steps[-1][0]} with {steps[-1][1]} tokens"
            expected = f"step {part.steps} with {part.student_tokens} as result.json says"
            result.problems.append(Problem(file, wrong, expected))
    if record.kind == "method" and training is None:
        # with selection on the test split, the training's evaluations count as test evaluations
        by_test = ("test_evaluations",) if record.selected_on == "test" else ()
        reason = "training (its result.json is not available)"
        missing[reason] = ("training", "budget", "notes", "student.initial_digest", *by_test)
    student_init, teacher_init = (neighbours.get(makers.get(key, "")) for key in ("student_init", "teacher_init"))
    if cell.config.student.init is not None and cell.kind == "method" and student_init is None:
        reason = "what made the initial student (that run is not in the folder of runs)"
        missing[reason] = ("student.base_digest", "budget.student_init_tokens")
    if record.budget and record.budget.teacher_init_tokens is not None and teacher_init is None:
        reason = "what made the teacher (that run is not in the folder of runs)"
        missing[reason] = ("budget.teacher_init_tokens",)

    file = student_file(folder)
    student = load_evaluated_student(folder) if file.exists() else None
    if student is not None and training is not None and student.digest != training.student_digest:
        expected = f"{abbreviated(training.student_digest)} as train/result.json says"
        result.problems.append(Problem(file, f"digest is {abbreviated(student.digest)}", expected))
    if student is None and record.student is not None:
        missing["student and backend (predictions/student.json is not available)"] = ("student", "backend")

    budget = record.budget or Budget()
    facts = RunFacts(
        run_id=run_id,
        created=record.created,
        training=training,
        student_init=student_init,
        teacher_init=teacher_init,
        annotations=record.annotations,
        student=student,
        spent=Spent(seconds=budget.seconds, peak_memory_bytes=budget.peak_memory_bytes or 0, device=budget.device),
        test_evaluations=len(_test_evaluations(folder)),
        git=record.git,
        packages=record.packages,
        command=record.command,
    )
    fields = run_fields(replace(cell, shared_by=budget.teacher_shared_by), facts)
    skipped = {*NOT_REBUILT, *(field for fields in missing.values() for field in fields)}
    result.not_checked += missing
    result.checked += [name for name in fields if name not in skipped]
    result.problems += _differences(result.file, record.model_dump(mode="json"), fields, skipped)


def _training_results(runs: Path) -> dict[str, TrainResult]:
    """The results of all trainings in a folder of runs; damaged ones are left out."""
    results = {}
    for file in sorted(runs.glob(f"*/{RESULT_FILE}")):
        try:
            results[file.parents[1].name] = load_result(file.parents[1])
        except UserError:
            continue
    return results


def trainings_of(record: RunRecord, folder: Path) -> list[Path]:
    """The folders whose training made the student: the run's own, or those of the cells that trained its students.

    Empty if they are missing. If several trainings made the same weights, those that agree best with the record's
    budget are returned.
    """
    if (folder / RESULT_FILE).exists():
        return [folder]
    start = f"{record.name.replace('/', '.')}-training-{record.task}-"
    others = [(name, training) for name, training in _training_results(folder.parent).items() if name.startswith(start)]
    candidates = [(single,) for single in others] + [(a, b) for a in others for b in others if a is not b]
    digest = record.student.digest if record.student else None
    budget = record.budget.model_dump() if record.budget else {}

    def agreement(trainings: Sequence[tuple[str, TrainResult]]) -> int:
        joint = asdict(joint_training([training for _, training in trainings]))
        return sum(key in budget and budget[key] == value for key, value in joint.items())

    same_weights = [
        trainings
        for trainings in candidates
        if joint_digest([training.student_digest for _, training in trainings]) == digest
    ]
    return [folder.parent / name for name, _ in max(same_weights, key=agreement, default=())]


# --- The answers and the score ----------------------------------------------------------------------------------------


class _Difference(NamedTuple):
    """A field of a stored prediction that has another value when it is derived again."""

    record_id: str
    field: str
    stored: Any
    derived: Any


def _check_answers(
    result: Verification, cell: Cell, folder: Path, record: RunRecord, stored: Sequence[Prediction]
) -> None:
    """Derive every stored answer again, and rebuild the score from that."""
    file = folder / "predictions" / f"{record.task}.jsonl.zst"
    records = {record.id: record for record in cell.truncated_records("test")}
    item_problems = _item_problems(file, [prediction.record_id for prediction in stored], list(records))
    result.problems += item_problems
    version, own = record.protocol["parser_version"], reader_version(next(iter(records.values())).choices)
    if version != own and cell.mode == "generate":  # ranked options are not parsed
        result.not_checked.append(
            f"answers and score: they were read by parser version {version}, this code reads by version {own}; the"
            f" release of tinyllm-bench that has version {version} can check them, and a new run is recorded under"
            f" version {own}"
        )
        return
    known = [prediction for prediction in stored if prediction.record_id in records]
    decoding = None
    if cell.method is not None and cell.method.decoding().policy is not None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

        # programs are written differently for encoder-decoders; the architecture's name spares opening the model
        architecture = record.student.architecture if record.student else None
        encoder_decoder = architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
        decoding = cell.decoding_config(LayoutTokens() if encoder_decoder else None)
    if incomplete := list(_incomplete(cell, decoding, known, records)):
        result.problems += _by_field(file, incomplete)
        return
    try:
        derived = _derived_again(cell, decoding, known, records)
    except UserError as error:
        result.not_checked.append(f"answers and score ({error})")
        return
    result.problems += _by_field(file, _changed(known, derived))
    if not item_problems:
        fields = score_fields(cell, derived)
        result.checked += [name for name in fields if name not in NOT_REBUILT]
        result.scored = True
        result.problems += _differences(result.file, record.model_dump(mode="json"), fields, NOT_REBUILT)


def _item_problems(file: Path, ids: Sequence[str], expected: Sequence[str]) -> list[Problem]:
    """Every item of the test split must occur once, in the order of the data, and no other item."""

    def more(names: Sequence[str]) -> str:
        return f" and {len(names) - 1} more" if len(names) > 1 else ""

    repeated = [name for name, count in Counter(ids).items() if count > 1]
    missing, foreign = sorted(set(expected) - set(ids)), sorted(set(ids) - set(expected))
    problems = []
    if repeated:
        problems.append(Problem(file, f"{repeated[0]} occurs twice{more(repeated)}", "every item once"))
    if missing:
        wrong = f"{len(missing)} items of the test split are missing: {missing[0]}{more(missing)}"
        problems.append(Problem(file, wrong, "none"))
    if foreign:
        wrong = f"holds {len(foreign)} items that are not scored by these settings: {foreign[0]}{more(foreign)}"
        problems.append(Problem(file, wrong, "none"))
    if not problems and list(ids) != list(expected):
        problems.append(Problem(file, "its items are in another order", "that of the data"))
    return problems


def _incomplete(
    cell: Cell, decoding: DecodingConfig | None, stored: Sequence[Prediction], records: Mapping[str, TaskRecord]
) -> Iterator[_Difference]:
    """Predictions that cannot be derived again: of another mode, or without what decides them."""
    needed = (
        {LABEL: (1, 0)}
        if decoding is None
        else {c: (int(greedy), n) for c, (greedy, n) in decoding.texts_needed().items()}
    )
    for prediction in stored:
        record = records[prediction.record_id]
        if prediction.mode != cell.mode:
            yield _Difference(record.id, "mode", prediction.mode, cell.mode)
        elif cell.name in GUESSES:
            continue
        elif cell.mode == "generate":
            spelled = len(record.choices) if cell.config.eval.match == "exact" and decoding is None else 0
            if len(prediction.choices_read) != spelled:
                yield _Difference(record.id, "choices_read", list(prediction.choices_read), f"{spelled} texts")
            texts = {channel: [s.sampled for s in prediction.samples if s.channel == channel] for channel in needed}
            counts = {channel: (len(sampled) - sum(sampled), sum(sampled)) for channel, sampled in texts.items()}
            if counts != needed or sum(map(len, texts.values())) != len(prediction.samples):
                yield _Difference(record.id, "texts (greedy, sampled)", counts, needed)
        else:
            chars = tuple(len(option) for option in cell.ask.options(record))
            if prediction.option_chars != chars:
                yield _Difference(record.id, "option_chars", list(prediction.option_chars), list(chars))
            logprobs = prediction.option_logprobs
            possible = all(math.isfinite(value) and value <= 1e-6 for value in logprobs)
            if len(logprobs) != len(chars) or not possible:
                expected = f"{len(chars)} finite numbers that are not positive"
                yield _Difference(record.id, "option_logprobs", list(logprobs), expected)


def _derived_again(
    cell: Cell, decoding: DecodingConfig | None, stored: Sequence[Prediction], records: Mapping[str, TaskRecord]
) -> list[Prediction]:
    """The predictions as they follow from the stored log-probabilities and texts, in the stored order.

    Raises:
        UserError: there are programs and the sandbox cannot run them.
    """
    questions = [records[prediction.record_id] for prediction in stored]
    if cell.name in GUESSES:
        return GuessEvaluator(cell).answer([record.id for record in questions])
    if decoding is None:
        pairs = zip(stored, questions, strict=True)
        return [with_answer(prediction, record.choices, record.gold_key) for prediction, record in pairs]
    generate = {channel: _replay(stored, channel) for channel in decoding.channels}
    with ExitStack() as stack:
        sandbox: Any = stack.enter_context(Sandbox()) if POT in decoding.channels else None
        return sample_answers(questions, cell.ask, generate, decoding, sandbox)


def _replay(stored: Sequence[Prediction], channel: str) -> Generate:
    """A generator that returns the stored texts of one channel, question by question."""
    samples = [sample for prediction in stored for sample in prediction.samples if sample.channel == channel]
    texts = [Completion(s.text, 0, s.tokens or 0, "length" if s.hit_limit else "stop", 0.0, s.logprob) for s in samples]

    def generate(requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion]]:
        assert len(requests) == len(texts)
        return enumerate(texts)

    return generate


def _changed(stored: Sequence[Prediction], derived: Sequence[Prediction]) -> Iterator[_Difference]:
    """Where stored predictions differ from those that were derived again."""
    for old, new in zip(stored, derived, strict=True):
        for number, (before, after) in enumerate(zip(old.samples, new.samples, strict=True)):
            if (before.answer_key, before.executed) != (after.answer_key, after.executed):
                name = f"answer_key of text {number} ({before.channel})"
                yield _Difference(old.record_id, name, before.answer_key, after.answer_key)
        for field in ("answer", "correct", "parsed_by", "stopped"):
            if getattr(old, field) != getattr(new, field):
                yield _Difference(old.record_id, field, getattr(old, field), getattr(new, field))


def _by_field(file: Path, differences: Iterable[_Difference]) -> Iterator[Problem]:
    """One problem for each field, with the first item and how many there are."""
    by_field: dict[str, list[_Difference]] = {}
    for difference in differences:
        by_field.setdefault(difference.field, []).append(difference)
    for field, group in by_field.items():
        first = group[0]
        count = f" ({len(group)} such items)" if len(group) > 1 else ""
        wrong = f"{field} of {first.record_id} is {abbreviated(first.stored)}{count}"
        yield Problem(file, wrong, f"{abbreviated(first.derived)}, derived again")


# --- Two records, field by field --------------------------------------------------------------------------------------


def _differences(
    file: Path, recorded: Mapping[str, Any], rebuilt: Mapping[str, Any], skipped: Iterable[str] = ()
) -> Iterator[Problem]:
    """A problem for each field of `rebuilt` whose recorded value is another; of many items only the first."""
    as_json: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(dict(rebuilt), mode="json")
    actual, expected = _flat({key: recorded.get(key) for key in as_json}), _flat(as_json)
    items: list[Problem] = []
    for field in dict.fromkeys([*expected, *actual]):
        before, after = actual.get(field), expected.get(field)
        close = isinstance(before, float) and isinstance(after, float) and math.isclose(before, after, rel_tol=1e-9)
        if before == after or close or any(field == name or field.startswith(f"{name}.") for name in skipped):
            continue
        group = field.partition(".")[0]
        reason = f"{abbreviated(after)} {_FROM.get(group, 'from settings, data and this code')}"
        problem = Problem(file, f"{field} is {abbreviated(before)}", reason)
        if group == "items":
            items.append(problem)
        else:
            yield problem
    if items:
        count = f" ({len(items)} such items)" if len(items) > 1 else ""
        yield items[0]._replace(wrong=f"{items[0].wrong}{count}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted names; an item by its id, with answer and correctness, and the order of all items."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if not prefix and key == "items":
            flat |= {f"items.{record_id}": [answer, correct] for record_id, answer, correct in value}
            flat["items.order"] = [record_id for record_id, _, _ in value]
        elif isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


# --- A second run, and the verdict ------------------------------------------------------------------------------------


def _check_rerun(result: Verification, record: RunRecord, rerun: Path, data_dir: str | None) -> None:
    """A second run must hold by itself, be of the same cell, and agree (exact McNemar p above 0.05)."""
    from tinyllm_bench.leaderboard.stats.significance import mcnemar

    other = verify(rerun, data_dir=data_dir)
    if other.record is None or other.tier == SELF_REPORTED:
        reason = other.problems[0].text if other.problems else "; ".join(other.not_checked)
        result.problems.append(Problem(rerun, f"the second run cannot be re-scored: {reason}"))
        return
    second = other.record
    if second.created == record.created:
        wrong = f"was recorded at {second.created}, as the first one: a copy"
        result.problems.append(Problem(rerun, wrong, "a second run of the cell"))
        return
    for field in ("name", "task", "seed", "protocol_hash", "config"):
        actual, expected = getattr(second, field), getattr(record, field)
        if actual != expected:
            result.problems.append(Problem(rerun, f"{field} is {abbreviated(actual)}", abbreviated(expected)))
            return
    answers = {record_id: (answer, correct) for record_id, answer, correct in second.items}
    pairs = [(correct, answers[record_id][1]) for record_id, _, correct in record.items]
    test = mcnemar(sum(a > b for a, b in pairs), sum(a < b for a, b in pairs))
    if test.p <= 0.05:
        wrong = f"{sum(b for _, b in pairs)} of {len(pairs)} right, the record has {sum(a for a, _ in pairs)}"
        expected = f"a difference that chance explains (exact McNemar p {test.p:.4f})"
        result.problems.append(Problem(rerun, wrong, expected))
    result.rerun = Rerun(
        predictions_digest=str(second.predictions_digest),
        same_answers=sum(answers[record_id][0] == answer for record_id, answer, _ in record.items),
        n=len(record.items),
        correct=sum(correct for _, _, correct in second.items),
    )


def store_verdict(result: Verification, board: Path, *, by: str | None = None) -> Path | None:
    """Store the verdict on a leaderboard, for the record there with the same content; None if nothing was decided.

    Raises:
        UserError: the record is not on this leaderboard or has other content there, or the file cannot be written.
    """
    record = result.record
    if record is None or (result.ok and not result.scored):
        return None
    place = verdicts.on_board(record, board)
    commit, _ = provenance.git_state()
    numbers = any(isinstance(answer, str) for _, answer, _ in record.items)
    verdict = Verdict(
        run_id=record.run_id,
        record_digest=verdicts.content_digest(record),
        tier=result.tier,
        ok=result.ok,
        date=verdicts.now(),
        by=verdicts.one_line(by),
        parser_version=reader_version(()) if numbers else reader_version(("a", "b")),  # for this kind of question
        version=__version__,
        commit=commit,
        checked=tuple(result.checked),
        not_checked=tuple(verdicts.one_line(text) or "" for text in result.not_checked),
        problems=tuple(verdicts.one_line(problem.text) or "" for problem in result.problems),
        rerun=result.rerun,
    )
    try:
        return verdicts.save_verdict(verdict, place)
    except OSError as error:
        raise UserError(f"{board}: the verdict cannot be written there ({error.strerror})") from None
