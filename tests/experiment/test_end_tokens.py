"""Texts end at the configuration's end token and at the tokenizer's, whoever writes them and wherever they go on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tinyllm_bench.evaluation.lm_eval_models import hf_lm
from tinyllm_bench.generation.hf import HfSampler
from tinyllm_bench.generation.requests import Completion, GenerationRequest, SamplingConfig
from tinyllm_bench.generation.sampler import sample_texts
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded, load_model, save_model
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

PROMPT, MOST, OTHER = "Water boils", 12, 7


def _greedy(model: Any, ids: list[int]) -> list[int]:
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=MOST, do_sample=False)
    return list(out[0, len(ids) :].tolist())


@pytest.fixture(params=["tokenizer", "configuration"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Loaded, list[int]]:
    """A model whose greedy text holds an end token that only one of the two names, and the text up to it."""
    for seed in range(50):
        model, tokenizer = tiny_llama(seed)
        ids = tokenizer(PROMPT)["input_ids"]
        text = _greedy(model, ids)
        end = text[3]
        if text.index(end) != 3 or {1, OTHER} & set(text):
            continue
        model.generation_config.eos_token_id = OTHER if request.param == "tokenizer" else end
        if request.param == "tokenizer":
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        if tokenizer(PROMPT)["input_ids"] == ids:
            spec = parse_spec(f"dir:{saved((model, tokenizer), tmp_path / 'model')}", role="student")
            return load_model(spec), text[:4]
    raise AssertionError("no seed writes such a text")


def test_rollouts_end(written: tuple[Loaded, list[int]]) -> None:
    loaded, text = written
    ids = loaded.tokenizer(PROMPT)["input_ids"]
    (result,) = sample_texts([ids], LM(loaded.model), seeds=[0], max_new_tokens=MOST, temperature=0)
    assert result.ended and list(result.ids) == text


def test_answers_that_are_scored_end(written: tuple[Loaded, list[int]]) -> None:
    from lm_eval.api.instance import Instance

    loaded, text = written
    lm: Any = hf_lm(*loaded, batch_size=1, device="cpu")
    options = {"max_gen_toks": MOST, "until": ["no such text"], "do_sample": False}
    (texts,) = lm.generate_until([Instance("generate_until", {}, (PROMPT, options), 0)])
    finish = lm.finished[PROMPT]
    assert (finish.tokens, finish.hit_limit) == (3, False)
    assert texts == loaded.tokenizer.decode(text[:3])


def test_sampled_answers_end(written: tuple[Loaded, list[int]]) -> None:
    loaded, _ = written
    ((_, result),) = HfSampler(loaded).generate([GenerationRequest(PROMPT, SamplingConfig(max_new_tokens=MOST))])
    assert isinstance(result, Completion) and (result.tokens_out, result.finish) == (4, "stop")


def test_a_teacher_s_texts_end(written: tuple[Loaded, list[int]], tmp_path: Path) -> None:
    from tinyllm_bench.generation.hf import HfGenerator

    spec = parse_spec(f"dir:{tmp_path / 'model'}", role="teacher")
    with HfGenerator(spec, chat="never") as generator:
        asked = GenerationRequest(PROMPT, SamplingConfig(temperature=0, max_new_tokens=MOST), 0)
        ((_, result),) = list(generator.generate([asked]))
    assert (result.tokens_out, result.finish) == (4, "stop")


def test_a_saved_student_ends_in_anybody_s_generate(written: tuple[Loaded, list[int]], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, text = written
    save_model(loaded, tmp_path / "student")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "student")
    ids = tokenizer(PROMPT, return_tensors="pt")
    out = model.generate(**ids, max_new_tokens=MOST)
    assert out[0, ids["input_ids"].shape[1] :].tolist() == text
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
