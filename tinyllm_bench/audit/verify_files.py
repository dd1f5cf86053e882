"""What the files of a run's folder say about each other, without the data: settings, predictions, ledger, training."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from tinyllm_bench.audit.verify_cell import SUMMED, trainings_of
from tinyllm_bench.base.config import read_yaml
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import visible
from tinyllm_bench.base.events import CellStarted, RunRecorded, TrainingStep, from_json
from tinyllm_bench.base.files import read_checked, read_json
from tinyllm_bench.base.reading import check_inside
from tinyllm_bench.data.records import Prediction
from tinyllm_bench.experiment.predict import load_predictions, predictions_digest
from tinyllm_bench.leaderboard.record import RECORD_FILE, Look, RunRecord, public

_SHOWN = 60


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
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def check_links(folder: Path) -> None:
    """Refuse a run's folder in which a file that is read here is a link out of it.

    Raises:
        UserError: names the link.
    """
    for place in (folder, folder / "predictions", folder / "train"):
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            if entry.is_symlink():
                check_inside(entry, folder)


def stored_predictions(folder: Path, record: RunRecord) -> tuple[list[Prediction], list[Problem]]:
    """The predictions of a run, and what is wrong with their file.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    file = folder / "predictions" / f"{record.task}.jsonl.zst"
    if not file.exists():
        raise UserError(f"{file}: missing; expected the predictions that the record was made from")
    try:
        found = load_predictions(file)
    except (zstandard.ZstdError, ValueError, KeyError, TypeError, AttributeError, MemoryError):
        raise UserError(f"{file}: cannot be read; expected JSON lines of predictions, compressed") from None
    problems = []
    if (digest := predictions_digest(found)) != record.predictions_digest:
        told = f"{shown(record.predictions_digest)} as {RECORD_FILE} says"
        problems.append(Problem(file, f"its predictions have digest {shown(digest)}", told))
    return found, [*problems, *_items(file, found, record)]


def _items(file: Path, found: Sequence[Prediction], record: RunRecord) -> Iterator[Problem]:
    ids = [one.record_id for one in found]
    told = [record_id for record_id, _, _ in record.items]
    yield from _repeated(file, ids)
    yield from missing(file, "items that the record has", set(told) - set(ids))
    yield from missing(file, "items that the record does not have", set(ids) - set(told), lacks=False)
    items = {record_id: (answer, flag) for record_id, answer, flag in record.items}
    other = [one for one in found if one.record_id in items and items[one.record_id] != (one.answer, int(one.correct))]
    if other:
        answer, flag = items[other[0].record_id]
        wrong = f"answer {answer}, correct {flag} for {other[0].record_id}{_more(len(other))}"
        stored = f"answer {other[0].answer}, correct {int(other[0].correct)} from {file.name}"
        yield Problem(file.parent.parent / RECORD_FILE, wrong, stored)


