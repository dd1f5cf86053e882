"""A cell's training without weights: the texts, examples and micro-batches it will have, and the memory they take.

Everything is counted on the very examples, plan and batches of the run. Only three things are estimated: the length of
texts that are not written yet (placeholders are used for them), the length of texts that the student samples during
training, and when a budget in seconds ends.
"""

import copy
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import cycle
from typing import Any, NamedTuple

from tinyllm_bench.base.errors import in_one_line
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.experiment.annotate import fit_programs, training_targets
from tinyllm_bench.experiment.cell import Cell, device_of
from tinyllm_bench.experiment.train import adapted, encode_groups, plan_of
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded, load_shape, quiet, spec_folder
from tinyllm_bench.models.specs import ModelSpec
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.teachers.teacher import Teacher
from tinyllm_bench.training.batching import Collator, Group, InputRow, choose_layout, collator_of, step_micro_batches
from tinyllm_bench.training.budget import FlopsPerToken, Plan, flops_per_token
from tinyllm_bench.training.method import Method, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """FLOP/s that an estimate of time assumes.

    matmul: of one large matrix product, measured. Models reach a part of it (the "model FLOPs utilisation" of PaLM,
    arXiv:2204.02311, appendix B): 40 % where many tokens are processed at once, in training too, and 4 % where tokens
    are generated one after another. Real runs lie within a factor of about three of that.
    """

    matmul: float

    @property
    def training(self) -> float:
        """Forward and backward passes."""
        return 0.4 * self.matmul

    @property
    def reading(self) -> float:
        """Forward passes over given texts."""
        return 0.4 * self.matmul

    @property
    def sampling(self) -> float:
        """Generation token by token."""
        return 0.04 * self.matmul


@cache
def measured_speed(dtype: str) -> Speed:
    """The speed of this machine in a number format: the fastest of the products of two square matrices that fit into
    half a second. On a CPU the process's own time is measured, so that other work there hardly matters."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = 1024 if device == "cpu" else 8192
    left, right = (torch.ones(size, size, dtype=getattr(torch, dtype), device=device) for _ in range(2))
    clock, threads = (time.process_time, torch.get_num_threads()) if device == "cpu" else (time.perf_counter, 1)
    fastest, until = float("inf"), time.perf_counter() + 0.5
    while fastest == float("inf") or time.perf_counter() < until:
        start = clock()
        torch.mm(left, right)[0, 0].item()  # reading a value waits for the accelerator
        fastest = min(fastest, (clock() - start) / threads)
    return Speed(matmul=2 * size**3 / fastest)


# --- Models without weights -------------------------------------------------------------------------------------------


def with_existing_models(cell: Cell) -> Cell:
    """The cell with models that exist: one that an earlier cell has yet to train is as large as what it starts from."""

    def exists(spec: ModelSpec) -> bool:
        folder = spec_folder(spec, runs=cell.runs)
        return folder is None or (folder / "config.json").is_file()

    student, signal = cell.student, cell.signal
    if cell.student_from is not None and not exists(student):
        student = with_existing_models(cell.student_from).student
    if cell.teacher_from is not None and signal is not None and not exists(signal):
        signal = with_existing_models(cell.teacher_from).student
    return replace(cell, student=student, signal=signal)


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
            with suppress(AttributeError):  # some compute it from the number of layers
                setattr(config, key, list(getattr(config, key))[:layers])
    config.vocab_size = _SMALL_VOCABULARY
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if getattr(config, key, None) is not None:
            setattr(config, key, 0)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(0)
        return type(model)._from_config(config, dtype=torch.float32).eval()


def broken_step(model: Any) -> str | None:
    """Why a small copy of a model breaks in a step of training: its configuration may hold any value.

    None if it does not, and if there is no small copy of such a model, which says nothing about the model.
    """
    import torch

    try:
        small = small_copy(model).train()
    except Exception:
        return None
    ids = torch.zeros((1, 4), dtype=torch.long)
    read = {"input_ids": ids} | ({"decoder_input_ids": ids} if small.config.is_encoder_decoder else {})
    try:
        with torch.random.fork_rng(devices=[]):
            small(**read).logits.sum().backward()
    except Exception as error:
        return in_one_line(error)
    return None


def model_bytes(model: Any) -> int:
    """Bytes of a model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _collator(cell: Cell, lm: LM, loaded: Loaded, teacher: Loaded | None) -> Collator:
    """The collator in the layout that training will choose, tried on small copies of the models."""
    collator = collator_of(loaded.model, loaded.tokenizer)
    small = replace(collator, pad_id=0, decoder_start_id=0)
    assert cell.method is not None

    def layout(model: Any, *, training: bool) -> Any:
        return choose_layout(LM(small_copy(model)), small, cell.config.train.layout, training=training)[0]

    chosen = layout(lm.hf_model, training=not cell.method.is_on_policy)  # a student that samples trains without dropout
    reads_batches = teacher is not None and cell.config.teacher.cache is None and cell.method.needs().same_tokenizer
    if teacher is not None and reads_batches and chosen == "shared":
        chosen = layout(teacher.model, training=False)
    return replace(collator, layout=chosen)


