"""A student's texts with their log-probabilities: greedy and sampled, cut at stop texts, alike from both engines."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.generation.test_vllm import HEADS, needs_vllm
from tinyllm_bench.generation.hf import HfSampler
from tinyllm_bench.generation.requests import Completion, Failed, Generate, GenerationRequest, SamplingConfig
from tinyllm_bench.generation.vllm import VllmEngine
from tinyllm_bench.models.load import Loaded
from tinyllm_bench.testing import tiny_models

PROMPTS = ("Question: which animal lays eggs?\nLet's think step by step.", "Water boils.\nLet's write a program.")
GREEDY = SamplingConfig(max_new_tokens=12, stop=("\n\n",))
SAMPLED = SamplingConfig(max_new_tokens=12, stop=("\n\n",), temperature=1.5)


def asked(sampling: SamplingConfig, seeds: Sequence[int] = (0,)) -> list[GenerationRequest]:
    return [GenerationRequest(prompt, sampling, seed) for prompt in PROMPTS for seed in seeds]


def texts(generate: Generate, requests: Sequence[GenerationRequest]) -> list[Completion]:
    found = dict(generate(requests))
    assert sorted(found) == list(range(len(requests)))
    return [one for _, one in sorted(found.items()) if isinstance(one, Completion)]


def sampler(family: str = "llama", **changes: Any) -> Generate:
    make = {"llama": tiny_models.tiny_llama, "t5": tiny_models.tiny_t5}[family]
    return HfSampler(Loaded(*make(**changes))).generate


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_sampled_texts_differ_and_all_have_log_probabilities(family: str) -> None:
    found = texts(sampler(family), [*asked(SAMPLED, range(3)), *asked(GREEDY)])
    assert len({one.text for one in found[:3]}) > 1
    for one in found:
        assert 0 < one.tokens_out <= 12 and one.logprob is not None and one.logprob <= 0
        assert one.finish == "stop" or one.tokens_out == 12


def test_the_same_seeds_give_the_same_texts_whoever_is_beside_them() -> None:
    generate = sampler()
    first = texts(generate, asked(SAMPLED, (5,)))
    assert [one.text for one in texts(generate, asked(SAMPLED, (7, 5, 6)))][1::3] == [one.text for one in first]
    assert [one.text for one in texts(generate, asked(SAMPLED, (6,)))] != [one.text for one in first]


def test_a_text_ends_before_its_stop() -> None:
    generate = sampler()
    whole = texts(generate, asked(SamplingConfig(max_new_tokens=12)))[0]
    stop = whole.text[3:5]
    cut = texts(generate, asked(SamplingConfig(max_new_tokens=12, stop=(stop,))))[0]
    assert cut.text == whole.text[: whole.text.find(stop)] and cut.finish == "stop"
    assert cut.tokens_out <= whole.tokens_out and not cut.ended


def test_a_small_nucleus_is_greedy() -> None:
    narrow = SamplingConfig(max_new_tokens=12, stop=("\n\n",), temperature=1.0, top_p=1e-6)
    found = texts(sampler(), [*asked(narrow, (1, 2)), *asked(GREEDY)])
    assert len({one.text for one in (found[0], found[1], found[4])}) == 1


def test_a_prompt_without_room_fails() -> None:
    found = dict(sampler(max_position_embeddings=32)(asked(SamplingConfig(max_new_tokens=30))))
    assert all(isinstance(one, Failed) and "more than the model's limit" in one.reason for one in found.values())


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    with VllmEngine(start_seconds=300, answer_seconds=300) as one:
        yield one


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_both_engines_write_the_same_greedy_texts_and_several_sampled_ones(engine: VllmEngine, tmp_path: Path) -> None:
    pair = tiny_models.tiny_llama(**{**HEADS, "vocab_size": tiny_models.BPE_ENTRIES})
    engine.load(tiny_models.saved(pair, tmp_path / "student"))
    ours, theirs = texts(HfSampler(Loaded(*pair)).generate, asked(GREEDY)), texts(engine.sample, asked(GREEDY))
    for mine, other in zip(ours, theirs, strict=True):
        assert other.text.rstrip("\ufffd") == mine.text.rstrip("\ufffd")
        assert (other.tokens_out, other.finish, other.ended) == (mine.tokens_out, mine.finish, mine.ended)
        assert other.logprob == pytest.approx(mine.logprob, abs=1e-3)
    sampled = texts(engine.sample, asked(SAMPLED, range(4)))
    assert len({one.text for one in sampled[:4]}) > 1
    again = texts(engine.sample, asked(SAMPLED, range(4)))
    assert [one[:4] for one in again] == [one[:4] for one in sampled]
