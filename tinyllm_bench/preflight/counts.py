"""What a training will count: steps, tokens and FLOPs, from the very examples, plan and batches that it will have.

Only what a student draws during training is unknown: how long its texts are. Everything else is exact.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.program_targets import fit_programs
from tinyllm_bench.experiment.train import adapted, encode_groups, plan_of
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.preflight.shapes import (
    as_it_can_be_read,
    collator_without_weights,
    shape_of,
    small_copy,
    teacher_shape,
)
from tinyllm_bench.preflight.texts import Texts, texts_of
from tinyllm_bench.training.batching import Collator, Group
from tinyllm_bench.training.budget import Plan
from tinyllm_bench.training.layout import Row
from tinyllm_bench.training.method import Method, Step
from tinyllm_bench.training.packing import step_micros
from tinyllm_bench.training.result import FlopsPerToken, flops_per_token

_REHEARSED = 256  # questions that are rolled out by a small model, to see which texts a method draws
_REHEARSED_OF = 64  # different ones
_WORKED = 200  # steps whose micro-batches are looked at; the others are as these on average


class Size(NamedTuple):
    """What decides how much a model computes: parameters of its body, of its head, its layers and its width."""

    body: int
    head: int
    layers: int
    hidden: int

    def forward(self, rows: Sequence[Row]) -> float:
        """Floating-point operations of reading a micro-batch once, its padding and its attention included."""
        width = max(row.width for row in rows)
        targets = sum(len(branch.item.target) for row in rows for branch in row.branches)
        seen = 4 * self.layers * self.hidden * width**2
        return len(rows) * (2 * self.body * width + seen) + 2 * self.head * targets


def size_of(lm: LM) -> Size:
    """The size of a model, with or without weights."""
    plain: Any = lm.plain
    config = plain.config.get_text_config()
    embeddings, head = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
    every = sum(p.numel() for p in lm.parameters())
    apart = embeddings.numel() + (0 if head is embeddings else head.numel())
    layers = int(getattr(config, "num_hidden_layers", 1)) * (2 if lm.encoder_decoder else 1)
    return Size(every - apart, head.numel(), layers, int(config.hidden_size))


class Drawing(NamedTuple):
    """What a method draws: the share of each channel's texts, whether the teacher reads along, whether the student
    reads them again, tokens of a text by channel, and whether that length was measured."""

    shares: Mapping[str, float]
    with_teacher: bool
    reread: bool
    tokens: Mapping[str, float]
    measured: bool


class Amounts(NamedTuple):
    """What some questions take: student tokens and tokens that are computed; texts that are drawn for them, their
    tokens, and tokens with their prompts."""

    tokens: float
    computed: float
    texts: float = 0.0
    drawn: float = 0.0
    read: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a whole training takes. `records` are questions trained on, each as often as it was; `work` is what its
    micro-batches compute (forward and backward, a teacher's reading, padding), for times; `exact` is False where
    lengths of drawn texts, of texts not written yet, or speeds are guessed."""

    steps: int
    records: int
    tokens: float
    computed: float
    texts: float
    drawn: float
    flops: float
    work: float
    micros: float
    exact: bool


