"""Tables and notes made to fit a terminal: what is the same in all rows is said once, heads and long cells are broken
into lines, and the least important columns go first."""

import textwrap
from collections.abc import Sequence

from tinyllm_bench.leaderboard.tables import Cells

ROW, HEAD, CELL = 27, 12, 15  # widest: a row's name, a head, any other cell
GAP, AIR = 2, 2  # between columns; what tabulate adds to a head
_ALWAYS = ("row", "accuracy %", "95 % interval")
_NEVER_SAME = ("gain over", "p (Holm)", "gap to teacher", "rank", "wall time", "mean")
# What goes first when there is no room; what is not named here goes before it.
_WORTH = (
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
    """A table that is at most `width` columns wide where that is possible, and the sentences that belong under it."""
    same = {head: value for head in list(table[0]) if (value := _shared(table, head)) is not None}
    heads = [head for head in table[0] if head not in same]
    left_out = []
    while sum(_width(table, head) + GAP for head in heads) - GAP > width:
        loose = [head for head in heads if not head.startswith((*_ALWAYS, "gain over", "mean"))]
        if not loose:
            break
        left_out.append(min(reversed(loose), key=_worth))
        heads.remove(left_out[-1])
    rows = [{_broken(head, HEAD): _broken(row[head], _most(head)) for head in heads} for row in table]
    notes = [f"All rows: {', '.join(f'{head} {value}' for head, value in same.items())}."] if same else []
    if left_out:
        notes.append(f"No room for {', '.join(sorted(left_out))}; the board's README.md has every column.")
    return rows, notes


def filled(text: str, width: int, indent: str = "") -> str:
    """A paragraph broken at `width`, its later lines indented."""
    return textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _shared(table: Sequence[Cells], head: str) -> str | None:
    """The one value of a column in all rows that have one."""
    values = {row[head] for row in table} - {"-"}
    if len(table) < 2 or len(values) != 1 or head.startswith((*_ALWAYS, *_NEVER_SAME)):
        return None
    return values.pop()


def _worth(head: str) -> int:
    return next((i for i, known in enumerate(_WORTH) if head.startswith(known)), -1)


def _most(head: str) -> int:
    return ROW if head in ("row", "student") else CELL


def _broken(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)) or text


def _width(table: Sequence[Cells], head: str) -> int:
    lines = [line for row in table for line in _broken(row[head], _most(head)).split("\n")]
    return max(*map(len, lines), *(len(line) + AIR for line in _broken(head, HEAD).split("\n")))
