"""The child process of `writer_vllm`: one vLLM engine that writes a teacher's texts.

Requests: `{"op": "load", "folder", "chat", "dtype", "max_model_len"}`, `{"op": "write", "requests": [{"prompt", "seed",
"temperature", "top_p", "max_new_tokens", "stop"}]}`, `{"op": "forget"}`. Answers: `{"ok": ...}`; of a request `{"text",
"tokens_in", "tokens_out", "finish"}` or `{"failed": reason}`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from tinyllm_bench.generation.encoding import in_chat, left_out, prompt_ids, too_long, uses_chat
from tinyllm_bench.generation.thoughts import opened_thought
from tinyllm_bench.generation.worker import CPU_BLOCK_SIZE, CPU_MAX_MODEL_LEN, serve
from tinyllm_bench.models.load import RELATIVE_POSITIONS_LIMIT, needs_bos

_GPU_MEMORY = 0.9  # share; nothing else is on the GPU while a teacher writes


def devices_for(heads: int, key_heads: int, count: int) -> int:
    """Over how many of `count` GPUs vLLM can split a model: its heads must divide evenly, key heads may be copied."""
    return next(n for n in range(max(count, 1), 0, -1) if heads % n == 0 and (key_heads % n == 0 or n % key_heads == 0))


def engine_options(config: Any, *, dtype: str, max_model_len: int | None) -> dict[str, Any]:
    """Arguments of vLLM's engine: on the CPU float32 without compilation, on GPUs `dtype` over all that can be used."""
    from vllm.platforms import current_platform

    config = config.get_text_config()  # a model that also sees keeps these a level deeper
    shared: dict[str, Any] = {
        "load_format": "safetensors",  # the default looks for pickled weights too
        "enable_prefix_caching": True,
        "seed": 0,
        "trust_remote_code": False,
        "disable_log_stats": True,
    }
    if current_platform.is_cpu():
        reads = getattr(config, "max_position_embeddings", None) or RELATIVE_POSITIONS_LIMIT
        length = min(reads, max_model_len or CPU_MAX_MODEL_LEN)
        return {
            **shared,
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": length,
            "block_size": CPU_BLOCK_SIZE,
        }
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return {
        **shared,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": _GPU_MEMORY,
        "tensor_parallel_size": devices_for(heads, key_heads, current_platform.device_count()),
    }


class Server:
    """Holds the engine and the tokenizer."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._tokenizer: Any = None
        self._chat = self._lead = self._keeps_marks = False
        self._left_out: dict[int, str] = {}
        self._opened = ""  # the mark with which the template begins a thought, which the reply then ends
        self._limit = 0

    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """What can be asked; see the module's text."""
        return {"load": self._load, "write": self._write, "forget": self._forget}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        from transformers import AutoConfig, AutoTokenizer

        folder = request["folder"]
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self._chat = uses_chat(self._tokenizer, request["chat"], folder)
        self._lead = needs_bos(cast(Any, SimpleNamespace(config=config)), self._tokenizer)
        self._left_out = left_out(self._tokenizer)
        self._keeps_marks = len(self._left_out) < len(self._tokenizer.all_special_ids)
        self._opened = opened_thought(in_chat(self._tokenizer, "")) if self._chat else ""
        from vllm import LLM

        options = engine_options(config, dtype=request["dtype"], max_model_len=request["max_model_len"])
        self._engine = LLM(model=folder, **options)
        self._limit = self._engine.llm_engine.model_config.max_model_len
        return {"ok": {"max_length": self._limit}}

    def _write(self, request: dict[str, Any]) -> dict[str, Any]:
        answers: dict[int, dict[str, Any]] = {}
        prompts, params, places = [], [], []
        for place, one in enumerate(request["requests"]):
            ids = prompt_ids(self._tokenizer, one["prompt"], chat=self._chat, lead=self._lead)
            if failed := too_long(len(ids), one["max_new_tokens"], self._limit):
                answers[place] = {"failed": failed.reason}
                continue
            prompts.append({"prompt_token_ids": ids})
            params.append(_params(one, skip_special_tokens=not self._keeps_marks))
            places.append(place)
        outputs = self._engine.generate(prompts, params, use_tqdm=False) if prompts else []
        answers.update({place: self._answer(output) for place, output in zip(places, outputs, strict=True)})
        return {"ok": [answers[place] for place in range(len(answers))]}

    def _answer(self, output: Any) -> dict[str, Any]:
        end = output.outputs[0]
        if end.finish_reason not in ("stop", "length"):
            return {"failed": f"vLLM ended the text for this reason: {end.finish_reason}"}
        text = end.text
        for token in self._left_out.values() if self._keeps_marks else ():
            text = text.replace(token, "")
        return {
            "text": self._opened + text,
            "tokens_in": len(output.prompt_token_ids),
            "tokens_out": len(end.token_ids),
            "finish": end.finish_reason,
        }

    def _forget(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": self._engine.reset_prefix_cache()}


def _params(request: dict[str, Any], *, skip_special_tokens: bool) -> Any:
    from vllm import SamplingParams

    drawn = request["temperature"] > 0
    return SamplingParams(
        temperature=request["temperature"],
        top_p=request["top_p"] if drawn else 1.0,
        max_tokens=request["max_new_tokens"],
        stop=list(request["stop"]),
        seed=request["seed"] if drawn else None,
        skip_special_tokens=skip_special_tokens,
        spaces_between_special_tokens=False,
    )


if __name__ == "__main__":
    serve(Server().operations())
