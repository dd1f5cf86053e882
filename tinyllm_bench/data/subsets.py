"""Fixed subsets of a split: the same ids on every machine, in every process, for every method."""

import hashlib
from collections.abc import Sequence

from tinyllm_bench.data.records import TaskRecord


def stratified_subset(records: Sequence[TaskRecord], n: int, *, salt: str) -> tuple[TaskRecord, ...]:
    """`n` records in their original order, with the answer positions in the whole's proportion.

    Questions that ask for a number have no positions: they are one stratum.

    Which records of an answer position are taken is decided by a hash of the salt and the record's id, so that no
    random state and no order of rows is involved. Places are shared out by largest remainder.

    Args:
        records: A whole split.
        n: How many; all of them where there are not more.
        salt: Tells subsets for different ends apart, such as "test" and "validation".
    """
    if n < 0:
        raise ValueError(f"a subset of {n} records cannot be taken")
    if n >= len(records):
        return tuple(records)
    strata: dict[int, list[TaskRecord]] = {}
    for record in records:
        strata.setdefault(record.answer, []).append(record)
    kept: set[str] = set()
    for answer, places in _places({answer: len(found) for answer, found in strata.items()}, n).items():
        ordered = sorted(strata[answer], key=lambda record: _order(record.id, salt))
        kept.update(record.id for record in ordered[:places])
    return tuple(record for record in records if record.id in kept)


def _order(record_id: str, salt: str) -> str:
    return hashlib.sha256(f"{salt}\n{record_id}".encode()).hexdigest()


def _places(sizes: dict[int, int], n: int) -> dict[int, int]:
    """Largest remainder in whole numbers; equal remainders go to the lower answer position."""
    total = sum(sizes.values())
    places = {answer: n * size // total for answer, size in sizes.items()}
    left = n - sum(places.values())
    by_remainder = sorted(sizes, key=lambda answer: (-(n * sizes[answer] % total), answer))
    for answer in by_remainder[:left]:
        places[answer] += 1
    return places
