"""`export`: a run's student as a Hugging Face folder, and on request to the hub."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import check_writable
from tinyllm_bench.cli.options import RunsDir
from tinyllm_bench.cli.output import echo

if TYPE_CHECKING:
    from tinyllm_bench.publish.export import Bundle

Run = Annotated[str, typer.Argument(help="A run's folder, or its id in --runs-dir.")]
To = Annotated[Path, typer.Option("--to", help="The folder to write; new or empty.")]
Adapter = Annotated[bool, typer.Option("--adapter", help="The LoRA adapters alone instead of the merged student.")]
Channel = Annotated[str | None, typer.Option("--channel", help="Which student, of a run that answers with several.")]
Predictions = Annotated[bool, typer.Option("--with-predictions", help="Also every stored answer.")]
Push = Annotated[str | None, typer.Option("--push", help="Also send it to OWNER/NAME on the Hugging Face hub.")]
Private = Annotated[bool, typer.Option("--private/--public", help="Who may see the repository.")]
Dry = Annotated[bool, typer.Option("--dry-run", help="Show what would be written and sent; do neither.")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("export")(export)


def export(
    run: Run,
    to: To,
    runs_dir: RunsDir = Path("runs"),
    adapter: Adapter = False,
    channel: Channel = None,
    with_predictions: Predictions = False,
    push: Push = None,
    private: Private = True,
    dry_run: Dry = False,
) -> None:
    """Write a run's student with a model card, ready for transformers; --push sends it to the hub."""
    from tinyllm_bench.publish import export as exports
    from tinyllm_bench.publish import hub as publish

    if push is not None:
        publish.check_repo(push)
        if not dry_run:
            publish.check_token()
    elif not private:
        raise UserError("--public says who may see what --push sends; add --push OWNER/NAME")
    if not dry_run:
        check_writable(to, "--to")
    bundle = exports.make_bundle(
        exports.find_run(run, runs_dir), adapter=adapter, channel=channel, predictions=with_predictions, repo=push
    )
    for reason in bundle.left_out:
        echo(f"left out of the comparison: {reason}", err=True)
    if dry_run:
        echo(_told(bundle, to, push, private))
        return
    exports.write_bundle(bundle, to)
    echo(f"exported {bundle.record.run_id} to {to} ({len(bundle.files)} files, {_size(bundle)})")
    if push is not None:
        address = publish.push(to, push, private=private, message=f"Student of {bundle.record.run_id}")
        echo(f"pushed to {address} ({'private' if private else 'public'})")


def _told(bundle: "Bundle", to: Path, repo: str | None, private: bool) -> str:
    """What would be written and sent, the card at the end."""
    from tabulate import tabulate

    target = f", then pushed to {repo} ({'private' if private else 'public'})" if repo else ""
    files = tabulate([(name, f"{size:,}") for name, size in bundle.sizes.items()], ["file", "bytes"], "simple")
    return f"would be written to {to}{target}: {_size(bundle)}\n\n{files}\n\n{bundle.card}"


def _size(bundle: "Bundle") -> str:
    return f"{sum(bundle.sizes.values()) / 1e6:.1f} MB"
