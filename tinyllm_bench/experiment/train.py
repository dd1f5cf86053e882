"""Stage 2: train the cell's student by the cell's method, to the cell's budget.

The student is loaded, the method turns records and annotations into examples, the white-box teacher is opened or its
distributions are read from a cache that is filled first, and the trainer runs. Validation during training evaluates the
student in the cell's own scoring mode.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.base import provenance
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import LogitCacheOpened, LogitCacheProgress, Report
from tinyllm_bench.base.files import digest, locked, read_text
from tinyllm_bench.data.prompts import LABEL, PLAIN
from tinyllm_bench.data.records import Annotation, Split
from tinyllm_bench.evaluation.runner import evaluate
from tinyllm_bench.evaluation.sampled_answers import sample_answers
from tinyllm_bench.evaluation.scoring import score
from tinyllm_bench.experiment.annotate import fit_programs
from tinyllm_bench.experiment.cell import Cell, device_of
from tinyllm_bench.experiment.plan_cells import different_tokenizers
from tinyllm_bench.generation.top_k import ScoredResponse, response_digest
from tinyllm_bench.models.adapters import add_adapters, save_adapter
from tinyllm_bench.models.files import cached_file_digest, model_files
from tinyllm_bench.models.identity import model_identity
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import (
    Loaded,
    is_encoder_decoder,
    load_model,
    max_input_tokens,
    needs_bos,
    parameter_count,
    save_model,
    spec_folder,
    tokenizer_digest,
    weights_digest,
)
from tinyllm_bench.models.tokens import Encoded, Encoder, text_ids
from tinyllm_bench.models.vocabulary import same_tokenizer
from tinyllm_bench.training.batching import Collator, Group, choose_layout, collator_of, micro_batches
from tinyllm_bench.training.budget import Limit, Plan, make_plan
from tinyllm_bench.training.checkpoint import remove_checkpoints, seed_everything
from tinyllm_bench.training.cross_tokenizer import CrossTeacher
from tinyllm_bench.training.logit_cache import LogitCache, LogitCacheHeader
from tinyllm_bench.training.losses import channel_cross_entropy
from tinyllm_bench.training.method import TeacherSignal
from tinyllm_bench.training.result import RESULT_FILE, TrainResult, ValidationScore, load_result, save_result
from tinyllm_bench.training.teacher_signals import CachedTeacher, InMemoryTeacher, check_same_family, score_responses
from tinyllm_bench.training.trainer import Trainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

PROBED = 64  # validation questions for which methods sample texts at each evaluation


def train(cell: Cell, folder: Path, annotations: Sequence[Annotation], *, report: Report) -> TrainResult:
    """Train, save `student/` and `train/result.json`; a finished training is read back, an interrupted one resumes."""
    from accelerate import PartialState

    if (folder / RESULT_FILE).exists():
        remove_checkpoints(folder / "train")  # left by a crash after the result was written
        return load_result(folder)
    assert cell.method is not None
    device = device_of(cell)
    loaded = load_model(cell.student, dtype=cell.config.student.dtype, device=device, runs=cell.runs)
    # of the model as it is loaded: training and adapters change these
    initial_digest, parameters = weights_digest(loaded.model), parameter_count(loaded.model)
    architecture, encoder_decoder = type(loaded.model).__name__, bool(loaded.model.config.is_encoder_decoder)
    seed_everything(cell.seed)
    annotations, dropped = fit_programs(cell, loaded, annotations)
    lm = LM(adapted(cell, loaded))
    lm.check()
    groups = encode_groups(cell, loaded, annotations)
    plan = plan_of(cell, groups, init_cost(cell.student_from, cell.runs, cell.config.budget.limit[0]))
    signal = _teacher_signal(cell, groups, loaded, device, report)
    collator, layout_reason = _collator(cell, lm, loaded, signal)
    gold = _gold_groups(cell, loaded)
    summary = Trainer(
        lm,
        cell.method,
        groups,
        plan,
        collator,
        cell.config.train,
        folder=folder / "train",
        seed=cell.seed,
        validate=_validator(cell, loaded, gold),
        teacher=signal,
        probed=gold[:PROBED],
        report=report,
        cpu=device == "cpu",
    ).run()
    student = Loaded(_merged(lm, folder / "adapter"), loaded.tokenizer)
    times = {"seconds": round(summary.seconds, 2), "rollout_seconds": round(summary.rollout_seconds, 2)}
    fields = {field.name: getattr(summary, field.name) for field in fields_of(summary)}
    result = TrainResult(
        **{**fields, **times, "tokens_by_channel": dict(sorted(summary.tokens_by_channel.items()))},
        initial_digest=initial_digest,
        student_digest=weights_digest(student.model),
        tokenizer_digest=tokenizer_digest(loaded.tokenizer),
        architecture=architecture,
        parameters=parameters,
        encoder_decoder=encoder_decoder,
        layout=collator.layout,
        layout_reason=layout_reason,
        targets_cut=sum(item.cut for group in groups for item in group.items),
        targets_dropped=dropped,
        epochs=round(summary.records / (cell.method.inner_epochs * len(groups)), 4),
        peak_memory_bytes=provenance.peak_memory(),
    )
    state = PartialState()
    if state.is_main_process:
        save_model(student, folder / "student")
        files = model_files(str(folder / "student"), folder / "student")
        save_result(
            replace(result, student_files={name: cached_file_digest(file) for name, file in files.items()}), folder
        )
        remove_checkpoints(folder / "train")
    state.wait_for_everyone()
    return result


def adapted(cell: Cell, loaded: Loaded) -> Any:
    """The model that is trained: the student itself, or with adapters in its layers."""
    lora = cell.config.student.lora
    return loaded.model if lora is None else add_adapters(loaded.model, **lora.model_dump())


def _merged(lm: LM, folder: Path) -> Any:
    """The plain student: adapters are merged, because lm-eval and vLLM score adapters wrongly in places.

    A copy of the adapters alone is saved in `folder`.
    """
    from accelerate import PartialState

    wrapped: PeftModel | Any = lm.model
    if not hasattr(wrapped, "merge_and_unload"):
        return wrapped
    if PartialState().is_main_process:
        save_adapter(wrapped, folder)
    return wrapped.merge_and_unload()


def _collator(cell: Cell, lm: LM, loaded: Loaded, signal: TeacherSignal | None) -> tuple[Collator, str | None]:
    """The collator in the layout that student and teacher support, and why that is not the shared one.

    Raises:
        UserError: FlexAttention without a GPU, or a layout that the student does not support.
    """
    settings = cell.config.train
    if settings.attention == "flex":
        if device_of(cell) == "cpu":
            raise UserError("train.attention=flex needs a GPU; use train.attention=sdpa")
        lm.hf_model.set_attn_implementation("flex_attention")
    collator = collator_of(loaded.model, loaded.tokenizer)
    samples = cell.method is not None and cell.method.is_on_policy  # and is trained without dropout
    layout, reason = choose_layout(lm, collator, settings.layout, training=not samples)
    if signal is not None and signal.lm is not None and layout == "shared":
        layout, reason = choose_layout(signal.lm, collator, settings.layout, training=False)
        reason = reason and f"the teacher: {reason}"
    return replace(collator, layout=layout), reason


def joint_training(results: Sequence[TrainResult]) -> TrainResult:
    """The trainings of a cell's students as one result; that of a single student is returned as it is."""
    if len(results) == 1:
        return results[0]
    channels = sorted(channel for result in results for channel in result.tokens_by_channel)
    return replace(
        results[0],
        steps=sum(result.steps for result in results),
        records=sum(result.records for result in results),
        student_tokens=sum(result.student_tokens for result in results),
        computed_tokens=sum(result.computed_tokens for result in results),
        flops=sum(result.flops for result in results),
        rollout_tokens=sum(result.rollout_tokens for result in results),
        rollout_seconds=sum(result.rollout_seconds for result in results),
        seconds=sum(result.seconds for result in results),
        targets_cut=sum(result.targets_cut for result in results),
        targets_dropped=sum(result.targets_dropped for result in results),
        tokens_by_channel={
            channel: sum(result.tokens_by_channel.get(channel, 0) for result in results) for channel in channels
        },
        peak_memory_bytes=max(result.peak_memory_bytes for result in results),
        student_digest=joint_digest([result.student_digest for result in results]),
        first_loss=None,
        last_loss=None,
        measured={},
        evaluations=(),
    )


