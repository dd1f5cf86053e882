"""Micro-batches: a mini-batch in parts that fit into memory, with as little padding as its lengths allow.

Losses are sums that only the trainer divides, so the split changes memory and time, never the optimisation.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyllm_bench.training.layout import Row, side_by_side

if TYPE_CHECKING:
    from tinyllm_bench.training.batching import Collator
    from tinyllm_bench.training.method import Method
    from tinyllm_bench.training.settings import TrainConfig


def step_micros(
    rows: Sequence[Sequence[Row]], method: "Method", collator: "Collator", config: "TrainConfig"
) -> list[list[Row]]:
    """The micro-batches of one optimiser step, from the rows of its questions."""
    return micro_batches(
        rows,
        max_tokens=config.micro_batch_tokens,
        keep_groups=method.grouping == "record",
        pack=collator.packs,
    )


def micro_batches(
    groups: Sequence[Sequence[Row]], *, max_tokens: int, keep_groups: bool, pack: bool
) -> list[list[Row]]:
    """Split the rows of one mini-batch's questions into micro-batches of at most `max_tokens` padded tokens.

    Like lengths come together. `keep_groups` leaves a question's rows in one micro-batch; a unit larger than the limit
    stands alone. `pack` puts short rows side by side into the space that the longest leaves. A micro-batch that is an
    eighth full is closed rather than padded by more than a quarter of its tokens.
    """
    units = [list(rows) for rows in groups] if keep_groups else [[row] for rows in groups for row in rows]
    units = sorted((unit for unit in units if unit), key=lambda unit: -max(row.width for row in unit))
    return _packed(units, max_tokens) if pack else _padded(units, max_tokens)


def _padded(units: Sequence[list[Row]], max_tokens: int) -> list[list[Row]]:
    micros: list[list[Row]] = []
    for unit in units:
        if micros and _fits([*micros[-1], *unit], len(micros[-1]), max_tokens):
            micros[-1].extend(unit)
        else:
            micros.append(list(unit))
    return micros


def _fits(rows: Sequence[Row], before: int, max_tokens: int) -> bool:
    """Whether rows (the first `before` are in already) may share a micro-batch; the first is the longest."""
    widest = max(row.width for row in rows)
    return _worth(len(rows) * widest, sum(row.width for row in rows), before * widest, max_tokens)


def _worth(padded: int, real: int, before: int, max_tokens: int) -> bool:
    """Whether a micro-batch may grow to `padded` tokens, `real` of them no padding, from `before`."""
    return padded <= max_tokens and (padded <= 1.25 * real or before < max_tokens // 8)


def _packed(units: Sequence[list[Row]], max_tokens: int) -> list[list[Row]]:
    """First fit in order of falling width; a micro-batch is as wide as its first unit's longest row."""
    micros: list[list[list[Row]]] = []
    for unit in units:
        last = micros[-1] if micros else []
        grown, width = _placed(last, unit), _width(last[0]) if last else 0
        if last and _worth(len(grown) * width, sum(map(_width, grown)), len(last) * width, max_tokens):
            micros[-1] = grown
        else:
            micros.append(_placed([], unit))
    return [[side_by_side(bin) for bin in micro] for micro in micros]


def _placed(bins: Sequence[Sequence[Row]], unit: Sequence[Row]) -> list[list[Row]]:
    found = [list(bin) for bin in bins]
    for row in sorted(unit, key=lambda row: -row.width):
        room = (bin for bin in found if _width(bin) + row.width <= _width(found[0]))
        if (bin := next(room, None)) is None:
            found.append([row])
        else:
            bin.append(row)
    return found


def _width(rows: Sequence[Row]) -> int:
    return sum(row.width for row in rows)
