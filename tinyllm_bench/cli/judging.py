"""`compare`, `verify` and `protocol diff`: what two results are worth against each other, and whether one holds."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllm_bench.base.escaping import visible
from tinyllm_bench.cli.output import echo

if TYPE_CHECKING:
    from tinyllm_bench.audit.verify import Verification

Side = Annotated[str, typer.Argument(help="A run's folder, a record's file, a board's folder, or a row's name.")]
Place = Annotated[Path | None, typer.Option("--in", help="Where rows are: a board or runs; runs/board, else runs.")]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="The release folder; or set TINYLLM_BENCH_DATA.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
By = Annotated[str | None, typer.Option("--by", help="Who verifies, for the verdict.")]

protocol_app = typer.Typer(help="What two rows must share.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands of this file to the command line."""
    app.command("compare")(compare)
    app.command("verify")(verify)
    app.add_typer(protocol_app, name="protocol")


@protocol_app.command("diff")
def protocol_diff(a: Side, b: Side, place: Place = None, as_json: AsJson = False) -> int:
    """Say in which fields the protocols of two results differ. Status 1 when they do."""
    from tinyllm_bench.leaderboard.compare_sides import find_record
    from tinyllm_bench.leaderboard.protocols import diff_text, differences

    first, second = (find_record(name, place) for name in (a, b))
    found = differences(first, second)
    if as_json:
        hashes = {"a": first.protocol_hash, "b": second.protocol_hash}
        _print_json({**hashes, "same": not found, "fields": [one._asdict() for one in found]})
    else:
        echo(diff_text(first, second, (a, b)))
    return 1 if found else 0


def compare(
    a: Side,
    b: Side,
    place: Place = None,
    student: Annotated[str | None, typer.Option("--student", help="Rows of this student only.")] = None,
    show_items: Annotated[bool, typer.Option("--show-items", help="List the questions answered differently.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, two rows or two boards, question by question."""
    from tinyllm_bench.leaderboard.compare import compare as compare_pairs
    from tinyllm_bench.leaderboard.compare_sides import find_pairs
    from tinyllm_bench.leaderboard.compare_text import report_data, report_text

    report = compare_pairs(find_pairs(a, b, place=place, student=student))
    if as_json:
        _print_json(report_data(report, items=show_items))
    else:
        echo(report_text(report, items=show_items, data_dir=data_dir))


def verify(
    paths: Annotated[list[Path], typer.Argument(help="Run folders, records, boards or folders of runs.")],
    data_dir: DataDir = None,
    by: By = None,
    board_dir: Annotated[Path | None, typer.Option("--board-dir", help="Your board, which keeps the verdicts.")] = None,
    rerun: Annotated[Path | None, typer.Option("--rerun", help="Your own second run of the same cell.")] = None,
    refute: Annotated[str | None, typer.Option("--refute", help="Attach a reason not to believe the record.")] = None,
    as_json: AsJson = False,
) -> int:
    """Score stored predictions again and check a record, without a GPU. Status 1 when something does not hold.

    With --board-dir the verdict is kept on that board, for its record of the same content: it is the record's tier of
    trust there.
    """
    from tinyllm_bench.audit.verify import keep_verdict
    from tinyllm_bench.audit.verify import verify as verify_one
    from tinyllm_bench.base.errors import UserError
    from tinyllm_bench.leaderboard.record import load_record
    from tinyllm_bench.leaderboard.verdicts import on_board, record_paths

    found = record_paths(paths)
    if refute is not None:
        return _refute(found, refute, by, board_dir)
    if rerun is not None and len(found) != 1:
        raise UserError(f"--rerun {rerun} belongs to one run, {len(found)} were given; verify that run alone")
    if board_dir is not None:
        for path in found:  # one that is not there is told before the work
            on_board(load_record(path), board_dir)
    results = []
    for path in found:
        result = verify_one(path, data_dir=data_dir, rerun=rerun)
        kept = None if board_dir is None else keep_verdict(result, board_dir, by=by)
        results.append(result)
        if not as_json:
            echo(_text(result, kept))
    if as_json:
        _print_json([_data(result) for result in results])
    return 0 if all(result.ok for result in results) else 1


def verified(runs: Sequence[Path], data_dir: str | None) -> "list[Verification]":
    """Verify runs before they are added to a board.

    Raises:
        UserError: something does not hold in one of them.
    """
    from tinyllm_bench.audit.verify import verify as verify_one
    from tinyllm_bench.base.errors import UserError

    found = [verify_one(path, data_dir=data_dir) for path in runs]
    for one in found:
        if not one.ok:
            more = f" (and {len(one.problems) - 1} more)" if len(one.problems) > 1 else ""
            raise UserError(f"{one.problems[0].text}{more}; `tinyllm-bench verify {one.path}` tells all")
    return found


def kept_text(found: "Verification", board: Path, by: str | None) -> str:
    """Keep a verdict on a board, and say so or why there is none."""
    from tinyllm_bench.audit.verify import keep_verdict

    file = keep_verdict(found, board, by=by)
    return f"{found.tier}: {file}" if file else f"{found.path}: stays self-reported, {'; '.join(found.not_checked)}"


def _refute(paths: list[Path], reason: str, by: str | None, board: Path | None) -> int:
    from tinyllm_bench.leaderboard.record import load_record
    from tinyllm_bench.leaderboard.verdicts import on_board, refutation_file, refute

    for path in [path if board is None else on_board(load_record(path), board) for path in paths]:
        said = refute(path, reason, by=by)
        echo(f"refuted {said.run_id}: {said.reason} ({refutation_file(path)})")
    return 0


def _text(found: "Verification", kept: Path | None) -> str:
    from tinyllm_bench.leaderboard.verdicts import refutations_of

    if not found.ok:
        count = len(found.problems)
        lines = [f"FAILED {found.path}: {count} problem{'' if count == 1 else 's'}"]
        lines += [f"  {problem.text}" for problem in found.problems]
    else:
        lines = [f"ok {found.path}: {found.tier}", f"  checked: {'; '.join(found.checked)}"]
    if found.rerun is not None:
        lines.append(f"  second run: the same answer in {found.rerun.same_answers} of {found.rerun.n} questions")
    lines += [f"  NOT checked: {one}" for one in found.not_checked]
    lines += [f"  refuted on {one.date[:10]}: {one.reason}" for one in refutations_of(found.path)]
    return "\n".join(map(visible, [*lines, *([f"  verdict: {kept}"] if kept else [])]))


def _data(found: "Verification") -> dict[str, Any]:
    return {
        "path": str(found.path),
        "run_id": found.record.run_id if found.record else None,
        "ok": found.ok,
        "tier": found.tier,
        "problems": [{"file": str(one.file), "wrong": one.wrong, "expected": one.expected} for one in found.problems],
        "checked": found.checked,
        "not_checked": found.not_checked,
        "rerun": found.rerun.model_dump() if found.rerun else None,
    }


def _print_json(value: Any) -> None:
    echo(json.dumps(value, indent=1, ensure_ascii=False))
