"""`verify`: build the record of a finished run again, from its folder and one's own data, and show where it differs.

1. The record must add up by itself. 2. The files of its folder are read. 3. The cell is resolved from the run's
settings as a request's is; the questions and right answers are the checker's own. 4. Every stored answer is decided
again: option scores are compared, texts parsed, programs run. 5. The record is made by the functions that a run makes
it with, and compared field by field. A record whose score was rebuilt is `re-scored`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import zstandard
from pydantic import TypeAdapter, ValidationError

from tinyllm_bench import __version__
from tinyllm_bench.answers.codec import Layout
from tinyllm_bench.answers.parser import reader_version
from tinyllm_bench.answers.sandbox import Sandbox
from tinyllm_bench.answers.voting import POT
from tinyllm_bench.base import provenance
from tinyllm_bench.base.config import Resolved, read_yaml
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import visible
from tinyllm_bench.base.events import CellStarted, RunRecorded, TrainingStep, from_json
from tinyllm_bench.base.files import read_checked, read_json
from tinyllm_bench.base.plugins import load_method
from tinyllm_bench.base.reading import check_inside
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import Prediction, TaskRecord
from tinyllm_bench.data.sources import Source, find_source
from tinyllm_bench.evaluation.sampled_answers import DecodingConfig, sample_answers
from tinyllm_bench.evaluation.scoring import with_answer
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.identity import GUESSES
from tinyllm_bench.experiment.plan_cells import resolved_cell, with_teachers
from tinyllm_bench.experiment.predict import guesser, load_predictions, predictions_digest
from tinyllm_bench.experiment.record import RunFacts, Spent, run_fields, score_fields
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.experiment.sample_answers import how_to_ask, joint_digest, joint_training
from tinyllm_bench.experiment.settings import BenchConfig, InitConfig, TeacherInitConfig
from tinyllm_bench.generation.requests import Completion, Generate, GenerationRequest
from tinyllm_bench.leaderboard import verdicts
from tinyllm_bench.leaderboard.consistency import failed_checks
from tinyllm_bench.leaderboard.public import public, public_text
from tinyllm_bench.leaderboard.record import RECORD_FILE, Budget, RunRecord, load_record
from tinyllm_bench.leaderboard.verdicts import RE_RUN, RE_SCORED, SELF_REPORTED, Rerun, Tier, Verdict
from tinyllm_bench.models.load import check_spec
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.training.result import RESULT_FILE, TrainResult, load_result

# Fields of a record that no folder and no data say again, and why. Everything else is rebuilt and compared.
NOT_REBUILT: Mapping[str, str] = {
    "created": "a clock said it",
    "budget.seconds": "a clock said it",
    "budget.peak_memory_bytes": "the machine said it",
    "budget.device": "the machine said it",
    "git": "the code that made the record said it",
    "packages": "the environment said it",
    "command": "whoever ran it typed it",
    "request": "the request, of which this cell is a part",
    "label": "the request chose the row's name",
    "own_settings": "which layer of the request set a value; the values themselves are compared",
    "annotations": "the teachers' texts lie in the cache of whoever asked for them",
    "budget.teacher_shared_by": "the other methods of the request",
    "config": "it is compared with config.yaml as it stands: the rebuilt cell reads the checker's own data",
    "protocol.parser_version": "where it is not this code's, no text is read again",
    "protocol_hash": "every load compares it with the protocol",
    "predictions_digest": "it is compared with the stored file",
}
# Where the rebuilt value of a field comes from, for the messages.
_FROM: Mapping[str, str] = {
    "config": "as config.yaml says",
    "test_evaluations": "as ledger.jsonl says",
    "student": "as predictions/asked.json and train/result.json say",
    "backend": "as predictions/asked.json says",
    "budget": "from train/result.json and config.yaml",
    "training": "from train/result.json",
    "run_id": "from settings, data and code",
    **dict.fromkeys(("score", "secondary", "paths", "items"), "from the stored predictions"),
}
# What a file of a run raises that holds JSON, but not what a run writes there.
_MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class Problem(NamedTuple):
    """One thing that does not hold: the file, what it says, what was expected (empty where the first says it all)."""

    file: Path
    wrong: str
    expected: str = ""

    @property
    def text(self) -> str:
        """The line for people."""
        return visible(f"{self.file}: {self.wrong}" + (f"; expected {self.expected}" if self.expected else ""))


def shown(value: Any) -> str:
    """A value in a message: digests by their beginning, long ones cut."""
    text = str(value)
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return text[:12]
    return text if len(text) <= 60 else f"{text[:57]}..."


class Verification:
    """What was found of one path: its record, the problems, what was checked and what could not be."""

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
        """Whether all that was checked holds."""
        return not self.problems

    @property
    def tier(self) -> Tier:
        """The trust tier that this check gives the record."""
        if not self.ok or not self.scored:
            return SELF_REPORTED
        return RE_SCORED if self.rerun is None else RE_RUN

    def take(self, what: str, find: Callable[[], Iterable[Problem]]) -> bool:
        """Check one thing. Returns whether it holds; what cannot be read does not."""
        before = len(self.problems)
        try:
            self.problems += find()
        except UserError as error:
            self.problems.append(Problem(self.path, str(error)))
        except _MALFORMED as error:
            reason = f"{what} cannot be checked ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            self.problems.append(Problem(self.path, reason, "files as a run writes them"))
        self.checked.append(what)
        return len(self.problems) == before


def verify(path: Path, *, data_dir: str | None = None, rerun: Path | None = None) -> Verification:
    """Check a run's folder, or a record's file alone.

    Args:
        path: The folder or the file.
        data_dir: Where the release is, if not where the environment says.
        rerun: The folder of a second run of the same cell, made by whoever verifies.
    """
    found = Verification(Path(path))
    try:
        record = found.record = load_record(found.path)
    except UserError as error:
        found.problems.append(Problem(found.file, str(error).removeprefix(f"{found.file} ")))
        return found

    def arithmetic() -> Iterator[Problem]:
        for check in failed_checks(record):
            expected = f"{shown(check.expected)} ({check.reason})"
            yield Problem(found.file, f"{check.field} is {shown(check.actual)}", expected)

    found.take("the record's arithmetic", arithmetic)
    folder = found.path if found.path.is_dir() else found.path.parent
    if found.path != folder and not (found.path.name == RECORD_FILE and (folder / "predictions").is_dir()):
        found.not_checked.append("everything but arithmetic (that needs the run's folder)")
        return found
    if found.take("links", lambda: _links(folder)):
        _check_folder(found, folder, record, data_dir)
    if rerun is not None:
        found.take("a second run", lambda: _second_run(found, record, rerun, data_dir))
    return found


def _links(folder: Path) -> list[Problem]:
    """No file of a run that is read here may be a link out of its folder."""
    for place in (folder, folder / "predictions", folder / "train"):
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            if entry.is_symlink():
                check_inside(entry, folder)
    return []


def _check_folder(found: Verification, folder: Path, record: RunRecord, data_dir: str | None) -> None:
    """Read the folder, rebuild the record from it, and compare."""
    settings: dict[str, Any] = {}
    predictions: list[Prediction] = []
    found.take("config", lambda: _read_settings(folder, record, settings))
    found.take("predictions", lambda: _read_predictions(folder, record, predictions))
    found.take("evaluations on the test split", lambda: _ledger(folder, record))
    found.take("events", lambda: _events(folder, record))
    if not settings or not predictions:
        return
    try:
        source = _own_source(record, data_dir)
    except UserError as error:
        found.not_checked.append(f"answers, score and protocol: the data is not at hand ({error})")
        return
    try:
        cell = _cell(folder, record, settings, source)
    except UserError as error:
        found.not_checked.append(f"answers, score and protocol ({error})")
        return
    found.take("fields of the run", lambda: _compare_run(found, cell, folder, record))
    found.take("answers", lambda: _compare_answers(found, cell, folder, record, predictions))


# --- the files of a run -----------------------------------------------------------------------------------------------


def _read_settings(folder: Path, record: RunRecord, into: dict[str, Any]) -> Iterator[Problem]:
    """Read `config.yaml` and compare it with the record's settings, which name no place on a machine."""
    into.update(read_yaml(folder / "config.yaml"))
    published = {**into, "data": {key: value for key, value in (into.get("data") or {}).items() if key != "dir"}}
    yield from _differences(folder / RECORD_FILE, {"config": record.config}, {"config": public(published)})


