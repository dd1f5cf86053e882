"""Files that other people's reporters make of a board: `reporters/<name>/<file>` beside the board's own.

A reporter is a plugin (`base.plugins`): a function that is given the board as `data.json` holds it and returns texts by
file name. One that fails is told about and left out; the board's own files never depend on it.
"""

from collections.abc import Mapping
from pathlib import PurePath

from tinyllm_bench.base import plugins
from tinyllm_bench.leaderboard.exports import BoardData

FOLDER = "reporters"


def reporter_files(board: BoardData) -> dict[str, str]:
    """Name and text of every file of every reporter that works."""
    found: dict[str, str] = {}
    for name in plugins.working("reporter"):
        try:
            found |= _files(name, plugins.load("reporter", name)(board))
        except Exception as error:
            plugins.warn(f"reporter {name!r} is left out: {error!r}")
    return found


def _files(name: str, made: object) -> dict[str, str]:
    """What a reporter returned, under the names that it is written by.

    Raises:
        ValueError: no mapping of plain file names to texts.
    """
    if not isinstance(made, Mapping):
        raise ValueError(f"it returned {type(made).__name__}, not a mapping of file names to texts")
    for file, text in made.items():
        if not isinstance(file, str) or PurePath(file).name != file or file.startswith(".") or "\\" in file:
            raise ValueError(f"{file!r} is no plain file name")
        if not isinstance(text, str):
            raise ValueError(f"{file}: {type(text).__name__} is no text")
    return {f"{FOLDER}/{name}/{file}": text for file, text in made.items()}
