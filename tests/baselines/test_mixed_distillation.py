"""The multi-task loss of rationales and programs: weights, means, missing modes, accumulation; and its settings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.learning import assert_close, gradients, make_method, make_trainer, run, sample_records
from tinyllm_bench.base.plugins import load_method
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Annotation
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded, Encoder
from tinyllm_bench.testing.tiny_models import tiny_llama
from tinyllm_bench.training.batching import Collator, Group, count_targets
from tinyllm_bench.training.budget import make_plan
from tinyllm_bench.training.losses import channel_cross_entropy
from tinyllm_bench.training.method import Method, Step

NAME = "mixed_distillation"
ASK = Ask(mode="generate")


def annotations(record_id: str, n: int, *, cot: bool = True, pot: bool = True) -> list[Annotation]:
    texts = {
        "rationale": "There are some. " * (1 + n % 3) + f"The answer is {n}.",
        "program": f"shells = {n}\ngiven = 2\nanswer = shells - given",
    }
    expected = [kind for kind, there in (("rationale", cot), ("program", pot)) if there]
    return [Annotation(record_id=record_id, teacher="t", kind=kind, text=texts[kind]) for kind in expected]  # type: ignore[arg-type]


def groups_of(method: Method, tokenizer: Any, *, count: int = 8, **there: bool) -> list[Group]:
    encoder = Encoder(
        tokenizer, ASK, encoder_decoder=False, add_bos=False, max_prompt_tokens=1500, max_target_tokens=256
    )
    return [
        Group(r.id, tuple(encoder.encode(e) for e in method.examples(r, annotations(r.id, n, **there), ASK)))
        for n, r in enumerate(sample_records(count))
    ]


def student(tokenizer_too: bool = True) -> tuple[Any, Any]:
    model, tokenizer = tiny_llama()
    return model.double(), tokenizer


def test_even_weights_on_equal_lengths_are_plain_fine_tuning_on_the_union(tmp_path: Path) -> None:
    """A.4: lambda (0.5, 0.5), paired, as many tokens in either mode: half the sum of two means is the mean of all."""
    model, tokenizer = student()
    items = [Encoded(f"r{n}", "cot", (5, 6, 7 + n), (20 + n, 30, 1), False) for n in range(4)]
    both = [Group(i.record_id, (i, replace_channel(i, "pot", shift=3))) for i in items]
    mixed = gradients(make_trainer(model, tokenizer, make_method(NAME), both, tmp_path / "a"))
    model.zero_grad()
    union = [Group(g.record_id, tuple(replace_channel(i, "label") for i in g.items)) for g in both]
    plain = gradients(make_trainer(model, tokenizer, make_method("finetune"), union, tmp_path / "b"))
    assert_close(mixed, plain, rtol=1e-6)


def replace_channel(item: Encoded, channel: str, shift: int = 0) -> Encoded:
    return item._replace(channel=channel, target=tuple(token + shift for token in item.target[:-1]) + item.target[-1:])


@pytest.mark.parametrize(("weights", "channel"), [((1.0, 0.0), "cot"), ((0.0, 1.0), "pot")])
def test_a_weight_of_zero_is_the_other_mode_alone_step_by_step(
    weights: tuple[float, float], channel: str, tmp_path: Path
) -> None:
    """Against label-only fine-tuning on the same targets, which knows nothing of modes."""
    losses = []
    for name in (NAME, "finetune"):
        model, tokenizer = tiny_llama()
        policy = f"single_{channel}"
        method = make_method(NAME, cot_weight=weights[0], pot_weight=weights[1], policy=policy)
        groups = groups_of(method, tokenizer)
        assert {item.channel for group in groups for item in group.items} == {channel}
        if name == "finetune":
            method = make_method("finetune")
            groups = [Group(g.record_id, tuple(i._replace(channel="label") for i in g.items)) for g in groups]
        plan = make_plan(groups, batch_records=4, seed=0, epochs=3)
        trainer = make_trainer(model, tokenizer, method, groups, tmp_path / name, plan=plan, learning_rate=1e-3)
        run(trainer)
        losses.append(trainer.state.losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6) and len(losses[0]) == 6


def test_a_mini_batch_without_programs_has_the_gradient_of_rationales_alone(tmp_path: Path) -> None:
    results = []
    for name, settings in (("both", {}), ("one", {"cot_weight": 1.0, "pot_weight": 0.0, "policy": "single_cot"})):
        model, tokenizer = student()
        method = make_method(NAME, **settings)
        groups = groups_of(method, tokenizer, pot=False)
        trainer = make_trainer(model, tokenizer, method, groups, tmp_path / name)
        results.append(gradients(trainer))
        assert torch.isfinite(torch.tensor(trainer.state.losses)).all()
    assert_close(*results, rtol=1e-9)


def test_accumulation_over_unequal_lengths_changes_nothing(tmp_path: Path) -> None:
    results = []
    for limit in (10**6, 150):
        model, tokenizer = student()
        method = make_method(NAME)
        groups = groups_of(method, tokenizer)
        results.append(
            gradients(make_trainer(model, tokenizer, method, groups, tmp_path / str(limit), micro_batch_tokens=limit))
        )
    assert_close(*results, rtol=1e-9)


def test_each_mode_has_the_mean_of_its_own_tokens() -> None:
    model, tokenizer = student()
    method = make_method(NAME, cot_weight=0.7, pot_weight=0.3)
    groups = groups_of(method, tokenizer)
    collator = Collator(encoder_decoder=False, pad_id=0)
    batch = collator.collate([row for group in groups for row in collator.rows(group.items)])
    step = Step(index=0, total=1, tokens=count_targets(groups), all_reduce=lambda t: t, seed_of=hash)
    terms = {term.channel: term for term in method.loss(batch, LM(model), None, step)}
    sums = channel_cross_entropy(batch, LM(model))
    assert {c: term.weight for c, term in terms.items()} == {"cot": pytest.approx(0.7), "pot": pytest.approx(0.3)}
    for channel, term in terms.items():
        torch.testing.assert_close(term.sum, sums[channel])
    alone = replace(step, tokens={"cot": 5, "pot": 0})
    assert {t.channel: t.weight for t in method.loss(batch, LM(model), None, alone)}["cot"] == 1.0


def test_balance_selects_questions() -> None:
    record = sample_records(1)[0]
    for settings, there, expected in (
        ({}, {}, ["cot", "pot"]),
        ({}, {"pot": False}, ["cot"]),
        ({"balance": "paired"}, {"pot": False}, []),
        ({"balance": "paired"}, {}, ["cot", "pot"]),
        ({"label_weight": 0.2}, {}, ["cot", "pot", "label"]),
        ({"cot_weight": 0.0, "policy": "single_pot"}, {}, ["pot"]),
    ):
        method = make_method(NAME, **settings)
        actual = method.examples(record, annotations(record.id, 3, **there), ASK)
        assert [example.channel for example in actual] == expected
        assert all(example.marker.strip() for example in actual)


def test_policies_without_their_mode_are_refused() -> None:
    kind = load_method(NAME)
    for settings, says in (
        ({"cot_weight": 0, "pot_weight": 0}, "nothing to answer with"),
        ({"pot_weight": 0, "policy": "pot_then_cot"}, "pot_weight above 0"),
        ({"cot_weight": 0, "ensemble": True, "policy": "vote"}, "ensemble needs"),
    ):
        with pytest.raises(ValueError, match=says):
            kind.Config(**settings)


def test_an_ensemble_is_two_students_of_one_mode_each() -> None:
    (cot, pot) = make_method(NAME, ensemble=True).decoding().members
    assert (cot["pot_weight"], pot["cot_weight"]) == (0.0, 0.0) and not cot["ensemble"]
    assert make_method(NAME).decoding().members == ()
    assert make_method(NAME, sampling="mixed").shuffles_examples and not make_method(NAME).shuffles_examples
