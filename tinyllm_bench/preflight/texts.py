"""What teachers' texts will cost: those that the cache lacks, and stand-ins for them, so that tokens can be counted."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any, NamedTuple

from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.experiment.annotate import taught
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.teachers.teacher import Teacher, Unwritten


class Bill(NamedTuple):
    """One teacher's texts for a cell. `tokens_in` and `tokens_out` are of the texts that are lacking, `usd` their price
    where it is set; `seconds` what they take where earlier texts tell; `keys` name them in the cache. Tokens are an
    estimate: the student's tokenizer counts the prompts, and earlier texts or the limit say how long the answers are.
    """

    teacher: str
    kind: str
    spec: str
    recorded: bool
    kept: int
    lacking: int
    tokens_in: int
    tokens_out: int
    seconds: float | None
    usd: float | None
    keys: tuple[str, ...]

    def part(self, lacking: int) -> "Bill":
        """The bill where only so many texts are lacking, because others will have been written before."""
        share = lacking / self.lacking if self.lacking else 0.0
        return self._replace(
            lacking=lacking,
            tokens_in=round(share * self.tokens_in),
            tokens_out=round(share * self.tokens_out),
            seconds=None if self.seconds is None else share * self.seconds,
            usd=None if self.usd is None else round(share * self.usd, 6),
        )


class Texts(NamedTuple):
    """What the method will be given, and what it costs; `exact` where no stand-in is among it."""

    annotations: list[Annotation]
    bills: tuple[Bill, ...]

    @property
    def exact(self) -> bool:
        """Whether every text is written already."""
        return not any(bill.lacking for bill in self.bills)


def texts_of(cell: Cell, tokenizer: Any) -> Texts:
    """The texts that a cell learns from, without asking anybody: kept ones, and a stand-in for each that is lacking."""
    records = cell.asked_records("train")
    by_id = {record.id: record for record in records}
    written: list[Annotation] = []
    stand_ins: list[Annotation] = []
    bills = []
    for teacher in cell.teachers:
        kept, lacking = teacher.kept(cell.records("train"))
        written += kept
        length = _answer_tokens(cell, teacher, kept, by_id, tokenizer) if lacking else 0
        stand_ins += [
            _stand_in(teacher, one, by_id[one.record_id], text) for one, text in _texts(kept, lacking, length)
        ]
        bills.append(_bill(cell, teacher, kept, lacking, length, tokenizer))
    return Texts([*taught(cell, written), *_readable(cell, stand_ins)], tuple(bills))


def _readable(cell: Cell, stand_ins: Sequence[Annotation]) -> list[Annotation]:
    """Answers to the student's own prompts are about as long as the gold answer."""
    records = {record.id: record for record in cell.asked_records("train")}
    return [
        one if one.kind != "response" else _with_text(one, cell.ask.label_target(records[one.record_id]))
        for one in stand_ins
    ]


def _with_text(one: Annotation, text: str) -> Annotation:
    return replace(one, text=text)


def _texts(kept: Sequence[Annotation], lacking: Sequence[Unwritten], length: int) -> list[tuple[Unwritten, str]]:
    """Each lacking text with another of the same teacher, or with as many words as it may have tokens."""
    texts = cycle([a.text for a in kept if a.rejected is None] or [" ".join(["so"] * max(length, 1))])
    return [(one, next(texts)) for one in lacking]


def _stand_in(teacher: Teacher, one: Unwritten, record: TaskRecord, text: str) -> Annotation:
    return Annotation(
        record_id=record.id,
        teacher=teacher.key,
        kind=teacher.kind,
        text=text,
        sample=one.sample,
        gold_visible=teacher.gold_visible,
    )


def _answer_tokens(
    cell: Cell, teacher: Teacher, kept: Sequence[Annotation], records: dict[str, TaskRecord], tokenizer: Any
) -> int:
    """Tokens of an answer: as its other texts have; of a response as the gold answers; else the most it may write."""
    told = [a.tokens_out for a in kept if a.tokens_out]
    if told:
        return round(sum(told) / len(told))
    most = cell.config.annotations.draw.max_new_tokens
    if teacher.kind != "response":
        return most
    gold = [len(tokenizer(cell.ask.label_target(record))["input_ids"]) + 1 for record in records.values()]
    return min(round(sum(gold) / len(gold)), most)


def _bill(
    cell: Cell, teacher: Teacher, kept: Sequence[Annotation], lacking: Sequence[Unwritten], length: int, tokenizer: Any
) -> Bill:
    read = sum(len(tokenizer(one.wish.prompt)["input_ids"]) for one in lacking)
    written = length * len(lacking)
    price = cell.config.annotations.prices.get(teacher.key)
    told = [a.seconds for a in kept if a.seconds]
    seconds = 0.0 if not lacking else sum(told) / len(told) * len(lacking) if told else None
    return Bill(
        teacher=teacher.key,
        kind=teacher.kind,
        spec=teacher.spec,
        recorded=teacher.recorded,
        kept=len(kept),
        lacking=len(lacking),
        tokens_in=read,
        tokens_out=written,
        seconds=seconds,
        usd=None if price is None else round((read * price[0] + written * price[1]) / 1e6, 6),
        keys=tuple(one.key for one in lacking),
    )
