"""What a board's owner found when checking a record: its trust tier and its refutations, in files beside it.

Beside a record `NAME.json` on a board lie `NAME.verified` and `NAME.refutations`. They are no part of the record, so
that checking it changes nothing, and `board add` copies no verdict: a tier is what this board's owner found, never what
came with a submitted folder. A verdict names the content it is about: a record that was edited since is self-reported
again.

A run's folder holds no verdict. A reason not to believe it (`verify RUN --refute`) lies in its `refutations.jsonl`; on
a board it is told as its submitter's.
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
_MOST_SUBMITTED = 20
Words = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]
Who = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rerun(_Kept):
    """A second run of the same cell: in how many of its questions it gave the same answer, and its right ones."""

    predictions_digest: str
    same_answers: int
    n: int
    correct: int


class Verdict(_Kept):
    """What one check of a record found; `ok` means that all that was checked holds.

    `parser_version` is the parser that read the answers again, `commit` the code that checked.
    """

    schema_version: Literal[1] = 1
    run_id: str
    record_digest: str
    tier: Tier
    ok: bool
    date: str
    by: Who | None = None
    parser_version: str
    version: str
    commit: str | None = None
    checked: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    rerun: Rerun | None = None


class Refutation(_Kept):
    """A stated reason why a record's number should not be believed; boards show it as a note."""

    run_id: str
    record_digest: str
    reason: Words
    by: Who | None = None
    date: str


class Checked(NamedTuple):
    """What is known about a record on a board: its tier and its refutations, oldest first."""

    tier: Tier = SELF_REPORTED
    refutations: tuple[Refutation, ...] = ()


# By a record's place in its board's folder (`record_path`); records that nobody checked may be left out.
Checks = Mapping[str, Checked]


def content_digest(record: RunRecord) -> str:
    """Digest of what a record says, wherever its file lies."""
    return digest(record.model_dump(mode="json", exclude_defaults=True))


def now() -> str:
    """The time of a verdict, in UTC to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def verdict_file(place: Path) -> Path:
    """Where the verdict on a board's record lies, beside its file."""
    return Path(place).with_suffix(".verified")


def refutation_file(path: Path) -> Path:
    """Where the refutations of a run's folder or a board's record are kept."""
    file = _record_file(path)
    return file.with_name("refutations.jsonl") if file.name == RECORD_FILE else file.with_suffix(".refutations")


def _record_file(path: Path) -> Path:
    path = Path(path)
    return path / RECORD_FILE if path.is_dir() else path


def on_board(record: RunRecord, board: Path) -> Path:
    """Where a record lies on a board, with the same content.

    Raises:
        UserError: it is not on this board, or stands there with other content.
    """
    place = Path(board) / record_path(record)
    if not place.is_file():
        raise UserError(f"run {record.run_id} is not on the board {board}; add it first: tinyllm-bench board add RUN")
    if content_digest(load_record(place)) != content_digest(record):
        raise UserError(
            f"run {record.run_id} stands on the board {board} with other content than what was checked; remove {place} "
            "and add the run again"
        )
    return place


def save_verdict(verdict: Verdict, place: Path) -> Path:
    """Keep a verdict beside a board's record; an earlier one is replaced."""
    file = verdict_file(place)
    write_json(file, verdict.model_dump(mode="json"))
    return file


def verdict_of(place: Path, record: RunRecord | None = None) -> Verdict | None:
    """The verdict on a board's record, if it is about what the record says now.

    `record` is what lies at `place`, where the caller has read it already.

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
    """How far a board's owner checked a record there: `self-reported` unless a verdict on its content says more."""
    verdict = verdict_of(place, record)
    return verdict.tier if verdict is not None and verdict.ok else SELF_REPORTED


def refute(path: Path, reason: str, *, by: str | None = None) -> Refutation:
    """Attach a refutation to a record; places on somebody's machine are taken out of the reason.

    Raises:
        UserError: no record there, or a reason that is empty or longer than 500 characters.
    """
    record = load_record(path)
    words = " ".join(public_text(reason).split())
    try:
        found = Refutation(
            run_id=record.run_id, record_digest=content_digest(record), reason=words, by=one_line(by), date=now()
        )
    except ValidationError as error:
        told = error.errors(include_url=False)[0]["msg"]
        raise UserError(f"--refute {reason[:40]!r}: {told}; give the reason in one to 500 characters") from None
    file = refutation_file(path)
    with locked(file):
        append_checked(file, [found.model_dump(mode="json")])
    return found


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


def checks_on(folder: Path, records: Sequence[RunRecord]) -> dict[str, Checked]:
    """What stands beside the records of a board's folder; those that nobody checked are left out."""
    # Looked for once: asking for two files beside each of thousands of records takes long.
    folders = {os.path.dirname(record_path(record)) for record in records}
    told = {
        f"{place}/{Path(name).stem}.json"
        for place in folders
        if Path(folder, place).is_dir()
        for name in os.listdir(Path(folder, place))
        if name.endswith((".verified", ".refutations"))
    }
    places = {record_path(record): record for record in records} if told else {}
    return {
        place: Checked(tier_of(Path(folder, place), record), refutations_of(Path(folder, place)))
        for place, record in places.items()
        if place in told
    }


def checked(checks: Checks, record: RunRecord) -> Checked:
    """What a board knows about one of its records."""
    return checks.get(record_path(record), Checked())


def least_checked(checks: Checks, records: Iterable[RunRecord]) -> Tier:
    """The tier of a row: that of its least checked run."""
    return min((checked(checks, record).tier for record in records), key=TIERS.index)


def submitted_refutations(run: Path, record: RunRecord) -> tuple[Refutation, ...]:
    """What a submitted folder itself holds against its record, told as its submitter's, whatever name it gives.

    Raises:
        UserError: a file that holds no refutations of this run, or more than a board shows.
    """
    found = refutations_of(run)
    foreign = next((one.run_id for one in found if one.run_id != record.run_id), None)
    if foreign is not None:
        raise UserError(f"{refutation_file(run)} speaks of run {foreign!r}, not of {record.run_id}; delete the file")
    if len(found) > _MOST_SUBMITTED:
        raise UserError(
            f"{refutation_file(run)} holds {len(found)} refutations, a board takes at most {_MOST_SUBMITTED} with a run"
        )
    return tuple(
        one.model_copy(update={"by": "its submitter" + (f", naming {one.by[:60]}" if one.by else "")}) for one in found
    )


def add_refutations(found: Sequence[Refutation], place: Path) -> None:
    """Add to those that stand beside a board's record; none is taken back."""
    there = refutations_of(place)
    new = [one.model_dump(mode="json") for one in found if one not in there]
    if new:
        with locked(refutation_file(place)):
            append_checked(refutation_file(place), new)


def record_paths(paths: Sequence[Path]) -> list[Path]:
    """Run folders and record files as they were named; a board or a folder of runs stands for all of its records.

    Raises:
        UserError: a path that is not there or holds no record.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_file() or (path / RECORD_FILE).is_file():
            found.append(path)
            continue
        inside = sorted((path / "results").rglob("*.json")) or [file.parent for file in path.glob(f"*/{RECORD_FILE}")]
        if not inside:
            raise UserError(f"{path}: no record there; give a run's folder, a record's file, or a folder of these")
        found += sorted(inside)
    return found


def one_line(text: str | None) -> str | None:
    """A text in one line, without places on somebody's machine."""
    return None if text is None else " ".join(public_text(text).split())