def joint_digest(digests: Sequence[str]) -> str:
    """The digest of several students that answer together."""
    return digests[0] if len(digests) == 1 else digest(list(digests))


# --- the budget -------------------------------------------------------------------------------------------------------


def plan_of(cell: Cell, groups: Sequence[Group], charged: float) -> Plan:
    """The cell's training plan; `charged` is what making the initial student took, in the budget's unit.

    Raises:
        UserError: nothing is left of the budget, or FLOPs of a student for which they cannot be estimated.
    """
    method = cell.method
    assert method is not None
    name, amount = cell.config.budget.limit
    if name == "flops" and is_encoder_decoder(cell.student, runs=cell.runs):
        raise UserError("budget.flops: the estimate does not hold for an encoder-decoder; set budget.student_tokens")
    left = amount if name == "epochs" else amount - cell.share * charged
    if left <= 0:
        raise UserError(
            f"budget.{name}={amount:g}: making the initial student (student.init) took {amount - left:g} already;"
            " raise the budget, or lower student.init.epochs"
        )
    limit, fixed = None, {}
    if name == "student_tokens" and not method.is_on_policy:
        fixed = {"student_tokens": round(left)}
    elif name in ("student_tokens", "flops", "seconds"):
        limit = Limit(name, left)  # type: ignore[arg-type]
    return make_plan(
        groups,
        batch_records=cell.config.train.batch_records,
        seed=cell.seed,
        epochs=left if name == "epochs" else None,
        limit=limit,
        group_size=method.group_size,
        inner_epochs=method.inner_epochs,
        **fixed,
    )


