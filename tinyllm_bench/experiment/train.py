"""Stage 2: train the cell's student by the cell's method, to the cell's budget."""

from collections.abc import Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base import provenance
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import Report
from tinyllm_bench.base.files import write_json
from tinyllm_bench.data.records import Annotation
from tinyllm_bench.experiment.cached_logits import fill
from tinyllm_bench.experiment.cell import Cell, device_of
from tinyllm_bench.experiment.cell_teachers import open_teacher_model
from tinyllm_bench.experiment.plain_text import with_plain_text
from tinyllm_bench.experiment.validate import PROBED, encoder_of, gold_groups, validator
from tinyllm_bench.experiment.verified_texts import fit_programs
from tinyllm_bench.models.adapters import add_adapters, save_adapter
from tinyllm_bench.models.files import file_digest, model_files
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import (
    Loaded,
    is_encoder_decoder,
    load_model,
    parameter_count,
    save_model,
    tokenizer_digest,
    weights_digest,
)
from tinyllm_bench.training.batching import Collator, Group, choose_layout, collator_of
from tinyllm_bench.training.budget import Limit, Plan, make_plan
from tinyllm_bench.training.checkpoint import remove_checkpoints, seed_everything
from tinyllm_bench.training.method import TeacherSignal
from tinyllm_bench.training.result import RESULT_FILE, TrainResult, load_result, save_result
from tinyllm_bench.training.teacher_signals import CachedTeacher
from tinyllm_bench.training.trainer import Trainer

if TYPE_CHECKING:
    from peft import PeftModel


def train(cell: Cell, folder: Path, annotations: Sequence[Annotation], *, report: Report) -> TrainResult:
    """Train, save `student/` and `train/result.json`; a finished training is read back, an interrupted one resumes."""
    from accelerate import PartialState

    if (folder / RESULT_FILE).exists():
        remove_checkpoints(folder / "train")  # a crash between the result and its tidying left them
        return load_result(folder)
    assert cell.method is not None
    device = device_of(cell)
    loaded = load_model(cell.student, dtype=cell.config.student.dtype, device=device, runs=cell.runs)
    # of the model as it is loaded: training and adapters change what it says of itself
    initial_digest, parameters = weights_digest(loaded.model), parameter_count(loaded.model)
    architecture, encoder_decoder = type(loaded.model).__name__, bool(loaded.model.config.is_encoder_decoder)
    seed_everything(cell.seed)
    annotations, dropped = fit_programs(cell, loaded, annotations)
    lm = LM(adapted(cell, loaded))
    lm.check()
    groups = encode_groups(cell, loaded, annotations)
    plan = plan_of(cell, groups, init_cost(cell.student_from, cell.runs, cell.config.budget.limit[0]))
    signal = _signal(cell, groups, loaded, device, report)
    collator, reason = collator_for(cell, lm, loaded, signal)
    write_json(folder / "plan.json", plan_facts(cell, plan, groups))
    summary = trainer_of(cell, folder / "train", lm, loaded, groups, plan, collator, signal, report).run()
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
        layout_reason=reason,
        targets_cut=sum(item.cut for group in groups for item in group.items),
        targets_dropped=dropped,
        epochs=round(summary.records / (cell.method.inner_epochs * len(groups)), 4),
        peak_memory_bytes=provenance.peak_memory(),
    )
    state = PartialState()
    if state.is_main_process:
        save_model(student, folder / "student")
        files = model_files(str(folder / "student"), folder / "student")
        save_result(replace(result, student_files={name: file_digest(file) for name, file in files.items()}), folder)
        remove_checkpoints(folder / "train")
    state.wait_for_everyone()
    return result


def encode_groups(cell: Cell, loaded: Loaded, annotations: Sequence[Annotation]) -> list[Group]:
    """Every training record's examples as ids, in the order of records, and plain text where the method learns it.

    Raises:
        UserError: a prompt longer than the student reads.
    """
    assert cell.method is not None
    encoder = encoder_of(cell, loaded)
    by_record: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        if annotation.rejected is None:
            by_record.setdefault(annotation.record_id, []).append(annotation)
    groups = []
    for record in cell.asked_records("train"):
        examples = cell.method.examples(record, by_record.get(record.id, []), cell.ask)
        groups.append(Group(record.id, tuple(encoder.encode(example) for example in examples)))
    groups = [group for group in groups if group.items]
    if cell.method.shuffles_examples:
        groups = [group._replace(items=(item,)) for group in groups for item in group.items]
    return with_plain_text(cell, groups, loaded.tokenizer, encoder_decoder=encoder.encoder_decoder)


def _signal(cell: Cell, groups: Sequence[Group], loaded: Loaded, device: str, report: Report) -> TeacherSignal | None:
    """The cell's white-box teacher, in memory or from a cache that is filled first."""
    if cell.signal is None:
        return None
    if cell.config.teacher.cache is None:
        return open_teacher_model(cell, loaded, device)
    return CachedTeacher(fill(cell, groups, loaded, device, report=report))


