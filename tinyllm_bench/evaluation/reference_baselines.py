"""Reference baselines that need no model: guesses, and their expected accuracy."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from tinyllm_bench.data.checks import most_frequent
from tinyllm_bench.data.records import Prediction, ScoringMode, TaskRecord


def guess_random(
    records: Sequence[TaskRecord], mode: ScoringMode, train: Sequence[TaskRecord] = ()
) -> list[Prediction]:
    """One guess per record, seeded by the record's id, so that it is the same in every run and on every machine.

    Each choice is equally likely. A number is sampled from the answers of the training records, a frequent one more
    often; without training records there is no answer.
    """
    golds = [record.gold_key for record in train]
    predictions = []
    for record in records:
        number = int.from_bytes(hashlib.sha256(f"random/{record.id}".encode()).digest()[:8])
        if record.choices:
            predictions.append(_prediction(record, mode, number % len(record.choices)))
        else:
            predictions.append(_prediction(record, mode, golds[number % len(golds)] if golds else None))
    return predictions


def guess_majority(records: Sequence[TaskRecord], mode: ScoringMode, train: Sequence[TaskRecord]) -> list[Prediction]:
    """For every record the training split's most frequent answer: a position, which is a word in yes/no sets, or a
    number. A tie goes to the lowest.
    """
    key = most_frequent(record.gold_key for record in train)
    return [
        _prediction(record, mode, min(key, len(record.choices) - 1) if isinstance(key, int) else key)
        for record in records
    ]


def _prediction(record: TaskRecord, mode: ScoringMode, answer: int | str | None) -> Prediction:
    return Prediction(record_id=record.id, mode=mode, answer=answer, correct=answer == record.gold_key)


def chance(records: Sequence[TaskRecord]) -> float:
    """Expected accuracy of a blind guess: the mean of one over the number of choices, and 0 for a number."""
    return sum(1 / len(record.choices) if record.choices else 0.0 for record in records) / len(records)


def expected(records: Sequence[TaskRecord], train: Sequence[TaskRecord]) -> float:
    """Exact expected accuracy of `guess_random`."""
    if any(record.choices for record in records):
        return chance(records)
    counts = Counter(record.gold_key for record in train)
    return sum(counts[record.gold_key] for record in records) / (len(records) * max(len(train), 1))
