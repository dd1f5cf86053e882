"""Shared helpers for tests of training: a method on sample questions with a tiny student, in the real trainer."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tinyllm_bench.base.config import parse_yaml
from tinyllm_bench.base.plugins import load_method
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.data.sources import Source, load_rationales, load_split
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoder
from tinyllm_bench.testing.tiny_models import tiny_llama, tiny_t5
from tinyllm_bench.training.batching import Group, collator_of
from tinyllm_bench.training.budget import Plan, make_plan
from tinyllm_bench.training.method import Method, Step, Term
from tinyllm_bench.training.result import TrainingSummary, ValidationScore
from tinyllm_bench.training.settings import Layout, TrainConfig
from tinyllm_bench.training.teacher_signals import InMemoryTeacher
from tinyllm_bench.training.trainer import Trainer

SAMPLE = Source("sample")
TEACHERS = ("terse", "stepwise")
# Settings that keep tests short, for methods that have them: one teacher, short sampled texts, small rounds.
QUICK: Mapping[str, Any] = {"teacher": TEACHERS[0], "max_new_tokens": 12, "group_size": 1, "inner_epochs": 1}


def make_method(method: str | type[Method], **settings: Any) -> Method:
    """A method, by its name or its class, with the settings that keep tests short, and others."""
    method_class: type[Method] = load_method(method) if isinstance(method, str) else method
    quick = {name: value for name, value in QUICK.items() if name in method_class.Config.model_fields}
    return method_class(method_class.Config(**{**quick, **settings}))


@functools.cache
def sample_task() -> str:
    """The task on whose sample tests train."""
    text = (files("tinyllm_bench.testing") / "sample.yaml").read_text(encoding="utf-8")
    return str(parse_yaml(text, "sample.yaml")["task"])


def sample_records(count: int = 8, task: str | None = None) -> tuple[TaskRecord, ...]:
    """Training records of the sample."""
    return load_split(SAMPLE, task or sample_task(), "train")[:count]


def make_signal(method: Method, like: Any) -> InMemoryTeacher | None:
    """A random teacher of the family and precision of the student `like`; None unless the method needs one."""
    if method.needs().signal == "none":
        return None
    model, _ = (tiny_t5 if like.config.is_encoder_decoder else tiny_llama)(seed=1)
    return InMemoryTeacher(LM(model.to(like.dtype)))


def sample_annotations(method: Method, task: str | None = None) -> dict[str, list[Annotation]]:
    """Annotations of the kinds and teachers that a method needs, by record id; all are recorded rationales."""
    annotations: dict[str, list[Annotation]] = {}
    for kind in method.needs().annotations:
        for teacher in method.uses(TEACHERS):
            for record_id, text in load_rationales(SAMPLE, task or sample_task(), "train", teacher).items():
                annotation = Annotation(record_id=record_id, teacher=teacher, kind=kind, text=text)
                annotations.setdefault(record_id, []).append(annotation)
    return annotations


def make_groups(
    method: Method, tokenizer: Any, *, encoder_decoder: bool = False, count: int = 8, ask: Ask | None = None
) -> list[Group]:
    """The encoded examples of sample records."""
    ask = ask or Ask(mode="cloze")
    encoder = Encoder(
        tokenizer,
        ask,
        encoder_decoder=encoder_decoder,
        add_bos=False,
        max_prompt_tokens=1500,
        max_target_tokens=256,
    )
    annotations = sample_annotations(method)
    groups = []
    for record in sample_records(count):
        examples = method.examples(record, annotations.get(record.id, []), ask)
        groups.append(Group(record.id, tuple(encoder.encode(example) for example in examples)))
    return groups


def loss_terms(method: str | type[Method], *, count: int = 2, **settings: Any) -> list[Term]:
    """The loss terms of a method on a few sample questions, with a tiny random student and teacher."""
    model, tokenizer = tiny_llama()
    instance = make_method(method, **settings)
    collator = collator_of(model, tokenizer)
    items = [item for group in make_groups(instance, tokenizer, count=count) for item in group.items]
    step = Step(index=0, total=1, tokens={}, all_reduce=lambda tensor: tensor, seed_of=hash)
    return instance.loss(collator.collate(collator.rows(items)), LM(model), make_signal(instance, model), step)


def make_trainer(
    model: Any,
    tokenizer: Any,
    method: Method,
    groups: Sequence[Group],
    folder: Path,
    *,
    plan: Plan | None = None,
    validate: Any = None,
    seed: int = 0,
    layout: Layout = "separate",
    **config: Any,
) -> Trainer:
    """The real trainer; by default one step over all groups."""
    lm = LM(model)
    settings = {"batch_records": len(groups), "max_grad_norm": 1e9, "evaluations": (), **config}
    plan = plan or make_plan(groups, batch_records=settings["batch_records"], seed=0, epochs=1)
    collator = replace(collator_of(lm.hf_model, tokenizer), layout=layout)
    return Trainer(
        lm,
        method,
        groups,
        plan,
        collator,
        TrainConfig(**settings),
        folder=folder,
        seed=seed,
        validate=validate or (lambda lm: ValidationScore(0.0, 0.0, 1)),
        teacher=make_signal(method, lm.hf_model),
    )


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """The gradients with which a one-step trainer calls its optimiser; the step itself is not taken."""
    gradient_of: dict[str, Tensor] = {}

    def store_gradients(*_: Any, **__: Any) -> None:
        for name, parameter in trainer.module.named_parameters():
            if parameter.grad is not None:
                gradient_of[name] = parameter.grad.detach().clone()

    trainer.optimizer.step = store_gradients
    trainer.run()
    return gradient_of


def run(trainer: Trainer) -> tuple[TrainingSummary, dict[str, Tensor]]:
    """Train and return the summary with the final parameters."""
    summary = trainer.run()
    return summary, {name: parameter.detach().clone() for name, parameter in trainer.module.named_parameters()}


def assert_close(first: Mapping[str, Tensor], second: Mapping[str, Tensor], rtol: float) -> None:
    """Assert that both have the same tensors, up to a tolerance relative to the largest entry of each."""
    assert first.keys() == second.keys() and first
    for name in first:
        scale = float(first[name].abs().max()) or 1.0
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=rtol * scale, msg=name)
