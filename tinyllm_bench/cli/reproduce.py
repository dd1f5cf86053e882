"""`reproduce`: rerun a paper's results table and compare it cell by cell."""

from pathlib import Path
from typing import Annotated

import typer

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.cli.options import RunsDir, Seeds, Settings, names_of
from tinyllm_bench.cli.output import echo
from tinyllm_bench.cli.run import check_writable_folders, run_cells


def reproduce(
    name: Annotated[str, typer.Argument(help="Name of the paper's table; an unknown name lists them.")],
    settings: Settings = None,
    published: Annotated[
        bool, typer.Option("--as-published", help="Follow the released code, its errors included.")
    ] = False,
    corrected: Annotated[
        bool, typer.Option("--as-corrected", help="Correct the errors of the released code (the default).")
    ] = False,
    preset: Annotated[str, typer.Option("--preset", help="cpu or paper.")] = "cpu",
    task: Annotated[str, typer.Option("--task", help="Only these tasks of the table, comma-separated.")] = "",
    seeds: Seeds = 1,
    runs_dir: RunsDir = Path("runs"),
    reported: Annotated[Path | None, typer.Option("--reported", help="Folder of reported results.")] = None,
) -> int:
    """Rerun a paper's results table. Each cell shows the reported value, ours and a verdict."""
    from tinyllm_bench.audit import reproduce as tables
    from tinyllm_bench.experiment.plan_cells import plan_cells
    from tinyllm_bench.leaderboard.reported import load_reported, reported_folder

    if published and corrected:
        raise UserError("--as-published and --as-corrected: give only one of them")
    variant: tables.VariantName = "as_published" if published else "as_corrected"
    reproduction = tables.load_reproduction(name)
    values = load_reported(reported or reported_folder())
    tasks = names_of("task", task) if task else ()
    request = tables.request_of(
        reproduction, variant, preset, tasks=tasks, settings=settings or (), seeds=seeds, runs=runs_dir / "reproduce"
    )
    _, cells = plan_cells(request)
    check_writable_folders(cells, request.runs)
    outcomes, failed = run_cells(cells, request.runs)
    student = cells[0].student.text
    own_student = tables.is_paper_student(values, student, reproduction)
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    judged = tables.judge(reproduction, records, values, request.tasks, own_student=own_student)
    text = tables.table_text(
        reproduction,
        variant,
        judged,
        values,
        preset=preset,
        student=student,
        own_student=own_student,
        filtered=tables.filtered_texts(cells),
    )
    page = tables.write_page(request.runs, name, variant, text)
    echo(f"\n{text}\ntable: {page}")
    return 1 if failed else 0
