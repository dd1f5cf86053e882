"""Controls: is it the reasoning, or just more text? Transforms on annotations that every method accepts.

shuffled: each record gets another record's rationale of like length, never one of a record with the same answer text.
gold: the rationale is the gold answer's text, or the number.
They are seeded by a constant, so that a run's seed never changes what is taught.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from tinyllm_bench.data.records import Annotation, TaskRecord

Control = Literal["shuffled", "gold"]
_BUCKET = 64


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
        for bucket in _batched(usable, _BUCKET):
            changed.update({(a.teacher, a.record_id): a for a in _shuffle(bucket, records)})
    return [changed.get((a.teacher, a.record_id), a) for a in annotations]


def _batched(items: Sequence[Annotation], size: int) -> list[tuple[Annotation, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def _shuffle(bucket: Sequence[Annotation], records: Mapping[str, TaskRecord]) -> list[Annotation]:
    """Rotate a bucket sorted by answer text by its largest class: nobody meets his own answer unless it has the
    majority.

    Where one answer has the majority not everyone can get another's text; who cannot is rejected with a reason of its
    own.
    """
    order = list(bucket)
    random.Random(f"shuffled/{order[0].teacher}/{len(order)}").shuffle(order)
    order.sort(key=lambda a: records[a.record_id].gold_text)
    golds = [records[a.record_id].gold_text for a in order]
    shift = max(golds.count(gold) for gold in set(golds))
    result = []
    for index, own in enumerate(order):
        giver = (index + shift) % len(order)
        if golds[giver] == golds[index]:
            result.append(replace(own, rejected="no_partner_with_another_answer"))
        else:
            result.append(replace(own, text=order[giver].text, finish=order[giver].finish))
    return result