def init_cost(first: Cell | None, runs: Path, name: str = "student_tokens") -> float:
    """The cost of training a model for another cell, in student tokens, epochs, FLOPs or seconds; 0 without one."""
    return 0 if first is None else getattr(load_result(runs / first.run_id), name)


# --- examples as token ids --------------------------------------------------------------------------------------------


def encode_groups(cell: Cell, loaded: Loaded, annotations: Sequence[Annotation]) -> list[Group]:
    """Every training record's examples as ids, in the order of records, and plain text where the method learns it.

    Raises:
        UserError: a prompt longer than the student's limit.
    """
    assert cell.method is not None
    encoder = encoder_of(cell, loaded)
    by_record: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        if annotation.rejected is None:
            by_record.setdefault(annotation.record_id, []).append(annotation)
    groups = []
    for record in cell.truncated_records("train"):
        examples = cell.method.examples(record, by_record.get(record.id, []), cell.ask)
        groups.append(Group(record.id, tuple(encoder.encode(example) for example in examples)))
    groups = [group for group in groups if group.items]
    if cell.method.shuffles_examples:
        groups = [group._replace(items=(item,)) for group in groups for item in group.items]
    file, size = cell.config.data.plain_text, cell.config.data.plain_tokens
    if file is None or not cell.method.needs().plain_text:
        return groups
    # one piece per question, in order and again from the start
    pieces = cycle(plain_text_pieces(file, size, loaded.tokenizer, encoder_decoder=encoder.encoder_decoder))
    return [group._replace(items=(*group.items, next(pieces)._replace(record_id=group.record_id))) for group in groups]


def encoder_of(cell: Cell, loaded: Loaded) -> Encoder:
    """Tokenizes the cell's examples for its student."""
    encoder_decoder = bool(loaded.model.config.is_encoder_decoder)
    longest_input = max_input_tokens(loaded.model, loaded.tokenizer)
    max_target_tokens = cell.config.train.max_target_tokens
    sampled = cell.method.max_sampled_tokens if cell.method is not None else 0
    return Encoder(
        loaded.tokenizer,
        cell.ask,
        encoder_decoder=encoder_decoder,
        add_bos=needs_bos(loaded.model, loaded.tokenizer),
        # a decoder-only student's targets and sampled texts need space behind the prompt
        max_prompt_tokens=longest_input if encoder_decoder else longest_input - max(max_target_tokens, sampled),
        max_target_tokens=max_target_tokens,
        cut_tokens=cell.config.data.cut_tokens,
    )