def _read_predictions(folder: Path, record: RunRecord, into: list[Prediction]) -> Iterator[Problem]:
    file = _predictions_file(folder, record)
    if not file.exists():
        raise UserError(f"{file}: missing; expected the predictions that the record was made from")
    try:
        into += load_predictions(file)
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError, MemoryError):
        raise UserError(f"{file}: cannot be read; expected JSON lines of predictions, compressed") from None
    if (digest := predictions_digest(into)) != record.predictions_digest:
        expected = f"{shown(record.predictions_digest)} as {RECORD_FILE} says"
        yield Problem(file, f"its predictions have digest {shown(digest)}", expected)


def _predictions_file(folder: Path, record: RunRecord) -> Path:
    return folder / "predictions" / f"{record.task}.jsonl.zst"


def _test_evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_checked(folder / "ledger.jsonl") if "test_evaluation" in row]


def _ledger(folder: Path, record: RunRecord) -> Iterator[Problem]:
    """The last scoring that the ledger tells of must be of the record's predictions."""
    file, evaluations = folder / "ledger.jsonl", _test_evaluations(folder)
    if evaluations and evaluations[-1]["mark"] != record.predictions_digest:
        wrong = f"the last evaluation is of predictions {shown(evaluations[-1]['mark'])}"
        yield Problem(file, wrong, f"{shown(record.predictions_digest)} as {RECORD_FILE} says")
    if evaluations and evaluations[-1]["items"] != len(record.items):
        yield Problem(file, f"the last evaluation is of {evaluations[-1]['items']} items", str(len(record.items)))


