"""Stage 2: train the cell's student by the cell's method, to the cell's budget."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base import provenance
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import read_json, write_json
from tinyllm_bench.data.records import Annotation
from tinyllm_bench.evaluate.asking import Asked
from tinyllm_bench.evaluate.hf import hf_lm
from tinyllm_bench.evaluate.runner import answer
from tinyllm_bench.evaluate.scoring import score
from tinyllm_bench.learn.batching import Collator, Group, collator_of
from tinyllm_bench.learn.budget import Plan, make_plan
from tinyllm_bench.learn.checkpoint import remove_checkpoints
from tinyllm_bench.learn.sharing import choose_layout
from tinyllm_bench.learn.signals import InMemoryTeacher, check_same_family
from tinyllm_bench.learn.trainer import Trained, Trainer, seed_everything
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import (
    Loaded,
    load_model,
    max_input_tokens,
    needs_bos,
    parameter_count,
    save_model,
    tokenizer_digest,
    weights_digest,
)
from tinyllm_bench.models.tokens import Encoder
from tinyllm_bench.pipeline.annotate import Report
from tinyllm_bench.pipeline.cells import Cell
from tinyllm_bench.pipeline.white_box import open_white_box

if TYPE_CHECKING:
    from peft import PeftModel


def train(cell: Cell, folder: Path, annotations: Sequence[Annotation], *, report: Report) -> dict[str, Any]:
    """Train, save `student/` and `train/result.json`; a finished training is read back, an interrupted one goes on."""
    done = folder / "train" / "result.json"
    if done.exists():
        remove_checkpoints(folder / "train")  # a crash between the result and its tidying left them
        return read_json(done)
    device = device_of(cell)
    loaded = load_model(cell.student, dtype=cell.config.student.dtype, device=device, runs=cell.runs)
    facts = {
        "initial_digest": weights_digest(loaded.model),
        "tokenizer_digest": tokenizer_digest(loaded.tokenizer),
        "architecture": type(loaded.model).__name__,
        "parameters": parameter_count(loaded.model),
        "encoder_decoder": bool(loaded.model.config.is_encoder_decoder),
    }
    seed_everything(cell.seed)
    lm = LM(_adapted(cell, loaded))
    lm.check()
    groups = encode_groups(cell, loaded, annotations)
    plan = plan_of(cell, groups)
    signal = open_white_box(cell, loaded.tokenizer, device)
    collator, reason = _collator(cell, lm, loaded, signal)
    write_json(folder / "plan.json", plan_facts(cell, plan, groups))
    trained = _trainer(cell, folder, lm, loaded, groups, plan, collator, signal, report).run()
    student = Loaded(_merged(lm), loaded.tokenizer)
    made = {"student_digest": weights_digest(student.model), "peak_memory_bytes": provenance.peak_memory()}
    facts |= {"layout": collator.layout, "layout_reason": reason}
    result = {**facts, **_facts(trained, plan, groups), **made}
    _finish(folder, student, result)
    return result


def _finish(folder: Path, student: Loaded, result: dict[str, Any]) -> None:
    from accelerate import PartialState

    state = PartialState()
    if state.is_main_process:
        save_model(student, folder / "student")
        write_json(folder / "train" / "result.json", result)
        remove_checkpoints(folder / "train")
    state.wait_for_everyone()


def device_of(cell: Cell) -> str:
    """The device that the settings mean; `auto` takes an accelerator where there is one."""
    import torch

    asked = cell.config.backend.device
    return ("cuda" if torch.cuda.is_available() else "cpu") if asked == "auto" else asked


def encode_groups(cell: Cell, loaded: Loaded, annotations: Sequence[Annotation]) -> list[Group]:
    """Every training record's examples as ids, in the order of records.

    Raises:
        UserError: a prompt longer than the student reads.
    """
    assert cell.method is not None
    config = cell.config
    encoder_decoder = bool(loaded.model.config.is_encoder_decoder)
    room = max_input_tokens(loaded.model, loaded.tokenizer)
    encoder = Encoder(
        loaded.tokenizer,
        cell.ask,
        encoder_decoder=encoder_decoder,
        add_bos=needs_bos(loaded.model, loaded.tokenizer),
        max_prompt_tokens=room if encoder_decoder else room - config.train.max_target_tokens,
        max_target_tokens=config.train.max_target_tokens,
    )
    said: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        if annotation.rejected is None:
            said.setdefault(annotation.record_id, []).append(annotation)
    groups = []
    for record in cell.asked_records("train"):
        examples = cell.method.examples(record, said.get(record.id, []), cell.ask)
        groups.append(Group(record.id, tuple(encoder.encode(example) for example in examples)))
    return [group for group in groups if group.items]


def _collator(cell: Cell, lm: LM, loaded: Loaded, signal: InMemoryTeacher | None) -> tuple[Collator, str | None]:
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
    layout, reason = choose_layout(lm, collator, asked.layout, training=True)
    if signal is not None:
        check_same_family(lm, signal.lm)
        if layout == "shared":
            layout, reason = choose_layout(signal.lm, collator, asked.layout, training=False)
            reason = reason and f"the teacher: {reason}"
    return replace(collator, layout=layout), reason


def plan_of(cell: Cell, groups: Sequence[Group]) -> Plan:
    """The cell's training plan."""
    assert cell.method is not None
    budget = cell.config.budget
    return make_plan(
        groups,
        batch_records=cell.config.train.batch_records,
        seed=cell.seed,
        student_tokens=budget.student_tokens,
        epochs=budget.epochs,
        group_size=cell.method.group_size,
        inner_epochs=cell.method.inner_epochs,
    )


