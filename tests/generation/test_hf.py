"""The transformers generator: batches change nothing, seeds decide, ends and counts are exact."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generation.test_encoding import TEMPLATE, ids
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.hf import HfGenerator, StopTexts
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest, SamplingConfig
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.testing import tiny_models

PROMPTS = (
    "Why is copper used for wires?",
    "A hen",
    "Question: which animal lays eggs? Options: (A) a dog (B) a hen\nAnswer: b\nRationale:",
    "Water boils",
    "The moon looks different during the month because",
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def spec(folder: Path) -> ModelSpec:
    return parse_spec(f"dir:{folder}", role="teacher")


def requests(prompts: Sequence[str] = PROMPTS, **sampling: Any) -> list[GenerationRequest]:
    return [
        GenerationRequest(text, SamplingConfig(**{"max_new_tokens": 12, **sampling}), seed=n)
        for n, text in enumerate(prompts)
    ]


def written(folder: Path, items: Sequence[GenerationRequest], **options: Any) -> list[Any]:
    with HfGenerator(spec(folder), **options) as generator:
        answers = dict(generator.generate(items))
    assert sorted(answers) == list(range(len(items)))
    return [answers[n] for n in range(len(items))]


def texts(answers: Sequence[Completion]) -> list[str]:
    return [answer.text for answer in answers]


def alone(pair: tuple[Any, Any], prompt: str) -> list[int]:
    """The greedy tokens of one prompt without padding, by transformers alone."""
    model, tokenizer = pair
    read = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    out = model.generate(**read, max_new_tokens=12, do_sample=False)[0].tolist()
    return out[1:] if model.config.is_encoder_decoder else out[read.input_ids.shape[1] :]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_greedy_texts_do_not_depend_on_the_batch_and_counts_are_exact(
    kind: str, request: pytest.FixtureRequest
) -> None:
    folder, pair = request.getfixturevalue(f"tiny_{kind}_dir"), request.getfixturevalue(f"tiny_{kind}")
    completions = written(folder, requests(), batch=3)
    tokenizer = pair[1]
    for answer, prompt in zip(completions, PROMPTS, strict=True):
        new_ids = alone(pair, prompt)
        ended = tokenizer.eos_token_id in new_ids
        assert answer.tokens_in == len(tokenizer(prompt).input_ids)
        assert answer.tokens_out == (new_ids.index(tokenizer.eos_token_id) + 1 if ended else 12)
        assert answer.finish == ("stop" if ended else "length") and answer.seconds > 0
        assert answer.text == tokenizer.decode(new_ids, skip_special_tokens=True).rstrip("\ufffd")
    assert len(set(texts(completions))) == len(PROMPTS)  # else the comparison would say little


def test_an_end_token_and_a_stop_text_end_one_row_and_leave_the_others(tiny_llama: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny_llama
    whole = [alone(tiny_llama, prompt) for prompt in PROMPTS]
    end = next(token for token in whole[0] if all(token not in row for row in whole[1:]))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    folder = tiny_models.saved(tiny_llama, tmp_path / "ends")
    decoded = [tokenizer.decode(row) for row in whole]
    stop = next(
        text
        for n in range(3, 12)
        if "\ufffd" not in (text := tokenizer.decode(whole[1][n - 2 : n])) and sum(text in one for one in decoded) == 1
    )
    completions = written(folder, requests(stop=(stop, "never written")))
    assert completions[0].finish == "stop" and completions[0].tokens_out == whole[0].index(end) + 1
    assert completions[0].text == tokenizer.decode(whole[0][: whole[0].index(end)])
    assert (
        completions[1].finish == "stop"
        and completions[1].text == decoded[1].split(stop)[0]
        and completions[1].tokens_out < 12
    )
    assert stop in tokenizer.decode(whole[1][: completions[1].tokens_out])
    assert stop not in tokenizer.decode(whole[1][: completions[1].tokens_out - 1])
    ended = [tokenizer.eos_token_id in row for row in whole[2:]]
    assert [answer.finish for answer in completions[2:]] == ["stop" if own_end else "length" for own_end in ended]
    assert texts(completions[2:]) == [
        tokenizer.decode(row, skip_special_tokens=True).rstrip("\ufffd") for row in whole[2:]
    ]


@pytest.mark.slow
def test_a_sampled_text_depends_on_its_own_seed_alone(tiny_llama_dir: Path) -> None:
    sampled = requests(temperature=1.0, top_p=0.95)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    completions = written(tiny_llama_dir, sampled)
    assert torch.equal(before, torch.get_rng_state())
    assert texts(written(tiny_llama_dir, sampled[::-1], batch=2)) == texts(completions)[::-1]
    assert texts(written(tiny_llama_dir, [*sampled[:2], *requests()[:2]]))[:2] == texts(completions)[:2]
    assert texts(written(tiny_llama_dir, [request._replace(seed=99) for request in sampled])) != texts(completions)
    assert texts(written(tiny_llama_dir, requests())) != texts(completions)


@pytest.mark.slow
def test_any_token_can_be_sampled_and_top_p_narrows_it(tiny_llama_dir: Path) -> None:
    hot = [GenerationRequest("A hen", SamplingConfig(temperature=1e4, max_new_tokens=1), seed) for seed in range(150)]
    assert len(set(texts(written(tiny_llama_dir, hot)))) > 50  # transformers' own default is the 50 likeliest
    sure = [
        GenerationRequest("A hen", SamplingConfig(temperature=1.0, top_p=1e-6, max_new_tokens=4), seed)
        for seed in range(5)
    ]
    greedy = written(tiny_llama_dir, [GenerationRequest("A hen", SamplingConfig(max_new_tokens=4), 0)])
    assert set(texts(written(tiny_llama_dir, sure))) == set(texts(greedy))


def test_a_prompt_that_is_too_long_fails_alone_and_is_never_cut(tmp_path: Path) -> None:
    folder = tiny_models.saved(tiny_models.tiny_llama(max_position_embeddings=64), tmp_path / "short")
    completions = written(folder, requests(["A hen", "long " * 60, "Water boils"]))
    assert (
        isinstance(completions[1], FailedRequest)
        and "new ones are more than the model's limit of 64" in completions[1].reason
    )
    assert isinstance(completions[0], Completion) and isinstance(completions[2], Completion)
    read = written(folder, [GenerationRequest("A hen", SamplingConfig(max_new_tokens=100), 0)])
    assert isinstance(read[0], FailedRequest) and "and 100 new ones" in read[0].reason


def test_a_chat_model_reads_its_own_template(tmp_path: Path, tiny_llama_dir: Path) -> None:
    model, tokenizer = tiny_models.tiny_llama()
    tokenizer.chat_template = TEMPLATE
    folder = tiny_models.saved((model, tokenizer), tmp_path / "chat")
    wrapped = [f"<|user|>{prompt}\n<|assistant|>" for prompt in PROMPTS]
    as_text = written(tiny_llama_dir, requests(wrapped))
    for chat in ("auto", "always"):
        completions = written(folder, requests(), chat=chat)
        assert [answer[:4] for answer in completions] == [answer[:4] for answer in as_text]
    assert texts(written(folder, requests(), chat="never")) == texts(written(tiny_llama_dir, requests()))
    with pytest.raises(UserError, match="no chat template"), HfGenerator(spec(tiny_llama_dir), chat="always"):
        pass


def test_a_batch_that_does_not_fit_names_the_setting(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with HfGenerator(spec(tiny_llama_dir)) as generator:
        monkeypatch.setattr(type(generator._loaded.model), "generate", full)
        with pytest.raises(UserError, match="batch of 5 prompts does not fit.*lower annotations.batch"):
            list(generator.generate(requests()))


@pytest.mark.parametrize("spelled", ["whole", "by bytes"])
def test_rows_end_at_their_own_stop_text_and_prompts_do_not_count(spelled: str) -> None:
    prompt, tails = "Question: 1\n", ["so.\nQuestion:", "yes, well\n#", "no Question: in"]
    by_byte: Any = lambda text: [token for character in text for token in ids(character)]  # noqa: E731
    rows = [ids(prompt) + (by_byte if spelled == "by bytes" else ids)(tail) for tail in tails]
    criteria = StopTexts(tiny_models.bpe_tokenizer(), ["\nQuestion:", "", "\n#"], len(ids(prompt)))
    assert [bool(criteria(torch.tensor([row]), None)) for row in rows] == [True, True, False]
    assert not StopTexts(tiny_models.bpe_tokenizer(), (), 0)(torch.tensor([rows[0]]), None)