def _events(folder: Path, record: RunRecord) -> Iterator[Problem]:
    file = folder / "events.jsonl"
    events = [from_json(row, file) for row in read_checked(file)]
    cells = {event.run_id for event in events if isinstance(event, CellStarted)}
    if cells != {record.run_id}:
        yield Problem(file, f"tells of {', '.join(sorted(cells)) or 'no run'}", record.run_id)
    recorded = [event.accuracy for event in events if isinstance(event, RunRecorded)]
    if recorded and recorded[-1] != record.accuracy:
        yield Problem(file, f"recorded accuracy {recorded[-1]}", f"{record.accuracy} as {RECORD_FILE} says")


# --- the cell ---------------------------------------------------------------------------------------------------------


def _own_source(record: RunRecord, data_dir: str | None) -> Source:
    """The checker's own data of the kind that a record was made from.

    A folder that the run's settings name may have come with the run, right answers included. A task of the hub has the
    same questions in the release's folder: where one is named, it serves as well.

    Raises:
        UserError: it is not at hand.
    """
    kind: Any = record.data.source
    if kind == "sample" or (kind == "hub" and data_dir is None):
        return find_source(kind, None)
    return find_source("release", data_dir)


def _cell(folder: Path, record: RunRecord, settings: Mapping[str, Any], source: Source) -> Cell:
    """The cell that the run's settings mean with the checker's data, resolved as a request's is.

    Raises:
        UserError: settings that this version does not know, an unknown task or method, unreadable data.
    """
    own = {**(settings.get("data") or {}), "source": source.kind, "dir": source.folder}
    config: BenchConfig = _validated(BenchConfig, {**settings, "data": own}, "config.yaml")
    kind = load_method(record.name) if record.kind == "method" else None
    spec = record.student.spec if record.student else None
    # a reference baseline may ask a teacher: the one whose published spec the record names
    teacher = next((text for text in config.teachers if public_text(text) == spec), None)
    asks_teacher = kind is None and public_text(config.student.model) != spec and teacher is not None
    return resolved_cell(
        Resolved(config, {}),
        Request(runs=folder.parent, select_on_test=record.selected_on == "test"),
        name=record.name,
        label=record.label,
        task=record.task,
        seed=record.seed,
        method=None if kind is None else kind(_validated(kind.Config, config.method, "method")),
        model=parse_spec(str(teacher), role="teacher") if asks_teacher else None,
    )