def plan_facts(cell: Cell, plan: Plan, groups: Sequence[Group]) -> dict[str, Any]:
    """The plan in numbers, for people."""
    return {
        "records": len(groups),
        "steps": plan.steps,
        "student_tokens": plan.tokens,
        "asked_student_tokens": cell.config.budget.student_tokens,
        "epochs": round(plan.epochs, 4),
        "tokens_per_epoch": sum(group.tokens for group in groups),
        "targets_cut": sum(item.cut for group in groups for item in group.items),
    }


def _trainer(
    cell: Cell,
    folder: Path,
    lm: LM,
    loaded: Loaded,
    groups: Sequence[Group],
    plan: Plan,
    collator: Collator,
    signal: InMemoryTeacher | None,
    report: Report,
) -> Trainer:
    config = cell.config
    valid = cell.asked_records("valid")
    asked = asked_of(cell, "valid", [record.id for record in valid])

    def validate(student: LM) -> tuple[float, float | None, int]:
        device = str(next(student.parameters()).device)
        bos = needs_bos(loaded.model, loaded.tokenizer) or None
        size, layout = config.eval.batch_size, config.eval.layout
        asker = hf_lm(student.plain, loaded.tokenizer, batch_size=size, device=device, add_bos=bos, layout=layout)
        found = score(answer(asker, asked), valid)
        return found.accuracy, found.gold_probability, found.n

    assert cell.method is not None
    return Trainer(
        lm,
        cell.method,
        groups,
        plan,
        collator,
        config.train,
        folder=folder / "train",
        seed=cell.seed,
        validate=validate,
        teacher=signal,
        report=report,
        cpu=device_of(cell) == "cpu",
    )


def asked_of(cell: Cell, split: Any, ids: Sequence[str], *, shots: int = 0, chat: bool = False) -> Asked:
    """How the cell's records of a split are asked."""
    config = cell.config
    return Asked(
        task=cell.task.name,
        reading=cell.reading,
        split=split,
        ids=tuple(ids),
        source=cell.source,
        max_context_words=config.data.max_context_words,
        style=config.data.style,
        markers=config.data.markers,
        shots=shots,
        shot_max_words=config.eval.shot_max_words,
        chat=chat,
        max_new_tokens=config.eval.max_new_tokens,
    )


def _adapted(cell: Cell, loaded: Loaded) -> Any:
    lora = cell.config.student.lora
    if lora is None:
        return loaded.model
    from peft import LoraConfig, TaskType, get_peft_model

    kind = TaskType.SEQ_2_SEQ_LM if loaded.model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=kind,
    )
    return get_peft_model(loaded.model, settings)


def _merged(lm: LM) -> Any:
    """The plain student: adapters are merged, because lm-eval and vLLM score adapters wrongly in places."""
    wrapped: PeftModel | Any = lm.model
    return wrapped.merge_and_unload() if hasattr(wrapped, "merge_and_unload") else wrapped


def _facts(trained: Trained, plan: Plan, groups: Sequence[Group]) -> dict[str, Any]:
    return {
        "steps": trained.steps,
        "student_tokens": trained.tokens,
        "computed_tokens": trained.computed_tokens,
        "tokens_by_channel": dict(sorted(trained.tokens_by_channel.items())),
        "epochs": round(plan.epochs, 4),
        "first_loss": trained.first_loss,
        "last_loss": trained.last_loss,
        "looks": [{**look._asdict(), "selected": look.step == trained.selected_step} for look in trained.looks],
        "seconds": round(trained.seconds, 2),
        "targets_cut": sum(item.cut for group in groups for item in group.items),
    }