def plain_text_pieces(
    name: str, size: int, tokenizer: "PreTrainedTokenizerBase", *, encoder_decoder: bool
) -> list[Encoded]:
    """The file `name` in pieces of `size` tokens, for methods that keep a student's language in shape (the L_PT of
    MiniLLM, arXiv:2306.08543).

    A decoder-only student reads a piece's first token and is trained on the rest; an encoder-decoder reads the first
    half. Paragraphs (separated by blank lines) end with the end-of-text token.

    Raises:
        UserError: the text is shorter than one piece.
    """
    text = read_text(Path(name).expanduser()).replace("\r\n", "\n")
    ids: list[int] = []
    for paragraph in filter(None, (part.strip() for part in text.split("\n\n"))):
        ids += [*text_ids(tokenizer, paragraph, add_special_tokens=False), tokenizer.eos_token_id]
    pieces = [tuple(ids[start : start + size]) for start in range(0, len(ids) - size + 1, size)]
    if not pieces:
        raise UserError(f"data.plain_text={name}: {len(ids)} tokens; at least data.plain_tokens={size} are needed")
    border = size // 2 if encoder_decoder else 1
    return [Encoded("", PLAIN, piece[:border], piece[border:], False) for piece in pieces]


# --- the white-box teacher --------------------------------------------------------------------------------------------


def _teacher_signal(
    cell: Cell, groups: Sequence[Group], student: Loaded, device: str, report: Report
) -> TeacherSignal | None:
    """The cell's white-box teacher, in memory or from a cache to which missing responses are added first."""
    settings = cell.config.teacher.cache
    if cell.signal is None:
        return None
    if settings is None:
        return open_teacher_model(cell, student, device)
    header = cache_header(cell, student)
    with locked(header.folder / "filling"):  # another process that needs the same cache waits, and then finds it filled
        cache = LogitCache.create(header)
        missing = [
            item
            for group in groups
            for item in group.items
            if not cache.has(item.record_id, response_digest(item.prompt, item.target))
        ]
        report(LogitCacheOpened(len(missing), header.bytes_per_token))
        if missing:
            score_missing = _scored_by_vllm if settings.engine == "vllm" else _scored_by_transformers
            done = 0
            for scored in score_missing(cell, missing, student, device, header.k):
                cache.add(scored)
                done += len(scored)
                report(LogitCacheProgress(done, len(missing)))
    return CachedTeacher(cache)


def open_teacher_model(cell: Cell, student: Loaded, device: str) -> TeacherSignal:
    """The cell's white-box teacher in memory, reading the student's ids or, across tokenizers, its own.

    Raises:
        UserError: its tokenizer is not the student's where it must be, or its head is of a kind that is not known.
    """
    assert cell.method is not None and cell.signal is not None
    loaded = load_model(cell.signal, dtype=cell.config.teacher.dtype, device=device, runs=cell.runs)
    lm = LM(loaded.model)
    lm.check()
    if cell.method.needs().same_tokenizer:
        if not same_tokenizer(loaded.tokenizer, student.tokenizer):
            raise different_tokenizers(cell.method, cell.student.text, cell.signal.text)
        check_same_family(LM(student.model), lm)
        return InMemoryTeacher(lm, vocabulary=len(student.tokenizer))
    if lm.encoder_decoder or student.model.config.is_encoder_decoder:
        raise UserError(f"teacher {cell.signal.text}: only decoder-only models are read across tokenizers")
    chat = cell.config.teacher.chat
    if chat and loaded.tokenizer.chat_template is None:
        raise UserError(f"teacher.chat: {cell.signal.text} has no chat template; set teacher.chat=false")
    return CrossTeacher(lm, loaded.tokenizer, student.tokenizer, add_bos=needs_bos(*loaded), chat=chat)


def cache_header(cell: Cell, student: Loaded) -> LogitCacheHeader:
    """The header of the cell's logit cache: everything that identifies it."""
    settings, teacher = cell.config.teacher.cache, cell.signal
    assert settings is not None and teacher is not None
    size = len(student.tokenizer)
    return LogitCacheHeader(
        teacher=[model_identity(teacher, cell.runs), cell.config.teacher.dtype],
        tokenizer=tokenizer_digest(student.tokenizer),
        template=digest("plain"),  # the teacher reads the student's ids as they are, without a chat template
        vocabulary=size,
        k=size if settings.k == "all" else settings.k,
        precision=settings.precision,
    )


