"""The vLLM generator: the same texts as transformers, seeds per request, clear refusals and deaths."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.generation.test_encoding import TEMPLATE
from tests.generation.test_hf import PROMPTS, requests, written
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.requests import Failed, GenerationRequest, SamplingConfig
from tinyllm_bench.generation.vllm import EngineOptions, VllmEngine
from tinyllm_bench.generation.vllm_worker import devices_for
from tinyllm_bench.generation.worker import vllm_installed
from tinyllm_bench.testing import tiny_models

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}  # vLLM's CPU attention wants heads of 32 or more
needs_vllm = pytest.mark.skipif(not vllm_installed(), reason="needs vLLM")


def teacher_engine(folder: Path, options: EngineOptions | None = None, **more: Any) -> VllmEngine:
    defaults: dict[str, Any] = {"chat": "auto", "instead": "use annotations.engine=hf"}
    return VllmEngine(folder, options or EngineOptions(), **{**defaults, **more})


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = tiny_models.tiny_llama(**HEADS, max_position_embeddings=256)
    tokenizer.chat_template = TEMPLATE
    return tiny_models.saved((model, tokenizer), tmp_path_factory.mktemp("teacher") / "chat")


@pytest.fixture(scope="module")
def generator(chat_folder: Path) -> Iterator[VllmEngine]:
    with teacher_engine(chat_folder, batch=3, start_seconds=300, answer_seconds=300) as one:
        yield one


def answers(generator: VllmEngine, asked: list[GenerationRequest]) -> list[Any]:
    found = dict(generator.generate(asked))
    assert list(found) == list(range(len(asked)))
    return list(found.values())


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_greedy_texts_are_those_of_transformers(generator: VllmEngine, chat_folder: Path) -> None:
    ours, theirs = answers(generator, requests()), written(chat_folder, requests())
    assert [answer[:4] for answer in ours] == [answer[:4] for answer in theirs]
    stop = ours[0].text[3:5]
    ours, theirs = answers(generator, requests(stop=(stop, "\n#"))), written(chat_folder, requests(stop=(stop, "\n#")))
    assert [answer[:4] for answer in ours] == [answer[:4] for answer in theirs]
    assert ours[0].finish == "stop" and ours[0].seconds > 0


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_a_drawn_text_depends_on_its_own_seed_alone(generator: VllmEngine) -> None:
    asked = requests(temperature=1.0, top_p=0.95)
    first = [answer.text for answer in answers(generator, asked)]
    assert [answer.text for answer in answers(generator, asked[::-1])] == first[::-1]
    assert [answer.text for answer in answers(generator, [*asked[3:], *requests()])][:2] == first[3:]
    same_prompt = [asked[0]._replace(seed=seed) for seed in (5, 6, 5)]
    one, two, three = (answer.text for answer in answers(generator, same_prompt))
    assert one == three != two
    generator.forget_prefixes()
    assert [answer.text for answer in answers(generator, asked)] == first


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_a_long_prompt_fails_alone_and_a_death_is_clear(generator: VllmEngine, chat_folder: Path) -> None:
    asked = [GenerationRequest(text, SamplingConfig(max_new_tokens=4), 0) for text in ("A hen", "long " * 250, "Water")]
    found = answers(generator, asked)
    assert [isinstance(answer, Failed) for answer in found] == [False, True, False]
    assert "limit of 256" in found[1].reason
    only_long = answers(generator, asked[1:2])
    assert only_long == [found[1]]
    with teacher_engine(chat_folder, EngineOptions(max_model_len=32), start_seconds=300, answer_seconds=300) as short:
        assert isinstance(answers(short, requests(PROMPTS[2:3]))[0], Failed)
        assert short.pid is not None
        os.kill(short.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="the vLLM process died at 'generate'.*annotations.engine=hf"):
            answers(short, asked[:1])


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_a_chat_that_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.saved(tiny_models.tiny_llama(**HEADS), tmp_path / "plain")
    with pytest.raises(UserError, match="no chat template"), teacher_engine(folder, chat="always", start_seconds=300):
        pass


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllm_bench.generation.worker.find_spec", lambda _: object())
    with pytest.raises(UserError, match="no config.json"), teacher_engine(tmp_path):
        pass
    monkeypatch.setattr("tinyllm_bench.generation.worker.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install.*annotations.engine=hf"), teacher_engine(tmp_path):
        pass


def test_a_model_is_split_over_as_many_devices_as_its_heads_allow() -> None:
    assert [devices_for(9, 3, count) for count in (0, 1, 2, 3, 4, 8, 9)] == [1, 1, 1, 3, 3, 3, 9]
    assert [devices_for(32, 8, count) for count in (2, 4, 7, 8, 16)] == [2, 4, 4, 8, 16]
    assert devices_for(4, 1, 8) == 4
