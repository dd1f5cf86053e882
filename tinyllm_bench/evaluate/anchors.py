"""Anchors that need no model: what a guess is worth on these questions."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from tinyllm_bench.data.records import Prediction, Reading, TaskRecord


def guess_random(records: Sequence[TaskRecord], reading: Reading) -> list[Prediction]:
    """One guess a record, seeded by the record's id, so that it is the same wherever and with whomever it is asked."""

    def guess(record: TaskRecord) -> int:
        return int.from_bytes(hashlib.sha256(f"random/{record.id}".encode()).digest()[:8]) % len(record.choices)

    return [_prediction(record, reading, guess(record)) for record in records]


def guess_majority(records: Sequence[TaskRecord], train: Sequence[TaskRecord], reading: Reading) -> list[Prediction]:
    """The answer position that is most frequent in the training split (the lowest on a tie): for yes/no sets, the
    word.
    """
    counts = Counter(record.answer for record in train)
    position = max(counts, key=lambda answer: (counts[answer], -answer))
    return [_prediction(record, reading, min(position, len(record.choices) - 1)) for record in records]


def chance(records: Sequence[TaskRecord]) -> float:
    """Expected accuracy of a guess: the mean of one over the number of options."""
    return sum(1 / len(record.choices) for record in records) / len(records)


def _prediction(record: TaskRecord, reading: Reading, index: int) -> Prediction:
    return Prediction(record_id=record.id, reading=reading, answer=index, correct=index == record.answer)
