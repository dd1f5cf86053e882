"""Texts of a student for paths: greedy and drawn, cut at stop texts, and alike from both engines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.test_vllm import HEADS, needs_vllm
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.evaluation.sampling import HfDrawer, VllmDrawer, Wanted, seeds_of
from tinyllm_bench.evaluation.vllm import VllmEngine
from tinyllm_bench.models.load import Loaded
from tinyllm_bench.testing import tiny_models

PROMPTS = ("Question: which animal lays eggs?\nLet's think step by step.", "Water boils.\nLet's write a program.")


def wanted(**changes: Any) -> list[Wanted]:
    how = {"greedy": True, "samples": 3, "seed": 5, "max_new_tokens": 12, **changes}
    return [Wanted(prompt=prompt, **how) for prompt in PROMPTS]


def drawer(family: str = "llama", **changes: Any) -> HfDrawer:
    make = {"llama": tiny_models.tiny_llama, "t5": tiny_models.tiny_t5}[family]
    return HfDrawer(Loaded(*make(**changes)))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_greedy_text_comes_first_and_drawn_ones_differ(family: str) -> None:
    for texts in drawer(family).draw(wanted(temperature=1.5, top_p=1.0)):
        assert [text.greedy for text in texts] == [True, False, False, False]
        assert len({text.text for text in texts}) > 1
        assert all(0 < text.tokens <= 12 and text.logprob is not None and text.logprob <= 0 for text in texts)


def test_the_same_seeds_give_the_same_texts_and_others_do_not() -> None:
    one = drawer()
    first, again, other = (one.draw(wanted(temperature=1.5, seed=seed)) for seed in (5, 5, 6))
    assert first == again != other
    assert len(set(seeds_of(wanted(samples=9)[0]))) == 9


def test_only_what_is_wanted_is_written() -> None:
    one = drawer()
    assert [len(texts) for texts in one.draw(wanted(samples=0))] == [1, 1]
    assert [len(texts) for texts in one.draw(wanted(greedy=False, samples=2))] == [2, 2]


def test_a_text_ends_before_its_stop() -> None:
    one = drawer()
    (whole,) = one.draw(wanted(samples=0, stops=()))[0]
    stop = whole.text[3:5]
    (cut,) = one.draw(wanted(samples=0, stops=(stop,)))[0]
    assert cut.text == whole.text[: whole.text.find(stop)] and not cut.hit_limit and cut.tokens <= whole.tokens


def test_a_small_nucleus_is_greedy() -> None:
    texts = drawer().draw(wanted(top_p=1e-6, temperature=1.0))[0]
    assert len({text.text for text in texts}) == 1


def test_a_prompt_without_room_is_refused() -> None:
    with pytest.raises(UserError, match="more than the model's limit"):
        drawer(max_position_embeddings=32).draw(wanted(max_new_tokens=30))


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    with VllmEngine(start_seconds=300, answer_seconds=300) as one:
        yield one


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_both_engines_write_the_same_greedy_texts_and_several_drawn_ones(engine: VllmEngine, tmp_path: Path) -> None:
    pair = tiny_models.tiny_llama(**{**HEADS, "vocab_size": tiny_models.BPE_ENTRIES})
    folder = tiny_models.saved(pair, tmp_path / "student")
    ours = HfDrawer(Loaded(*pair)).draw(wanted(samples=0))
    theirs = VllmDrawer(engine, lambda one: one.lm(folder)).draw(wanted(samples=4, temperature=1.0))
    for (mine,), texts in zip(ours, theirs, strict=True):
        assert [text.greedy for text in texts] == [True, False, False, False, False]
        assert texts[0].text.rstrip("\ufffd") == mine.text.rstrip("\ufffd")
        assert texts[0].logprob == pytest.approx(mine.logprob, abs=1e-3)
        assert len({text.text for text in texts[1:]}) > 1
    again = VllmDrawer(engine, lambda one: None).draw(wanted(samples=4, temperature=1.0))
    assert again == theirs