def _validated(kind: Any, values: Any, what: str) -> Any:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{what}: {place}: {first['msg']}, which this version does not read") from None


# --- the record but for its score -------------------------------------------------------------------------------------


def _compare_run(found: Verification, cell: Cell, folder: Path, record: RunRecord) -> Iterator[Problem]:
    """Rebuild the fields that do not depend on the answers."""
    missing: dict[str, tuple[str, ...]] = {}  # what is not at hand: the fields that it decides
    beside = _results(cell.runs)
    makers: dict[str, str] = {}

    def first(cell: Cell, model: str, init: InitConfig, seed: int) -> tuple[str, None]:
        """The run beside this one that made its initial student or its teacher."""
        of_teacher = isinstance(init, TeacherInitConfig)
        if of_teacher:
            named = [one.spec.removeprefix("run:") for one in record.teachers if one.spec.startswith("run:")]
        else:
            digest = record.student.initial_digest if record.student else None
            named = [name for name, result in beside.items() if result.student_digest == digest]
        if not named:
            raise UserError(f"the run that made {'its teacher' if of_teacher else 'the initial student'} is not there")
        makers["teacher_init" if of_teacher else "student_init"] = named[0]
        return named[0], None

    run_id = record.run_id
    try:
        if cell.student.has_weights and cell.student.kind not in ("hf", "run") and cell.name not in GUESSES:
            check_spec(cell.student, runs=cell.runs)  # its files are part of the run id
        cell = cell if cell.method is None else with_teachers(cell, first)
        run_id = cell.run_id
    except UserError as error:
        missing[f"the digest in the run id, teachers and notes ({error})"] = ("run_id", "teachers", "notes")
    if run_id != record.run_id and not _same_code(record):
        other = f"the digest in the run id: this code makes {run_id}, the record was made by other code"
        missing[other] = ("run_id",)

    folders = trainings_of(record, folder) if record.kind == "method" else []
    results = [load_result(one) for one in folders]
    training = joint_training(results) if results else None
    for one, result in zip(folders, results, strict=True):
        yield from _last_step(one, result)
    if record.kind == "method" and training is None:
        reason = "training (its result.json is not at hand)"
        by_test = (
            ("test_evaluations",) if record.selected_on == "test" else ()
        )  # evaluations of the training count there
        missing[reason] = ("training", "budget", "notes", "student.initial_digest", *by_test)
    student_init, teacher_init = (beside.get(makers.get(key, "")) for key in ("student_init", "teacher_init"))
    if cell.config.student.init is not None and cell.kind == "method" and student_init is None:
        reason = "what made the initial student (that run is not beside this one)"
        missing[reason] = ("student.base_digest", "budget.student_init_tokens")
    if record.budget and record.budget.teacher_init_tokens is not None and teacher_init is None:
        missing["what made the teacher (that run is not beside this one)"] = ("budget.teacher_init_tokens",)

    file = folder / "predictions" / "asked.json"
    if file.exists() or record.student is None:
        asked = read_json(file) if file.exists() else {}
        if training is not None and asked["student"]["digest"] != training.student_digest:
            expected = f"{shown(training.student_digest)} as train/result.json says"
            yield Problem(file, f"student.digest is {shown(asked['student']['digest'])}", expected)
    else:
        recorded = record.student.model_dump(exclude={"spec", "initial_digest", "base_digest"})
        asked = {"student": recorded, **({"backend": record.backend.model_dump()} if record.backend else {})}
        missing["student and backend (predictions/asked.json is not at hand)"] = ("student", "backend")

    budget = record.budget or Budget()
    facts = RunFacts(
        run_id=run_id,
        created=record.created,
        training=training,
        student_init=student_init,
        teacher_init=teacher_init,
        annotations=[counts.model_dump() for counts in record.annotations],
        asked=asked,
        spent=Spent(seconds=budget.seconds, peak_memory_bytes=budget.peak_memory_bytes or 0, device=budget.device),
        test_evaluations=len(_test_evaluations(folder)),
        git=record.git,
        packages=record.packages,
        command=record.command,
    )
    fields = run_fields(replace(cell, shared_by=budget.teacher_shared_by), facts)
    skipped = {*NOT_REBUILT, *(field for fields in missing.values() for field in fields)}
    found.not_checked += missing
    found.checked += [name for name in fields if name not in skipped]
    yield from _differences(found.file, record.model_dump(mode="json"), _plain(fields), skipped)


