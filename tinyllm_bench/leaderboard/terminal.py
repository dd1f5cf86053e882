"""Tables and notes fitted to a terminal: a value that all rows share is stated once, heads and long cells are wrapped,
and the least important columns are dropped first."""

import textwrap
from collections.abc import Sequence

from tinyllm_bench.leaderboard.tables import Cells

MAX_ROW, MAX_HEAD, MAX_CELL = 27, 12, 15  # characters of a row's name, a head, any other cell
GAP, HEAD_PADDING = 2, 2  # between columns; added to a head by tabulate
_ALWAYS = ("row", "accuracy %", "95 % interval")
_NEVER_SHARED = ("gain over", "p (Holm)", "gap to teacher", "rank", "wall time", "mean")
# The order in which columns are dropped for want of space, after all that are not named here.
_DROPPED = (
    "trust",
    "wall time",
    "student tokens",
    "unparsed",
    "seeds",
    "student",
    "n",
    "gap to teacher",
    "p (Holm)",
    "rank",
)


def fitted(table: Sequence[Cells], width: int) -> tuple[list[Cells], list[str]]:
    """A table that is at most `width` columns wide where that is possible, and the notes that belong under it."""
    shared = {}  # a column with one value in all rows that have one
    for head in table[0]:
        values = {row[head] for row in table} - {"-"}
        if len(table) > 1 and len(values) == 1 and not head.startswith((*_ALWAYS, *_NEVER_SHARED)):
            shared[head] = values.pop()
    heads = [head for head in table[0] if head not in shared]

    def order(head: str) -> int:
        return next((i for i, known in enumerate(_DROPPED) if head.startswith(known)), -1)

    dropped = []
    while sum(_width(table, head) + GAP for head in heads) - GAP > width:
        droppable = [head for head in heads if not head.startswith((*_ALWAYS, "gain over", "mean"))]
        if not droppable:
            break
        dropped.append(min(reversed(droppable), key=order))
        heads.remove(dropped[-1])
    rows = [{_wrapped(head, MAX_HEAD): _wrapped(row[head], _max_width(head)) for head in heads} for row in table]
    notes = [f"All rows: {', '.join(f'{head} {value}' for head, value in shared.items())}."] if shared else []
    if dropped:
        notes.append(f"No room for {', '.join(sorted(dropped))}; the board's README.md has every column.")
    return rows, notes


def filled(text: str, width: int, indent: str = "") -> str:
    """A paragraph wrapped at `width`, its later lines indented."""
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _max_width(head: str) -> int:
    return MAX_ROW if head in ("row", "student") else MAX_CELL


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) or text


def _width(table: Sequence[Cells], head: str) -> int:
    lines = [line for row in table for line in _wrapped(row[head], _max_width(head)).split("\n")]
    return max(*map(len, lines), *(len(line) + HEAD_PADDING for line in _wrapped(head, MAX_HEAD).split("\n")))
