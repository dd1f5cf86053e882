"""`compare`, `protocol diff`, `verify` and `curves`: compare finished runs, check their records, plot training."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.escaping import visible
from tinyllm_bench.base.files import check_writable, write_text
from tinyllm_bench.cli.options import AsJson, DataDir, Verifier, existing_folder
from tinyllm_bench.cli.output import echo, echo_json

if TYPE_CHECKING:
    from tinyllm_bench.audit.verify import Verification

Side = Annotated[str, typer.Argument(help="A run folder, a record file, a leaderboard's folder, or a row's name.")]
Place = Annotated[
    Path | None,
    typer.Option(
        "--in",
        callback=existing_folder("--in"),
        help="Leaderboard or folder of runs that rows are looked up in; default: runs/board or runs.",
    ),
]


# --- compare, protocol diff -------------------------------------------------------------------------------------------


def compare(
    a: Side,
    b: Side,
    place: Place = None,
    student: Annotated[str | None, typer.Option("--student", help="Compare rows of this student only.")] = None,
    show_items: Annotated[bool, typer.Option("--show-items", help="List the questions answered differently.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs, rows or leaderboards question by question."""
    from tinyllm_bench.leaderboard.compare import compare as compare_pairs
    from tinyllm_bench.leaderboard.compare import find_pairs, report_data, report_text

    report = compare_pairs(find_pairs(a, b, place=place, student=student))
    if as_json:
        echo_json(report_data(report, items=show_items))
    else:
        echo(report_text(report, items=show_items, data_dir=data_dir))


def protocol_diff(a: Side, b: Side, place: Place = None, as_json: AsJson = False) -> int:
    """List the fields in which the evaluation protocols of two results differ. Status 1 if any do."""
    from tinyllm_bench.leaderboard.compare import find_record
    from tinyllm_bench.leaderboard.protocols import diff_text, differences

    first, second = (find_record(name, place) for name in (a, b))
    fields = differences(first, second)
    if as_json:
        hashes = {"a": first.protocol_hash, "b": second.protocol_hash}
        echo_json({**hashes, "same": not fields, "fields": [field._asdict() for field in fields]})
    else:
        echo(diff_text(first, second, (a, b)))
    return 1 if fields else 0


# --- verify -----------------------------------------------------------------------------------------------------------


def verify(
    paths: Annotated[list[Path], typer.Argument(help="Run folders, records, leaderboards or folders of runs.")],
    data_dir: DataDir = None,
    by: Verifier = None,
    board_dir: Annotated[
        Path | None, typer.Option("--board-dir", help="Your leaderboard, which stores the verdicts.")
    ] = None,
    rerun: Annotated[Path | None, typer.Option("--rerun", help="Your own second run of the same cell.")] = None,
    refute: Annotated[
        str | None, typer.Option("--refute", help="Attach a reason why the record should not be trusted.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Check records against their run folders. Stored predictions are scored again, without a GPU.

    Status 1 if a check fails. With --board-dir, the verdict is stored on that leaderboard for the record with the same
    content, and sets its verification tier there.
    """
    from tinyllm_bench.audit.verify import store_verdict
    from tinyllm_bench.audit.verify import verify as verify_one
    from tinyllm_bench.leaderboard.record import load_record
    from tinyllm_bench.leaderboard.verdicts import on_board, record_paths, refutation_file
    from tinyllm_bench.leaderboard.verdicts import refute as write_refutation

    records = record_paths(paths)
    if refute is not None:
        for path in [path if board_dir is None else on_board(load_record(path), board_dir) for path in records]:
            refutation = write_refutation(path, refute, by=by)
            echo(f"refuted {refutation.run_id}: {refutation.reason} ({refutation_file(path)})")
        return 0
    if rerun is not None and len(records) != 1:
        raise UserError(f"--rerun {rerun} applies to one run, but {len(records)} were given; verify that run alone")
    if board_dir is not None:
        for path in records:  # refuse a record that is not on the board before any work
            on_board(load_record(path), board_dir)
    results = []
    for path in records:
        result = verify_one(path, data_dir=data_dir, rerun=rerun)
        verdict = None if board_dir is None else store_verdict(result, board_dir, by=by)
        results.append(result)
        if not as_json:
            echo(_verification_text(result, verdict))
    if as_json:
        echo_json([_verification_data(result) for result in results])
    return 0 if all(result.ok for result in results) else 1


def _verification_text(verification: "Verification", verdict: Path | None) -> str:
    from tinyllm_bench.leaderboard.verdicts import refutations_of

    if not verification.ok:
        count = len(verification.problems)
        lines = [f"FAILED {verification.path}: {count} problem{'' if count == 1 else 's'}"]
        lines += [f"  {problem.text}" for problem in verification.problems]
    else:
        lines = [f"ok {verification.path}: {verification.tier}", f"  checked: {'; '.join(verification.checked)}"]
    if verification.rerun is not None:
        lines.append(
            f"  second run: same answer to {verification.rerun.same_answers} of {verification.rerun.n} questions"
        )
    lines += [f"  NOT checked: {part}" for part in verification.not_checked]
    lines += [
        f"  refuted on {refutation.date[:10]}: {refutation.reason}" for refutation in refutations_of(verification.path)
    ]
    lines += [] if verdict is None else [f"  verdict: {verdict}"]
    return "\n".join(map(visible, lines))


def _verification_data(verification: "Verification") -> dict[str, Any]:
    return {
        "path": str(verification.path),
        "run_id": verification.record.run_id if verification.record else None,
        "ok": verification.ok,
        "tier": verification.tier,
        "problems": [
            {"file": str(problem.file), "wrong": problem.wrong, "expected": problem.expected}
            for problem in verification.problems
        ],
        "checked": verification.checked,
        "not_checked": verification.not_checked,
        "rerun": verification.rerun.model_dump() if verification.rerun else None,
    }


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of runs.")],
    to: Annotated[Path | None, typer.Option("--to", help="Draw all runs into this one SVG file.")] = None,
) -> None:
    """Print and plot training curves. Plots go to train/curves.svg of each run, or with --to into one file."""
    from tinyllm_bench.leaderboard.curves import (
        ASCII_BARS,
        BARS,
        METRICS,
        curves_text,
        draw_run,
        drawing,
        read_curves,
    )

    if to is not None and to.suffix != ".svg":
        raise UserError(f"--to {to}: the picture is an SVG; name a file that ends in .svg")
    if to is not None:
        check_writable(to, "--to", file=True)
    # If a folder is not a run that trained, the runs inside it are used.
    inside = [[path] if (path / METRICS).is_file() else sorted(path.glob("*")) for path in runs]
    folders = list(dict.fromkeys(folder for paths in inside for folder in paths if (folder / METRICS).is_file()))
    if not folders:
        named = ", ".join(str(path) for path in runs)
        raise UserError(f"no training metrics in {named}; name runs that trained a student, e.g. runs/*")
    bars = BARS if (sys.stdout.encoding or "").lower().startswith("utf") else ASCII_BARS
    curves_of_runs = []
    for folder in folders:
        curves_of_runs.append(read_curves(folder))
        echo(curves_text(curves_of_runs[-1], bars=bars))
        if to is None:
            echo(f"  {draw_run(folder)}")
    if to is not None:
        write_text(to, drawing(curves_of_runs))
        echo(f"{len(folders)} run{'' if len(folders) == 1 else 's'}: {to}")
