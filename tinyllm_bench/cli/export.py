"""`export`: a run's student as a Hugging Face folder, and on request to the hub."""

from pathlib import Path
from typing import Annotated

import typer

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import check_writable
from tinyllm_bench.cli.options import RunsDir
from tinyllm_bench.cli.output import echo


def export(
    run: Annotated[str, typer.Argument(help="A run folder, or the id of a run in --runs-dir.")],
    to: Annotated[Path, typer.Option("--to", help="Folder to write; must be new or empty.")],
    runs_dir: RunsDir = Path("runs"),
    adapter: Annotated[bool, typer.Option("--adapter", help="Export the LoRA adapter only, not merged.")] = False,
    channel: Annotated[
        str | None, typer.Option("--channel", help="Which student to export, of a run that trained several.")
    ] = None,
    with_predictions: Annotated[
        bool, typer.Option("--with-predictions", help="Also include the stored predictions.")
    ] = False,
    push: Annotated[
        str | None, typer.Option("--push", help="Also upload to OWNER/NAME on the Hugging Face hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Visibility of the repository.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be written and uploaded, and exit.")
    ] = False,
) -> None:
    """Export a run's student for transformers. The folder has a model card; --push uploads it to the hub."""
    from tabulate import tabulate

    from tinyllm_bench.publish import export as exports
    from tinyllm_bench.publish import hub

    if push is not None:
        hub.check_repo(push)
        if not dry_run:
            hub.check_token()
    elif not private:
        raise UserError("--public sets the visibility of what --push uploads; add --push OWNER/NAME")
    if not dry_run:
        check_writable(to, "--to")
    bundle = exports.make_bundle(
        exports.find_run(run, runs_dir), adapter=adapter, channel=channel, predictions=with_predictions, repo=push
    )
    for reason in bundle.left_out:
        echo(f"left out of the comparison: {reason}", err=True)
    size = f"{sum(bundle.sizes.values()) / 1e6:.1f} MB"
    visibility = "private" if private else "public"
    if dry_run:
        target = f" and pushed to {push} ({visibility})" if push else ""
        files = tabulate([(name, f"{count:,}") for name, count in bundle.sizes.items()], ["file", "bytes"], "simple")
        echo(f"would be written to {to}{target}: {size}\n\n{files}\n\n{bundle.card}")
        return
    exports.write_bundle(bundle, to)
    echo(f"exported {bundle.record.run_id} to {to} ({len(bundle.files)} files, {size})")
    if push is not None:
        address = hub.push(to, push, private=private, message=f"Student of {bundle.record.run_id}")
        echo(f"pushed to {address} ({visibility})")