def _same_code(record: RunRecord) -> bool:
    """Whether the record was made by the code that runs now: the digest in a run id holds the code of the method."""
    commit, dirty = provenance.git_state()
    return commit is not None and record.git.commit == commit and not dirty and not record.git.dirty


def _results(runs: Path) -> dict[str, TrainResult]:
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

    Empty where they are not at hand. Where several trainings made the same weights, those that the record's budget
    tells of are meant.
    """
    if (folder / RESULT_FILE).exists():
        return [folder]
    start = f"{record.name.replace('/', '.')}-training-{record.task}-"
    others = [(name, result) for name, result in _results(folder.parent).items() if name.startswith(start)]
    sets = [(one,) for one in others] + [(a, b) for a in others for b in others if a is not b]
    digest = record.student.digest if record.student else None
    budget = record.budget.model_dump() if record.budget else {}

    def agreeing(trainings: Sequence[tuple[str, TrainResult]]) -> int:
        joint = asdict(joint_training([result for _, result in trainings]))
        return sum(key in budget and budget[key] == value for key, value in joint.items())

    made = [one for one in sets if joint_digest([result.student_digest for _, result in one]) == digest]
    return [folder.parent / name for name, _ in max(made, key=agreeing, default=())]


def _last_step(folder: Path, result: TrainResult) -> Iterator[Problem]:
    """The last step that the metrics tell of."""
    file = folder / "train" / "metrics.jsonl"
    events = [from_json(row, file) for row in read_checked(file)]
    steps = [(event.step, event.tokens) for event in events if isinstance(event, TrainingStep)]
    if steps and steps[-1] != (result.steps, result.student_tokens):
        expected = f"step {result.steps} with {result.student_tokens} as result.json says"
        yield Problem(file, f"ends at step {steps[-1][0]} with {steps[-1][1]} tokens", expected)


# --- the answers and the score ----------------------------------------------------------------------------------------


class _Differs(NamedTuple):
    """A field of a stored prediction that is something else when it is decided again."""

    record_id: str
    field: str
    stored: Any
    again: Any


def _compare_answers(
    found: Verification, cell: Cell, folder: Path, record: RunRecord, stored: Sequence[Prediction]
) -> Iterator[Problem]:
    """Decide every stored answer again, and rebuild the score from that."""
    file = _predictions_file(folder, record)
    records = {one.id: one for one in cell.asked_records("test")}
    whole = True
    for problem in _item_problems(file, [one.record_id for one in stored], list(records)):
        whole = False
        yield problem
    version, own = record.protocol["parser_version"], reader_version(next(iter(records.values())).choices)
    if version != own and cell.mode == "generate":  # ranked options are read by no parser
        found.not_checked.append(
            f"answers and score: they were read by parser version {version}, this code reads by version {own}; the"
            f" release of tinyllm-bench that has version {version} can check them, and a new run is recorded under"
            f" version {own}"
        )
        return
    known = [one for one in stored if one.record_id in records]
    how = _decoding(cell, record.student.architecture if record.student else None)
    incomplete = list(_incomplete(cell, how, known, records))
    if incomplete:
        yield from _grouped(file, incomplete)
        return
    try:
        again = _decided_again(cell, how, known, records)
    except UserError as error:
        found.not_checked.append(f"answers and score ({error})")
        return
    yield from _grouped(file, _changed(known, again))
    if whole:
        fields = score_fields(cell, again)
        found.checked += [name for name in fields if name not in NOT_REBUILT]
        found.scored = True
        yield from _differences(found.file, record.model_dump(mode="json"), _plain(fields), NOT_REBUILT)


def _item_problems(file: Path, ids: Sequence[str], asked: Sequence[str]) -> Iterator[Problem]:
    """Every item of the test split must be there once, in the order of the data, and no other."""
    seen: set[str] = set()
    twice = [name for name in ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    lacking, foreign = sorted(set(asked) - set(ids)), sorted(set(ids) - set(asked))
    if twice:
        yield Problem(file, f"{twice[0]} stands twice{_more(twice)}", "every item once")
    if lacking:
        yield Problem(file, f"lacks {len(lacking)} items of the test split: {lacking[0]}{_more(lacking)}", "none")
    if foreign:
        wrong = f"holds {len(foreign)} items that are not scored by these settings: {foreign[0]}{_more(foreign)}"
        yield Problem(file, wrong, "none")
    if not (twice or lacking or foreign) and list(ids) != list(asked):
        yield Problem(file, "its items stand in another order", "that of the data")


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _decoding(cell: Cell, architecture: str | None) -> DecodingConfig | None:
    """How texts were sampled for a policy; the architecture tells how programs were written, so no model is opened."""
    if cell.method is None or cell.method.decoding().policy is None:
        return None
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

    encoder_decoder = architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()
    return how_to_ask(cell, Layout() if encoder_decoder else None)


def _incomplete(
    cell: Cell, how: DecodingConfig | None, stored: Sequence[Prediction], records: Mapping[str, TaskRecord]
) -> Iterator[_Differs]:
    """Predictions that cannot be decided again: of another mode, or without what decides them."""
    wanted = {LABEL: (1, 0)} if how is None else {c: (int(greedy), n) for c, (greedy, n) in how.texts_needed().items()}
    for one in stored:
        record = records[one.record_id]
        if one.mode != cell.mode:
            yield _Differs(one.record_id, "mode", one.mode, cell.mode)
        elif cell.name in GUESSES:
            continue
        elif cell.mode == "generate":
            spelled = len(record.choices) if cell.config.eval.match == "exact" and how is None else 0
            if len(one.choices_read) != spelled:
                yield _Differs(one.record_id, "choices_read", list(one.choices_read), f"{spelled} texts")
            texts = {channel: [s.sampled for s in one.samples if s.channel == channel] for channel in wanted}
            counts = {channel: (len(sampled) - sum(sampled), sum(sampled)) for channel, sampled in texts.items()}
            if counts != wanted or sum(map(len, texts.values())) != len(one.samples):
                yield _Differs(one.record_id, "texts (greedy, sampled)", counts, wanted)
        else:
            chars = tuple(len(option) for option in cell.ask.options(record))
            if one.option_chars != chars:
                yield _Differs(one.record_id, "option_chars", list(one.option_chars), list(chars))
            possible = all(math.isfinite(value) and value <= 1e-6 for value in one.option_logprobs)
            if len(one.option_logprobs) != len(chars) or not possible:
                expected = f"{len(chars)} finite numbers that are not positive"
                yield _Differs(one.record_id, "option_logprobs", list(one.option_logprobs), expected)


def _decided_again(
    cell: Cell, how: DecodingConfig | None, stored: Sequence[Prediction], records: Mapping[str, TaskRecord]
) -> list[Prediction]:
    """The predictions as they follow from stored log-probabilities and texts, in the stored order.

    Raises:
        UserError: there are programs and the sandbox cannot run them.
    """
    asked = [records[one.record_id] for one in stored]
    if cell.name in GUESSES:
        return guesser(cell)([record.id for record in asked])
    if how is None:
        return [with_answer(one, record.choices, record.gold_key) for one, record in zip(stored, asked, strict=True)]
    generate = {channel: _stored_texts(stored, channel) for channel in how.channels}
    with ExitStack() as stack:
        sandbox: Any = stack.enter_context(Sandbox()) if POT in how.channels else None
        return sample_answers(asked, cell.ask, generate, how, sandbox)


def _stored_texts(stored: Sequence[Prediction], channel: str) -> Generate:
    """Generates nothing: hands out the stored texts of one channel, question by question."""
    samples = [sample for one in stored for sample in one.samples if sample.channel == channel]
    texts = [Completion(s.text, 0, s.tokens or 0, "length" if s.hit_limit else "stop", 0.0, s.logprob) for s in samples]

    def generate(requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion]]:
        assert len(requests) == len(texts)
        return enumerate(texts)

    return generate


def _changed(stored: Sequence[Prediction], again: Sequence[Prediction]) -> Iterator[_Differs]:
    """Where stored predictions and those that were decided again are not the same."""
    for old, new in zip(stored, again, strict=True):
        for number, (before, after) in enumerate(zip(old.samples, new.samples, strict=True)):
            if (before.answer_key, before.executed) != (after.answer_key, after.executed):
                name = f"answer_key of text {number} ({before.channel})"
                yield _Differs(old.record_id, name, before.answer_key, after.answer_key)
        for field in ("answer", "correct", "parsed_by", "stopped"):
            if getattr(old, field) != getattr(new, field):
                yield _Differs(old.record_id, field, getattr(old, field), getattr(new, field))


def _grouped(file: Path, differs: Iterable[_Differs]) -> Iterator[Problem]:
    """One problem for each field, with the first item and how many there are."""
    by_field: dict[str, list[_Differs]] = {}
    for one in differs:
        by_field.setdefault(one.field, []).append(one)
    for field, some in by_field.items():
        count = f" ({len(some)} such items)" if len(some) > 1 else ""
        wrong = f"{field} of {some[0].record_id} is {shown(some[0].stored)}{count}"
        yield Problem(file, wrong, f"{shown(some[0].again)}, worked out again")


# --- two records, field by field --------------------------------------------------------------------------------------


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a record as its file holds them."""
    found: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(dict(fields), mode="json")
    return found