class Training:
    """A cell's training without weights; `encoded_in` is how long it took to read its texts and turn them into ids."""

    def __init__(self, cell: Cell) -> None:
        self.asked = cell
        self.cell = as_it_can_be_read(cell)
        self.loaded: Loaded = shape_of(self.cell)
        self.teacher = teacher_shape(self.cell)
        began = time.perf_counter()
        self.texts: Texts = texts_of(self.cell, self.loaded.tokenizer)
        annotations, _ = fit_programs(self.cell, self.loaded, self.texts.annotations)
        self.lm = LM(adapted(self.cell, self.loaded))
        self.groups: list[Group] = encode_groups(self.cell, self.loaded, annotations)
        self.encoded_in = time.perf_counter() - began
        self.collator: Collator = collator_without_weights(self.cell, self.lm, self.loaded, self.teacher)
        self.drawing: Drawing | None = _rehearsed(self.method, self.groups, self.lm) if self.method.rolls else None
        self._amounts: dict[int, Amounts] = {}

    @property
    def method(self) -> Method:
        """The cell's method."""
        assert self.cell.method is not None
        return self.cell.method

    @cached_property
    def teacher_in_memory(self) -> LM | None:
        """The white-box teacher, where it reads every batch."""
        return None if self.teacher is None or self.cell.config.teacher.cache is not None else LM(self.teacher.model)

    @cached_property
    def rates(self) -> FlopsPerToken:
        """FLOPs of a token, as the trainer counts them."""
        teacher = self.teacher_in_memory
        theirs = 0 if teacher is None else sum(p.numel() for p in teacher.parameters())
        return flops_per_token(self.lm, theirs, reads_teacher=self.method.reads_teacher)

    def measured_lengths(self, tokens: Mapping[str, float]) -> None:
        """Take lengths of drawn texts that were measured."""
        assert self.drawing is not None
        self.drawing = self.drawing._replace(tokens={**self.drawing.tokens, **tokens}, measured=True)
        self._amounts.clear()

    def plan(self, charged: float) -> Plan:
        """The plan that training will have, what making the initial student takes being charged."""
        return plan_of(self.cell, self.groups, charged)

    def amounts(self, mini: Sequence[int]) -> Amounts:
        """What a mini-batch takes."""
        return _sum([self._amounts_of(index) for index in mini])

    def _amounts_of(self, index: int) -> Amounts:
        if index not in self._amounts:
            self._amounts[index] = self._counted(self.groups[index])
        return self._amounts[index]

    def _counted(self, group: Group) -> Amounts:
        given = sum(row.width for row in self.collator.rows(group.items))
        total = Amounts(group.tokens, given)
        if self.drawing is None:
            return total
        for item in group.items:
            share = self.drawing.shares.get(item.channel, 0.0)
            length = self.drawing.tokens.get(item.channel, float(len(item.target)))
            more = share * (length - len(item.target))
            read = share * (len(item.prompt) + length)
            total = _sum([total, Amounts(more, more, share, share * length, read)])
        return total

    def as_trained(self, group: Group) -> Group:
        """The group with texts of the length that is drawn, where most of a channel's texts are."""
        if self.drawing is None:
            return group
        return group._replace(items=tuple(_drawn(item, self.drawing) for item in group.items))

    def micros(self, mini: Sequence[int]) -> list[list[Row]]:
        """The micro-batches of a mini-batch."""
        return self.micros_of([self.as_trained(self.groups[index]) for index in mini])

    def micros_of(self, groups: Sequence[Group]) -> list[list[Row]]:
        """The micro-batches of a step on some questions."""
        rows = [self.collator.rows(group.items) for group in groups]
        return step_micros(rows, self.method, self.collator, self.cell.config.train)

    def work_of(self, rows: Sequence[Row]) -> float:
        """Floating-point operations of a micro-batch: thrice the student's reading, and the teacher's."""
        teacher = self._sizes[1] if self.method.reads_teacher else None
        return 3 * self._sizes[0].forward(rows) + (teacher.forward(rows) if teacher else 0.0)

    @cached_property
    def _sizes(self) -> tuple[Size, Size | None]:
        return size_of(self.lm), None if self.teacher_in_memory is None else size_of(self.teacher_in_memory)

    def counted(self, plan: Plan, seconds: Callable[[Sequence[int]], float] | None = None) -> Counts | None:
        """What the whole plan takes; None where it ends after seconds and nobody says what a mini-batch takes."""
        unit = plan.limit.unit if plan.limit else None
        if unit == "seconds" and seconds is None:
            return None
        rolled: list[Amounts] = []
        minis = list(self._walked(plan, unit, seconds, rolled))
        trained, drawn = _sum([self.amounts(mini) for mini in minis]), _sum(rolled)
        work, micros = self._worked(minis)
        exact = self.drawing is None and self.texts.exact and unit != "seconds"
        return Counts(
            steps=len(minis),
            records=sum(map(len, minis)),
            tokens=trained.tokens,
            computed=trained.computed,
            texts=drawn.texts,
            drawn=drawn.drawn,
            flops=trained.computed * self.rates.trained + self._drawing_flops(drawn),
            work=work,
            micros=micros,
            exact=exact,
        )

    def _worked(self, minis: Sequence[Sequence[int]]) -> tuple[float, float]:
        """Work and micro-batches of all steps; of many steps, as some of them are on average."""
        some = minis[:: max(len(minis) // _WORKED, 1)]
        known = [self.micros(mini) for mini in some]
        scale = len(minis) / len(some)
        work = sum(self.work_of(rows) for micros in known for rows in micros)
        return scale * work, scale * sum(map(len, known))

    def _walked(
        self,
        plan: Plan,
        unit: str | None,
        seconds: Callable[[Sequence[int]], float] | None,
        rolled: list[Amounts],
    ) -> Iterator[Sequence[int]]:
        """The mini-batches that the trainer takes: it ends by the same rule, on the same numbers. What is drawn for
        each round, once for all its passes, is added to `rolled`."""
        tokens = spent = drawing = 0.0
        for number in range(len(plan.rounds)):
            minis = list(plan.steps_of(number))
            first = self.amounts(minis[0])
            if drawing and plan.ends_before(drawing + first.tokens * spent / tokens, spent):
                return
            rolled.append(self.amounts(plan.members_of(number)))
            drawing = self._drawing_flops(rolled[-1]) if unit == "flops" else 0.0
            spent += drawing
            for mini in minis:
                own = self.amounts(mini)
                if tokens and plan.ends_before(own.tokens * spent / tokens, spent):
                    return
                yield mini
                tokens += own.tokens
                spent += self._cost(own, mini, unit, seconds)

    def _cost(
        self, own: Amounts, mini: Sequence[int], unit: str | None, seconds: Callable[[Sequence[int]], float] | None
    ) -> float:
        if unit == "flops":
            return own.computed * self.rates.trained
        return seconds(mini) if unit == "seconds" and seconds is not None else own.tokens

    def _drawing_flops(self, rolled: Amounts) -> float:
        if self.drawing is None:
            return 0.0
        again = rolled.computed * self.rates.student if self.drawing.reread else 0.0
        return rolled.read * self.rates.drawn(self.drawing.with_teacher) + again


def _sum(parts: Sequence[Amounts]) -> Amounts:
    return Amounts(*(sum(column) for column in zip(*parts, strict=True))) if parts else Amounts(0, 0)


def _drawn(item: Encoded, drawing: Drawing) -> Encoded:
    if drawing.shares.get(item.channel, 0.0) < 0.5:
        return item
    length = max(round(drawing.tokens.get(item.channel, len(item.target))), 1)
    return item._replace(target=(item.target[0],) * length)


def shortened(method: Method, most: int) -> Method:
    """The same method, whose student draws at most so many tokens."""
    return type(method)(method.config.model_copy(update={"max_new_tokens": most}))


def _rehearsed(method: Method, groups: Sequence[Group], lm: LM) -> Drawing:
    """Which texts the method draws, seen on a small random model that draws one token; lengths as the given texts."""
    from tinyllm_bench.training.teacher_signals import InMemoryTeacher

    small = small_copy(lm.plain)
    rows = small.get_input_embeddings().weight.shape[0]
    sample = [_within(group, rows) for group in groups[:_REHEARSED_OF]]
    short, student, teacher = shortened(method, 1), LM(small), InMemoryTeacher(LM(small), vocabulary=rows)
    times = -(-_REHEARSED // len(sample))
    reread: list[Group] = []

    def noted(groups: list[Group]) -> list[Group]:
        reread.extend(groups)
        return groups

    steps = [replace(trial_step(index), reread=noted) for index in range(times)]
    rolled = [short.rollout(sample, student, teacher, step) for step in steps]
    items = [item for groups in rolled for group in groups for item in group.items]
    channels = {item.channel for item in items}
    of = {channel: [item for item in items if item.channel == channel] for channel in channels}
    shares = {channel: sum(bool(item.drawn) for item in found) / len(found) for channel, found in of.items()}
    return Drawing(
        shares={channel: share for channel, share in shares.items() if share},
        with_teacher=any("logp" in item.drawn for item in items),
        reread=bool(reread),
        tokens={
            channel: _mean_target(groups, channel, method.most_drawn) for channel, share in shares.items() if share
        },
        measured=False,
    )


def _within(group: Group, rows: int) -> Group:
    """The group with ids that a small vocabulary has."""
    items = [
        item._replace(prompt=tuple(i % rows for i in item.prompt), target=tuple(i % rows for i in item.target))
        for item in group.items
    ]
    return group._replace(items=tuple(items))


def _mean_target(groups: Sequence[Group], channel: str, most: int) -> float:
    lengths = [min(len(item.target), most) for group in groups for item in group.items if item.channel == channel]
    return sum(lengths) / len(lengths)


def trial_step(index: int = 0, tokens: Mapping[str, int] | None = None) -> Step:
    """A step of no training, for trials; each index has seeds of its own."""

    def seed_of(record_id: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{index}/{record_id}".encode()).digest()[:8]) >> 1

    return Step(index=index, total=1, tokens=tokens or {}, all_reduce=lambda tensor: tensor, seed_of=seed_of)


def with_eval(cell: Cell, **changes: object) -> Cell:
    """The cell with some settings of its evaluation changed."""
    config = cell.config
    return replace(cell, config=config.model_copy(update={"eval": config.eval.model_copy(update=changes)}))
