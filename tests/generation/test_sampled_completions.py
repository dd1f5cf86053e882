"""A student's texts with their log-probabilities: greedy and sampled, cut at stop texts, alike from both engines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.generation.test_vllm import HEADS, needs_vllm
from tinyllm_bench.generation.hf import HfSampler
from tinyllm_bench.generation.requests import Completion, FailedRequest, Generate, GenerationRequest, SamplingConfig
from tinyllm_bench.generation.vllm import VllmEngine
from tinyllm_bench.models.load import Loaded
from tinyllm_bench.testing import tiny_models

PROMPTS = ("Question: which animal lays eggs?\nLet's think step by step.", "Water boils.\nLet's write a program.")
GREEDY = SamplingConfig(max_new_tokens=12, stop=("\n\n",))
SAMPLED = SamplingConfig(max_new_tokens=12, stop=("\n\n",), temperature=1.5)


def requests_for(sampling: SamplingConfig, seeds: Sequence[int] = (0,)) -> list[GenerationRequest]:
    return [GenerationRequest(prompt, sampling, seed) for prompt in PROMPTS for seed in seeds]


def texts(generate: Generate, requests: Sequence[GenerationRequest]) -> list[Completion]:
    completions = dict(generate(requests))
    assert sorted(completions) == list(range(len(requests)))
    return [completion for _, completion in sorted(completions.items()) if isinstance(completion, Completion)]


def sampler(family: str = "llama", **changes: Any) -> Generate:
    make = {"llama": tiny_models.tiny_llama, "t5": tiny_models.tiny_t5}[family]
    return HfSampler(Loaded(*make(**changes))).generate


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_sampled_texts_differ_and_all_have_log_probabilities(family: str) -> None:
    completions = texts(sampler(family), [*requests_for(SAMPLED, range(3)), *requests_for(GREEDY)])
    assert len({completion.text for completion in completions[:3]}) > 1
    for completion in completions:
        assert 0 < completion.tokens_out <= 12 and completion.logprob is not None and completion.logprob <= 0
        assert completion.finish == "stop" or completion.tokens_out == 12


def test_the_same_seeds_give_the_same_texts_in_any_batch() -> None:
    generate = sampler()
    first = texts(generate, requests_for(SAMPLED, (5,)))
    assert [completion.text for completion in texts(generate, requests_for(SAMPLED, (7, 5, 6)))][1::3] == [
        completion.text for completion in first
    ]
    assert [completion.text for completion in texts(generate, requests_for(SAMPLED, (6,)))] != [
        completion.text for completion in first
    ]


def test_a_text_ends_before_its_stop() -> None:
    generate = sampler()
    whole = texts(generate, requests_for(SamplingConfig(max_new_tokens=12)))[0]
    stop = whole.text[3:5]
    cut = texts(generate, requests_for(SamplingConfig(max_new_tokens=12, stop=(stop,))))[0]
    assert cut.text == whole.text[: whole.text.find(stop)] and cut.finish == "stop"
    assert cut.tokens_out <= whole.tokens_out and not cut.ended


def test_a_small_nucleus_is_greedy() -> None:
    narrow = SamplingConfig(max_new_tokens=12, stop=("\n\n",), temperature=1.0, top_p=1e-6)
    completions = texts(sampler(), [*requests_for(narrow, (1, 2)), *requests_for(GREEDY)])
    assert len({completion.text for completion in (completions[0], completions[1], completions[4])}) == 1


def test_a_prompt_without_room_fails() -> None:
    completions = dict(sampler(max_position_embeddings=32)(requests_for(SamplingConfig(max_new_tokens=30))))
    assert all(
        isinstance(completion, FailedRequest) and "more than the model's limit" in completion.reason
        for completion in completions.values()
    )


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    with VllmEngine(start_seconds=300, answer_seconds=300) as completion:
        yield completion


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_both_engines_write_the_same_greedy_texts_and_several_sampled_ones(engine: VllmEngine, tmp_path: Path) -> None:
    pair = tiny_models.tiny_llama(**{**HEADS, "vocab_size": tiny_models.BPE_ENTRIES})
    engine.load(tiny_models.saved(pair, tmp_path / "student"))
    ours, theirs = (
        texts(HfSampler(Loaded(*pair)).generate, requests_for(GREEDY)),
        texts(engine.sample, requests_for(GREEDY)),
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert other.text.rstrip("\ufffd") == mine.text.rstrip("\ufffd")
        assert (other.tokens_out, other.finish, other.ended) == (mine.tokens_out, mine.finish, mine.ended)
        assert other.logprob == pytest.approx(mine.logprob, abs=1e-3)
    sampled = texts(engine.sample, requests_for(SAMPLED, range(4)))
    assert len({completion.text for completion in sampled[:4]}) > 1
    again = texts(engine.sample, requests_for(SAMPLED, range(4)))
    assert [completion[:4] for completion in again] == [completion[:4] for completion in sampled]
