"""In-memory models through lm-eval: nothing cut, nothing tied, T5 lengths right, modes restored; shared contexts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import SCORING_MODES, ScoringMode
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.evaluation.lm_eval_models import continuation_logprobs, hf_lm
from tinyllm_bench.evaluation.runner import EvalRequest, evaluate
from tinyllm_bench.models.lm import LM
from tinyllm_bench.testing import tiny_models
from tinyllm_bench.training.batching import collator_of
from tinyllm_bench.training.settings import Layout

SAMPLE = Source(kind="sample")
RECORDS = load_split(SAMPLE, "obqa", "test")
IDS = tuple(record.id for record in RECORDS)


def eval_request(mode: ScoringMode, ids: tuple[str, ...] = IDS[:6], **more: Any) -> EvalRequest:
    return EvalRequest(**{"task": "obqa", "mode": mode, "split": "test", "ids": ids, "source": SAMPLE, **more})


@pytest.mark.parametrize("mode", ["multiple_choice", "cloze"])
def test_option_scores_are_those_of_the_bare_model(mode: ScoringMode, tiny_llama: Any) -> None:
    model, tokenizer = tiny_llama
    predictions = evaluate(hf_lm(model, tokenizer, batch_size=5, device="cpu"), eval_request(mode))
    ask = Ask(mode=mode)
    for record, prediction in zip(RECORDS, predictions, strict=False):
        head = tokenizer(ask.prompt(record)).input_ids
        for option, found in zip(ask.options(record), prediction.option_logprobs, strict=True):
            tail = tokenizer(" " + option).input_ids
            with torch.no_grad():
                logp = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
            expected = sum(logp[len(head) - 1 + i, token].item() for i, token in enumerate(tail))
            assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["multiple_choice", "cloze"])
def test_t5_scores_are_those_of_the_bare_model(mode: ScoringMode, tiny_t5: Any) -> None:
    model, tokenizer = tiny_t5
    predictions = evaluate(hf_lm(model, tokenizer, batch_size=5, device="cpu"), eval_request(mode))
    ask = Ask(mode=mode)
    for record, prediction in zip(RECORDS, predictions, strict=False):
        source = torch.tensor([tokenizer(ask.prompt(record)).input_ids])
        for option, found in zip(ask.options(record), prediction.option_logprobs, strict=True):
            labels = torch.tensor([tokenizer(" " + option, add_special_tokens=False).input_ids])
            with torch.no_grad():
                logp = model(input_ids=source, labels=labels).logits[0].log_softmax(-1)
            expected = logp.gather(1, labels[0].unsqueeze(1)).sum().item()
            assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_t5"])
def test_generation_writes_exactly_the_requested_number_of_tokens(kind: str) -> None:
    model, tokenizer = getattr(tiny_models, kind)()
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    for limit in (3, 9):
        predictions = evaluate(
            hf_lm(model, tokenizer, batch_size=4, device="cpu"), eval_request("generate", max_new_tokens=limit)
        )
        assert {p.samples[0].tokens for p in predictions if p.stopped == "limit"} == {limit}
        assert all((p.samples[0].tokens or 0) <= limit for p in predictions)


def test_a_t5_stops_at_a_stop_text(tiny_t5: Any) -> None:
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
    model, tokenizer = tiny_models.tiny_t5()
    model.config.tie_word_embeddings = True  # what transformers 5 says of every T5 it loads
    head = model.lm_head.weight.detach().clone()
    model.train()
    lm = hf_lm(model, tokenizer, batch_size=2, device="cpu")
    evaluate(lm, eval_request("generate", IDS[:2], max_new_tokens=4))
    evaluate(lm, eval_request("cloze", IDS[:2]))
    assert torch.equal(model.lm_head.weight, head) and not torch.equal(head, model.shared.weight)
    assert model.training and "tie_weights" not in vars(model)


@pytest.mark.parametrize("mode", SCORING_MODES)
def test_a_prompt_that_is_too_long_is_refused_by_name(mode: ScoringMode) -> None:
    model, tokenizer = tiny_models.tiny_llama(max_position_embeddings=32)
    lm = hf_lm(model, tokenizer, batch_size=4, device="cpu")
    with pytest.raises(UserError, match=rf"{IDS[0]}: \d+ tokens .* limit of 32"):
        evaluate(lm, eval_request(mode, IDS[:1], max_new_tokens=8))


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


def test_a_bos_leads_where_it_is_requested(tiny_llama: Any) -> None:
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
    evaluate(lm, eval_request("generate", IDS[:1], chat=True, max_new_tokens=2))
    assert list(lm.finished) == [f"[user]{Ask(mode='generate').prompt(RECORDS[0])}[me]"]


# --- options of one question as branches of one sequence -------------------------------------------------------------


def instances(mode: ScoringMode, task: str = "obqa") -> list[Any]:
    """Options of eight questions, out of order, as lm-eval passes them."""
    ask = Ask(mode=mode)
    pairs = [
        (ask.prompt(record), f" {option}")
        for record in load_split(SAMPLE, task, "test")[:8]
        for option in ask.options(record)
    ]
    mixed = sorted(pairs, key=lambda pair: pair[1])
    return [Instance("loglikelihood", {}, pair, 0) for pair in mixed]


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_t5"])
@pytest.mark.parametrize("mode", ["cloze", "multiple_choice"])
@pytest.mark.parametrize("task", ["obqa", "pubmedqa"])
def test_shared_contexts_have_lm_eval_s_log_probabilities(
    task: str, mode: ScoringMode, family: str, request: pytest.FixtureRequest
) -> None:
    found: dict[Layout, Any] = {}
    for layout in ("separate", "shared"):
        lm: Any = hf_lm(*request.getfixturevalue(family), batch_size=4, device="cpu", layout=layout)
        assert lm.layout[0] == layout
        found[layout] = lm.loglikelihood(instances(mode, task))
    assert len(found["shared"]) == len(found["separate"]) >= 24
    for ours, theirs in zip(found["shared"], found["separate"], strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4) and ours[1] == theirs[1]


def test_a_greedy_continuation_is_flagged(tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    context = list(range(10, 30))
    written = model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False)[0, 20:].tolist()
    other = [*written[:2], (written[2] + 1) % 100]
    collator = replace(collator_of(model, tokenizer), layout="shared")
    found = continuation_logprobs(LM(model), collator, [(context, other), (context, written)], batch_size=2)
    assert [greedy for _, greedy in found] == [False, True]


def test_no_request_is_no_error(tiny_llama: tuple[Any, Any]) -> None:
    assert continuation_logprobs(LM(tiny_llama[0]), collator_of(*tiny_llama), [], batch_size=2) == []


def test_an_unknown_head_is_left_to_lm_eval(tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    original = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    layout, reason = hf_lm(model, tokenizer, batch_size=2, device="cpu").layout  # type: ignore[attr-defined]
    assert layout == "separate" and "in a way this project does not know" in str(reason)


@pytest.mark.bundled
@pytest.mark.slow
def test_the_bundled_student_s_log_probabilities_are_lm_eval_s(bundled_smollm: Any) -> None:
    from tinyllm_bench.models.load import load_model
    from tinyllm_bench.models.specs import parse_spec

    loaded = load_model(parse_spec("bundled:smollm2-135m", role="student"))
    requests = instances("cloze")
    shared, separate = (
        hf_lm(*loaded, batch_size=8, device="cpu", layout=layout).loglikelihood(requests)
        for layout in ("shared", "separate")
    )
    for ours, theirs in zip(shared, separate, strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4) and ours[1] == theirs[1]
