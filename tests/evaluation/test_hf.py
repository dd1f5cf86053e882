"""In-memory models through lm-eval: nothing cut, nothing tied, T5 lengths right, modes restored."""

from typing import Any

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import SCORING_MODES, ScoringMode
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.evaluation.lm_eval_models import hf_lm
from tinyllm_bench.evaluation.request import Asked
from tinyllm_bench.evaluation.runner import answer
from tinyllm_bench.testing import tiny_models

SAMPLE = Source(kind="sample")
RECORDS = load_split(SAMPLE, "obqa", "test")
IDS = tuple(record.id for record in RECORDS)


def asked(mode: ScoringMode, ids: tuple[str, ...] = IDS[:6], **more: Any) -> Asked:
    return Asked(**{"task": "obqa", "mode": mode, "split": "test", "ids": ids, "source": SAMPLE, **more})


@pytest.mark.parametrize("mode", ["multiple_choice", "cloze"])
def test_option_scores_are_those_of_the_bare_model(mode: ScoringMode, tiny_llama: Any) -> None:
    import torch

    model, tokenizer = tiny_llama
    predictions = answer(hf_lm(model, tokenizer, batch_size=5, device="cpu"), asked(mode))
    ask = Ask(mode=mode)
    for record, prediction in zip(RECORDS, predictions, strict=False):
        head = tokenizer(ask.prompt(record)).input_ids
        for option, found in zip(ask.options(record), prediction.option_logprobs, strict=True):
            tail = tokenizer(" " + option).input_ids
            with torch.no_grad():
                logp = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
            wanted = sum(logp[len(head) - 1 + i, token].item() for i, token in enumerate(tail))
            assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("mode", ["multiple_choice", "cloze"])
def test_t5_scores_are_those_of_the_bare_model(mode: ScoringMode, tiny_t5: Any) -> None:
    import torch

    model, tokenizer = tiny_t5
    predictions = answer(hf_lm(model, tokenizer, batch_size=5, device="cpu"), asked(mode))
    ask = Ask(mode=mode)
    for record, prediction in zip(RECORDS, predictions, strict=False):
        source = torch.tensor([tokenizer(ask.prompt(record)).input_ids])
        for option, found in zip(ask.options(record), prediction.option_logprobs, strict=True):
            labels = torch.tensor([tokenizer(" " + option, add_special_tokens=False).input_ids])
            with torch.no_grad():
                logp = model(input_ids=source, labels=labels).logits[0].log_softmax(-1)
            wanted = logp.gather(1, labels[0].unsqueeze(1)).sum().item()
            assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5"])
def test_generation_writes_exactly_the_asked_number_of_tokens(kind: str) -> None:
    model, tokenizer = getattr(tiny_models, kind)()
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    for limit in (3, 9):
        predictions = answer(
            hf_lm(model, tokenizer, batch_size=4, device="cpu"), asked("generate", max_new_tokens=limit)
        )
        assert {p.samples[0].tokens for p in predictions if p.stopped == "limit"} == {limit}
        assert all((p.samples[0].tokens or 0) <= limit for p in predictions)


def test_a_t5_stops_at_a_stop_text(tiny_t5: Any) -> None:
    from lm_eval.api.instance import Instance

    model, tokenizer = tiny_t5
    lm: Any = hf_lm(model, tokenizer, batch_size=2, device="cpu")
    plain = Instance("generate_until", {}, ("What has keys?", {"until": [], "max_gen_toks": 20}), 0)
    (text,) = lm.generate_until([plain])
    full = lm.finished["What has keys?"].tokens
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    (cut,) = lm.generate_until(
        [Instance("generate_until", {}, ("What has keys?", {"until": [stop], "max_gen_toks": 20}), 0)]
    )
    assert cut == text.split(stop)[0] and lm.finished["What has keys?"].tokens < full
    assert not lm.finished["What has keys?"].hit_limit


def test_a_t5_keeps_its_own_head_and_every_model_its_mode() -> None:
    import torch

    model, tokenizer = tiny_models.tiny_t5()
    model.config.tie_word_embeddings = True  # what transformers 5 says of every T5 it loads
    head = model.lm_head.weight.detach().clone()
    model.train()
    lm = hf_lm(model, tokenizer, batch_size=2, device="cpu")
    answer(lm, asked("generate", IDS[:2], max_new_tokens=4))
    answer(lm, asked("cloze", IDS[:2]))
    assert torch.equal(model.lm_head.weight, head) and not torch.equal(head, model.shared.weight)
    assert model.training and "tie_weights" not in vars(model)


@pytest.mark.parametrize("mode", SCORING_MODES)
def test_a_prompt_that_is_too_long_is_refused_by_name(mode: ScoringMode) -> None:
    model, tokenizer = tiny_models.tiny_llama(max_position_embeddings=32)
    lm = hf_lm(model, tokenizer, batch_size=4, device="cpu")
    with pytest.raises(UserError, match=rf"{IDS[0]}: \d+ tokens .* limit of 32"):
        answer(lm, asked(mode, IDS[:1], max_new_tokens=8))


def test_no_embedding_is_resized_and_the_padded_rows_count(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    hf_lm(model, tokenizer, batch_size=4, device="cpu")
    assert model.get_input_embeddings().num_embeddings == tiny_models.LLAMA_VOCAB_ROWS > len(tokenizer)


def test_ids_are_those_of_the_parts_joined(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    lm = hf_lm(model, tokenizer, batch_size=4, device="cpu")
    for record in RECORDS:
        ask = Ask(mode="multiple_choice")
        parts = (ask.context(record), ask.marker())
        head = [token for part in parts for token in tokenizer(part, add_special_tokens=False).input_ids]
        for option in ask.options(record):
            tail = tokenizer(" " + option, add_special_tokens=False).input_ids
            assert lm._encode_pair("".join(parts), " " + option) == (head, tail)


def test_a_bos_leads_where_it_is_asked_for(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    with pytest.raises(UserError, match="no BOS token"):
        hf_lm(model, tokenizer, batch_size=4, device="cpu", add_bos=True)
    tokenizer.bos_token = "<eos>"
    plain = hf_lm(model, tokenizer, batch_size=4, device="cpu")._encode_pair("Water", " boils")
    led: Any = hf_lm(model, tokenizer, batch_size=4, device="cpu", add_bos=True)
    assert led._encode_pair("Water", " boils") == ([tokenizer.bos_token_id, *plain[0]], plain[1])
    assert led.tok_encode("Water") == [tokenizer.bos_token_id, *plain[0]]


def test_chat_goes_through_the_models_own_template(tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[me]{% endif %}"
    )
    lm: Any = hf_lm(model, tokenizer, batch_size=4, device="cpu")
    answer(lm, asked("generate", IDS[:1], chat=True, max_new_tokens=2))
    assert list(lm.finished) == [f"[user]{Ask(mode='generate').prompt(RECORDS[0])}[me]"]