# --- Teachers' texts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForecast:
    """One teacher's texts for a cell.

    cached: texts that exist; missing: texts to be written; tokens_in, tokens_out: of the missing ones, estimated (the
    student's tokenizer counts the prompts; earlier texts, the gold answers or the limit give the length); seconds: what
    the missing ones take, None without earlier texts; usd: their price if it is set; keys: their keys in the cache.
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

    def without(self, written: set[str]) -> "TextForecast":
        """The cost if the texts with some keys will have been written before."""
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


def _texts_of(
    cell: Cell, teacher: Teacher, records: Mapping[str, TaskRecord], tokenizer: Any
) -> tuple[list[Annotation], list[Annotation], TextForecast]:
    """A teacher's cached texts, a placeholder for each missing one, and the cost; no text is generated."""
    cached, missing = teacher.cached(cell.records("train"))

    # A missing text is as long as the teacher's other texts, a response as the gold answers, else as long as allowed.
    length = 0
    lengths = [annotation.tokens_out for annotation in cached if annotation.tokens_out]
    if missing and lengths:
        length = round(sum(lengths) / len(lengths))
    elif missing:
        length = cell.config.annotations.sampling.max_new_tokens
        if teacher.kind == "response":
            gold = [len(tokenizer(cell.ask.label_target(record))["input_ids"]) + 1 for record in records.values()]
            length = min(round(sum(gold) / len(gold)), length)

    # Placeholders: another text of the teacher, or as many words as a text may have tokens. Responses to the student's
    # own prompts are about as long as the gold answer.
    others = cycle([a.text for a in cached if a.rejected is None] or [" ".join(["so"] * max(length, 1))])
    placeholders = [
        Annotation(
            record_id=text.record_id,
            teacher=teacher.key,
            kind=teacher.kind,
            text=cell.ask.label_target(records[text.record_id]) if teacher.kind == "response" else next(others),
            sample=text.sample,
            gold_visible=teacher.gold_visible,
        )
        for text in missing
    ]

    tokens_in = sum(len(tokenizer(text.request.prompt)["input_ids"]) for text in missing)
    tokens_out = length * len(missing)
    price = cell.config.annotations.prices.get(teacher.key)
    times = [annotation.seconds for annotation in cached if annotation.seconds]
    seconds = 0.0 if not missing else sum(times) / len(times) * len(missing) if times else None
    cost = TextForecast(
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
        keys=tuple(text.key for text in missing),
    )
    return cached, placeholders, cost


# --- What a method samples --------------------------------------------------------------------------------------------

_TRIAL_ROLLOUTS = 256  # of a small model: they show which texts a method samples
_TRIAL_QUESTIONS = 64


class Sampling(NamedTuple):
    """The texts that a method samples: their share and their tokens by channel, whether the teacher computes its
    distributions meanwhile, and whether the student reads the texts again."""

    shares: Mapping[str, float]
    tokens: Mapping[str, float]
    with_teacher: bool
    recompute_logq: bool


