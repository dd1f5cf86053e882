"""Trust in a board's records: the verdict of the board's owner and refutations, in files beside each record.

Beside a record `NAME.json` on a board are `NAME.verified` and `NAME.refutations`. They are not part of the record, so
that checking it changes nothing, and `board add` copies no verdict: a tier is what this board's owner verified, never
what came with a submitted folder. A verdict holds the digest of the content that was checked: an edited record is
self-reported again.

A run's folder holds no verdict. A reason not to trust it (`verify RUN --refute`) is in its `refutations.jsonl`; a board
shows it as its submitter's.
"""

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import append_checked, digest, locked, read_checked, read_json, write_json
from tinyllm_bench.leaderboard.public import public_text
from tinyllm_bench.leaderboard.record import RECORD_FILE, RunRecord, load_record, record_path

Tier = Literal["self-reported", "re-scored", "re-run"]
SELF_REPORTED: Tier = "self-reported"
RE_SCORED: Tier = "re-scored"
RE_RUN: Tier = "re-run"
TIERS: tuple[Tier, ...] = (SELF_REPORTED, RE_SCORED, RE_RUN)
_MAX_SUBMITTED = 20
ReasonText = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]
PersonName = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]


class _StoredPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rerun(_StoredPart):
    """A second run of the same cell: the number of questions with the same answer, and of its right answers."""

    predictions_digest: str
    same_answers: int
    n: int
    correct: int


class Verdict(_StoredPart):
    """The result of checking a record; `ok`: every check holds.

    `parser_version` is that of the parser that read the answers again, `commit` the code that checked.
    """

    schema_version: Literal[1] = 1
    run_id: str
    record_digest: str
    tier: Tier
    ok: bool
    date: str
    by: PersonName | None = None
    parser_version: str
    version: str
    commit: str | None = None
    checked: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    rerun: Rerun | None = None


class Refutation(_StoredPart):
    """A stated reason why a record's number should not be trusted; boards show it as a note."""

    run_id: str
    record_digest: str
    reason: ReasonText
    by: PersonName | None = None
    date: str


class RecordTrust(NamedTuple):
    """The tier of a record on a board and its refutations, oldest first."""

    tier: Tier = SELF_REPORTED
    refutations: tuple[Refutation, ...] = ()


# By a record's path in its board's folder (`record_path`); unchecked records may be missing.
Checks = Mapping[str, RecordTrust]


def content_digest(record: RunRecord) -> str:
    """Digest of a record's content, whatever its file."""
    return digest(record.model_dump(mode="json", exclude_defaults=True))


def now() -> str:
    """The time of a verdict, in UTC to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def verdict_file(place: Path) -> Path:
    """The file of the verdict on a board's record, beside its own."""
    return Path(place).with_suffix(".verified")


def refutation_file(path: Path) -> Path:
    """The file of the refutations of a run's folder or a board's record."""
    path = Path(path)
    file = path / RECORD_FILE if path.is_dir() else path
    return file.with_name("refutations.jsonl") if file.name == RECORD_FILE else file.with_suffix(".refutations")


def on_board(record: RunRecord, board: Path) -> Path:
    """The file of a record on a board, with the same content.

    Raises:
        UserError: it is not on this board, or has other content there.
    """
    place = Path(board) / record_path(record)
    if not place.is_file():
        raise UserError(f"run {record.run_id} is not on the board {board}; add it first: tinyllm-bench board add RUN")
    if content_digest(load_record(place)) != content_digest(record):
        raise UserError(
            f"run {record.run_id} is on the board {board} with other content than what was checked; remove {place} "
            "and add the run again"
        )
    return place


def save_verdict(verdict: Verdict, place: Path) -> Path:
    """Store a verdict beside a board's record; an earlier one is replaced."""
    file = verdict_file(place)
    write_json(file, verdict.model_dump(mode="json"))
    return file


def verdict_of(place: Path, record: RunRecord | None = None) -> Verdict | None:
    """The verdict on a board's record, if it is about the record's present content.

    `record` is the record of `place`, if the caller has read it already.

    Raises:
        UserError: a file that holds no verdict.
    """
    file = verdict_file(place)
    if not file.exists():
        return None
    try:
        verdict = Verdict.model_validate(read_json(file))
    except ValidationError as error:
        reason = " ".join(str(error.errors(include_url=False)[0]["msg"]).split())
        raise UserError(f"{file} holds no verdict ({reason}); delete it, or let `verify` write it again") from None
    return verdict if verdict.record_digest == content_digest(record or load_record(place)) else None


