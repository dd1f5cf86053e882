"""Teachers' kept texts for the terminal: packed into a file, taken from one, described."""

import json
from collections.abc import Sequence
from pathlib import Path

from tinyllm_bench.cli.output import echo


def pack_texts(teachers: Sequence[str], to: Path) -> None:
    """Write the kept texts of teachers (short names or folders) into one file."""
    from tinyllm_bench.leaderboard.public import machine_paths
    from tinyllm_bench.teachers.text_files import pack

    header = pack(teachers, to, private=machine_paths)
    names = ", ".join(f"{one.name} ({one.texts})" for one in header.teachers)
    echo(f"packed {header.texts} texts of {names}: {to}, {to.stat().st_size / 1e6:.2f} MB")


def import_texts(file: Path) -> None:
    """Add the texts of a pack to the cache."""
    from tinyllm_bench.teachers.text_files import import_pack

    header, new = import_pack(file)
    names = ", ".join(one.name for one in header.teachers)
    echo(f"imported {new} texts of {names}; {header.texts - new} were there already")


def show_texts(what: str | Path | None, *, as_json: bool) -> None:
    """Describe a pack, a teacher's kept texts, or those of all teachers (None)."""
    from tinyllm_bench.teachers.text_files import info

    rows = info(what)
    if as_json:
        echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from tabulate import tabulate

    echo(tabulate(rows, headers="keys") if rows else "none")
