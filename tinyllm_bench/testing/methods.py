"""What every method promises, on a tiny random student of either family; subclass `MethodContract` to test yours."""

import dataclasses
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import count_by_channel
from tinyllm_bench.testing.tiny_models import tiny_llama, tiny_t5
from tinyllm_bench.testing.training import (
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
from tinyllm_bench.training.batching import Collator, Group, collator_of
from tinyllm_bench.training.budget import make_plan
from tinyllm_bench.training.method import Method, Step, Term

FAMILIES = {"decoder-only": tiny_llama, "encoder-decoder": tiny_t5}
families = pytest.mark.parametrize("family", FAMILIES)


class MethodContract:
    """The tests; a subclass names the method.

    method: its registered name or its class; settings: those it needs beside its defaults; ask: the prompts of the
    test that shares them between the examples of a question.
    """

    method: ClassVar[str | type[Method]]
    settings: ClassVar[Mapping[str, Any]] = {}
    ask: ClassVar[Ask] = Ask(mode="multiple_choice")

    def make(self) -> Method:
        """A fresh method with its settings."""
        return make_method(self.method, **self.settings)

    @pytest.fixture(autouse=True)
    def _seeded(self) -> None:
        random.seed(0)
        torch.manual_seed(0)

    @pytest.mark.parametrize("mode", ["generate", "multiple_choice", "cloze"])
    def test_examples_are_deterministic_and_do_not_leak_the_answer(self, mode: Any) -> None:
        """Another right answer changes targets, never what the student reads."""
        method, ask = self.make(), Ask(mode=mode)
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

    def test_a_text_that_was_cut_is_taught_without_an_end(self) -> None:
        """An example that closes with a teacher's text ends where that does; what was cut at a limit does not."""
        method, ask = self.make(), Ask(mode="generate")
        said = sample_annotations(method)
        for record in sample_records(8):
            given = said.get(record.id, [])
            cut = [dataclasses.replace(annotation, finish="length") for annotation in given]
            texts = tuple(annotation.text.strip() for annotation in given)
            whole = method.examples(record, given, ask)
            assert all(example.ends for example in whole)
            own = {example.target for example in method.examples(record, [], ask)}  # the label needs no teacher
            for example in method.examples(record, cut, ask):
                assert example.ends != (example.target not in own and example.target.strip().endswith(texts))

    @families
    def test_training_lowers_the_loss_and_moves_every_parameter(self, family: str, tmp_path: Path) -> None:
        """Thirty steps on eight questions."""
        model, tokenizer = FAMILIES[family]()
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        groups = make_groups(self.make(), tokenizer, encoder_decoder=model.config.is_encoder_decoder)
        plan = make_plan(groups, batch_records=8, seed=0, epochs=30)
        trainer = make_trainer(
            model, tokenizer, self.make(), groups, tmp_path, plan=plan, learning_rate=3e-3, batch_records=8
        )
        trained, after = run(trainer)
        assert trained.steps == 30 and trained.first_loss is not None and trained.last_loss is not None
        assert trained.last_loss < 0.8 * trained.first_loss
        still = [k.removeprefix("model.") for k in after if torch.equal(after[k], before[k.removeprefix("model.")])]
        assert not still, still

    @families
    def test_micro_batches_do_not_change_the_gradient(self, family: str, tmp_path: Path) -> None:
        """All questions at once, or one example at a time."""
        found = []
        for limit in (10**6, 1):
            model, tokenizer, encoder_decoder = _double(family)
            groups = make_groups(self.make(), tokenizer, encoder_decoder=encoder_decoder)
            trainer = make_trainer(
                model, tokenizer, self.make(), groups, tmp_path / str(limit), micro_batch_tokens=limit
            )
            found.append(gradients(trainer))
        assert_close(found[0], found[1], rtol=1e-9)

    @families
    @pytest.mark.parametrize("how", ["one micro-batch", "many", "lora", "gradient checkpointing"])
    def test_sharing_prompts_changes_neither_loss_nor_gradient(self, family: str, how: str, tmp_path: Path) -> None:
        """In float64, but for Llama's norms (float32 inside); rows differ in length, so that padding is in it."""
        losses, found, computed = [], [], []
        for layout in ("separate", "shared"):
            model, tokenizer, encoder_decoder = _double(family)
            groups = make_groups(self.make(), tokenizer, encoder_decoder=encoder_decoder, ask=self.ask)
            trainer = make_trainer(
                _with_lora(model) if how == "lora" else model,
                tokenizer,
                self.make(),
                groups,
                tmp_path / layout,
                layout=layout,
                micro_batch_tokens=400 if how == "many" else 10**6,
                gradient_checkpointing=how == "gradient checkpointing",
            )
            found.append(gradients(trainer))
            losses.append(trainer.state.losses[0])
            computed.append(trainer.state.computed_tokens)
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        assert_close(found[0], found[1], rtol=1e-5)
        shares = any(
            a.prompt == b.prompt or not encoder_decoder for g in groups for a in g.items for b in g.items if a != b
        )
        assert (computed[1] < computed[0]) == shares

    @families
    def test_padding_does_not_change_the_loss(self, family: str) -> None:
        """Every question alone, or all in one batch."""
        model, tokenizer, encoder_decoder = _double(family)
        method = self.make()
        groups = make_groups(method, tokenizer, encoder_decoder=encoder_decoder)
        start = getattr(model.config, "decoder_start_token_id", None)
        collator = Collator(encoder_decoder=encoder_decoder, pad_id=tokenizer.pad_token_id, decoder_start_id=start)
        alone = [_terms(model, method, collator, [group]) for group in groups]
        together = _terms(model, method, collator, groups)
        for channel, total in together.items():
            wanted = sum(t[channel] for t in alone if channel in t)
            torch.testing.assert_close(total, wanted, rtol=1e-10, atol=1e-10)

    def test_what_is_taught_has_a_weight(self) -> None:
        """Whatever stands in `examples` is trained and charged: what has the weight 0 is left out there."""
        model, tokenizer = tiny_llama()
        method = self.make()
        items = [item for group in make_groups(method, tokenizer) for item in group.items]
        collator = collator_of(model, tokenizer)
        batch = collator.collate(collator.rows(items))
        step = Step(index=0, total=1, tokens=count_by_channel(items), all_reduce=lambda t: t, seed_of=hash)
        terms = method.loss(batch, LM(model), make_signal(method, model), step)
        assert {term.channel for term in terms if term.weight > 0} == set(batch.channels)

    def test_a_channel_without_tokens_is_no_nan(self, tmp_path: Path) -> None:
        """Where only one of the method's channels has examples, gradients stay finite."""
        model, tokenizer = tiny_llama()
        method = self.make()
        bare = make_groups(method, tokenizer)
        (first, *_) = [item.channel for group in bare for item in group.items]
        only_one = [Group(g.record_id, tuple(i for i in g.items if i.channel == first)) for g in bare]
        found = gradients(make_trainer(model, tokenizer, method, only_one, tmp_path))
        assert all(torch.isfinite(grad).all() for grad in found.values())

    def test_the_same_seed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        """Two trainings of two epochs."""
        found = []
        for attempt in range(2):
            model, tokenizer = tiny_llama()
            groups = make_groups(self.make(), tokenizer)
            plan = make_plan(groups, batch_records=4, seed=0, epochs=2)
            found.append(run(make_trainer(model, tokenizer, self.make(), groups, tmp_path / str(attempt), plan=plan)))
        assert found[0][0].last_loss == found[1][0].last_loss
        assert all(torch.equal(found[0][1][key], found[1][1][key]) for key in found[0][1])

    def test_config_and_decoding_are_plain_data(self) -> None:
        """Settings survive YAML, the decoding survives JSON, and an unknown setting is refused."""
        method = self.make()
        text = yaml.safe_dump(method.config.model_dump(mode="json"))
        assert type(method).Config.model_validate(yaml.safe_load(text)) == method.config
        decoding = method.decoding()
        assert json.loads(json.dumps(dataclasses.asdict(decoding)))["channels"] == list(decoding.channels)
        assert type(method).inference_settings <= set(type(method).Config.model_fields)
        with pytest.raises(ValueError, match="no_such_setting"):
            type(method).Config.model_validate({"no_such_setting": 1})

    def test_needs_are_honest(self) -> None:
        """A method that needs a teacher says so, and without its texts teaches the label alone."""
        method = self.make()
        if method.needs().annotations or method.needs().signal != "none":
            assert set(method.uses(TEACHERS)) <= set(TEACHERS)
            with pytest.raises(UserError, match="teacher"):
                method.uses(())
            kinds = {e.channel for e in method.examples(sample_records(1)[0], [], Ask(mode="cloze"))}
            assert kinds <= {"label"}, "without annotations only the label can be taught"
        else:
            assert method.uses(TEACHERS) == () and method.uses(()) == ()


def method_contract(method: str | type[Method], **settings: Any) -> type[MethodContract]:
    """The contract of one method as a class: `TestMine = method_contract("mine", alpha=0.3)`."""
    name = method if isinstance(method, str) else method.__name__
    return type(f"Test_{name}", (MethodContract,), {"method": method, "settings": settings})


def _double(family: str) -> tuple[Any, Any, bool]:
    model, tokenizer = FAMILIES[family]()
    return model.double(), tokenizer, bool(model.config.is_encoder_decoder)


def _with_lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


def _terms(model: Any, method: Method, collator: Collator, groups: list[Group]) -> dict[str, torch.Tensor]:
    items = [item for group in groups for item in group.items]
    batch = collator.collate(collator.rows(items))
    tokens = dict.fromkeys(batch.channels, 1)
    step = Step(index=0, total=1, tokens=tokens, all_reduce=lambda t: t, seed_of=hash)
    terms: list[Term] = method.loss(batch, LM(model), make_signal(method, model), step)
    return {term.channel: term.sum for term in terms}