def _sampling_of(method: Method, groups: Sequence[Group], lm: LM) -> Sampling:
    """Observed on a small random model that samples one token per text; lengths are assumed to be those of the given
    texts."""
    from tinyllm_bench.training.teacher_signals import InMemoryTeacher

    small = small_copy(lm.hf_model)
    size = small.get_input_embeddings().weight.shape[0]

    def in_vocabulary(item: Encoded) -> Encoded:
        return item._replace(prompt=tuple(i % size for i in item.prompt), target=tuple(i % size for i in item.target))

    questions = [group._replace(items=tuple(map(in_vocabulary, group.items))) for group in groups[:_TRIAL_QUESTIONS]]
    one_token = type(method)(method.config.model_copy(update={"max_new_tokens": 1}))
    student, teacher = LM(small), InMemoryTeacher(LM(small), vocabulary=size)
    recomputed: list[Group] = []

    def note_recomputed(sampled: list[Group]) -> list[Group]:
        recomputed.extend(sampled)
        return sampled

    sampled = [
        item
        for number in range(-(-_TRIAL_ROLLOUTS // len(questions)))
        for group in one_token.rollout(
            questions, student, teacher, replace(_trial_step(number), recompute_logq=note_recomputed)
        )
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
    return Sampling(shares, tokens, any("logp" in item.rollout for item in sampled), bool(recomputed))


def _trial_step(index: int) -> Step:
    """A step that trains nothing; each index has seeds of its own."""

    def seed_of(record_id: str) -> int:
        return int.from_bytes(hashlib.sha256(f"{index}/{record_id}".encode()).digest()[:8]) >> 1

    return Step(index=index, total=1, tokens={}, all_reduce=lambda tensor: tensor, seed_of=seed_of)


# --- Counts -----------------------------------------------------------------------------------------------------------


class Amounts(NamedTuple):
    """The cost of some questions: student tokens, computed tokens; sampled texts, their tokens without and with the
    prompts."""

    tokens: float
    computed: float
    texts: float = 0.0
    sampled: float = 0.0
    read: float = 0.0


def _sum(parts: Sequence[Amounts]) -> Amounts:
    return Amounts(*(sum(column) for column in zip(*parts, strict=True))) if parts else Amounts(0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The cost of a whole training.

    records: questions trained on, each as often as it was; tokens: of the student (`budget.student_tokens`); computed:
    tokens that go through the student, a shared prompt once; sampled_texts, sampled_tokens: what the student generates
    meanwhile; flops: by the trainer's own rule, `sampling_flops` of them for sampling; exact: False if lengths of
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
        # the white-box teacher
        self.teacher = None if signal is None else load_shape(signal, dtype=cell.config.teacher.dtype, runs=cell.runs)
        records = {record.id: record for record in cell.truncated_records("train")}
        cached: list[Annotation] = []
        placeholders: list[Annotation] = []
        costs: list[TextForecast] = []
        for teacher in cell.teachers:
            own, missing, cost = _texts_of(cell, teacher, records, self.loaded.tokenizer)
            cached += own
            placeholders += missing
            costs.append(cost)
        self.texts = tuple(costs)
        annotations, _ = fit_programs(cell, self.loaded, [*training_targets(cell, cached), *placeholders])
        self.lm = LM(adapted(cell, self.loaded))
        self.groups = encode_groups(cell, self.loaded, annotations)
        self.collator = _collator(cell, self.lm, self.loaded, self.teacher)
        self.sampling = _sampling_of(self.method, self.groups, self.lm) if self.method.is_on_policy else None
        self._amounts: dict[int, Amounts] = {}

    @property
    def trained_bytes(self) -> int:
        """Bytes of the parameters that are trained."""
        return sum(p.numel() * p.element_size() for p in self.lm.parameters() if p.requires_grad)

    @cached_property
    def teacher_in_memory(self) -> LM | None:
        """The white-box teacher, if it reads every batch."""
        return None if self.teacher is None or self.cell.config.teacher.cache is not None else LM(self.teacher.model)

    @cached_property
    def rates(self) -> FlopsPerToken:
        """FLOPs of a token, as the trainer counts them."""
        teacher = self.teacher_in_memory
        parameters = 0 if teacher is None else sum(p.numel() for p in teacher.parameters())
        return flops_per_token(self.lm, parameters, loss_uses_teacher=self.method.loss_uses_teacher)

    def counts(self, cell: Cell, charged: float, speed: Speed) -> Counts:
        """The cost of the training of a cell.

        Args:
            cell: The cell, with its own seed.
            charged: What making the initial student takes of the budget, in its unit.
            speed: Decides when a budget in seconds ends.

        Raises:
            UserError: nothing is left of the budget.
        """
        plan = plan_of(with_existing_models(cell), self.groups, charged)
        rounds: list[Amounts] = []
        minis = list(self._mini_batches(plan, speed, rounds))
        trained, sampled = _sum([self._amounts_of(mini) for mini in minis]), _sum(rounds)
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

    def micro_batches(self, indices: Sequence[int]) -> list[list[InputRow]]:
        """The micro-batches of a step on some questions; sampled texts have their assumed lengths."""

        def with_sampled_length(item: Encoded) -> Encoded:
            if self.sampling is None or self.sampling.shares.get(item.channel, 0.0) < 0.5:
                return item
            return item._replace(target=(item.target[0],) * max(round(self.sampling.tokens[item.channel]), 1))

        rows = [
            self.collator.rows([with_sampled_length(item) for item in self.groups[index].items]) for index in indices
        ]
        return step_micro_batches(rows, self.method, self.collator, self.cell.config.train)

    def _mini_batches(self, plan: Plan, speed: Speed, rounds: list[Amounts]) -> Iterator[Sequence[int]]:
        """The mini-batches that the trainer takes: it ends by the same rule, on the same numbers. What is sampled for
        each round, once for all its passes, is added to `rounds`."""
        unit = plan.limit.unit if plan.limit else "student_tokens"
        tokens = spent = sampling = 0.0
        for number in range(len(plan.rounds)):
            minis = list(plan.steps_of(number))
            first = self._amounts_of(minis[0])
            if sampling and plan.ends_before(sampling + first.tokens * spent / tokens, spent):
                return
            rounds.append(self._amounts_of(plan.members_of(number)))
            sampling = 0.0
            if unit == "flops":
                sampling = self._sampling_flops(rounds[-1])
            elif unit == "seconds":
                sampling = self.sampling_seconds(rounds[-1].sampled, self._sampling_flops(rounds[-1]), speed)
            spent += sampling
            for mini in minis:
                own = self._amounts_of(mini)
                if tokens and plan.ends_before(own.tokens * spent / tokens, spent):
                    return
                yield mini
                tokens += own.tokens
                flops = own.computed * self.rates.trained
                spent += {"flops": flops, "seconds": flops / speed.training}.get(unit, own.tokens)

    def sampling_seconds(self, sampled_tokens: float, sampling_flops: float, speed: Speed) -> float:
        """Seconds of sampling: tokens are generated one by one, everything else is read at once."""
        generation = sampled_tokens * self.rates.student
        return generation / speed.sampling + (sampling_flops - generation) / speed.reading

    def _sampling_flops(self, amounts: Amounts) -> float:
        if self.sampling is None:
            return 0.0
        again = amounts.computed * self.rates.student if self.sampling.recompute_logq else 0.0
        return amounts.read * self.rates.sampled(self.sampling.with_teacher) + again

    def _amounts_of(self, indices: Sequence[int]) -> Amounts:
        return _sum([self._amounts_of_question(index) for index in indices])

    def _amounts_of_question(self, index: int) -> Amounts:
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

    @cached_property
    def memory(self) -> "Memory":
        """What the training holds at its largest micro-batch; cells that are trained first are not included."""
        largest, micro_batches = _largest_micro_batch(self)
        teacher, trained = self.teacher_in_memory, self.trained_bytes
        plain: Any = self.lm.hf_model
        targets = sum(len(branch.item.target) for row in largest for branch in row.branches)
        vocabulary = plain.get_output_embeddings().weight.shape[0]
        copies = _LOGIT_COPIES if teacher is None else _LOGIT_COPIES_WITH_TEACHER
        return Memory(
            libraries=library_bytes(self.cell),
            weights=model_bytes(self.lm),
            trained=trained,
            moments=2 * trained,
            teacher=0 if teacher is None else model_bytes(teacher),
            activations=_activation_bytes(self, largest),
            logits=min(targets, self.lm.chunk_positions) * vocabulary * 4 * copies,
            micro_batches=micro_batches,
        )


# --- Memory -----------------------------------------------------------------------------------------------------------
#
# On a CPU the peak is that of the process (`base.provenance.peak_memory`): interpreter and libraries, weights,
# gradients, AdamW's two moments, what the forward pass of the largest micro-batch saves for the backward pass, logits,
# a white-box teacher, and at the end the selected weights that are read back. On an accelerator libraries are not
# included. What the forward pass saves is counted: small random copies of the student, one and two layers deep, read
# that very micro-batch, and the tensors that autograd saves are added up.

# Resident bytes of a process that has imported what a run imports and read its questions (torch 2.13, lm-eval 0.4.13).
LIBRARIES = 660 * 2**20
_TRIAL_STEPS = 50  # whose micro-batches are compared to find the largest
_TRIAL_TOKENS = 1024  # padded tokens that the small copies read; activations grow in proportion
# Copies of a chunk's logits that exist at once: values, log-probabilities and their gradients; with a teacher's.
_LOGIT_COPIES, _LOGIT_COPIES_WITH_TEACHER = 4, 8
_RETAINED = 0.75  # of the gradients' bytes, which the allocator holds for the next step
_CHECKPOINTED_BYTES = 4  # of a hidden value that gradient checkpointing stores for each layer
_MIXED_PRECISION = 0.6  # of the activations in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of a training by what they hold; `micro_batches`: the most that a step has."""

    libraries: int
    weights: int
    trained: int
    moments: int
    teacher: int
    activations: int
    logits: int
    micro_batches: int

    @property
    def training(self) -> int:
        """The peak of the training steps."""
        moving = self.activations + self.logits
        step = self.trained + moving if self.micro_batches > 1 else max(self.trained, moving)
        return self._constant + step

    @property
    def end(self) -> int:
        """The peak when the selected weights are read back."""
        return self._constant + round(_RETAINED * self.trained) + self.trained

    @property
    def peak(self) -> int:
        """The larger of both."""
        return max(self.training, self.end)

    @property
    def _constant(self) -> int:
        return self.libraries + self.weights + self.moments + self.teacher


def library_bytes(cell: Cell) -> int:
    """Bytes of interpreter and libraries, which count on a CPU only."""
    return LIBRARIES if device_of(cell) == "cpu" else 0


def _width(rows: Sequence[InputRow]) -> int:
    return max(row.width for row in rows)


def _largest_micro_batch(training: DryTraining) -> tuple[list[InputRow], int]:
    """The micro-batch with the most padded tokens among the first steps, and the most micro-batches of a step."""
    groups, size = training.groups, training.cell.config.train.batch_records
    starts = range(0, min(len(groups), _TRIAL_STEPS * size), size)
    steps = [training.micro_batches(range(start, min(start + size, len(groups)))) for start in starts]
    longest = max(range(len(groups)), key=lambda n: groups[n].tokens)  # may be a micro-batch of its own
    candidates = [rows for micros in [*steps, training.micro_batches([longest])] for rows in micros]
    return max(candidates, key=lambda rows: (len(rows) * _width(rows), _width(rows))), max(map(len, steps))


def _activation_bytes(training: DryTraining, rows: Sequence[InputRow]) -> int:
    """Bytes that the student's body saves for the backward pass of a micro-batch."""
    config = training.cell.config.train
    trial = rows[: max(_TRIAL_TOKENS // _width(rows), 1)]
    with_one, with_two = (_saved_bytes(training, trial, layers) for layers in (1, 2))
    text = training.lm.hf_model.config.get_text_config()
    depth, layer = int(getattr(text, "num_hidden_layers", 1)), max(with_two - with_one, 0)
    scale = len(rows) * _width(rows) / (len(trial) * _width(trial))
    if config.gradient_checkpointing:
        stored = len(trial) * _width(trial) * int(text.hidden_size) * _CHECKPOINTED_BYTES
        return round(scale * (with_one + depth * stored))
    precision = _MIXED_PRECISION if config.mixed_precision != "no" else 1.0
    return round(scale * precision * (with_one + (depth - 1) * layer))


def _saved_bytes(training: DryTraining, rows: Sequence[InputRow], layers: int) -> int:
    """Bytes that autograd saves when a small copy of the model reads some rows."""
    import torch

    small = LM(small_copy(training.lm.hf_model, layers)).train()
    plain: Any = small.hf_model
    size = plain.get_input_embeddings().weight.shape[0]
    batch = training.collator.collate(rows)
    for name in ("input_ids_BT", "decoder_input_ids_DT"):
        ids = getattr(batch, name)
        if ids is not None:
            setattr(batch, name, ids % size)
    parameters = {p.untyped_storage().data_ptr() for p in small.parameters()}
    storages: dict[int, int] = {}  # a storage counts once, however many tensors share it

    def count(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        small.target_hidden_states(batch)
    return sum(storages.values())
