"""Closed forms and float64 references."""

import math
from typing import Any

import pytest
import torch

from tests.learning import make_groups, make_method
from tinyllm_bench.models.lm import LM
from tinyllm_bench.training.batching import Collator
from tinyllm_bench.training.losses import channel_cross_entropy, cross_entropy_N


def test_uniform_logits_cost_log_v() -> None:
    losses_N = cross_entropy_N(torch.zeros(3, 7, dtype=torch.float64), torch.tensor([0, 3, 6]))
    assert losses_N.tolist() == pytest.approx([math.log(7)] * 3, abs=1e-12)


def test_two_way_logits_by_hand() -> None:
    # -log(e^2 / (e^2 + e^0)) = log(1 + e^-2)
    losses_N = cross_entropy_N(torch.tensor([[2.0, 0.0]]).double(), torch.tensor([0]))
    assert losses_N.item() == pytest.approx(math.log1p(math.exp(-2)), abs=1e-12)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits_NV = torch.randn(4, 50).bfloat16()
    ids_N = torch.arange(4)
    expected = cross_entropy_N(logits_NV.double(), ids_N)
    torch.testing.assert_close(cross_entropy_N(logits_NV, ids_N).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_t5"])
def test_channel_sums_equal_a_plain_forward_pass(family: str, request: pytest.FixtureRequest) -> None:
    """Against transformers' own logits, one example at a time, without padding and without our batching."""
    model, tokenizer = request.getfixturevalue(family)
    model = model.double()
    encoder_decoder = bool(model.config.is_encoder_decoder)
    groups = make_groups(make_method("tinyllm"), tokenizer, encoder_decoder=encoder_decoder, count=3)
    items = [item for group in groups for item in group.items]
    start = getattr(model.config, "decoder_start_token_id", None)
    collator = Collator(encoder_decoder=encoder_decoder, pad_id=tokenizer.pad_token_id, decoder_start_id=start)
    sums = channel_cross_entropy(collator.collate(collator.rows(items)), LM(model))
    expected: dict[str, Any] = dict.fromkeys(sums, 0.0)
    for item in items:
        expected[item.channel] = expected[item.channel] + plain_loss(model, item, encoder_decoder)
    for channel, total in sums.items():
        torch.testing.assert_close(total, expected[channel], rtol=1e-10, atol=1e-10)


def plain_loss(model: Any, item: Any, encoder_decoder: bool) -> torch.Tensor:
    """The model's own logits on one example, read off with indices written by hand; a sum over its target tokens."""
    target = torch.tensor(item.target)
    if encoder_decoder:
        logits_TV = model(input_ids=torch.tensor([item.prompt]), labels=target[None]).logits[0]
    else:
        logits_TV = model(input_ids=torch.tensor([[*item.prompt, *item.target]])).logits[0, len(item.prompt) - 1 : -1]
    return -logits_TV.log_softmax(-1)[torch.arange(len(target)), target].sum()


def test_chunks_do_not_change_loss_or_gradient(tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    model = model.double()
    items = [item for group in make_groups(make_method("tinyllm"), tokenizer, count=3) for item in group.items]
    collator = Collator(encoder_decoder=False, pad_id=tokenizer.pad_token_id)
    batch = collator.collate(collator.rows(items))
    results = []
    for chunk in (10**6, 7):
        model.zero_grad()
        sums = channel_cross_entropy(batch, LM(model, chunk_positions=chunk))
        sum(sums.values()).backward()
        results.append((sums, model.get_input_embeddings().weight.grad.clone()))
    for channel in results[0][0]:
        torch.testing.assert_close(results[0][0][channel], results[1][0][channel], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-10, atol=1e-12)
