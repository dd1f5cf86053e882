"""A teacher with another tokenizer, and a cached teacher, in a method's loss."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.learning import make_groups, make_method, make_signal
from tests.tokenizer_pair import numerals, splitting
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.testing.tiny_models import tiny_llama
from tinyllm_bench.training.batching import Batch, collator_of
from tinyllm_bench.training.cross_tokenizer import CrossTeacher, signal_for
from tinyllm_bench.training.divergences import DivergenceConfig
from tinyllm_bench.training.logit_cache import LogitCache, LogitCacheHeader
from tinyllm_bench.training.method import Step
from tinyllm_bench.training.teacher_signals import CachedTeacher, InMemoryTeacher, score_responses

Notes = dict[str, list[tuple[float, float]]]


def llama_for(tokenizer: Any, seed: int = 0) -> LM:
    roles = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model, _ = tiny_llama(seed=seed, vocab_size=len(tokenizer), **roles)
    return LM(model.double())


def step_of(notes: Notes) -> Step:
    return Step(
        index=0,
        total=1,
        tokens={"label": 1},
        all_reduce=lambda tensor: tensor,
        seed_of=lambda record_id: 0,
        note=lambda name, total, count: notes.setdefault(name, []).append((total, count)),
    )


def batch_of(method: Any, tokenizer: Any, student: LM) -> Batch:
    collator = collator_of(student.hf_model, tokenizer)
    groups = make_groups(method, tokenizer, count=6)
    return collator.collate([row for group in groups for row in collator.rows(group.items)])


def loss_and_gradient(
    method: Any, batch: Batch, student: LM, teacher: Any, notes: Notes | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    student.zero_grad()
    (term,) = method.loss(batch, student, teacher, step_of({} if notes is None else notes))
    term.sum.backward()
    gradient = student.hf_model.get_input_embeddings().weight.grad
    assert isinstance(gradient, torch.Tensor)
    return term.sum.detach(), gradient.clone()


@pytest.mark.parametrize("name", ["kd", "gkd"])
@pytest.mark.parametrize("kind", ["span_projection", "overlap"])
def test_one_tokenizer_through_the_projection_is_plain_distillation(name: str, kind: Any) -> None:
    """Forward KL, value and gradient."""
    tokenizer = numerals()
    student, model = llama_for(tokenizer), llama_for(tokenizer, seed=1)
    plain = make_method(name, divergence=DivergenceConfig())
    crossing_method = make_method(name, cross_tokenizer=kind)
    batch = batch_of(plain, tokenizer, student)
    expected = loss_and_gradient(plain, batch, student, InMemoryTeacher(model, vocabulary=len(tokenizer)))
    notes: Notes = {}
    actual = loss_and_gradient(crossing_method, batch, student, CrossTeacher(model, numerals(), tokenizer), notes)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)
    assert notes["align_ratio"] == [(len(batch.target_ids_N),) * 2]
    assert sum(t for t, _ in notes["covered_mass"]) == pytest.approx(sum(n for _, n in notes["covered_mass"]))


@pytest.mark.parametrize("kind", ["span_projection", "overlap", "uld"])
def test_chunks_do_not_show(kind: Any) -> None:
    """Groups of tokens are never split: a chunk ends where an example does."""
    student, teacher = llama_for(numerals()), llama_for(splitting(), seed=1)
    crossing_method, collator = make_method("kd", cross_tokenizer=kind), collator_of(student.hf_model, numerals())
    texts = (" the photosynthesis 347", " 12 cats sat", " 日本 🙂 is the answer", " 999")
    ids = [tuple(numerals()(text)["input_ids"]) + (numerals().eos_token_id,) for text in texts]
    items = [Encoded(f"r{n}", "label", (5, 6), target, False) for n, target in enumerate(ids)]
    batch = collator.collate([row for item in items for row in collator.rows([item])])
    signal = CrossTeacher(teacher, splitting(), numerals())
    notes: Notes = {}
    whole = loss_and_gradient(crossing_method, batch, student, signal, notes)
    small = LM(student.model, chunk_positions=3)
    assert len(small.chunks(len(batch.target_ids_N), [4, 9, 20])) > 2
    torch.testing.assert_close(loss_and_gradient(crossing_method, batch, small, signal), whole, rtol=1e-8, atol=1e-9)
    ((single, tokens),) = notes["align_ratio"]
    assert 0 < single < tokens == len(batch.target_ids_N)
    assert 0 < notes["covered_mass"][0][0] <= notes["covered_mass"][0][1]


def test_chunks_end_at_borders() -> None:
    lm = LM(torch.nn.Linear(1, 1), chunk_positions=4)
    assert lm.chunks(10) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert lm.chunks(10, [3, 5, 9]) == [slice(0, 3), slice(3, 5), slice(5, 9), slice(9, 10)]
    assert lm.chunks(10, [6]) == [slice(0, 6), slice(6, 10)]
    assert lm.chunks(0, [3]) == [slice(0, 0)]


def test_the_teacher_gets_the_prompt_s_text_in_its_own_form() -> None:
    teacher = splitting()
    teacher.chat_template = "{{ bos_token }}{% for m in messages %}user: {{ m.content }}{% endfor %} model:"
    student = llama_for(numerals())
    batch = batch_of(make_method("kd"), numerals(), student)
    plain = CrossTeacher(llama_for(teacher), teacher, numerals()).on(batch)
    words = numerals().decode(batch.items[0].prompt)
    read = plain.view.teacher.items[0].prompt
    assert teacher.decode(read) == words and read[:1] != (teacher.bos_token_id,)
    forced = CrossTeacher(llama_for(teacher), teacher, numerals(), add_bos=True).on(batch)
    assert forced.view.teacher.items[0].prompt == (teacher.bos_token_id, *read)
    chat = CrossTeacher(llama_for(teacher), teacher, numerals(), chat=True).on(batch)
    assert teacher.decode(chat.view.teacher.items[0].prompt) == f"<bos>user: {words} model:"


def cached(tmp_path: Path, teacher: InMemoryTeacher, batch: Batch, k: int, precision: Any = "float32") -> CachedTeacher:
    size = teacher.vocabulary
    assert size is not None
    header = LogitCacheHeader(teacher="t", tokenizer="x", template="y", vocabulary=size, k=k, precision=precision)
    cache = LogitCache.create(header, tmp_path / f"{k}-{precision}")
    cache.add(score_responses(teacher, batch, k))
    return CachedTeacher(cache)


@pytest.mark.parametrize("kind", ["forward_kl", "skew_forward_kl", "jsd", "reverse_kl"])
def test_a_cache_of_every_token_is_the_live_teacher(kind: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny_llama()
    student, method = LM(model), make_method("kd", divergence=DivergenceConfig(kind=kind))
    live = make_signal(method, model)
    assert live is not None
    live.vocabulary = len(tokenizer)
    batch = batch_of(method, tokenizer, student)
    cache = cached(tmp_path, live, batch, len(tokenizer))
    expected, actual = (loss_and_gradient(method, batch, student, teacher) for teacher in (live, cache))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_truncated_cache_bounds_the_loss_and_names_what_is_missing(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama()
    student, method = LM(model), make_method("kd", alpha=1.0)
    live = make_signal(method, model)
    assert live is not None
    live.vocabulary = len(tokenizer)
    batch = batch_of(method, tokenizer, student)
    cache = cached(tmp_path, live, batch, 64, "float16")
    (whole, _), (part, gradient) = (loss_and_gradient(method, batch, student, teacher) for teacher in (live, cache))
    assert 0 < float(part) < float(whole) and bool(torch.isfinite(gradient).all())
    with pytest.raises(UserError, match="reverse_kl needs the teacher's probability of every token"):
        loss_and_gradient(make_method("kd", divergence=DivergenceConfig(kind="reverse_kl")), batch, student, cache)
    other = batch.items[0]._replace(target=(*batch.items[0].target, 5))
    collator = collator_of(model, tokenizer)
    with pytest.raises(UserError, match="fill it first"):
        cache.on(collator.collate(collator.rows([other])))


def test_which_settings_a_cache_can_serve() -> None:
    assert signal_for(DivergenceConfig(), "none") == "cached"
    assert signal_for(DivergenceConfig(kind="reverse_kl"), "none") == "live"
    assert signal_for(DivergenceConfig(temperature=2.0), "none") == "live"
    assert signal_for(DivergenceConfig(), "overlap") == "live"
    assert make_method("gkd").needs().signal == "on_policy" and make_method("gkd", lmbda=0).is_on_policy is False


def test_another_tokenizer_has_a_divergence_of_its_own() -> None:
    for name in ("kd", "gkd"):
        with pytest.raises(ValidationError, match="divergence of its own"):
            make_method(name, cross_tokenizer="uld", divergence=DivergenceConfig(kind="total_variation"))
