"""Layouts: how the examples of one question become sequences, each apart or as branches of a shared prompt.

A shared row is a tree of tokens in depth-first order: what several examples begin with stands once, and every example
goes on from there as a branch with positions of its own. Token j is seen by the places j .. until[j] - 1, the part of
the
row that grows out of it, and by nothing else; so no branch sees another.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

from tinyllm_bench.models.tokens import Encoded

Layout = Literal["shared", "separate"]
LayoutChoice = Literal["auto", "shared", "separate"]
# Tokens two examples must begin with in common before they share a row; fewer are not worth a longer row.
MIN_SHARED = 8


class Branch(NamedTuple):
    """One example in a row: target token n is predicted at place `places[n]` of what the student writes on."""

    item: Encoded
    places: tuple[int, ...]


class Row(NamedTuple):
    """One sequence that the student reads: ids, their positions, the place up to which each is seen, its examples.

    Encoder-decoder: `ids` are the encoder's, and every branch is a decoder row of its own.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    until: tuple[int, ...]
    branches: tuple[Branch, ...]
    written: int = 0

    @property
    def width(self) -> int:
        """Tokens through the student: the row itself, and what the decoder of an encoder-decoder writes."""
        return len(self.ids) + self.written

    @property
    def is_tree(self) -> bool:
        """Whether a mask is needed to keep its branches apart."""
        return any(until != len(self.ids) for until in self.until)


def decoder_rows(items: Sequence[Encoded], layout: Layout, *, min_shared: int = MIN_SHARED) -> list[Row]:
    """Rows of one question for a decoder-only student: prompts and targets are read in one sequence."""
    if layout == "separate":
        return [_tree([item]) for item in items]
    rows: list[list[Encoded]] = []
    for item in sorted(items, key=_read):
        if rows and common(_read(rows[-1][-1]), _read(item)) >= min_shared:
            rows[-1].append(item)
        else:
            rows.append([item])
    return [_tree(row) for row in rows]


def side_by_side(rows: Sequence[Row]) -> Row:
    """Rows one after another in one row; the mask keeps them apart, and each has positions of its own."""
    starts = [0, *accumulate(len(row.ids) for row in rows)]
    placed = list(zip(rows, starts, strict=False))
    return Row(
        tuple(token for row in rows for token in row.ids),
        tuple(position for row in rows for position in row.positions),
        tuple(start + until for row, start in placed for until in row.until),
        tuple(
            Branch(branch.item, tuple(start + place for place in branch.places))
            for row, start in placed
            for branch in row.branches
        ),
    )


def encoder_rows(items: Sequence[Encoded], layout: Layout) -> list[Row]:
    """Rows of one question for an encoder-decoder: one per distinct input, with a decoder row for each target."""
    inputs: dict[tuple[int, ...] | int, list[Encoded]] = {}
    for number, item in enumerate(items):
        inputs.setdefault(item.prompt if layout == "shared" else number, []).append(item)
    return [_read_by_encoder(same) for same in inputs.values()]


def _read_by_encoder(items: Sequence[Encoded]) -> Row:
    ids = items[0].prompt
    branches = tuple(Branch(item, tuple(range(len(item.target)))) for item in items)
    written = sum(len(item.target) for item in items)
    return Row(ids, tuple(range(len(ids))), (len(ids),) * len(ids), branches, written)


def _read(item: Encoded) -> tuple[int, ...]:
    return (*item.prompt, *item.target[:-1])


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    limit = min(len(first), len(second))
    return next((n for n in range(limit) if first[n] != second[n]), limit)


def _tree(items: Sequence[Encoded]) -> Row:
    """The row of examples whose sequences are in sorted order, which is the depth-first order of their tree."""
    ids: list[int] = []
    positions: list[int] = []
    until: list[int] = []
    branches: list[Branch] = []
    path: list[int] = []  # the places of the last example's tokens
    last: tuple[int, ...] = ()
    for item in items:
        read = _read(item)
        shared = common(last, read)
        for place in path[shared:]:
            until[place] = len(ids)
        path = [*path[:shared], *range(len(ids), len(ids) + len(read) - shared)]
        ids += read[shared:]
        positions += range(shared, len(read))
        until += [0] * (len(read) - shared)
        branches.append(Branch(item, tuple(path[len(item.prompt) - 1 :])))
        last = read
    for place in path:
        until[place] = len(ids)
    return Row(tuple(ids), tuple(positions), tuple(until), tuple(branches))
