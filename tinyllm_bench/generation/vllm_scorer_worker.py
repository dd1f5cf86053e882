"""The child process of `vllm_scorer`: one vLLM engine that scores given responses.

Requests: `{"op": "load", "folder", "k", "dtype", "max_model_len"}`, `{"op": "score", "pairs": [[prompt ids, response
ids]]}`. Answers: `{"ok": ...}`; of a pair `{"ids": N lists of k, "logp": N lists of k, "gold": N numbers}` in nats, for
the N tokens of its response.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.vllm_worker import engine_options
from tinyllm_bench.generation.worker import serve

# Tokens of one forward pass. vLLM does not count the distributions over a prompt when it plans its memory: in float32,
# and several times over, they must fit into what it leaves free.
CHUNK_TOKENS = 2048


def scorer_options(config: Any, *, k: int, dtype: str, max_model_len: int | None) -> dict[str, Any]:
    """Arguments of vLLM's engine: those of the generator, without a prefix cache.

    vLLM has no distributions over a cached prefix: it reads none for these requests, so a cache would be filled in vain
    (and made to read one, it returns unset memory at those positions).
    """
    return {
        **engine_options(config, dtype=dtype, max_model_len=max_model_len),
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": CHUNK_TOKENS,
        "max_logprobs": k,
        "logprobs_mode": "raw_logprobs",  # before temperature and penalties; a softcap is the model's own and is in it
    }


class Row(NamedTuple):
    """One position of what vLLM gives: the token that stands there with its log-probability, and the likeliest."""

    token: int
    gold: float
    ids: list[int]
    logp: list[float]


def read_position(flat: Any, position: int) -> Row:
    """A position of vLLM's `FlatLogprobs`: first the token that stands there, then the likeliest, whether it is one."""
    inside = slice(flat.start_indices[position], flat.end_indices[position])
    (token, *ids), (gold, *logp) = flat.token_ids[inside], flat.logprobs[inside]
    return Row(token, gold, ids, logp)


def rows_of(flat: Any, prompt: Sequence[int], response: Sequence[int], *, k: int, vocabulary: int) -> dict[str, Any]:
    """The answer for one pair.

    Raises:
        UserError: an id at or above `vocabulary`, the tokenizer's, is among the likeliest.
    """
    rows = [read_position(flat, position) for position in range(len(prompt), len(prompt) + len(response))]
    assert [row.token for row in rows] == list(response) and all(len(row.ids) == k for row in rows), "vLLM's answer"
    highest = max(max(row.ids) for row in rows)
    if highest >= vocabulary:
        raise UserError(
            f"id {highest} is among the {k} likeliest tokens, but the tokenizer has only {vocabulary} entries: the"
            " model's table is padded and gives its padding a probability; choose a smaller k or"
            " use teacher.cache.engine=hf, which cuts the padding off"
        )
    return {"ids": [row.ids for row in rows], "logp": [row.logp for row in rows], "gold": [row.gold for row in rows]}


class Server:
    """Holds the engine."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._k = self._vocabulary = self._limit = 0

    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """What can be asked; see the module's text."""
        return {"load": self._load, "score": self._score}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        from transformers import AutoConfig, AutoTokenizer

        folder, self._k = request["folder"], request["k"]
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if config.is_encoder_decoder:
            raise UserError(
                f"{folder} is an encoder-decoder; vLLM scores decoder-only models; use teacher.cache.engine=hf"
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self._vocabulary = min(len(tokenizer), config.get_text_config().vocab_size)
        if not 1 <= self._k <= self._vocabulary:
            raise UserError(f"k={self._k}; allowed: 1 to {self._vocabulary}, the vocabulary of {folder}")
        from vllm import LLM

        asked = {"dtype": request["dtype"], "max_model_len": request["max_model_len"]}
        self._engine = LLM(model=folder, **scorer_options(config, k=self._k, **asked))
        self._limit = self._engine.llm_engine.model_config.max_model_len
        return {"ok": {"max_length": self._limit}}

    def _score(self, request: dict[str, Any]) -> dict[str, Any]:
        from vllm import SamplingParams

        pairs = request["pairs"]
        for prompt, response in pairs:
            self._check(prompt, response)
        asked = SamplingParams(
            prompt_logprobs=self._k, max_tokens=1, temperature=0.0, flat_logprobs=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": [*prompt, *response]} for prompt, response in pairs]
        outputs = self._engine.generate(prompts, asked, use_tqdm=False)
        rows = [
            rows_of(output.prompt_logprobs, prompt, response, k=self._k, vocabulary=self._vocabulary)
            for output, (prompt, response) in zip(outputs, pairs, strict=True)
        ]
        return {"ok": rows}

    def _check(self, prompt: list[int], response: list[int]) -> None:
        tokens = len(prompt) + len(response)
        if tokens + 1 > self._limit:  # vLLM must be asked for one more token
            raise UserError(
                f"a prompt of {len(prompt)} tokens with a response of {len(response)} does not fit: {tokens} tokens;"
                f" allowed: {self._limit - 1}; raise max_model_len or cut the text"
            )
        low, high = min(*prompt, *response), max(*prompt, *response)
        if low < 0 or high >= self._vocabulary:
            raise UserError(
                f"id {low if low < 0 else high} is no token of this model; allowed: 0 to {self._vocabulary - 1};"
                " encode the text with the model's own tokenizer"
            )


if __name__ == "__main__":
    serve(Server().operations())
