"""The child process in which vLLM lives: one engine that loads and reloads weights, writes texts and scores given ones.

Requests: `{"op": "load", "folder", "options": fields of `EngineOptions`}`, `{"op": "generate", "requests": [{"ids",
"seed", and the fields of `SamplingConfig`}], "logprobs", "skip_special_tokens"}`, `{"op": "score", "pairs": [[prompt
ids, response ids]], "k"}`, `{"op": "forget"}`. Answers: `{"ok": ...}`, or `{"restart": true}` when a folder needs an
engine of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm_bench.base.files import digest, digest_file
from tinyllm_bench.generation.worker import CPU_BLOCK_SIZE, CPU_MAX_MODEL_LEN, serve
from tinyllm_bench.models.files import read_object
from tinyllm_bench.models.load import RELATIVE_POSITIONS_LIMIT

# Tokens of one forward pass of an engine for scoring. vLLM does not count the distributions over a prompt when it plans
# its memory: in float32, and several times over, they must fit into what it leaves free.
CHUNK_TOKENS = 2048
_NOT_SHAPE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")


def shape_of(folder: Path) -> str:
    """What two folders must share to use one engine: the model's configuration and the tokenizer's files."""
    config = read_object(str(folder), folder / "config.json")
    tokenizer = {file.name: digest_file(file) for file in sorted(folder.glob("tokenizer*"))}
    return digest([{key: value for key, value in config.items() if key not in _NOT_SHAPE}, tokenizer])


def devices_for(heads: int, key_heads: int, count: int) -> int:
    """Over how many of `count` GPUs vLLM can split a model: its heads must divide evenly, key heads may be copied."""
    return next(n for n in range(max(count, 1), 0, -1) if heads % n == 0 and (key_heads % n == 0 or n % key_heads == 0))


def engine_options(
    config: Any, *, dtype: str, max_model_len: int | None, gpu_memory: float, all_devices: bool, top_k: int | None
) -> dict[str, Any]:
    """Arguments of vLLM's engine: on the CPU float32 without compilation, on GPUs `dtype`. See `vllm.EngineOptions`."""
    from vllm.platforms import current_platform

    config = config.get_text_config()  # a model that also sees keeps these a level deeper
    options: dict[str, Any] = {
        "load_format": "safetensors",  # the default looks for pickled weights too
        "enable_prefix_caching": True,
        "seed": 0,
        "trust_remote_code": False,
        "disable_log_stats": True,
    }
    if top_k is not None:
        options |= {
            # vLLM has no distributions over a cached prefix: it reads none for these requests, so a cache would be
            # filled in vain (and made to read one, it returns unset memory at those positions)
            "enable_prefix_caching": False,
            "enable_chunked_prefill": True,
            "max_num_batched_tokens": CHUNK_TOKENS,
            "max_logprobs": top_k,
            "logprobs_mode": "raw_logprobs",  # before temperature and penalties; a softcap is the model's and is in it
        }
    if current_platform.is_cpu():
        positions = getattr(config, "max_position_embeddings", None) or RELATIVE_POSITIONS_LIMIT
        length = min(positions, max_model_len or CPU_MAX_MODEL_LEN)
        return {
            **options,
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": length,
            "block_size": CPU_BLOCK_SIZE,
        }
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    devices = devices_for(heads, key_heads, current_platform.device_count()) if all_devices else 1
    return {
        **options,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "gpu_memory_utilization": gpu_memory,
        "tensor_parallel_size": devices,
    }


def sampling_params(**fields: Any) -> Any:
    """vLLM's parameters of a request; the only place that makes them."""
    from vllm import SamplingParams

    return SamplingParams(**fields)


def retie(model: Any) -> bool:
    """Give a tied output head the embedding that was just reloaded; False where that cannot be done.

    vLLM's reload leaves the head of a tied model as it was ("ParallelLMHead: Failed to load weights"), and on the CPU
    the head also keeps a packed copy of the old weights: the answers would come from a mixture of two models.
    """
    if not getattr(model.config, "tie_word_embeddings", False):
        return True
    head, table = getattr(model, "lm_head", None), getattr(getattr(model, "model", None), "embed_tokens", None)
    if table is None or not hasattr(getattr(head, "quant_method", None), "process_weights_after_loading"):
        return False
    assert head is not None
    if head is not table:
        head.weight = table.weight
        head.quant_method.process_weights_after_loading(head)
    return True


