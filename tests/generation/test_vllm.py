"""The vLLM engine: the texts and distributions of transformers, seeds per request, clear refusals and deaths."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.generation.test_encoding import TEMPLATE
from tests.generation.test_hf import PROMPTS, requests, written
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.requests import FailedRequest, GenerationRequest, SamplingConfig
from tinyllm_bench.generation.top_k import ResponseDistributions, ScoredResponse, top_k
from tinyllm_bench.generation.vllm import EngineOptions, VllmEngine, top_k_distributions
from tinyllm_bench.generation.vllm_worker import (
    CHUNK_TOKENS,
    devices_for,
    engine_options,
    pair_scores,
    read_position,
    vllm_installed,
)
from tinyllm_bench.testing import tiny_models
from tinyllm_bench.training.logit_cache import LogitCache, LogitCacheHeader, check_distributions

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}  # vLLM's CPU attention wants heads of 32 or more
needs_vllm = pytest.mark.skipif(not vllm_installed(), reason="needs vLLM")


def teacher_engine(folder: Path, options: EngineOptions | None = None, **more: Any) -> VllmEngine:
    defaults: dict[str, Any] = {"chat": "auto", "advice": "use annotations.engine=hf"}
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


def answers(generator: VllmEngine, batch: list[GenerationRequest]) -> list[Any]:
    results = dict(generator.generate(batch))
    assert list(results) == list(range(len(batch)))
    return list(results.values())


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
def test_a_sampled_text_depends_on_its_own_seed_alone(generator: VllmEngine) -> None:
    batch = requests(temperature=1.0, top_p=0.95)
    first = [answer.text for answer in answers(generator, batch)]
    assert [answer.text for answer in answers(generator, batch[::-1])] == first[::-1]
    assert [answer.text for answer in answers(generator, [*batch[3:], *requests()])][:2] == first[3:]
    same_prompt = [batch[0]._replace(seed=seed) for seed in (5, 6, 5)]
    one, two, three = (answer.text for answer in answers(generator, same_prompt))
    assert one == three != two
    generator.forget_prefixes()
    assert [answer.text for answer in answers(generator, batch)] == first


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_a_long_prompt_fails_alone_and_a_death_is_clear(generator: VllmEngine, chat_folder: Path) -> None:
    batch = [GenerationRequest(text, SamplingConfig(max_new_tokens=4), 0) for text in ("A hen", "long " * 250, "Water")]
    results = answers(generator, batch)
    assert [isinstance(answer, FailedRequest) for answer in results] == [False, True, False]
    assert "limit of 256" in results[1].reason
    only_long = answers(generator, batch[1:2])
    assert only_long == [results[1]]
    with teacher_engine(chat_folder, EngineOptions(max_model_len=32), start_seconds=300, answer_seconds=300) as short:
        assert isinstance(answers(short, requests(PROMPTS[2:3]))[0], FailedRequest)
        assert short.pid is not None
        os.kill(short.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="the vLLM process died at 'generate'.*annotations.engine=hf"):
            answers(short, batch[:1])


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_a_chat_that_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.saved(tiny_models.tiny_llama(**HEADS), tmp_path / "plain")
    with pytest.raises(UserError, match="no chat template"), teacher_engine(folder, chat="always", start_seconds=300):
        pass


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllm_bench.generation.vllm_worker.find_spec", lambda _: object())
    with pytest.raises(UserError, match="no config.json"), teacher_engine(tmp_path):
        pass
    monkeypatch.setattr("tinyllm_bench.generation.vllm_worker.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install.*annotations.engine=hf"), teacher_engine(tmp_path):
        pass


def test_a_model_is_split_over_as_many_devices_as_its_heads_allow() -> None:
    assert [devices_for(9, 3, count) for count in (0, 1, 2, 3, 4, 8, 9)] == [1, 1, 1, 3, 3, 3, 9]
    assert [devices_for(32, 8, count) for count in (2, 4, 7, 8, 16)] == [2, 4, 4, 8, 16]
    assert devices_for(4, 1, 8) == 4


# --- distributions over given responses ---

K = 8
ENTRIES = tiny_models.BPE_ENTRIES
SHARED = tuple(range(2, 72))  # more than two of the blocks in which vLLM keeps prefixes
PAIRS = [
    (SHARED, (7, 8, 9, 30, 31)),
    (SHARED, (90, 91)),
    (SHARED, (7, 8, 9, 30, 31)),
    ((5,), (6,)),
    ((40, 41, 42), (1,)),
    ((200,), tuple(range(210, 330))),
]


def saved(folder: Path, **changes: Any) -> Path:
    """A tiny Llama whose table has no padding, so that every id is a token."""
    pair = tiny_models.tiny_llama(**{**HEADS, "max_position_embeddings": 4096, "vocab_size": ENTRIES, **changes})
    return tiny_models.saved(pair, folder)


def scoring_engine(folder: Path, k: int, **more: Any) -> VllmEngine:
    return VllmEngine(folder, EngineOptions(top_k=k), **{"advice": "use teacher.cache.engine=hf"} | more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Iterator[VllmEngine]:
    with scoring_engine(folder, K, batch=4, start_seconds=300, answer_seconds=300) as one:
        yield one


def expected(folder: Path, prompt: Any, response: Any, k: int) -> tuple[ResponseDistributions, torch.Tensor]:
    """Rows from transformers, and all its log-probabilities."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits_NV = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    logp_NV = logits_NV.log_softmax(-1)
    gold_N = logp_NV.gather(-1, torch.tensor(response)[:, None])[:, 0]
    return ResponseDistributions(*top_k(logits_NV, k), gold_N), logp_NV


