"""Sampled texts: their distribution, their log-probabilities, and independence of batches and seeds."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tests.learning import make_groups, make_method, make_signal, make_trainer
from tinyllm_bench.generation.sampler import SampledText, end_ids, sample_texts
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.testing.tiny_models import tiny_llama, tiny_t5
from tinyllm_bench.training.batching import Group, collator_of
from tinyllm_bench.training.budget import make_plan
from tinyllm_bench.training.method import Step
from tinyllm_bench.training.rollouts import bernoulli, distinct_n, sample_diagnostics, with_sampled_text
from tinyllm_bench.training.teacher_signals import InMemoryTeacher

FAMILIES = {"llama": tiny_llama, "t5": tiny_t5}
families = pytest.mark.parametrize("family", FAMILIES)


def pair(family: str) -> tuple[LM, LM, Any]:
    model, tokenizer = FAMILIES[family]()
    teacher, _ = FAMILIES[family](seed=1)
    return LM(model.double().eval()), LM(teacher.double().eval()), tokenizer


def prompts_of(tokenizer: Any) -> list[list[int]]:
    texts = ["Question: which animal lays eggs?", "Water", "The moon looks different during the month. Why is that so?"]
    return [tokenizer(text)["input_ids"] for text in texts]


def step_of(seed: int = 0) -> Step:
    def seed_of(record_id: str) -> int:  # the same in every process, as `hash` is not
        return crc32(f"{seed}/{record_id}".encode())

    return Step(index=0, total=1, tokens={}, all_reduce=lambda t: t, seed_of=seed_of)


@families
def test_a_text_does_not_depend_on_its_neighbours(family: str) -> None:
    student, teacher, tokenizer = pair(family)
    prompts, size = prompts_of(tokenizer), len(tokenizer)
    how: dict[str, Any] = {"max_new_tokens": 9, "teacher": teacher, "teacher_share": 0.3, "vocabulary": size}
    together = sample_texts(prompts, student, seeds=[3, 1, 2], **how)
    alone = [sample_texts([p], student, seeds=[s], **how)[0] for p, s in zip(prompts, (3, 1, 2), strict=True)]
    assert [text.ids for text in together] == [text.ids for text in alone]
    for text, other in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.tensor(text.logp), torch.tensor(other.logp), rtol=1e-6, atol=1e-6)
    assert sample_texts(prompts, student, seeds=[4, 1, 2], **how)[0].ids != together[0].ids


@families
def test_log_probabilities_are_those_of_a_whole_pass(family: str) -> None:
    student, teacher, tokenizer = pair(family)
    prompts, size = prompts_of(tokenizer), len(tokenizer)
    texts = sample_texts(prompts, student, seeds=[1, 2, 3], max_new_tokens=7, teacher=teacher, vocabulary=size)
    collator = collator_of(student.hf_model, tokenizer)
    for prompt, text in zip(prompts, texts, strict=True):
        item = with_sampled_text(Encoded("r", "label", tuple(prompt), (1,), False), text)
        batch = collator.collate(collator.rows([item]))
        with torch.no_grad():
            q, p = (lm.logits(lm.target_hidden_states(batch))[:, :size].log_softmax(-1) for lm in (student, teacher))
        ids = batch.target_ids_N[:, None]
        for logs, whole in ((text.logq, q), (text.logp, p)):
            torch.testing.assert_close(
                torch.tensor(logs, dtype=q.dtype), whole.gather(1, ids)[:, 0], rtol=1e-5, atol=1e-5
            )
        kl = (q.exp() * (q - p)).sum(-1)
        torch.testing.assert_close(torch.tensor(text.kl, dtype=kl.dtype), kl, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("share", "temperature"), [(0.0, 1.0), (0.2, 1.0), (0.0, 0.5)])
@pytest.mark.slow
def test_the_first_token_has_the_mixture_s_distribution(share: float, temperature: float) -> None:
    """4,000 samples: every frequency within five standard errors."""
    student, teacher, tokenizer = pair("llama")
    prompt, n, size = prompts_of(tokenizer)[0], 4000, len(tokenizer)
    for lm in (student, teacher):  # a random model's distribution is flat; this makes some tokens likely
        lm.hf_model.lm_head.weight.data *= 30
    texts = sample_texts(
        [prompt] * n,
        student,
        seeds=range(n),
        max_new_tokens=1,
        teacher=teacher,
        teacher_share=share,
        temperature=temperature,
        vocabulary=size,
    )
    item = Encoded("r", "label", tuple(prompt), (0,), False)
    collator = collator_of(student.hf_model, tokenizer)
    batch = collator.collate(collator.rows([item]))
    with torch.no_grad():
        q, p = (lm.logits(lm.target_hidden_states(batch))[0, :size] for lm in (student, teacher))
    expected = share * p.softmax(-1) + (1 - share) * (q / temperature).softmax(-1)
    shares = torch.bincount(torch.tensor([text.ids[0] for text in texts]), minlength=size) / n
    error = (expected * (1 - expected) / n).sqrt()
    assert float(expected.max()) > 0.05
    assert bool(((shares - expected).abs() <= 5 * error + 2 / n).all())


@families
def test_temperature_zero_is_greedy_generation(family: str) -> None:
    student, _, tokenizer = pair(family)
    prompt = prompts_of(tokenizer)[0]
    (text,) = sample_texts([prompt], student, seeds=[0], max_new_tokens=8, temperature=0)
    with torch.inference_mode():
        out = student.hf_model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0].tolist()
    new = out[1:] if student.encoder_decoder else out[len(prompt) :]
    assert list(text.ids) == new[: len(text.ids)]
    assert text.logp == () == text.kl


def test_a_text_ends_with_the_end_and_keeps_it() -> None:
    student, _, tokenizer = pair("llama")
    student.hf_model.lm_head.weight.data[:] = 0  # every token alike: about one of 380 ends a text
    texts = sample_texts(
        [prompts_of(tokenizer)[1]] * 60, student, seeds=range(60), max_new_tokens=40, vocabulary=len(tokenizer)
    )
    ends = end_ids(student)
    assert {text.ended for text in texts} == {True, False}
    for text in texts:
        assert (text.ids[-1] in ends) == text.ended and not ends & set(text.ids[:-1])
        assert len(text.ids) == len(text.logq) and (text.ended or len(text.ids) == 40)
        assert max(text.ids) < len(tokenizer)


def test_rows_beyond_the_vocabulary_are_never_sampled() -> None:
    student, _, tokenizer = pair("llama")
    head = student.hf_model.lm_head.weight.data
    head[len(tokenizer) :] = 100 * head[: head.shape[0] - len(tokenizer)]
    texts = sample_texts(
        [prompts_of(tokenizer)[0]] * 8, student, seeds=range(8), max_new_tokens=6, vocabulary=len(tokenizer)
    )
    assert max(token for text in texts for token in text.ids) < len(tokenizer)


@pytest.mark.parametrize("name", ["gkd", "minillm"])
@families
def test_a_sampled_text_has_the_loss_of_the_same_text_of_the_data_set(name: str, family: str) -> None:
    """DistiLLM's code shifts sampled texts differently from given ones, and never trains their end."""
    student, _, tokenizer = pair(family)
    settings: dict[str, Any] = {"epsilon": None, "single_step_weight": 1.0} if name == "minillm" else {"lmbda": 1.0}
    method = make_method(name, **settings)
    groups = make_groups(method, tokenizer, encoder_decoder=student.encoder_decoder, count=3)
    signal = make_signal(method, student.hf_model)
    assert signal is not None
    rolled = method.rollout(groups, student, signal, step_of())
    sampled = [item for group in rolled for item in group.items if item.rollout]
    assert sampled
    collator = collator_of(student.hf_model, tokenizer)
    totals = []
    for items in (sampled, [item._replace(rollout={}) for item in sampled]):
        items = [
            i._replace(rollout={**i.rollout, "advantage": (0.0,) * len(i.target)}) if i.rollout else i for i in items
        ]
        batch = collator.collate(collator.rows(items))
        (term,) = method.loss(batch, student, signal, step_of())
        totals.append(term.sum)
    torch.testing.assert_close(*totals)


