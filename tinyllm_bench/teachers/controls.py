"""Controls: is it the reasoning, or just more text? Transforms on annotations that every method accepts.

shuffled: each record gets another record's rationale of similar length, never one of a record with the same answer.
gold: the rationale is the gold answer's text, or the number.
They are seeded by a constant, so that a run's seed never changes the training targets.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from tinyllm_bench.data.records import Annotation, TaskRecord

Control = Literal["shuffled", "gold"]
_BUCKET = 64  # annotations of similar length that exchange their texts


def apply_control(
    control: Control | None, annotations: Sequence[Annotation], records: Mapping[str, TaskRecord]
) -> list[Annotation]:
    """Annotations under a control, in the order given; rejected ones stay as they are."""
    if control is None:
        return list(annotations)
    if control == "gold":
        return [a if a.rejected else replace(a, text=records[a.record_id].gold_text, finish=None) for a in annotations]
    changed: dict[tuple[str, str], Annotation] = {}
    for teacher in sorted({a.teacher for a in annotations}):
        usable = [a for a in annotations if a.teacher == teacher and not a.rejected]
        usable.sort(key=lambda a: (len(a.text.split()), a.record_id))
        for start in range(0, len(usable), _BUCKET):
            bucket = _shuffled(usable[start : start + _BUCKET], records)
            changed.update({(a.teacher, a.record_id): a for a in bucket})
    return [changed.get((a.teacher, a.record_id), a) for a in annotations]


def _shuffled(bucket: Sequence[Annotation], records: Mapping[str, TaskRecord]) -> list[Annotation]:
    """Rotate a bucket, sorted by answer text, by the size of its largest class: then no annotation gets a text of its
    own answer, unless that answer has the majority.

    Those of a majority answer that cannot get another answer's text are rejected with a reason of their own.
    """
    order = list(bucket)
    random.Random(f"shuffled/{order[0].teacher}/{len(order)}").shuffle(order)
    order.sort(key=lambda a: records[a.record_id].gold_text)
    golds = [records[a.record_id].gold_text for a in order]
    shift = max(golds.count(gold) for gold in set(golds))
    result = []
    for index, annotation in enumerate(order):
        donor = (index + shift) % len(order)
        if golds[donor] == golds[index]:
            result.append(replace(annotation, rejected="no_partner_with_another_answer"))
        else:
            result.append(replace(annotation, text=order[donor].text, finish=order[donor].finish))
    return result
