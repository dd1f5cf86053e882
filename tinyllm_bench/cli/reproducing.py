"""`reproduce`: a paper's table, run again and judged cell by cell."""

from pathlib import Path
from typing import Annotated

import typer

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.cli.options import names_of
from tinyllm_bench.cli.output import echo

Name = Annotated[str, typer.Argument(help="The paper's table; a wrong name lists them.")]
Published = Annotated[bool, typer.Option("--as-published", help="As the released code does it.")]
Corrected = Annotated[bool, typer.Option("--as-corrected", help="With its mistakes mended (the default).")]
Settings = Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")]
Tasks = Annotated[str, typer.Option("--task", help="Some of the table's tasks, comma-separated.")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("reproduce")(reproduce)


def reproduce(
    name: Name,
    settings: Settings = None,
    published: Published = False,
    corrected: Corrected = False,
    preset: Annotated[str, typer.Option("--preset", help="cpu or paper.")] = "cpu",
    task: Tasks = "",
    seeds: Annotated[int, typer.Option("--seeds", help="3 means seeds 0, 1 and 2.")] = 1,
    runs_dir: Annotated[Path, typer.Option("--runs-dir", help="Where runs are kept.")] = Path("runs"),
    reported: Annotated[Path | None, typer.Option("--reported", help="Folder of reported values.")] = None,
) -> int:
    """Run a paper's table again; each cell gets the paper's value, ours, and a verdict."""
    from tinyllm_bench.audit import reproduce as tables
    from tinyllm_bench.cli.running import check_places, run_cells
    from tinyllm_bench.experiment.plan_cells import plan_cells
    from tinyllm_bench.leaderboard.reported_files import load_reported, reported_folder

    if published and corrected:
        raise UserError("--as-published and --as-corrected: give one of them")
    how: tables.How = "as_published" if published else "as_corrected"
    found = tables.load_reproduction(name)
    values = load_reported(reported or reported_folder())
    asked = names_of("--task", task) if task else ()
    request = tables.request_of(
        found, how, preset, tasks=asked, settings=settings or (), seeds=seeds, runs=runs_dir / "reproduce"
    )
    _, cells = plan_cells(request)
    check_places(cells, request.runs)
    outcomes, failed = run_cells(cells, request.runs)
    student = cells[0].student.text
    own = tables.is_papers(values, student, found)
    records = [outcome.record for outcome in outcomes if outcome.record is not None]
    judged = tables.judge(found, records, values, request.tasks, own_student=own)
    rejected = tables.rejected_texts(cells)
    text = tables.table_text(found, how, judged, values, preset=preset, student=student, own=own, rejected=rejected)
    page = tables.write_page(request.runs, name, how, text)
    echo(f"\n{text}\ntable: {page}")
    return 1 if failed else 0