def test_a_share_of_the_responses_is_sampled_and_the_rest_is_given() -> None:
    student, _, tokenizer = pair("llama")
    method = make_method("gkd", lmbda=0.5)
    groups = make_groups(method, tokenizer, count=20)
    rolled = method.rollout(groups, student, InMemoryTeacher(student), step_of())
    was_sampled = [bool(group.items[0].rollout) for group in rolled]
    assert 3 <= sum(was_sampled) <= 17
    assert [g.record_id for g in rolled] == [g.record_id for g in groups]
    assert all(new == old for new, old, was in zip(rolled, groups, was_sampled, strict=True) if not was)
    assert not make_method("gkd", lmbda=0).is_on_policy


def test_whether_something_happens_is_a_matter_of_the_seed() -> None:
    assert 0.45 < sum(bernoulli(seed, 0.5) for seed in range(2000)) / 2000 < 0.55
    assert bernoulli(7, 0.3) == bernoulli(7, 0.3) and not bernoulli(1, 0.0) and bernoulli(1, 1.0)


def test_distinct_n_by_hand() -> None:
    texts = [(1, 2, 1, 2), (1, 2)]
    assert distinct_n(texts, 1) == 2 / 6
    assert distinct_n(texts, 2) == 2 / 4  # (1,2) three times, (2,1) once
    assert distinct_n(texts, 5) == 1.0


