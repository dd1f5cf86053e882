"""What every method promises, on a tiny random student of either family; a fake third party's method is among them."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.learning import (
    METHODS,
    SETTINGS,
    TEACHERS,
    assert_close,
    gradients,
    make_groups,
    make_method,
    make_signal,
    make_trainer,
    run,
    sample_annotations,
    sample_records,
)
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.learn.batching import Collator, Group
from tinyllm_bench.learn.method import Step, Term
from tinyllm_bench.models.lm import LM
from tinyllm_bench.report.record import load_record

methods = pytest.mark.parametrize("name", METHODS)
families = pytest.mark.parametrize("family", ["tiny_llama", "tiny_t5"])


def double(fixture: str, request: pytest.FixtureRequest) -> tuple[Any, Any, bool]:
    model, tokenizer = request.getfixturevalue(fixture)
    return model.double(), tokenizer, bool(model.config.is_encoder_decoder)


@methods
@pytest.mark.parametrize("reading", ["gen", "mc", "cloze"])
def test_examples_are_deterministic_and_do_not_leak_the_answer(name: str, reading: Any) -> None:
    method, ask = make_method(name), Ask(reading=reading)
    said = sample_annotations(method)
    for record in sample_records(24):
        given = said.get(record.id, [])
        examples = method.examples(record, given, ask)
        assert examples == method.examples(record, given, ask)
        assert all(e.record_id == record.id and e.target for e in examples)
        other = dataclasses.replace(record, answer=(record.answer + 1) % len(record.choices))
        changed = method.examples(other, given, ask)
        assert [(e.channel, e.context, e.marker) for e in examples] == [
            (e.channel, e.context, e.marker) for e in changed
        ]


@methods
@families
def test_training_lowers_the_loss_and_moves_every_parameter(
    name: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model, tokenizer = request.getfixturevalue(family)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    groups = make_groups(make_method(name), tokenizer, encoder_decoder=model.config.is_encoder_decoder)
    plan_epochs = {"learning_rate": 3e-3, "batch_records": 8}
    from tinyllm_bench.learn.budget import make_plan

    plan = make_plan(groups, batch_records=8, seed=0, epochs=30)
    trained, after = run(make_trainer(model, tokenizer, make_method(name), groups, tmp_path, plan=plan, **plan_epochs))
    assert trained.steps == 30
    assert trained.last_loss < 0.8 * trained.first_loss
    used = {i for g in groups for item in g.items for i in (*item.prompt, *item.target)}
    still = [k.removeprefix("model.") for k in after if torch.equal(after[k], before[k.removeprefix("model.")])]
    assert not still, still
    assert used


@methods
@families
def test_micro_batches_do_not_change_the_gradient(
    name: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    found = []
    for limit in (10**6, 1):
        model, tokenizer, encoder_decoder = double(family, request)
        model.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
        groups = make_groups(make_method(name), tokenizer, encoder_decoder=encoder_decoder)
        trainer = make_trainer(
            model, tokenizer, make_method(name), groups, tmp_path / str(limit), micro_batch_tokens=limit
        )
        found.append(gradients(trainer))
        model.zero_grad()
    assert_close(*found, rtol=1e-9)


@methods
@families
@pytest.mark.parametrize("how", ["one micro-batch", "many", "lora", "gradient checkpointing"])
def test_sharing_prompts_changes_neither_loss_nor_gradient(
    name: str, family: str, how: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In float64, but for Llama's norms (float32 inside); rows differ in length, so that padding is in it."""
    from peft import LoraConfig, get_peft_model

    ask = Ask(reading="mc", markers={"again": "\nAnswer:"})  # the fake method's two channels have one prompt
    losses, found, computed = [], [], []
    for layout in ("separate", "shared"):
        model, tokenizer, encoder_decoder = double(family, request)
        groups = make_groups(make_method(name), tokenizer, encoder_decoder=encoder_decoder, ask=ask)
        student = model
        if how == "lora":
            torch.manual_seed(0)
            student = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
        trainer = make_trainer(
            student,
            tokenizer,
            make_method(name),
            groups,
            tmp_path / layout,
            layout=layout,  # type: ignore[arg-type]
            micro_batch_tokens=400 if how == "many" else 10**6,
            gradient_checkpointing=how == "gradient checkpointing",
        )
        found.append(gradients(trainer))
        losses.append(trainer.state.losses[0])
        computed.append(trainer.state.computed_tokens)
        model.zero_grad()
        if how == "lora":
            student.unload()
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert_close(*found, rtol=1e-5)
    shares = any(
        a.prompt == b.prompt or not encoder_decoder for g in groups for a in g.items for b in g.items if a != b
    )
    assert (computed[1] < computed[0]) == shares


