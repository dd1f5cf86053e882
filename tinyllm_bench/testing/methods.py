"""The contract tests of methods, on tiny random students: decoder-only and encoder-decoder.

Subclass `MethodContract` to test your own method.
"""

import dataclasses
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

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
    """The contract; a subclass sets the method.

    method: its registered name or its class; settings: those that differ from its defaults; ask: the prompts for the
    test of shared prompts.
    """

    method: ClassVar[str | type[Method]]
    settings: ClassVar[Mapping[str, Any]] = {}
    ask: ClassVar[Ask] = Ask(mode="multiple_choice")

    def make(self) -> Method:
        """A new instance of the method with its settings."""
        return make_method(self.method, **self.settings)

    @pytest.fixture(autouse=True)
    def _seed(self) -> None:
        random.seed(0)
        torch.manual_seed(0)

    @pytest.mark.parametrize("mode", ["generate", "multiple_choice", "cloze"])
    def test_examples_are_deterministic_and_do_not_leak_the_answer(self, mode: Any) -> None:
        """Another correct answer changes targets, never prompts."""
        method, ask = self.make(), Ask(mode=mode)
        annotations_of = sample_annotations(method)
        for record in sample_records(24):
            annotations = annotations_of.get(record.id, [])
            examples = method.examples(record, annotations, ask)
            assert examples == method.examples(record, annotations, ask)
            assert all(example.record_id == record.id and example.target for example in examples)
            other = dataclasses.replace(record, answer=(record.answer + 1) % len(record.choices))
            changed = method.examples(other, annotations, ask)
            assert [(example.channel, example.context, example.marker) for example in examples] == [
                (example.channel, example.context, example.marker) for example in changed
            ]

    def test_a_truncated_text_is_trained_without_an_end_token(self) -> None:
        """An example that closes with a teacher's text gets an end token only if that text is complete."""
        method, ask = self.make(), Ask(mode="generate")
        annotations_of = sample_annotations(method)
        for record in sample_records(8):
            annotations = annotations_of.get(record.id, [])
            truncated = [dataclasses.replace(annotation, finish="length") for annotation in annotations]
            texts = tuple(annotation.text.strip() for annotation in annotations)
            assert all(example.ends for example in method.examples(record, annotations, ask))
            own = {example.target for example in method.examples(record, [], ask)}  # the label needs no teacher
            for example in method.examples(record, truncated, ask):
                assert example.ends != (example.target not in own and example.target.strip().endswith(texts))

    @families
    def test_training_lowers_the_loss_and_moves_every_parameter(self, family: str, tmp_path: Path) -> None:
        """Thirty steps on eight questions."""
        model, tokenizer = FAMILIES[family]()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        groups = make_groups(self.make(), tokenizer, encoder_decoder=model.config.is_encoder_decoder)
        plan = make_plan(groups, batch_records=8, seed=0, epochs=30)
        trainer = make_trainer(
            model, tokenizer, self.make(), groups, tmp_path, plan=plan, learning_rate=3e-3, batch_records=8
        )
        summary, after = run(trainer)
        assert summary.steps == 30 and summary.first_loss is not None and summary.last_loss is not None
        assert summary.last_loss < 0.8 * summary.first_loss
        after = {name.removeprefix("model."): parameter for name, parameter in after.items()}
        unchanged = [name for name, parameter in after.items() if torch.equal(parameter, before[name])]
        assert not unchanged, unchanged

    @families
    def test_micro_batches_do_not_change_the_gradient(self, family: str, tmp_path: Path) -> None:
        """All questions at once, or one example at a time."""
        gradients_of = []
        for limit in (10**6, 1):
            model, tokenizer, encoder_decoder = _float64_model(family)
            groups = make_groups(self.make(), tokenizer, encoder_decoder=encoder_decoder)
            trainer = make_trainer(
                model, tokenizer, self.make(), groups, tmp_path / str(limit), micro_batch_tokens=limit
            )
            gradients_of.append(gradients(trainer))
        assert_close(gradients_of[0], gradients_of[1], rtol=1e-9)

    @families
    @pytest.mark.parametrize("how", ["one micro-batch", "many", "lora", "gradient checkpointing"])
    def test_sharing_prompts_changes_neither_loss_nor_gradient(self, family: str, how: str, tmp_path: Path) -> None:
        """In float64, except for Llama's norms (float32 inside); rows differ in length, so that there is padding."""
        losses, gradients_of, computed = [], [], []
        for layout in ("separate", "shared"):
            model, tokenizer, encoder_decoder = _float64_model(family)
            groups = make_groups(self.make(), tokenizer, encoder_decoder=encoder_decoder, ask=self.ask)
            if how == "lora":
                torch.manual_seed(0)
                model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
            trainer = make_trainer(
                model,
                tokenizer,
                self.make(),
                groups,
                tmp_path / layout,
                layout=layout,
                micro_batch_tokens=400 if how == "many" else 10**6,
                gradient_checkpointing=how == "gradient checkpointing",
            )
            gradients_of.append(gradients(trainer))
            losses.append(trainer.state.losses[0])
            computed.append(trainer.state.computed_tokens)
        assert losses[1] == pytest.approx(losses[0], rel=1e-6)
        assert_close(gradients_of[0], gradients_of[1], rtol=1e-5)
        shares = any(
            not encoder_decoder or first.prompt == second.prompt
            for group in groups
            for first in group.items
            for second in group.items
            if first != second
        )
        assert (computed[1] < computed[0]) == shares

    @families
    def test_padding_does_not_change_the_loss(self, family: str) -> None:
        """Every question alone, or all in one batch."""
        model, tokenizer, encoder_decoder = _float64_model(family)
        method = self.make()
        groups = make_groups(method, tokenizer, encoder_decoder=encoder_decoder)
        start = getattr(model.config, "decoder_start_token_id", None)
        collator = Collator(encoder_decoder=encoder_decoder, pad_id=tokenizer.pad_token_id, decoder_start_id=start)
        alone = [_loss_sums(model, method, collator, [group]) for group in groups]
        together = _loss_sums(model, method, collator, groups)
        for channel, total in together.items():
            expected = sum(sums[channel] for sums in alone if channel in sums)
            torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)

    def test_every_example_has_a_weight(self) -> None:
        """All of `examples` is trained and charged, so channels with weight 0 must be left out there."""
        model, tokenizer = tiny_llama()
        method = self.make()
        items = [item for group in make_groups(method, tokenizer) for item in group.items]
        collator = collator_of(model, tokenizer)
        batch = collator.collate(collator.rows(items))
        step = Step(index=0, total=1, tokens=count_by_channel(items), all_reduce=lambda tensor: tensor, seed_of=hash)
        terms = method.loss(batch, LM(model), make_signal(method, model), step)
        assert {term.channel for term in terms if term.weight > 0} == set(batch.channels)

    def test_a_channel_without_tokens_is_no_nan(self, tmp_path: Path) -> None:
        """Gradients stay finite if only one of the method's channels has examples."""
        model, tokenizer = tiny_llama()
        method = self.make()
        groups = make_groups(method, tokenizer)
        (channel, *_) = [item.channel for group in groups for item in group.items]
        one_channel = [
            Group(group.record_id, tuple(item for item in group.items if item.channel == channel)) for group in groups
        ]
        gradient_of = gradients(make_trainer(model, tokenizer, method, one_channel, tmp_path))
        assert all(torch.isfinite(gradient).all() for gradient in gradient_of.values())

    def test_the_same_seed_gives_the_same_bytes(self, tmp_path: Path) -> None:
        """Two trainings of two epochs."""
        results = []
        for attempt in range(2):
            model, tokenizer = tiny_llama()
            groups = make_groups(self.make(), tokenizer)
            plan = make_plan(groups, batch_records=4, seed=0, epochs=2)
            results.append(run(make_trainer(model, tokenizer, self.make(), groups, tmp_path / str(attempt), plan=plan)))
        (summary, parameters), (summary_again, parameters_again) = results
        assert summary.last_loss == summary_again.last_loss
        assert all(torch.equal(parameters[name], parameters_again[name]) for name in parameters)

    def test_config_and_decoding_are_plain_data(self) -> None:
        """Settings round-trip through YAML, the decoding through JSON, and an unknown setting is refused."""
        method = self.make()
        written = yaml.safe_dump(method.config.model_dump(mode="json"))
        assert type(method).Config.model_validate(yaml.safe_load(written)) == method.config
        decoding = method.decoding()
        assert json.loads(json.dumps(dataclasses.asdict(decoding)))["channels"] == list(decoding.channels)
        assert type(method).inference_settings <= set(type(method).Config.model_fields)
        with pytest.raises(ValueError, match="no_such_setting"):
            type(method).Config.model_validate({"no_such_setting": 1})

    def test_needs_are_honest(self) -> None:
        """A method that needs a teacher says so, and without the teacher's texts trains on the label alone."""
        method = self.make()
        if method.needs().annotations or method.needs().signal != "none":
            assert set(method.uses(TEACHERS)) <= set(TEACHERS)
            with pytest.raises(UserError, match="teacher"):
                method.uses(())
            channels = {example.channel for example in method.examples(sample_records(1)[0], [], Ask(mode="cloze"))}
            assert channels <= {"label"}, "without annotations only the label can be trained on"
        else:
            assert method.uses(TEACHERS) == () and method.uses(()) == ()


def method_contract(method: str | type[Method], **settings: Any) -> type[MethodContract]:
    """The contract of one method as a class: `TestMine = method_contract("mine", alpha=0.3)`."""
    name = method if isinstance(method, str) else method.__name__
    return type(f"Test_{name}", (MethodContract,), {"method": method, "settings": settings})


def _float64_model(family: str) -> tuple[Any, Any, bool]:
    """Model, tokenizer, and whether it is an encoder-decoder."""
    model, tokenizer = FAMILIES[family]()
    return model.double(), tokenizer, bool(model.config.is_encoder_decoder)


def _loss_sums(model: Any, method: Method, collator: Collator, groups: list[Group]) -> dict[str, torch.Tensor]:
    """The method's loss on all groups as one batch, by channel."""
    items = [item for group in groups for item in group.items]
    batch = collator.collate(collator.rows(items))
    tokens = dict.fromkeys(batch.channels, 1)
    step = Step(index=0, total=1, tokens=tokens, all_reduce=lambda tensor: tensor, seed_of=hash)
    terms: list[Term] = method.loss(batch, LM(model), make_signal(method, model), step)
    return {term.channel: term.sum for term in terms}
