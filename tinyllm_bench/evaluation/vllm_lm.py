"""lm-eval's vLLM class inside the child process, around an engine that may be used again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.evaluation.vllm_child import import_backend
from tinyllm_bench.generation.encoding import check_length
from tinyllm_bench.generation.worker import CPU_BLOCK_SIZE, CPU_MAX_MODEL_LEN

_backend = import_backend()


def engine_options(folder: Path, dtype: str) -> dict[str, Any]:
    """Arguments of vLLM's engine: on the CPU float32 without compilation, on a GPU `dtype`."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        # room for the student that is trained beside the engine; not run on a GPU yet
        return {"load_format": "safetensors", "dtype": dtype, "gpu_memory_utilization": 0.45}
    from lm_eval.models.utils import resolve_max_length
    from transformers import AutoConfig

    limit = resolve_max_length(AutoConfig.from_pretrained(folder), default=CPU_MAX_MODEL_LEN)
    return {
        "load_format": "safetensors",  # the default looks for pickled weights too
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": min(limit, CPU_MAX_MODEL_LEN),
        "block_size": CPU_BLOCK_SIZE,
    }


def wrap(folder: Path, *, engine: Any, add_bos: bool | None, dtype: str) -> EngineLM:
    """An LM for a model folder: builds the engine, or uses `engine`, whose weights must be the folder's already.

    Raises:
        UserError: `add_bos` without a BOS token.
    """
    real = _backend.LLM
    if engine is not None:
        _backend.LLM = lambda **_: engine  # the only place where lm-eval's class builds an engine
    try:
        return EngineLM(folder, add_bos, dtype)
    finally:
        _backend.LLM = real


class EngineLM(_backend.VLLM):  # type: ignore[name-defined]
    """lm-eval's class with a BOS on demand, lengths checked instead of cut, and the end of each generation noted."""

    def __init__(self, folder: Path, add_bos: bool | None, dtype: str) -> None:
        self._lead = ""
        bos = False if add_bos is False else None
        options = engine_options(folder, dtype)
        super().__init__(pretrained=str(folder), batch_size="auto", add_bos_token=bos, seed=0, **options)
        if add_bos and self.tokenizer.bos_token is None:
            raise UserError("add_bos=True, but the tokenizer has no BOS token; allowed here: add_bos=None or False")
        self._lead = self.tokenizer.bos_token if add_bos else ""
        self._ends: dict[tuple[int, ...], tuple[int, bool]] = {}

    def tok_encode(self, string: Any, add_special_tokens: bool | None = None, **options: Any) -> Any:
        """Token ids of a text or of several; prompts get the BOS token if one was asked for."""
        if add_special_tokens is None and self._lead:
            lead = self._lead
            led = [text if text.startswith(lead) else lead + text for text in _listed(string)]
            string = led[0] if isinstance(string, str) else led
        return super().tok_encode(string, add_special_tokens=add_special_tokens, **options)

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) per (context, continuation)."""
        for context, continuation in pairs:
            ids = self._encode_pair(context, continuation)
            check_length(f"…{context[-60:]!r}", len(ids[0]) + len(ids[1]), self.max_length - 1)
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
        return [(float(value), bool(greedy)) for value, greedy in self.loglikelihood(requests, disable_tqdm=True)]

    def write(self, prompts: Sequence[str], options: Sequence[dict[str, Any]]) -> list[tuple[str, int, bool]]:
        """(text, new tokens, cut off by the limit) per prompt; `options` are lm-eval's generation arguments."""
        encoded = [tuple(ids) for ids in self.tok_encode(list(prompts))]
        for prompt, ids, wanted in zip(prompts, encoded, options, strict=True):
            room = int(wanted.get("max_gen_toks") or self.max_gen_toks)
            check_length(f"…{prompt[-60:]!r}", len(ids) + room, self.max_length)
        # transformers' decoding leaves special tokens out of the text; the same here, or the engines would disagree
        asked = [{"skip_special_tokens": True, **wanted} for wanted in options]
        pairs = zip(prompts, asked, strict=True)
        requests = [Instance("generate_until", {}, pair, i) for i, pair in enumerate(pairs)]
        self._ends.clear()
        texts = self.generate_until(requests, disable_tqdm=True)
        return [(text, *self._ends[ids]) for text, ids in zip(texts, encoded, strict=True)]

    def draw(self, wanted: Sequence[dict[str, Any]]) -> list[list[list[Any]]]:
        """Per prompt its greedy and its drawn texts, as the fields of `drawing.Written`."""
        ids = [self.tok_encode(one["prompt"].rstrip()) for one in wanted]
        for one, prompt in zip(wanted, ids, strict=True):
            check_length(f"…{one['prompt'][-60:]!r}", len(prompt) + one["max_new_tokens"], self.max_length)
        found: list[list[list[Any]]] = [[] for _ in wanted]
        for greedy in (True, False):
            places = [n for n, one in enumerate(wanted) if (one["greedy"] if greedy else one["samples"])]
            prompts = [{"prompt_token_ids": ids[n]} for n in places]
            params = [_sampling(wanted[n], greedy=greedy) for n in places]
            outputs = self.model.generate(prompts, params, use_tqdm=False) if prompts else []
            for n, output in zip(places, outputs, strict=True):
                found[n] += [_fields(text, greedy=greedy) for text in output.outputs]
        return found

    def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
        outputs = super()._model_generate(requests, generate=generate, sampling_params=sampling_params)
        if generate:
            for ids, output in zip(requests, outputs, strict=True):
                end = output.outputs[0]
                tokens = len(end.token_ids)
                # of an end token, be it the tokenizer's or the configuration's; a stop text is named by its letters
                eos = bool(tokens) and end.finish_reason == "stop" and not isinstance(end.stop_reason, str)
                self._ends[tuple(ids)] = (tokens - eos, end.finish_reason == "length")
        return outputs


def _sampling(one: dict[str, Any], *, greedy: bool) -> Any:
    """vLLM's parameters; the drawn texts of a prompt are one request with one seed."""
    from vllm import SamplingParams

    drawn = {"temperature": 0.0} if greedy else {key: one[key] for key in ("temperature", "top_p", "seed")}
    return SamplingParams(
        **drawn,
        n=1 if greedy else one["samples"],
        max_tokens=one["max_new_tokens"],
        stop=list(one["stops"]),
        logprobs=0,  # of the written tokens alone
        skip_special_tokens=True,
    )


def _fields(text: Any, *, greedy: bool) -> list[Any]:
    tokens = len(text.token_ids)
    mean = text.cumulative_logprob / tokens if tokens else None
    return [text.text, tokens, mean, text.finish_reason == "length", greedy]


def _listed(texts: Any) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