def terms_of(model: Any, method: Any, collator: Collator, groups: list[Group]) -> dict[str, torch.Tensor]:
    items = [item for group in groups for item in group.items]
    batch = collator.collate(collator.rows(items))
    tokens = dict.fromkeys(batch.channels, 1)
    step = Step(index=0, total=1, tokens=tokens, all_reduce=lambda t: t, seed_of=hash)
    terms: list[Term] = method.loss(batch, LM(model), make_signal(method, model), step)
    return {term.channel: term.sum for term in terms}


@methods
@families
def test_padding_does_not_change_the_loss(name: str, family: str, request: pytest.FixtureRequest) -> None:
    model, tokenizer, encoder_decoder = double(family, request)
    method = make_method(name)
    groups = make_groups(method, tokenizer, encoder_decoder=encoder_decoder)
    start = getattr(model.config, "decoder_start_token_id", None)
    collator = Collator(encoder_decoder=encoder_decoder, pad_id=tokenizer.pad_token_id, decoder_start_id=start)
    alone = [terms_of(model, method, collator, [group]) for group in groups]
    together = terms_of(model, method, collator, groups)
    for channel, total in together.items():
        torch.testing.assert_close(total, sum(t[channel] for t in alone if channel in t), rtol=1e-10, atol=1e-10)


@methods
def test_a_channel_without_tokens_is_no_nan(name: str, tiny_llama: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = tiny_llama
    method = make_method(name)
    bare = make_groups(method, tokenizer)
    (first, *_) = [item.channel for group in bare for item in group.items]
    only_one = [Group(g.record_id, tuple(i for i in g.items if i.channel == first)) for g in bare]
    found = gradients(make_trainer(model, tokenizer, method, only_one, tmp_path))
    assert all(torch.isfinite(grad).all() for grad in found.values())


@methods
def test_the_same_seed_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    from tests.tiny_models import tiny_llama as make_llama
    from tinyllm_bench.learn.budget import make_plan

    found = []
    for attempt in range(2):
        model, tokenizer = make_llama()
        groups = make_groups(make_method(name), tokenizer)
        plan = make_plan(groups, batch_records=4, seed=0, epochs=2)
        found.append(run(make_trainer(model, tokenizer, make_method(name), groups, tmp_path / str(attempt), plan=plan)))
    assert found[0][0].last_loss == found[1][0].last_loss
    assert all(torch.equal(found[0][1][key], found[1][1][key]) for key in found[0][1])


@methods
def test_config_and_decoding_are_plain_data(name: str) -> None:
    method = make_method(name)
    text = yaml.safe_dump(method.config.model_dump(mode="json"))
    assert type(method).Config.model_validate(yaml.safe_load(text)) == method.config
    decoding = method.decoding()
    assert json.loads(json.dumps(dataclasses.asdict(decoding)))["channels"] == list(decoding.channels)
    assert type(method).reading_settings <= set(type(method).Config.model_fields)
    with pytest.raises(ValueError, match="no_such_setting"):
        type(method).Config.model_validate({"no_such_setting": 1})


@methods
def test_needs_are_honest(name: str) -> None:
    method = make_method(name)
    if method.needs().annotations or method.needs().signal != "none":
        assert set(method.uses(TEACHERS)) <= set(TEACHERS)
        with pytest.raises(UserError, match="teacher"):
            method.uses(())
        kinds = {e.channel for e in method.examples(sample_records(1)[0], [], Ask(reading="cloze"))}
        assert kinds <= {"label"}, "without annotations only the label can be taught"
    else:
        assert method.uses(TEACHERS) == () and method.uses(()) == ()


@pytest.mark.slow
def test_two_processes_give_the_gradient_and_the_student_of_one(tmp_path: Path) -> None:
    """One pair of processes serves all methods: starting one costs seconds."""
    script = Path(__file__).with_name("two_processes.py")
    environment = {
        **os.environ,
        "PYTHONPATH": str(script.parent.parent),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }
    for count in (1, 2):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)),
                *("--master-port", str(29500 + os.getpid() % 1000), str(script), str(tmp_path / str(count))),
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    for name in METHODS:
        one, two = (load_file(tmp_path / str(count) / f"{name}.safetensors") for count in (1, 2))
        assert_close(one, two, rtol=1e-5)  # two processes share prompts as well
    records = [load_record(next((tmp_path / str(count) / "runs").glob("*/run.json"))) for count in (1, 2)]
    assert [r.training.steps for r in records if r.training] == [2, 2]
    assert records[0].run_id == records[1].run_id and records[0].budget and records[1].budget
    assert records[0].budget.student_tokens == records[1].budget.student_tokens
    weights = [load_file(next((tmp_path / str(n) / "runs").glob("*/student/*.safetensors"))) for n in (1, 2)]
    assert_close(*weights, rtol=1e-3)


def test_settings_of_the_contract_name_real_methods() -> None:
    assert set(SETTINGS) <= set(METHODS)