def tier_of(place: Path, record: RunRecord | None = None) -> Tier:
    """The tier of a board's record: `self-reported` unless a verdict on its present content says more."""
    verdict = verdict_of(place, record)
    return verdict.tier if verdict is not None and verdict.ok else SELF_REPORTED


def refute(path: Path, reason: str, *, by: str | None = None) -> Refutation:
    """Attach a refutation to a record; machine paths are removed from the reason.

    Raises:
        UserError: no record there, or a reason that is empty or longer than 500 characters.
    """
    record = load_record(path)
    words = " ".join(public_text(reason).split())
    try:
        refutation = Refutation(
            run_id=record.run_id, record_digest=content_digest(record), reason=words, by=one_line(by), date=now()
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise UserError(f"--refute {reason[:40]!r}: {problem}; give the reason in one to 500 characters") from None
    file = refutation_file(path)
    with locked(file):
        append_checked(file, [refutation.model_dump(mode="json")])
    return refutation


def refutations_of(path: Path) -> tuple[Refutation, ...]:
    """The refutations of a run's folder or a board's record, oldest first.

    Raises:
        UserError: a file that holds something else.
    """
    file = refutation_file(path)
    try:
        return tuple(Refutation.model_validate(row) for row in read_checked(file))
    except ValidationError as error:
        reason = " ".join(str(error.errors(include_url=False)[0]["msg"]).split())
        raise UserError(f"{file} holds something that is no refutation ({reason}); delete the file") from None


def checks_on(folder: Path, records: Sequence[RunRecord]) -> dict[str, RecordTrust]:
    """The trust files beside the records of a board's folder; records without any are left out."""
    # One listing a folder: testing for two files beside each of thousands of records is slow.
    folders = {os.path.dirname(record_path(record)) for record in records}
    with_files = {
        f"{place}/{Path(name).stem}.json"
        for place in folders
        if Path(folder, place).is_dir()
        for name in os.listdir(Path(folder, place))
        if name.endswith((".verified", ".refutations"))
    }
    places = {record_path(record): record for record in records} if with_files else {}
    return {
        place: RecordTrust(tier_of(Path(folder, place), record), refutations_of(Path(folder, place)))
        for place, record in places.items()
        if place in with_files
    }


def trust_in(checks: Checks, record: RunRecord) -> RecordTrust:
    """The trust in one of a board's records."""
    return checks.get(record_path(record), RecordTrust())


def least_checked(checks: Checks, records: Iterable[RunRecord]) -> Tier:
    """The tier of a row: that of its least checked run."""
    return min((trust_in(checks, record).tier for record in records), key=TIERS.index)


def submitted_refutations(run: Path, record: RunRecord) -> tuple[Refutation, ...]:
    """The refutations in a submitted folder, as its submitter's, whatever name they give.

    Raises:
        UserError: a file that holds no refutations of this run, or more than a board shows.
    """
    own = refutations_of(run)
    foreign = next((refutation.run_id for refutation in own if refutation.run_id != record.run_id), None)
    if foreign is not None:
        raise UserError(f"{refutation_file(run)} is about run {foreign!r}, not {record.run_id}; delete the file")
    if len(own) > _MAX_SUBMITTED:
        raise UserError(
            f"{refutation_file(run)} holds {len(own)} refutations, a board takes at most {_MAX_SUBMITTED} with a run"
        )
    names = ["its submitter" + (f", naming {refutation.by[:60]}" if refutation.by else "") for refutation in own]
    return tuple(refutation.model_copy(update={"by": by}) for refutation, by in zip(own, names, strict=True))


def add_refutations(refutations: Sequence[Refutation], place: Path) -> None:
    """Add refutations to those of a board's record; none is removed."""
    stored = refutations_of(place)
    new = [refutation.model_dump(mode="json") for refutation in refutations if refutation not in stored]
    if new:
        with locked(refutation_file(place)):
            append_checked(refutation_file(place), new)


def record_paths(paths: Sequence[Path]) -> list[Path]:
    """Run folders and record files as given; a board or a folder of runs gives all of its records.

    Raises:
        UserError: a path that does not exist or holds no record.
    """
    records: list[Path] = []
    for path in map(Path, paths):
        if path.is_file() or (path / RECORD_FILE).is_file():
            records.append(path)
            continue
        inside = sorted((path / "results").rglob("*.json")) or [file.parent for file in path.glob(f"*/{RECORD_FILE}")]
        if not inside:
            raise UserError(f"{path}: no record there; give a run's folder, a record's file, or a folder of these")
        records += sorted(inside)
    return records


def one_line(text: str | None) -> str | None:
    """A text in one line, without machine paths."""
    return None if text is None else " ".join(public_text(text).split())
