"""Reference baselines that need no model: what a guess is worth on these questions."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from tinyllm_bench.data.checks import most_frequent
from tinyllm_bench.data.records import Prediction, ScoringMode, TaskRecord


def guess_random(
    records: Sequence[TaskRecord], mode: ScoringMode, train: Sequence[TaskRecord] = ()
) -> list[Prediction]:
    """One guess a record, seeded by the record's id, so that it is the same wherever and with whomever it is asked.

    Of choices each is as likely as the next. A number is drawn from the answers of the training records, a frequent one
    more often; without any there is nothing to draw from, and no answer is given.
    """
    golds = [record.gold_key for record in train]

    def guess(record: TaskRecord) -> int | str | None:
        drawn = int.from_bytes(hashlib.sha256(f"random/{record.id}".encode()).digest()[:8])
        if record.choices:
            return drawn % len(record.choices)
        return golds[drawn % len(golds)] if golds else None

    return [_prediction(record, mode, guess(record)) for record in records]


def guess_majority(records: Sequence[TaskRecord], mode: ScoringMode, train: Sequence[TaskRecord]) -> list[Prediction]:
    """The answer position, or the number, that is most frequent in the training split (the lowest on a tie): for yes/no
    sets, the word.
    """
    key = most_frequent(record.gold_key for record in train)

    def guess(record: TaskRecord) -> int | str:
        return min(key, len(record.choices) - 1) if isinstance(key, int) else key

    return [_prediction(record, mode, guess(record)) for record in records]


def chance(records: Sequence[TaskRecord]) -> float:
    """Expected accuracy of a blind guess: the mean of one over the number of options, and 0 for a number."""
    return sum(1 / len(record.choices) if record.choices else 0.0 for record in records) / len(records)


def expected(records: Sequence[TaskRecord], train: Sequence[TaskRecord]) -> float:
    """Exact expected accuracy of `guess_random`."""
    if any(record.choices for record in records):
        return chance(records)
    drawn = Counter(record.gold_key for record in train)
    return sum(drawn[record.gold_key] for record in records) / (len(records) * max(len(train), 1))


def _prediction(record: TaskRecord, mode: ScoringMode, answer: int | str | None) -> Prediction:
    return Prediction(record_id=record.id, mode=mode, answer=answer, correct=answer == record.gold_key)