def _scored_by_transformers(
    cell: Cell, items: Sequence[Encoded], student: Loaded, device: str, k: int
) -> Iterator[list[ScoredResponse]]:
    import torch

    teacher = open_teacher_model(cell, student, device)
    assert isinstance(teacher, InMemoryTeacher)
    collator = collator_of(student.model, student.tokenizer)
    rows = [collator.rows([item]) for item in items]
    limit = cell.config.train.micro_batch_tokens
    for micro in micro_batches(rows, max_tokens=limit, keep_groups=False, pack=False):
        yield score_responses(teacher, collator.collate(micro).to(torch.device(device)), k)


def _scored_by_vllm(
    cell: Cell, items: Sequence[Encoded], student: Loaded, device: str, k: int
) -> Iterator[list[ScoredResponse]]:
    from tinyllm_bench.generation.vllm import EngineOptions, VllmEngine

    spec = cell.signal
    assert spec is not None
    folder = spec_folder(spec, runs=cell.runs)
    if folder is None or spec.layers is not None or spec.adapter is not None:
        raise UserError(
            f"teacher.cache.engine=vllm: {spec.text} is not a whole model folder; use teacher.cache.engine=hf"
        )
    options = EngineOptions(dtype=cell.config.teacher.dtype, top_k=k)
    with VllmEngine(folder, options, batch=64, advice="use teacher.cache.engine=hf") as engine:
        responses = [(item.prompt, item.target) for item in items]
        for item, rows in zip(items, engine.score(responses), strict=True):
            yield [ScoredResponse(item.record_id, item.prompt, item.target, rows)]


# --- validation during training ---------------------------------------------------------------------------------------


def _gold_groups(cell: Cell, loaded: Loaded) -> list[Group]:
    """The gold answers to the validation questions, as the label channel has them."""
    encoder, ask = encoder_of(cell, loaded), cell.ask
    return [
        Group(record.id, (encoder.encode(ask.example(record, LABEL, ask.label_target(record))),))
        for record in cell.truncated_records("valid")
    ]


def _validator(cell: Cell, loaded: Loaded, gold: Sequence[Group]) -> Callable[[LM], ValidationScore]:
    """Scores a student on the cell's validation questions; with `train.select=loss` also by its loss on `gold`.

    A student of a method that samples its answers is scored by one greedy text of each channel.
    """
    if cell.samples_answers:
        return _sampling_validator(cell, loaded)
    from tinyllm_bench.evaluation.lm_eval_models import hf_lm  # lm-eval takes seconds

    config = cell.config
    split: Split = "test" if cell.select_on_test else "valid"
    records = cell.truncated_records(split)
    request = cell.eval_request(split, [record.id for record in records])

    def validate(student: LM) -> ValidationScore:
        lm = hf_lm(
            student.hf_model,
            loaded.tokenizer,
            batch_size=config.eval.batch_size,
            device=str(next(student.parameters()).device),
            add_bos=needs_bos(loaded.model, loaded.tokenizer) or None,
            layout=config.eval.layout,
            cut_tokens=config.data.cut_tokens,
        )
        result = score(evaluate(lm, request), records)
        loss = gold_loss(student, loaded, gold) if config.train.select == "loss" else None
        return ValidationScore(result.accuracy, result.gold_probability, result.n, loss)

    return validate


def _sampling_validator(cell: Cell, loaded: Loaded) -> Callable[[LM], ValidationScore]:
    records = cell.truncated_records("valid")
    decoding = cell.decoding_config(cell.program_layout(), greedy=True)

    def validate(student: LM) -> ValidationScore:
        from tinyllm_bench.generation.hf import HfSampler

        generate = dict.fromkeys(decoding.channels, HfSampler(Loaded(student.hf_model, loaded.tokenizer)).generate)
        with Sandbox() as sandbox:
            predictions = sample_answers(records, cell.ask, generate, decoding, sandbox)
        return ValidationScore(sum(p.correct for p in predictions) / len(predictions), None, len(predictions))

    return validate


def gold_loss(student: LM, loaded: Loaded, gold: Sequence[Group], *, max_tokens: int = 4096) -> float:
    """Token mean of the cross-entropy on the gold answers, in nats, their end tokens included."""
    collator = collator_of(loaded.model, loaded.tokenizer)
    device = next(student.parameters()).device
    rows = [collator.rows(group.items) for group in gold]
    total = sum(
        float(sum(channel_cross_entropy(collator.collate(micro).to(device), student).values()))
        for micro in micro_batches(rows, max_tokens=max_tokens, keep_groups=False, pack=False)
    )
    return total / sum(len(item.target) for group in gold for item in group.items)