def collator_for(cell: Cell, lm: LM, loaded: Loaded, signal: TeacherSignal | None) -> tuple[Collator, str | None]:
    """The collator in the layout that student and teacher take, and why that is not the shared one.

    Raises:
        UserError: FlexAttention without a GPU, or a layout that the student cannot take.
    """
    asked = cell.config.train
    if asked.attention == "flex":
        if device_of(cell) == "cpu":
            raise UserError("train.attention=flex needs a GPU; use train.attention=sdpa")
        lm.plain.set_attn_implementation("flex_attention")
    collator = collator_of(loaded.model, loaded.tokenizer)
    samples = cell.method is not None and cell.method.is_on_policy  # and is trained without dropout
    layout, reason = choose_layout(lm, collator, asked.layout, training=not samples)
    if signal is not None and signal.lm is not None and layout == "shared":
        layout, reason = choose_layout(signal.lm, collator, asked.layout, training=False)
        reason = reason and f"the teacher: {reason}"
    return replace(collator, layout=layout), reason


def plan_of(cell: Cell, groups: Sequence[Group], charged: float) -> Plan:
    """The cell's training plan; `charged` is what making the initial student took, in the budget's unit.

    Raises:
        UserError: nothing is left of the budget, or FLOPs of a student for which they cannot be estimated.
    """
    method = cell.method
    assert method is not None
    name, amount = _left(cell, charged)
    limit, fixed = None, {}
    if name == "student_tokens" and not method.is_on_policy:
        fixed = {"student_tokens": round(amount)}
    elif name in ("student_tokens", "flops", "seconds"):
        limit = Limit(name, amount)  # type: ignore[arg-type]
    return make_plan(
        groups,
        batch_records=cell.config.train.batch_records,
        seed=cell.seed,
        epochs=amount if name == "epochs" else None,
        limit=limit,
        group_size=method.group_size,
        inner_epochs=method.inner_epochs,
        **fixed,
    )


def _left(cell: Cell, charged: float) -> tuple[str, float]:
    """The budget that is set and what is left of it: what making the initial student took is charged."""
    name, amount = cell.config.budget.limit
    if name == "flops" and is_encoder_decoder(cell.student, runs=cell.runs):
        raise UserError("budget.flops: the estimate does not hold for an encoder-decoder; set budget.student_tokens")
    left = amount if name == "epochs" else amount - cell.share * charged
    if left <= 0:
        raise UserError(
            f"budget.{name}={amount:g}: making the initial student (student.init) took {amount - left:g} already;"
            " raise the budget, or lower student.init.epochs"
        )
    return name, left


def init_cost(first: Cell | None, runs: Path, name: str = "student_tokens") -> float:
    """What a cell spent that makes a model for another, in student tokens, epochs, FLOPs or seconds; 0 without one."""
    return 0 if first is None else getattr(load_result(runs / first.run_id), name)


def plan_facts(cell: Cell, plan: Plan, groups: Sequence[Group]) -> dict[str, Any]:
    """The plan in numbers, for people; None where they are known only when it is done."""
    return {
        "records": len(groups),
        "steps": plan.steps or None,
        "student_tokens": plan.tokens or None,
        "asked": cell.config.budget.model_dump(exclude_none=True),
        "epochs": round(plan.epochs, 4) or None,
        "tokens_per_epoch": sum(group.tokens for group in groups),
        "targets_cut": sum(item.cut for group in groups for item in group.items),
    }


def trainer_of(
    cell: Cell,
    folder: Path,
    lm: LM,
    loaded: Loaded,
    groups: Sequence[Group],
    plan: Plan,
    collator: Collator,
    signal: TeacherSignal | None,
    report: Report,
) -> Trainer:
    """The trainer of a cell; it keeps its files in `folder`."""
    gold = gold_groups(cell, loaded)
    assert cell.method is not None
    return Trainer(
        lm,
        cell.method,
        groups,
        plan,
        collator,
        cell.config.train,
        folder=folder,
        seed=cell.seed,
        validate=validator(cell, loaded, gold),
        teacher=signal,
        probed=gold[:PROBED],
        report=report,
        cpu=device_of(cell) == "cpu",
    )


def adapted(cell: Cell, loaded: Loaded) -> Any:
    """The model that is trained: the student itself, or with adapters in its layers."""
    lora = cell.config.student.lora
    if lora is None:
        return loaded.model
    return add_adapters(loaded.model, **lora.model_dump())


def _merged(lm: LM, kept: Path) -> Any:
    """The plain student: adapters are merged, because lm-eval and vLLM score adapters wrongly in places.

    A copy of the adapters alone stays in `kept`.
    """
    from accelerate import PartialState

    wrapped: PeftModel | Any = lm.model
    if not hasattr(wrapped, "merge_and_unload"):
        return wrapped
    if PartialState().is_main_process:
        save_adapter(wrapped, kept)
    return wrapped.merge_and_unload()
