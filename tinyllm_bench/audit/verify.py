"""`verify`: check a finished run from its stored predictions, on any machine and without a GPU.

With a run's folder and its data at hand every answer is read again and scored against the data's gold answers, and the
protocol is worked out again: the record is then `re-scored`. With a record alone only its arithmetic can be checked.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm_bench import __version__
from tinyllm_bench.answers.parser import reader_version
from tinyllm_bench.audit import verify_answers, verify_files, verify_score
from tinyllm_bench.audit.verify_cell import cell_of, source_of, whole_cell
from tinyllm_bench.audit.verify_files import Problem, missing, shown
from tinyllm_bench.base import provenance
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Prediction, TaskRecord
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.protocol import protocol_of
from tinyllm_bench.leaderboard import verdicts
from tinyllm_bench.leaderboard.consistency import broken_claims
from tinyllm_bench.leaderboard.record import RECORD_FILE, RunRecord, load_record
from tinyllm_bench.leaderboard.verdicts import RE_RUN, RE_SCORED, SELF_REPORTED, Rerun, Tier, Verdict

ALONE = "everything but arithmetic (that needs the run's folder)"


# What a file of a run raises that holds JSON, but not what a run writes there.
_MALFORMED = (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def _not_as_written(path: Path, what: str, error: BaseException) -> Problem:
    told = " ".join(str(error).split())[:120]
    return Problem(path, f"{what} cannot be checked ({type(error).__name__}: {told})", "files as a run writes them")


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
        """Check one thing; a user error is a problem too. Returns whether it holds."""
        before = len(self.problems)
        try:
            self.problems += find()
        except UserError as error:
            self.problems.append(Problem(self.path, str(error)))
        except _MALFORMED as error:
            self.problems.append(_not_as_written(self.path, what, error))
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
    found.take("the record's arithmetic", lambda: _arithmetic(found.file, record))
    folder = _folder(found.path)
    if folder is None:
        found.not_checked.append(ALONE)
        return found
    try:
        verify_files.check_links(folder)
        _verify_folder(found, folder, record, data_dir)
    except UserError as error:
        found.problems.append(Problem(found.path, str(error)))
    except _MALFORMED as error:
        found.problems.append(_not_as_written(found.path, "the folder", error))
    if rerun is not None:
        found.take("a second run", lambda: _second_run(found, record, rerun, data_dir))
    return found


def _folder(path: Path) -> Path | None:
    if path.is_dir():
        return path
    return path.parent if path.name == RECORD_FILE and (path.parent / "predictions").is_dir() else None


def _arithmetic(file: Path, record: RunRecord) -> Iterator[Problem]:
    for claim in broken_claims(record):
        wrong = f"{claim.field} is {shown(claim.found)}"
        yield Problem(file, wrong, f"{shown(claim.expected)} ({claim.because})")


def _verify_folder(found: Verification, folder: Path, record: RunRecord, data_dir: str | None) -> None:
    settings: dict[str, Any] = {}
    stored: list[Prediction] = []

    def read_settings() -> Iterator[Problem]:
        settings.update(verify_files.read_settings(folder))
        yield from verify_files.settings_problems(folder, record, settings)

    def read_predictions() -> list[Problem]:
        predictions, problems = verify_files.stored_predictions(folder, record)
        stored.extend(predictions)
        return problems

    found.take("settings", read_settings)
    found.take("digest and items of the predictions", read_predictions)
    found.take("looks at the test split", lambda: verify_files.ledger_problems(folder, record))
    if record.student is not None:
        found.take("who was asked", lambda: verify_files.asked_problems(folder, record))
    if record.kind == "method":
        found.take("training and budget", lambda: _training(found, folder, record))
    if not settings or not stored:
        return
    try:
        source = source_of(record, data_dir)
    except UserError as error:
        found.not_checked.append(f"answers, score and protocol: the data is not at hand ({error})")
        return
    _verify_data(found, folder, record, lambda: cell_of(record, settings, source, folder.parent), stored)


def _training(found: Verification, folder: Path, record: RunRecord) -> list[Problem]:
    problems, why_not = verify_files.training_problems(folder, record)
    if why_not is not None:
        found.not_checked.append(why_not)
    return problems


def _verify_data(
    found: Verification, folder: Path, record: RunRecord, make: Callable[[], Cell], stored: Sequence[Prediction]
) -> None:
    try:
        cell = make()
    except UserError as error:
        found.not_checked.append(f"answers, score and protocol ({error})")
        return
    records = {one.id: one for one in cell.asked_records("test")}
    found.take(f"{cell.source.kind} data", lambda: verify_score.data_problems(found.file, record, cell))
    found.take("protocol", lambda: verify_score.protocol_problems(found.file, record, cell))
    file = folder / "predictions" / f"{record.task}.jsonl.zst"
    complete = found.take(f"{len(records)} scored items", lambda: _items(file, stored, records))
    if (read_by := _another_parser(record, cell)) is not None:
        found.not_checked.append(read_by)
        return
    known = [one for one in stored if one.record_id in records]
    try:
        again, bad = _worked_out(cell, known, records, record.student.architecture if record.student else None)
    except UserError as error:
        found.not_checked.append(f"answers and score ({error})")
        return
    found.take(f"{len(known)} answers, worked out again", lambda: _grouped(file, bad))
    if complete and again:
        found.take("score", lambda: verify_score.score_problems(found.file, record, cell, again))
        found.scored = True
    found.take("run id", lambda: _run_id(found, record, cell))


def _another_parser(record: RunRecord, cell: Cell) -> str | None:
    """Why answers cannot be worked out again: another version of the parser read them."""
    told, own = record.protocol["parser_version"], protocol_of(cell)["parser_version"]
    if told == own or record.reading != "gen":  # ranked options are read by no parser
        return None
    return (
        f"answers and score: they were read by parser version {told}, this code reads by version {own}; the release of"
        f" tinyllm-bench that has version {told} can check them, and a new run is recorded under version {own}"
    )


def _items(file: Path, stored: Sequence[Prediction], records: Mapping[str, TaskRecord]) -> Iterator[Problem]:
    ids = [one.record_id for one in stored]
    yield from missing(file, "items of the test split", set(records) - set(ids))
    yield from missing(file, "items that are not scored by these settings", set(ids) - set(records), lacks=False)
    if len(ids) == len(set(ids)) == len(records) and set(ids) == set(records) and ids != list(records):
        yield Problem(file, "its items stand in another order", "that of the data")
    if len(ids) > len(set(ids)):
        yield Problem(file, f"{len(ids) - len(set(ids))} items stand twice", "every item once")


def _worked_out(
    cell: Cell, stored: Sequence[Prediction], records: Mapping[str, TaskRecord], architecture: str | None
) -> tuple[list[Prediction], list[verify_answers.Differs]]:
    """The predictions as they follow from texts and log-probabilities (none if these are not whole), and what differs.

    Raises:
        UserError: the sandbox that programs need cannot be started here.
    """
    if bad := list(verify_answers.malformed(cell, stored, records)):
        return [], bad
    again = verify_answers.answers_again(cell, stored, records, architecture)
    return again, list(verify_answers.differences(stored, again))


def _grouped(file: Path, found: Iterable[verify_answers.Differs]) -> list[Problem]:
    """One problem for each field, with the first item and how many there are."""
    by_field: dict[str, list[verify_answers.Differs]] = {}
    for one in found:
        by_field.setdefault(one.field, []).append(one)
    problems = []
    for field, some in by_field.items():
        count = f" ({len(some)} such items)" if len(some) > 1 else ""
        wrong = f"{field} of {some[0].record_id} is {shown(some[0].stored)}{count}"
        problems.append(Problem(file, wrong, f"{shown(some[0].again)}, worked out again"))
    return problems


def _run_id(found: Verification, record: RunRecord, cell: Cell) -> list[Problem]:
    """The digest in the run id holds the code of the method too: by other code it cannot be the same."""
    commit, dirty = provenance.git_state()
    same_code = commit is not None and record.git.commit == commit and not dirty and not record.git.dirty
    try:
        own = whole_cell(cell, record).run_id
    except UserError as error:
        found.not_checked.append(f"the digest in the run id ({error})")
        return []
    if own == record.run_id:
        return []
    if same_code:
        return [Problem(found.file, f"run_id is {record.run_id}", f"{own} from settings, data and code")]
    found.not_checked.append(f"the digest in the run id: this code makes {own}, the record was made by other code")
    return []


def _second_run(found: Verification, record: RunRecord, rerun: Path, data_dir: str | None) -> Iterator[Problem]:
    """A second run must hold by itself, be of the same cell, and agree (exact McNemar p above 0.05)."""
    from tinyllm_bench.leaderboard.stats.exact import mcnemar

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
