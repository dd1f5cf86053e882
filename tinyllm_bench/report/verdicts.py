"""What others found when they checked a record: its trust tier and its refutations, in files beside it.

Beside a run's `run.json` these are `verified.json` and `refutations.jsonl`; beside a record file `NAME.json` on a board
`NAME.verified` and `NAME.refutations`. They are no part of the record, so that checking it changes nothing. A verdict
names the content it is about: a record that was edited since is self-reported again.
"""

import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import append_checked, digest, locked, read_checked, read_json, write_json
from tinyllm_bench.report.public import public_text
from tinyllm_bench.report.record import RECORD_FILE, RunRecord, load_record

Tier = Literal["self-reported", "re-scored", "re-run"]
SELF_REPORTED: Tier = "self-reported"
RE_SCORED: Tier = "re-scored"
RE_RUN: Tier = "re-run"
TIERS: tuple[Tier, ...] = (SELF_REPORTED, RE_SCORED, RE_RUN)
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


def content_digest(record: RunRecord) -> str:
    """Digest of what a record says, wherever its file lies."""
    return digest(record.model_dump(mode="json", exclude_defaults=True))


def now() -> str:
    """The time of a verdict, in UTC to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def verdict_file(path: Path) -> Path:
    """Where the verdict on a run's folder or a record's file is kept."""
    file = _record_file(path)
    return file.with_name("verified.json") if file.name == RECORD_FILE else file.with_suffix(".verified")


def refutation_file(path: Path) -> Path:
    """Where the refutations of a run's folder or a record's file are kept."""
    file = _record_file(path)
    return file.with_name("refutations.jsonl") if file.name == RECORD_FILE else file.with_suffix(".refutations")


def _record_file(path: Path) -> Path:
    path = Path(path)
    return path / RECORD_FILE if path.is_dir() else path


def save_verdict(verdict: Verdict, path: Path) -> Path:
    """Keep a verdict beside its record; an earlier one is replaced."""
    file = verdict_file(path)
    write_json(file, verdict.model_dump(mode="json"))
    return file


def verdict_of(path: Path, record: RunRecord | None = None) -> Verdict | None:
    """The verdict on a run's folder or a record's file, if it is about what the record says now.

    `record` is what lies at `path`, where the caller has read it already.

    Raises:
        UserError: a file that holds no verdict.
    """
    file = verdict_file(path)
    if not file.exists():
        return None
    try:
        verdict = Verdict.model_validate(read_json(file))
    except ValidationError as error:
        reason = " ".join(str(error.errors(include_url=False)[0]["msg"]).split())
        raise UserError(f"{file} holds no verdict ({reason}); delete it, or let `verify` write it again") from None
    return verdict if verdict.record_digest == content_digest(record or load_record(path)) else None


def tier_of(path: Path, record: RunRecord | None = None) -> Tier:
    """How far a record was checked by others: `self-reported` unless a verdict on its present content says more."""
    verdict = verdict_of(path, record)
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
    """The refutations of a run's folder or a record's file, oldest first."""
    return tuple(Refutation.model_validate(row) for row in read_checked(refutation_file(path)))


def copy_verdicts(run: Path, place: Path) -> list[Path]:
    """Take what was found about a run along to its place on a board; returns the files written there.

    Raises:
        UserError: a verdict that cannot be read.
    """
    verdict_of(run)
    pairs = [(verdict_file(run), verdict_file(place)), (refutation_file(run), refutation_file(place))]
    copied = []
    for source, target in pairs:
        if source.exists() and source != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied.append(target)
    return copied


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