def _differences(
    file: Path, recorded: Mapping[str, Any], rebuilt: Mapping[str, Any], skipped: Iterable[str] = ()
) -> Iterator[Problem]:
    """A problem for each field of `rebuilt` that the record tells otherwise; of many items the first."""
    told, own = (_flat({key: values.get(key) for key in rebuilt}) for values in (recorded, rebuilt))
    items: list[Problem] = []
    for field in dict.fromkeys([*own, *told]):
        before, after = told.get(field), own.get(field)
        close = isinstance(before, float) and isinstance(after, float) and math.isclose(before, after, rel_tol=1e-9)
        if before == after or close or any(field == one or field.startswith(f"{one}.") for one in skipped):
            continue
        group = field.partition(".")[0]
        expected = f"{shown(after)} {_FROM.get(group, 'from settings, data and this code')}"
        problem = Problem(file, f"{field} is {shown(before)}", expected)
        if group == "items":
            items.append(problem)
        else:
            yield problem
    if items:
        count = f" ({len(items)} such items)" if len(items) > 1 else ""
        yield items[0]._replace(wrong=f"{items[0].wrong}{count}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their dotted names; an item by its id, with answer and mark, and the order of all."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if not prefix and key == "items":
            found |= {f"items.{record_id}": [answer, mark] for record_id, answer, mark in value}
            found["items.order"] = [record_id for record_id, _, _ in value]
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


# --- a second run, and the verdict ------------------------------------------------------------------------------------


def _second_run(found: Verification, record: RunRecord, rerun: Path, data_dir: str | None) -> Iterator[Problem]:
    """A second run must hold by itself, be of the same cell, and agree (exact McNemar p above 0.05)."""
    from tinyllm_bench.leaderboard.stats.significance import mcnemar

    other = verify(rerun, data_dir=data_dir)
    if other.record is None or other.tier == SELF_REPORTED:
        reason = other.problems[0].text if other.problems else "; ".join(other.not_checked)
        yield Problem(rerun, f"the second run cannot be re-scored: {reason}")
        return
    second = other.record
    if second.created == record.created:
        yield Problem(rerun, f"was recorded at {second.created}, as the first one: a copy", "a second run of the cell")
        return
    for field in ("name", "task", "seed", "protocol_hash", "config"):
        if getattr(record, field) != getattr(second, field):
            yield Problem(rerun, f"{field} is {shown(getattr(second, field))}", shown(getattr(record, field)))
            return
    answers = {record_id: (answer, flag) for record_id, answer, flag in second.items}
    flags = [(flag, answers[record_id][1]) for record_id, _, flag in record.items]
    test = mcnemar(sum(a > b for a, b in flags), sum(a < b for a, b in flags))
    if test.p <= 0.05:
        told = f"{sum(b for _, b in flags)} of {len(flags)} right, the record has {sum(a for a, _ in flags)}"
        yield Problem(rerun, told, f"a difference that chance explains (exact McNemar p {test.p:.4f})")
    found.rerun = Rerun(
        predictions_digest=str(second.predictions_digest),
        same_answers=sum(answers[record_id][0] == answer for record_id, answer, _ in record.items),
        n=len(record.items),
        correct=sum(flag for _, _, flag in second.items),
    )


def keep_verdict(found: Verification, board: Path, *, by: str | None = None) -> Path | None:
    """Keep the verdict on a board, for the record there that says the same; None where nothing was decided.

    Raises:
        UserError: the record is not on this board or says something else there, or the board cannot be written.
    """
    record = found.record
    if record is None or (found.ok and not found.scored):
        return None
    place = verdicts.on_board(record, board)
    commit, _ = provenance.git_state()
    verdict = Verdict(
        run_id=record.run_id,
        record_digest=verdicts.content_digest(record),
        tier=found.tier,
        ok=found.ok,
        date=verdicts.now(),
        by=verdicts.one_line(by),
        parser_version=_parser_version(record),
        version=__version__,
        commit=commit,
        checked=tuple(found.checked),
        not_checked=tuple(verdicts.one_line(one) or "" for one in found.not_checked),
        problems=tuple(verdicts.one_line(problem.text) or "" for problem in found.problems),
        rerun=found.rerun,
    )
    try:
        return verdicts.save_verdict(verdict, place)
    except OSError as error:
        raise UserError(f"{board}: the verdict cannot be kept there ({error.strerror})") from None


def _parser_version(record: RunRecord) -> str:
    """Today's version of the parser that reads this kind of question."""
    numbers = any(isinstance(answer, str) for _, answer, _ in record.items)
    return reader_version(()) if numbers else reader_version(("a", "b"))