def test_the_probe_has_the_same_random_numbers_every_time() -> None:
    student, teacher, tokenizer = pair("llama")
    groups = make_groups(make_method("gkd"), tokenizer, count=4)
    signal = InMemoryTeacher(teacher, vocabulary=len(tokenizer))
    first, again = (
        sample_diagnostics(groups, student, signal, channel="label", step=step_of(), max_new_tokens=6) for _ in range(2)
    )
    assert first == again and first.keys() == {"reverse_kl", "length", "ended", "distinct_2", "distinct_4"}
    assert first["reverse_kl"] > 0 and 1 <= first["length"] <= 6
    alike = sample_diagnostics(
        groups, student, InMemoryTeacher(student), channel="label", step=step_of(), max_new_tokens=6
    )
    assert alike["reverse_kl"] == pytest.approx(0, abs=1e-9)
    assert (
        sample_diagnostics([Group("r", ())], student, signal, channel="label", step=step_of(), max_new_tokens=6) == {}
    )


def test_rollouts_store_numbers_per_token() -> None:
    sampled = SampledText((5, 6), (-1.0, -2.0), (-3.0, -4.0), (0.1, 0.2), True)
    item = with_sampled_text(Encoded("r", "label", (1,), (9, 9, 9), True), sampled, advantage=(0.5, -0.5))
    assert (item.target, item.cut) == ((5, 6), False)
    assert item.rollout == {"logq": (-1.0, -2.0), "logp": (-3.0, -4.0), "advantage": (0.5, -0.5)}