def _repeated(file: Path, ids: Sequence[str]) -> Iterator[Problem]:
    seen: set[str] = set()
    twice = [name for name in ids if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    if twice:
        yield Problem(file, f"{twice[0]} stands twice{_more(len(twice))}", "every item once")


def missing(file: Path, what: str, ids: set[str], *, lacks: bool = True) -> Iterator[Problem]:
    """The problem of a set of items that should be there, or should not."""
    if ids:
        verb = "lacks" if lacks else "holds"
        yield Problem(file, f"{verb} {len(ids)} {what}: {min(ids)}{_more(len(ids))}", "none")


def _more(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


def settings_problems(folder: Path, record: RunRecord, settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Where `config.yaml`, the lock of a run, and the record's settings are not the same."""
    kept = {**settings, "data": {k: v for k, v in (settings.get("data") or {}).items() if k != "dir"}}
    own, told = (dict(_flat(values)) for values in (public(kept), record.config))
    for key in sorted({*own, *told}):
        if own.get(key) != told.get(key):
            wrong = f"config.{key} is {shown(told.get(key))}"
            yield Problem(folder / RECORD_FILE, wrong, f"{shown(own.get(key))} as config.yaml says")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run.

    Raises:
        UserError: `config.yaml` is missing or broken.
    """
    return read_yaml(folder / "config.yaml")


def ledger_problems(folder: Path, record: RunRecord) -> Iterator[Problem]:
    """Looks at the test split, and the last of the events, against the record."""
    file = folder / "ledger.jsonl"
    looks = [row for row in read_checked(file) if "test_look" in row]
    selecting = len(record.training.looks) if record.training and record.selected_on == "test" else 0
    if len(looks) + selecting != record.test_looks:
        told = f"{len(looks)} as {file.name} says" + (f" and {selecting} that selected weights" if selecting else "")
        yield Problem(folder / RECORD_FILE, f"test_looks is {record.test_looks}", told)
    if looks and looks[-1]["mark"] != record.predictions_digest:
        wrong = f"the last look is of predictions {shown(looks[-1]['mark'])}"
        yield Problem(file, wrong, f"{shown(record.predictions_digest)} as {RECORD_FILE} says")
    if looks and looks[-1]["items"] != len(record.items):
        yield Problem(file, f"the last look is of {looks[-1]['items']} items", str(len(record.items)))
    yield from _events(folder / "events.jsonl", record)


def _events(file: Path, record: RunRecord) -> Iterator[Problem]:
    events = [from_json(row, file) for row in read_checked(file)]
    cells = {event.run_id for event in events if isinstance(event, CellStarted)}
    if cells != {record.run_id}:
        yield Problem(file, f"tells of {', '.join(sorted(cells)) or 'no run'}", record.run_id)
    told = [event.accuracy for event in events if isinstance(event, RunRecorded)]
    if told and told[-1] != record.accuracy:
        yield Problem(file, f"recorded accuracy {told[-1]}", f"{record.accuracy} as {RECORD_FILE} says")


def asked_problems(folder: Path, record: RunRecord) -> Iterator[Problem]:
    """The student and backend that were asked, as kept beside the predictions, against the record."""
    file = folder / "predictions" / "asked.json"
    if not file.exists():
        return
    found = read_json(file)
    for part, told in (("student", record.student), ("backend", record.backend)):
        own = told.model_dump(mode="json") if told else {}
        for key, value in found.get(part, {}).items():
            if own.get(key) != value:
                wrong = f"{part}.{key} is {shown(own.get(key))}"
                yield Problem(folder / RECORD_FILE, wrong, f"{shown(value)} as {file.name} says")


def training_problems(folder: Path, record: RunRecord) -> tuple[list[Problem], str | None]:
    """What the training left behind against the record, and why that could not be checked."""
    folders = trainings_of(record, folder)
    if not folders:
        return [], "training (its result.json is not at hand)"
    made = [read_json(one / "train" / "result.json") for one in folders]
    problems = [problem for one, found in zip(folders, made, strict=True) for problem in _steps(one, found)]
    record_file = folder / RECORD_FILE
    for field, told, found in [*_totals(record, made), *(_single(record, made[0]) if len(made) == 1 else [])]:
        if told != found:
            wrong = f"{field} is {shown(told)}"
            problems.append(Problem(record_file, wrong, f"{shown(found)} from {folders[0].name}/train/result.json"))
    return problems, None


def _totals(record: RunRecord, made: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    assert record.budget is not None
    for key in SUMMED:
        if all(key in one for one in made):
            yield f"budget.{key}", getattr(record.budget, key), sum(one[key] for one in made)
    if record.budget.train_flops is not None and all("flops" in one for one in made):
        yield "budget.train_flops", record.budget.train_flops, sum(one["flops"] for one in made)
    channels: dict[str, int] = {}
    for one in made:
        for channel, tokens in one["tokens_by_channel"].items():
            channels[channel] = channels.get(channel, 0) + tokens
    yield "budget.tokens_by_channel", record.budget.tokens_by_channel, channels


def _single(record: RunRecord, made: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    student, training = record.student, record.training
    assert student is not None
    yield "student.digest", student.digest, made["student_digest"]
    yield "student.initial_digest", student.initial_digest, made["initial_digest"]
    if training is not None:
        for key in ("first_loss", "last_loss", "measured"):
            if key in made:
                yield f"training.{key}", getattr(training, key), made[key]
        yield "training.looks", training.looks, _looks(made)


def _looks(made: Mapping[str, Any]) -> tuple[Look, ...]:
    return tuple(Look(**one, selected=one["step"] == made["selected_step"]) for one in made["evaluations"])


def _steps(folder: Path, made: Mapping[str, Any]) -> Iterator[Problem]:
    """The last step that the metrics tell of."""
    file = folder / "train" / "metrics.jsonl"
    events = [from_json(row, file) for row in read_checked(file)]
    steps = [event for event in events if isinstance(event, TrainingStep)]
    if not steps:
        return
    found = (steps[-1].step, steps[-1].tokens)
    if found != (made["steps"], made["student_tokens"]):
        expected = f"step {made['steps']} with {made['student_tokens']} as result.json says"
        yield Problem(file, f"ends at step {found[0]} with {found[1]} tokens", expected)