def agree(actual: ResponseDistributions, folder: Path, prompt: Any, response: Any, k: int = K) -> None:
    reference, logp_NV = expected(folder, prompt, response, k)
    check_distributions(ScoredResponse("x", prompt, response, actual), k=k, vocabulary=ENTRIES)
    assert [part.dtype for part in actual] == [torch.int64, *[torch.float32] * 3]
    for ours, theirs in zip(actual[1:], reference[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    # every id has the log-probability that stands beside it, and where no neighbour is near the ids are the same
    torch.testing.assert_close(logp_NV.gather(-1, actual.ids_NK), actual.logp_NK, atol=1e-3, rtol=0)
    longer_NK = torch.nn.functional.pad(logp_NV, (0, 1), value=-torch.inf).topk(k + 1)[0]
    gaps_NK = longer_NK[:, :-1] - longer_NK[:, 1:]
    clear_NK = (gaps_NK > 2e-3) & (torch.nn.functional.pad(gaps_NK, (1, 0), value=1.0)[:, :-1] > 2e-3)
    assert clear_NK.float().mean() > 0.5
    assert torch.equal(actual.ids_NK[clear_NK], reference.ids_NK[clear_NK])
    assert bool((actual.logp_NK.diff(dim=-1) <= 0).all())


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_the_rows_are_those_of_transformers(scorer: VllmEngine, folder: Path) -> None:
    scored = list(scorer.score(PAIRS))
    assert [len(rows.gold_N) for rows in scored] == [len(response) for _, response in PAIRS]
    for rows, pair in zip(scored, PAIRS, strict=True):
        agree(rows, folder, *pair)
    inside = [rows.ids_NK.eq(torch.tensor(pair[1])[:, None]).any(-1) for rows, pair in zip(scored, PAIRS, strict=True)]
    assert not torch.cat(inside).all(), "some tokens stand outside of the k most probable"
    most_probable = (SHARED, (int(scored[0].ids_NK[0, 0]), int(scored[0].ids_NK[0, -1])))
    (rows,) = scorer.score([most_probable])
    agree(rows, folder, *most_probable)
    assert rows.gold_N[0] == rows.logp_NK[0, 0], "a token among the k most probable is not counted twice"


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_what_was_scored_before_changes_nothing(scorer: VllmEngine) -> None:
    first, again = list(scorer.score(PAIRS)), list(scorer.score(PAIRS[::-1]))[::-1]
    for one, two in zip(first, again, strict=True):
        torch.testing.assert_close(one.logp_NK, two.logp_NK, atol=1e-4, rtol=0)
        torch.testing.assert_close(one.gold_N, two.gold_N, atol=1e-4, rtol=0)
    for part, same in zip(first[0], first[2], strict=True):
        torch.testing.assert_close(part, same, atol=1e-4, rtol=0)


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_a_text_longer_than_one_pass_is_scored_whole(scorer: VllmEngine, folder: Path) -> None:
    long = [2 + (7 * place + place // 11) % 370 for place in range(CHUNK_TOKENS + 300)]
    pairs = [(long[:50], long[50:]), (long[: CHUNK_TOKENS - 1], long[CHUNK_TOKENS - 1 : CHUNK_TOKENS + 2])]
    scored = list(scorer.score(pairs))
    assert [len(rows.gold_N) for rows in scored] == [CHUNK_TOKENS + 250, 3]
    for rows, pair in zip(scored, pairs, strict=True):
        agree(rows, folder, *pair)


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_a_logit_cache_takes_the_rows(scorer: VllmEngine, tmp_path: Path) -> None:
    header = LogitCacheHeader(teacher="t", tokenizer="x", template="y", vocabulary=ENTRIES, k=K, precision="float32")
    cache = LogitCache.create(header, tmp_path / "cache")
    rows = list(scorer.score(PAIRS))
    assert cache.add(ScoredResponse(str(i), *pair, rows[i]) for i, pair in enumerate(PAIRS)) == len(PAIRS) - 1
    assert cache.tokens == sum(len(response) for _, response in PAIRS) - len(PAIRS[0][1])


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_what_cannot_be_scored_is_refused_and_the_engine_lives_on(scorer: VllmEngine, folder: Path) -> None:
    (before,) = scorer.score([((5,), (6,))])
    pid = scorer.pid
    for pair, message in [
        (((5,) * 4000, (6,) * 96), "4096 tokens; allowed: 4095"),
        (((5,), (ENTRIES,)), f"id {ENTRIES} is not a token of this model; allowed: 0 to {ENTRIES - 1}"),
        (((-1,), (5,)), "id -1 is not a token"),
    ]:
        with pytest.raises(UserError, match=message):
            list(scorer.score([pair]))
    with pytest.raises(UserError, match="pair 1 has an empty response"):
        scorer.score([((5,), (6,)), ((5,), ())])
    with pytest.raises(UserError, match="pair 0 has an empty prompt"):
        scorer.score([((), (5,))])
    (same,) = scorer.score([((5,), (6,))])
    assert scorer.pid == pid and torch.equal(before.logp_NK, same.logp_NK)
    agree(same, folder, (5,), (6,))


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_padding_of_the_table_is_no_token_and_a_death_is_clear(tmp_path: Path) -> None:
    padded = saved(tmp_path / "padded", vocab_size=tiny_models.LLAMA_VOCAB_ROWS)
    with scoring_engine(padded, ENTRIES, start_seconds=300, answer_seconds=300) as one:
        with pytest.raises(UserError, match=rf"id 38[0-3] is among the top 380 tokens.*only {ENTRIES} entries"):
            list(one.score(PAIRS[:1]))
        assert one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        with pytest.raises(UserError, match=r"the vLLM process died at 'score'.*Or use teacher.cache.engine=hf"):
            list(one.score(PAIRS[:1]))


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_the_whole_vocabulary_leaves_no_tail(folder: Path) -> None:
    with scoring_engine(folder, ENTRIES, start_seconds=300, answer_seconds=300) as one:
        for rows, pair in zip(one.score(PAIRS[:2]), PAIRS[:2], strict=True):
            agree(rows, folder, *pair, k=ENTRIES)
            assert bool((rows.tail_N == -torch.inf).all())


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_a_model_of_the_wrong_kind_or_too_large_a_k_is_refused(folder: Path, tiny_t5: Any, tmp_path: Path) -> None:
    t5 = tiny_models.saved(tiny_t5, tmp_path / "t5")
    with pytest.raises(UserError, match="is an encoder-decoder"), scoring_engine(t5, 2):
        pass
    with pytest.raises(UserError, match="k=381; allowed: 1 to 380"), scoring_engine(folder, ENTRIES + 1):
        pass


def test_a_scorer_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="k=0; at least 1"):
        scoring_engine(tmp_path, 0)
    with pytest.raises(UserError, match="batch=0; at least 1"):
        scoring_engine(tmp_path, 1, batch=0)
    monkeypatch.setattr("tinyllm_bench.generation.vllm_worker.find_spec", lambda _: object())
    with pytest.raises(UserError, match="no config.json"), scoring_engine(tmp_path, 1):
        pass
    monkeypatch.setattr("tinyllm_bench.generation.vllm_worker.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install.*or use teacher.cache.engine=hf"), scoring_engine(tmp_path, 1):
        pass


def flat(*positions: list[tuple[int, float]]) -> Any:
    """What vLLM answers: positions of (id, log-probability), the first of each being the actual token."""
    ends = [sum(len(position) for position in positions[: i + 1]) for i in range(len(positions))]
    pairs = [pair for position in positions for pair in position]
    return SimpleNamespace(
        start_indices=[0, *ends[:-1]],
        end_indices=ends,
        token_ids=[token for token, _ in pairs],
        logprobs=[logp for _, logp in pairs],
    )


def test_a_position_is_its_token_and_the_top_k() -> None:
    answer = flat([], [(9, -4.0), (3, -0.5), (4, -1.0)], [(3, -0.2), (3, -0.2), (7, -3.0)])
    assert read_position(answer, 1) == (9, -4.0, [3, 4], [-0.5, -1.0])
    rows = pair_scores(answer, [5], [9, 3], k=2)
    assert rows == {"ids": [[3, 4], [3, 7]], "logp": [[-0.5, -1.0], [-0.2, -3.0]], "gold": [-4.0, -0.2]}
    with pytest.raises(UserError, match="id 7 is among the top 2 tokens, but the tokenizer has only 5"):
        top_k_distributions(rows, vocabulary=5)
    with pytest.raises(AssertionError):
        pair_scores(answer, [5], [9, 4], k=2)


@needs_vllm
@pytest.mark.vllm
def test_the_prefix_cache_is_off_where_distributions_are_read(folder: Path) -> None:
    config = AutoConfig.from_pretrained(folder)
    settings = {"dtype": "float32", "max_model_len": None, "gpu_memory": 0.9, "all_devices": True}
    options = engine_options(config, **settings, top_k=5)
    assert options["enable_prefix_caching"] is False and options["max_logprobs"] == 5
    assert options["logprobs_mode"] == "raw_logprobs" and options["dtype"] == "float32"
    assert engine_options(config, **settings, top_k=None)["enable_prefix_caching"] is True