def test_texts_are_sampled_in_the_precision_of_training(tmp_path: Path) -> None:
    """In bf16, texts would otherwise come from another student than the one that is trained."""

    def log_ratio(*, as_trained: bool) -> float:
        model, tokenizer = tiny_llama()
        method = make_method("minillm")
        groups = make_groups(method, tokenizer)
        trainer = make_trainer(
            model, tokenizer, method, groups, tmp_path / str(as_trained), mixed_precision="bf16", learning_rate=1e-3
        )
        if not as_trained:
            trainer.module.precision = nullcontext
        rolled = method.rollout(groups, trainer.module, trainer.teacher, step_of())
        items = [item for group in rolled for item in group.items if item.rollout]
        batch = trainer.collator.collate(trainer.collator.rows(items))

        def read(logits_NV: Tensor, rows: slice) -> Tensor:
            logp_N = torch.zeros(len(batch.target_ids_N), dtype=torch.float32)
            actual_NV = torch.log_softmax(logits_NV.float(), -1)
            logp_N[rows] = actual_NV.gather(1, batch.target_ids_N[rows][:, None])[:, 0]
            return logp_N

        with torch.no_grad():
            return float((trainer.lm(batch, read) - batch.rollout_N("logq")).abs().mean())

    assert log_ratio(as_trained=True) < log_ratio(as_trained=False) / 3


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@families
def test_the_ratio_of_the_first_inner_step_is_one(
    family: str, precision: str, checkpointing: bool, tmp_path: Path
) -> None:
    """With dropout in the model and in adapters, with texts sampled in bf16 token by token, and in several
    micro-batches: at the first step of a round the student is what drew its texts, so every ratio is 1."""
    rates = {"dropout_rate": 0.3} if family == "t5" else {"attention_dropout": 0.3}
    model, tokenizer = FAMILIES[family](**rates)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.3, target_modules="all-linear"))
    method = make_method("minillm", teacher_mix=0.0, group_size=2, inner_epochs=2)
    groups = make_groups(method, tokenizer, encoder_decoder=family == "t5")
    plan = make_plan(groups, batch_records=4, seed=0, epochs=1, group_size=2, inner_epochs=2)
    how: dict[str, Any] = {"mixed_precision": precision, "gradient_checkpointing": checkpointing}
    trainer = make_trainer(adapted, tokenizer, method, groups, tmp_path, plan=plan, micro_batch_tokens=300, **how)
    ratios: list[list[float]] = []
    loss = method.loss

    def watched(batch: Any, student: Any, teacher: Any, step: Step) -> Any:
        ratios.extend([] for _ in range(step.index + 1 - len(ratios)))
        old_N, size = batch.rollout_N("logq"), teacher.vocabulary

        def log_ratio(logits_NV: Tensor, rows: slice) -> Tensor:
            new_NV = logits_NV[:, :size].float().log_softmax(-1).detach()
            return new_NV.gather(1, batch.target_ids_N[rows][:, None])[:, 0] - old_N[rows]

        ratios[step.index] += student(batch, log_ratio).tolist()
        return loss(batch, student, teacher, step)

    method.loss = watched  # type: ignore[method-assign]
    trainer.run()
    assert len(ratios) == 4 and len(ratios[0]) > 40
    assert max(map(abs, ratios[0])) < 1e-6
    assert max(map(abs, ratios[1])) > 1e-6, "the second mini-batch's were sampled before the first step"


def test_a_question_is_sampled_as_often_as_it_occurs_in_a_round(tmp_path: Path) -> None:
    """Four questions in a round of 16: 16 texts, not four that count four times."""
    for name, settings in (("minillm", {"group_size": 2, "inner_epochs": 2}), ("gkd", {"lmbda": 1.0})):
        model, tokenizer = tiny_llama()
        method = make_method(name, **settings)
        groups = make_groups(method, tokenizer, count=4)
        sizes = {"group_size": method.group_size, "inner_epochs": method.inner_epochs}
        plan = make_plan(groups, batch_records=8, seed=0, epochs=4, **sizes)
        trainer = make_trainer(model, tokenizer, method, groups, tmp_path / name, plan=plan)
        steps: list[list[Group]] = []
        optimise = trainer.optimise

        def watched(groups: Any, index: int, steps: Any = steps, optimise: Any = optimise) -> None:
            steps.append(list(groups))
            optimise(groups, index)

        trainer.optimise = watched  # type: ignore[method-assign]
        summary = trainer.run()
        first_pass = [group for groups in steps[: method.group_size] for group in groups]
        texts = [group.items[0].target for group in first_pass]
        assert len(texts) == 8 * method.group_size and len(set(texts)) == len(texts)
        assert all(item.rollout for group in first_pass for item in group.items)
        if method.inner_epochs == 2:
            assert sorted(g.items[0].target for groups in steps[2:4] for g in groups) == sorted(texts)
            assert summary.rollout_tokens == sum(map(len, texts))


def test_examples_of_one_question_get_different_texts() -> None:
    student, _, tokenizer = pair("llama")
    method = make_method("gkd", lmbda=1.0)
    (group,) = make_groups(method, tokenizer, count=1)
    twice = [group._replace(items=group.items * 2), group._replace(occurrence=1)]
    rolled = method.rollout(twice, student, InMemoryTeacher(student), step_of())
    assert len({item.target for group in rolled for item in group.items}) == 3