class Position(NamedTuple):
    """One position of what vLLM gives: the token that stands there with its log-probability, and the top k."""

    token: int
    gold: float
    ids: list[int]
    logp: list[float]


def read_position(flat: Any, position: int) -> Position:
    """A position of vLLM's `FlatLogprobs`: first the token that stands there, then the top k, whether it is one."""
    inside = slice(flat.start_indices[position], flat.end_indices[position])
    (token, *ids), (gold, *logp) = flat.token_ids[inside], flat.logprobs[inside]
    return Position(token, gold, ids, logp)


def rows_of(flat: Any, prompt: Sequence[int], response: Sequence[int], *, k: int) -> dict[str, Any]:
    """The answer for one pair: per token of the response its log-probability (`gold`) and the top k, in nats."""
    rows = [read_position(flat, position) for position in range(len(prompt), len(prompt) + len(response))]
    assert [row.token for row in rows] == list(response) and all(len(row.ids) == k for row in rows), "vLLM's answer"
    return {"ids": [row.ids for row in rows], "logp": [row.logp for row in rows], "gold": [row.gold for row in rows]}


class Server:
    """Holds the engine."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._shape: Any = None

    def operations(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """What can be asked; see the module's text."""
        return {"load": self._load, "generate": self._generate, "score": self._score, "forget": self._forget}

    def _load(self, request: dict[str, Any]) -> dict[str, Any]:
        folder = Path(request["folder"])
        shape = (shape_of(folder), request["options"])
        if self._engine is None:
            from transformers import AutoConfig
            from vllm import LLM

            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            self._engine = LLM(model=str(folder), **engine_options(config, **request["options"]))
            self._shape = shape
            return self._loaded("built")
        if shape != self._shape:
            return {"restart": True}
        self._engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
        if not all(self._engine.apply_model(retie)):
            return {"restart": True}
        self._engine.reset_prefix_cache()  # else the old model's prefixes would answer
        return self._loaded("reloaded")

    def _loaded(self, how: str) -> dict[str, Any]:
        return {"ok": how, "max_length": self._engine.llm_engine.model_config.max_model_len}

    def _generate(self, request: dict[str, Any]) -> dict[str, Any]:
        params = []
        for one in request["requests"]:
            is_sampled = one["temperature"] > 0
            params.append(
                sampling_params(
                    temperature=one["temperature"],
                    top_p=one["top_p"] if is_sampled else 1.0,
                    max_tokens=one["max_new_tokens"],
                    stop=list(one["stop"]),
                    seed=one["seed"] if is_sampled else None,
                    logprobs=0 if request["logprobs"] else None,  # of the written tokens alone
                    skip_special_tokens=request["skip_special_tokens"],
                    spaces_between_special_tokens=False,
                )
            )
        prompts = [{"prompt_token_ids": one["ids"]} for one in request["requests"]]
        outputs = self._engine.generate(prompts, params, use_tqdm=False) if prompts else []
        answers: list[dict[str, Any]] = []
        for output in outputs:
            end = output.outputs[0]
            if end.finish_reason not in ("stop", "length"):
                answers.append({"failed": f"vLLM ended the text for this reason: {end.finish_reason}"})
                continue
            tokens = len(end.token_ids)
            answers.append(
                {
                    "text": end.text,
                    "tokens_in": len(output.prompt_token_ids),
                    "tokens_out": tokens,
                    "finish": end.finish_reason,
                    "logprob": end.cumulative_logprob / tokens if request["logprobs"] and tokens else None,
                    # by an end token, be it the tokenizer's or the configuration's; a stop text is named by its letters
                    "ended": bool(tokens) and end.finish_reason == "stop" and not isinstance(end.stop_reason, str),
                }
            )
        return {"ok": answers}

    def _score(self, request: dict[str, Any]) -> dict[str, Any]:
        pairs, k = request["pairs"], request["k"]
        params = sampling_params(prompt_logprobs=k, max_tokens=1, temperature=0.0, flat_logprobs=True, detokenize=False)
        prompts = [{"prompt_token_ids": [*prompt, *response]} for prompt, response in pairs]
        outputs = self._engine.generate(prompts, params, use_tqdm=False)
        return {
            "ok": [
                rows_of(output.prompt_logprobs, prompt, response, k=k)
                for output, (prompt, response) in zip(outputs, pairs, strict=True)
            ]
        }

    def _forget(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": self._engine.reset_prefix_cache()}


if __name__ == "__main__":
    serve(Server().operations())
