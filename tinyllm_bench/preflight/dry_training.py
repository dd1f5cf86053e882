"""A cell's training without weights: the texts, examples and micro-batches it will have, and what they take.

Everything is counted on the very examples, plan and batches of the run. Only three things are estimated: the length of
texts that nobody wrote yet (placeholders take their place), the length of texts that the student samples while it
trains, and where a budget in seconds ends.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from typing import Any, NamedTuple

from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.experiment.annotate import taught
from tinyllm_bench.experiment.cell import Cell
from tinyllm_bench.experiment.train import adapted, encode_groups, plan_of
from tinyllm_bench.experiment.verified_texts import fit_programs
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded, spec_folder
from tinyllm_bench.models.shape import load_shape
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.preflight.machine import Speed
from tinyllm_bench.teachers.teacher import MissingAnnotation, Teacher
from tinyllm_bench.training.batching import Collator, Group, Row, choose_layout, collator_of, step_micro_batches
from tinyllm_bench.training.budget import FlopsPerToken, Plan, flops_per_token
from tinyllm_bench.training.method import Method, Step

# --- Models without weights -------------------------------------------------------------------------------------------


def with_existing_models(cell: Cell) -> Cell:
    """The cell with models that exist: one that an earlier cell has yet to make is as large as what it starts from."""
    student, signal = cell.student, cell.signal
    if cell.student_from is not None and not _exists(cell, student):
        student = with_existing_models(cell.student_from).student
    if cell.teacher_from is not None and signal is not None and not _exists(cell, signal):
        signal = with_existing_models(cell.teacher_from).student
    return replace(cell, student=student, signal=signal)


def _exists(cell: Cell, spec: ModelSpec) -> bool:
    folder = spec_folder(spec, runs=cell.runs)
    return folder is None or (folder / "config.json").is_file()


_PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")
_SMALL_VOCABULARY = 64


def small_copy(model: Any, layers: int = 1) -> Any:
    """A random model of the same kind and width with few layers and a small vocabulary, on the CPU, in float32."""
    import torch

    config = copy.deepcopy(model.config)
    for key in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
        if getattr(config, key, None) is not None:
            setattr(config, key, layers)
    for key in _PER_LAYER:
        if getattr(config, key, None) is not None:
            setattr(config, key, list(getattr(config, key))[:layers])
    config.vocab_size = _SMALL_VOCABULARY
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if getattr(config, key, None) is not None:
            setattr(config, key, 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return type(model)._from_config(config, dtype=torch.float32).eval()


def _collator(cell: Cell, lm: LM, loaded: Loaded, teacher: Loaded | None) -> Collator:
    """The collator in the layout that training will choose, tried on small copies of the models."""
    collator = collator_of(loaded.model, loaded.tokenizer)
    small = replace(collator, pad_id=0, decoder_start_id=0)
    assert cell.method is not None

    def layout(model: Any, *, training: bool) -> Any:
        return choose_layout(LM(small_copy(model)), small, cell.config.train.layout, training=training)[0]

    chosen = layout(lm.plain, training=not cell.method.is_on_policy)  # a student that samples trains without dropout
    reads_along = teacher is not None and cell.config.teacher.cache is None and cell.method.needs().same_tokenizer
    if teacher is not None and reads_along and chosen == "shared":
        chosen = layout(teacher.model, training=False)
    return replace(collator, layout=chosen)


# --- Teachers' texts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TextCost:
    """One teacher's texts for a cell.

    cached: texts that exist; missing: those to be written; tokens_in, tokens_out: of the missing ones, estimated (the
    student's tokenizer counts the prompts; earlier texts, the gold answers or the limit say how long texts are);
    seconds: what the missing ones take where earlier texts tell, else None; usd: their price where it is set; keys:
    their names in the cache.
    """

    teacher: str
    kind: str
    spec: str
    recorded: bool
    cached: int
    missing: int
    tokens_in: int
    tokens_out: int
    seconds: float | None
    usd: float | None
    keys: tuple[str, ...]

    def without(self, written: set[str]) -> "TextCost":
        """The cost where the texts with some keys will have been written before."""
        keys = tuple(key for key in self.keys if key not in written)
        share = len(keys) / self.missing if self.missing else 0.0
        return replace(
            self,
            keys=keys,
            missing=len(keys),
            tokens_in=round(share * self.tokens_in),
            tokens_out=round(share * self.tokens_out),
            seconds=None if self.seconds is None else share * self.seconds,
            usd=None if self.usd is None else round(share * self.usd, 6),
        )


def _texts_of(cell: Cell, tokenizer: Any) -> tuple[list[Annotation], tuple[TextCost, ...]]:
    """The texts that a cell learns from, nobody asked: cached ones, and a placeholder for each that is missing."""
    records = {record.id: record for record in cell.asked_records("train")}
    written: list[Annotation] = []
    placeholders: list[Annotation] = []
    costs = []
    for teacher in cell.teachers:
        cached, missing = teacher.cached(cell.records("train"))
        length = _text_tokens(cell, teacher, cached, records, tokenizer) if missing else 0
        # another text of the same teacher, or as many words as a text may have tokens
        others = cycle([a.text for a in cached if a.rejected is None] or [" ".join(["so"] * max(length, 1))])
        for one in missing:
            # answers to the student's own prompts are about as long as the gold answer
            is_response = teacher.kind == "response"
            text = cell.ask.label_target(records[one.record_id]) if is_response else next(others)
            placeholders.append(
                Annotation(
                    record_id=one.record_id,
                    teacher=teacher.key,
                    kind=teacher.kind,
                    text=text,
                    sample=one.sample,
                    gold_visible=teacher.gold_visible,
                )
            )
        written += cached
        costs.append(_text_cost(cell, teacher, cached, missing, length, tokenizer))
    return [*taught(cell, written), *placeholders], tuple(costs)


def _text_tokens(
    cell: Cell, teacher: Teacher, cached: Sequence[Annotation], records: Mapping[str, TaskRecord], tokenizer: Any
) -> int:
    """Tokens of a missing text: as its other texts have; of a response as the gold answers; else the most allowed."""
    known = [a.tokens_out for a in cached if a.tokens_out]
    if known:
        return round(sum(known) / len(known))
    most = cell.config.annotations.sampling.max_new_tokens
    if teacher.kind != "response":
        return most
    gold = [len(tokenizer(cell.ask.label_target(record))["input_ids"]) + 1 for record in records.values()]
    return min(round(sum(gold) / len(gold)), most)


def _text_cost(
    cell: Cell,
    teacher: Teacher,
    cached: Sequence[Annotation],
    missing: Sequence[MissingAnnotation],
    length: int,
    tokenizer: Any,
) -> TextCost:
    tokens_in = sum(len(tokenizer(one.request.prompt)["input_ids"]) for one in missing)
    tokens_out = length * len(missing)
    price = cell.config.annotations.prices.get(teacher.key)
    known = [a.seconds for a in cached if a.seconds]
    seconds = 0.0 if not missing else sum(known) / len(known) * len(missing) if known else None
    return TextCost(
        teacher=teacher.key,
        kind=teacher.kind,
        spec=teacher.spec,
        recorded=teacher.recorded,
        cached=len(cached),
        missing=len(missing),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        seconds=seconds,
        usd=None if price is None else round((tokens_in * price[0] + tokens_out * price[1]) / 1e6, 6),
        keys=tuple(one.key for one in missing),
    )


# --- What a method samples --------------------------------------------------------------------------------------------

_TRIED = 256  # rollouts of a small model that show which texts a method samples
_TRIED_QUESTIONS = 64  # different ones


class Sampling(NamedTuple):
    """What a method samples: the share of each channel's texts, tokens of a text by channel, whether the teacher reads
    along, and whether the student reads them again."""

    shares: Mapping[str, float]
    tokens: Mapping[str, float]
    with_teacher: bool
    recompute_logq: bool


def _sampling_of(method: Method, groups: Sequence[Group], lm: LM) -> Sampling:
    """Seen on a small random model that samples one token a text; lengths are taken to be those of the given texts."""
    from tinyllm_bench.training.teacher_signals import InMemoryTeacher

    small = small_copy(lm.plain)
    rows = small.get_input_embeddings().weight.shape[0]

    def within(item: Encoded) -> Encoded:
        """The item with ids that the small vocabulary has."""
        return item._replace(prompt=tuple(i % rows for i in item.prompt), target=tuple(i % rows for i in item.target))

    sample = [group._replace(items=tuple(map(within, group.items))) for group in groups[:_TRIED_QUESTIONS]]
    short = type(method)(method.config.model_copy(update={"max_new_tokens": 1}))
    student, teacher = LM(small), InMemoryTeacher(LM(small), vocabulary=rows)
    recompute_logq: list[Group] = []

    def note_recomputed(found: list[Group]) -> list[Group]:
        recompute_logq.extend(found)
        return found

    sampled = [
        item
        for number in range(-(-_TRIED // len(sample)))
        for group in short.rollout(sample, student, teacher, replace(_trial_step(number), recompute_logq=note_reread))
        for item in group.items
    ]
    shares: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for channel in dict.fromkeys(item.channel for item in sampled):
        of_channel = [bool(item.rollout) for item in sampled if item.channel == channel]
        if any(of_channel):
            given = [item for group in groups for item in group.items if item.channel == channel]
            shares[channel] = sum(of_channel) / len(of_channel)
            tokens[channel] = sum(min(len(item.target), method.max_sampled_tokens) for item in given) / len(given)
    return Sampling(shares, tokens, any("logp" in item.rollout for item in sampled), bool(recompute_logq))


def _trial_step(index: int) -> Step:
    """A step of no training; each index has seeds of its own."""

    def seed_of(record_id: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{index}/{record_id}".encode()).digest()[:8]) >> 1

    return Step(index=index, total=1, tokens={}, all_reduce=lambda tensor: tensor, seed_of=seed_of)


# --- Counts -----------------------------------------------------------------------------------------------------------


class Amounts(NamedTuple):
    """What some questions take: student tokens, and tokens that are computed; texts that are sampled for them, their
    tokens, and their tokens with the prompts."""

    tokens: float
    computed: float
    texts: float = 0.0
    sampled: float = 0.0
    read: float = 0.0


def _sum(parts: Sequence[Amounts]) -> Amounts:
    return Amounts(*(sum(column) for column in zip(*parts, strict=True))) if parts else Amounts(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a whole training takes.

    records: questions trained on, each as often as it was; tokens: of the student (`budget.student_tokens`); computed:
    tokens that go through the student, a shared prompt once; sampled_texts, sampled_tokens: what the student writes
    meanwhile; flops: by the trainer's own rule, `sampling_flops` of them for sampling; exact: False where lengths of
    texts, or the machine's speed, are estimated.
    """

    steps: int
    records: int
    tokens: float
    computed: float
    sampled_texts: float
    sampled_tokens: float
    flops: float
    sampling_flops: float
    exact: bool


class DryTraining:
    """A cell's training without weights. It serves every seed of the cell: a seed changes the plan alone."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell = with_existing_models(cell)
        assert cell.method is not None
        self.method: Method = cell.method
        self.loaded = load_shape(cell.student, dtype=cell.config.student.dtype, runs=cell.runs)
        signal = cell.signal
        self.teacher = (
            None if signal is None else load_shape(signal, dtype=cell.config.teacher.dtype, runs=cell.runs)
        )  # the white-box teacher
        texts, self.texts = _texts_of(cell, self.loaded.tokenizer)
        annotations, _ = fit_programs(cell, self.loaded, texts)
        self.lm = LM(adapted(cell, self.loaded))
        self.groups = encode_groups(cell, self.loaded, annotations)
        self.collator = _collator(cell, self.lm, self.loaded, self.teacher)
        self.sampling = _sampling_of(self.method, self.groups, self.lm) if self.method.is_on_policy else None
        self._amounts: dict[int, Amounts] = {}

    @property
    def model_bytes(self) -> int:
        """Bytes of the student."""
        return sum(p.numel() * p.element_size() for p in self.lm.parameters())

    @property
    def trained_bytes(self) -> int:
        """Bytes of the parameters that are trained."""
        return sum(p.numel() * p.element_size() for p in self.lm.parameters() if p.requires_grad)

    @cached_property
    def teacher_in_memory(self) -> LM | None:
        """The white-box teacher, where it reads every batch."""
        return None if self.teacher is None or self.cell.config.teacher.cache is not None else LM(self.teacher.model)

    @cached_property
    def rates(self) -> FlopsPerToken:
        """FLOPs of a token, as the trainer counts them."""
        teacher = self.teacher_in_memory
        theirs = 0 if teacher is None else sum(p.numel() for p in teacher.parameters())
        return flops_per_token(self.lm, theirs, loss_uses_teacher=self.method.loss_uses_teacher)

    def counts(self, cell: Cell, charged: float, speed: Speed) -> Counts:
        """What the training of a cell takes.

        Args:
            cell: The cell, with its own seed.
            charged: What making the initial student takes of the budget, in its unit.
            speed: Decides where a budget in seconds ends.

        Raises:
            UserError: nothing is left of the budget.
        """
        plan = plan_of(with_existing_models(cell), self.groups, charged)
        rounds: list[Amounts] = []
        minis = list(self._walked(plan, speed, rounds))
        trained, sampled = _sum([self._of_mini(mini) for mini in minis]), _sum(rounds)
        in_seconds = plan.limit is not None and plan.limit.unit == "seconds"
        return Counts(
            steps=len(minis),
            records=sum(map(len, minis)),
            tokens=trained.tokens,
            computed=trained.computed,
            sampled_texts=sampled.texts,
            sampled_tokens=sampled.sampled,
            flops=trained.computed * self.rates.trained + self._sampling_flops(sampled),
            sampling_flops=self._sampling_flops(sampled),
            exact=self.sampling is None and not in_seconds and not any(cost.missing for cost in self.texts),
        )

    def epochs(self, counts: Counts) -> float:
        """How often each question is trained on."""
        return counts.records / (self.method.inner_epochs * len(self.groups))

    def micro_batches(self, indices: Sequence[int]) -> list[list[Row]]:
        """The micro-batches of a step on some questions, sampled texts as long as they are taken to be."""
        rows = []
        for group in (self.groups[index] for index in indices):
            rows.append(self.collator.rows([self._as_sampled(item) for item in group.items]))
        return step_micro_batches(rows, self.method, self.collator, self.cell.config.train)

    def _as_sampled(self, item: Encoded) -> Encoded:
        if self.sampling is None or self.sampling.shares.get(item.channel, 0.0) < 0.5:
            return item
        return item._replace(target=(item.target[0],) * max(round(self.sampling.tokens[item.channel]), 1))

    def _walked(self, plan: Plan, speed: Speed, rounds: list[Amounts]) -> Iterator[Sequence[int]]:
        """The mini-batches that the trainer takes: it ends by the same rule, on the same numbers. What is sampled for
        each round, once for all its passes, is added to `rounds`."""
        unit = plan.limit.unit if plan.limit else "student_tokens"
        tokens = spent = sampling = 0.0
        for number in range(len(plan.rounds)):
            minis = list(plan.steps_of(number))
            first = self._of_mini(minis[0])
            if sampling and plan.ends_before(sampling + first.tokens * spent / tokens, spent):
                return
            rounds.append(self._of_mini(plan.members_of(number)))
            sampling = 0.0
            if unit == "flops":
                sampling = self._sampling_flops(rounds[-1])
            elif unit == "seconds":
                sampling = self.sampling_seconds(rounds[-1].sampled, self._sampling_flops(rounds[-1]), speed)
            spent += sampling
            for mini in minis:
                own = self._of_mini(mini)
                if tokens and plan.ends_before(own.tokens * spent / tokens, spent):
                    return
                yield mini
                tokens += own.tokens
                flops = own.computed * self.rates.trained
                spent += {"flops": flops, "seconds": flops / speed.training}.get(unit, own.tokens)

    def sampling_seconds(self, sampled_tokens: float, sampling_flops: float, speed: Speed) -> float:
        """Seconds of sampling: each token that is written by itself, and everything that is read at once."""
        written = sampled_tokens * self.rates.student
        return written / speed.sampling + (sampling_flops - written) / speed.reading

    def _sampling_flops(self, amounts: Amounts) -> float:
        if self.sampling is None:
            return 0.0
        again = amounts.computed * self.rates.student if self.sampling.recompute_logq else 0.0
        return amounts.read * self.rates.sampled(self.sampling.with_teacher) + again

    def _of_mini(self, indices: Sequence[int]) -> Amounts:
        return _sum([self._of_question(index) for index in indices])

    def _of_question(self, index: int) -> Amounts:
        if index not in self._amounts:
            group = self.groups[index]
            total = Amounts(group.tokens, sum(row.width for row in self.collator.rows(group.items)))
            for item in group.items if self.sampling is not None else ():
                assert self.sampling is not None
                share = self.sampling.shares.get(item.channel, 0.0)
                length = self.sampling.tokens.get(item.channel, float(len(item.target)))
                more = share * (length - len(item.target))  # in place of the given text
                read = share * (len(item.prompt) + length)
                total = _sum([total, Amounts(more, more, share, share * length, read)])
            self._amounts[index] = total
        return self._amounts[index]
