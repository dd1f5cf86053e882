"""Models run by vLLM in one worker process: texts, log-probabilities of given continuations, top-k distributions.

This process tokenizes and checks lengths; the worker (`vllm_worker`) reads token ids alone. A common beginning of
several prompts is computed once. vLLM's distributions are over all rows of the model's embedding table, at temperature
1: where the table has more rows than the tokenizer has entries, the tail holds their probability; a teacher in memory
(`training.teacher_signals`) cuts them off before the softmax instead.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.data.records import ScoringMode
from tinyllm_bench.generation.encoding import Chat, in_chat, prompt_ids, special_tokens, too_long, uses_chat
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest, TextGenerator
from tinyllm_bench.generation.thoughts import opened_thought
from tinyllm_bench.generation.vllm_worker import (
    VLLM_ENVIRONMENT,
    VLLM_INSTALL,
    PairScores,
    WorkerProcess,
    shape_of,
    vllm_installed,
)
from tinyllm_bench.models.files import check_safetensors, linked_folder, model_files
from tinyllm_bench.models.load import needs_bos

if TYPE_CHECKING:
    from tinyllm_bench.generation.top_k import ResponseDistributions

Pair = tuple[Sequence[int], Sequence[int]]  # ids of a prompt, ids of the text scored after it


def backend_for(
    engine: Literal["auto", "hf", "vllm"], mode: ScoringMode, is_encoder_decoder: bool
) -> Literal["hf", "vllm"]:
    """The backend of a student: `auto` is vLLM for `generate` if it is installed and the model decoder-only, else hf.

    Raises:
        UserError: an unknown engine; vLLM where it is not installed or the model is an encoder-decoder.
    """
    if engine not in ("auto", "hf", "vllm"):
        raise unknown_name("backend", engine, ("auto", "hf", "vllm"))
    if engine == "auto":
        return "vllm" if mode == "generate" and not is_encoder_decoder and vllm_installed() else "hf"
    if engine == "hf":
        return "hf"
    if is_encoder_decoder:
        raise UserError("backend 'vllm' cannot run encoder-decoder models (T5); use backend.engine=hf or auto")
    if not vllm_installed():
        raise UserError(f"backend 'vllm' is not installed; {VLLM_INSTALL}, or use backend.engine=hf")
    return "vllm"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The options an engine is built with; another value needs another engine.

    dtype: on a GPU; the CPU engine runs float32 alone. max_model_len bounds prompt and answer in tokens: by default
    the model's own limit, on a CPU at most 4096. gpu_memory: share of each GPU; all_devices: spread over as many GPUs
    as the heads allow. top_k: entries of every distribution that `score` returns; None where nothing is scored for a
    logit cache. The paths on GPUs have not been run yet.
    """

    dtype: str = "float32"
    max_model_len: int | None = None
    gpu_memory: float = 0.9
    all_devices: bool = True
    top_k: int | None = None


# leaves memory for the student that is trained beside the engine
STUDENT_OPTIONS = EngineOptions(gpu_memory=0.45, all_devices=False)


class VllmEngine(TextGenerator):
    """A handle on the worker process, a context manager; the process starts when the first model is loaded.

    `folder` (config, tokenizer, safetensors of a decoder-only model) is loaded when the engine is entered; without one,
    `load` puts one model after the other into the same engine. `chat` puts prompts in the tokenizer's own template.
    `batch`: requests or pairs in one call of the worker. `advice`: what to use in place of vLLM, for errors. `log`: the
    file for vLLM's output (a temporary one by default). `start_seconds` bounds the building of an engine,
    `answer_seconds` each request.

    Raises:
        UserError: a batch or a number of entries below 1.
    """

    engine = "vllm"

    def __init__(
        self,
        folder: Path | None = None,
        options: EngineOptions = STUDENT_OPTIONS,
        *,
        chat: Chat = "never",
        batch: int = 1024,
        advice: str = "use backend.engine=hf",
        log: Path | None = None,
        start_seconds: float = 900,
        answer_seconds: float = 7200,
    ) -> None:
        if options.top_k is not None and options.top_k < 1:
            raise UserError(f"k={options.top_k}; at least 1 entry of every distribution must be stored")
        if batch < 1:
            raise UserError(f"batch={batch}; at least 1 request must be served at a time")
        self.batch, self.options = batch, options
        self.folder: Path | None = None  # whose weights the worker holds
        self.loaded: Literal["built", "reloaded"] | None = None
        self.max_length = 0
        self.tokenizer: Any = None
        self.add_bos = False  # whether prompts begin with a BOS token that the tokenizer does not add
        self._initial_folder, self._chat_setting, self._advice = folder, chat, advice
        self._chat, self._vocabulary = False, 0
        self._opened = ""  # the reasoning tag that ends the template; the reply begins inside it
        self._start_seconds = start_seconds
        self._links = ExitStack()  # vLLM sees only the files that this package reads
        self._worker = WorkerProcess(
            "tinyllm_bench.generation.vllm_worker",
            name="vLLM",
            advice=f"Or {advice}.",
            environment=VLLM_ENVIRONMENT,
            log=log,
            answer_seconds=answer_seconds,
        )

    def __enter__(self) -> Self:
        if not vllm_installed():
            raise UserError(f"vLLM is not installed; {VLLM_INSTALL}, or {self._advice}")
        self._worker.__enter__()
        if self._initial_folder is not None:
            try:
                self.load(self._initial_folder)
            except BaseException as error:
                self.__exit__(type(error), error, error.__traceback__)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, error, trace)
        self._links.close()

    @property
    def pid(self) -> int | None:
        """The worker's process id while it runs."""
        return self._worker.pid

    def load(self, folder: Path, *, dtype: str | None = None) -> None:
        """Load a model: its weights into the existing engine, or into a new engine.

        Raises:
            UserError: a folder without a model, one that vLLM cannot run or score, an engine that dies or hangs; the
                same model, or any if no engine was ever built, where that failed earlier in this run.
        """
        from transformers import AutoConfig, AutoTokenizer

        folder = folder.expanduser()
        options = self.options if dtype is None else replace(self.options, dtype=dtype)
        files = model_files(str(folder), folder)
        check_safetensors(str(folder), [file for name, file in files.items() if name.endswith(".safetensors")])
        links = self._links.enter_context(linked_folder(files))
        config = AutoConfig.from_pretrained(links, trust_remote_code=False, local_files_only=True)
        if config.is_encoder_decoder:
            raise UserError(f"{folder} is an encoder-decoder; vLLM runs decoder-only models; {self._advice}")
        tokenizer = AutoTokenizer.from_pretrained(links, trust_remote_code=False, local_files_only=True)
        vocabulary = min(len(tokenizer), config.get_text_config().vocab_size)
        if options.top_k is not None and options.top_k > vocabulary:
            raise UserError(f"k={options.top_k}; allowed: 1 to {vocabulary}, the vocabulary of {folder}")
        self._chat = uses_chat(tokenizer, self._chat_setting, str(folder))
        self._opened = opened_thought(in_chat(tokenizer, "")) if self._chat else ""
        self.add_bos = needs_bos(cast(Any, SimpleNamespace(config=config)), tokenizer)
        self.tokenizer, self._vocabulary = tokenizer, vocabulary
        request = {"op": "load", "folder": str(links), "options": asdict(options)}
        what = str(folder) if self._initial_folder else "any model" if self.loaded is None else shape_of(links)
        answer = self._worker.start(request, self._start_seconds, what=what)
        if answer.get("restart"):
            self._worker.stop()
            answer = self._worker.start(request, self._start_seconds, what=what)
        self.loaded, self.max_length, self.folder = answer["ok"], answer["max_length"], folder

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        """`(index of the request, answer)`, in order, `batch` of them at a time.

        Raises:
            UserError: the worker died, failed or did not answer in time.
        """
        ids = [
            prompt_ids(self.tokenizer, request.prompt, chat=self._chat, add_bos=self.add_bos) for request in requests
        ]
        for n, answer in self.complete(ids, requests, keep_thoughts=True):
            yield n, answer if isinstance(answer, FailedRequest) else answer._replace(text=self._opened + answer.text)

    def sample(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        """As `hf.HfSampler.generate`: plain prompts without trailing white space, texts with log-probabilities."""
        ids = [
            prompt_ids(self.tokenizer, request.prompt.rstrip(), chat=False, add_bos=self.add_bos)
            for request in requests
        ]
        return self.complete(ids, requests, logprobs=True)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        requests: Sequence[GenerationRequest],
        *,
        logprobs: bool = False,
        keep_thoughts: bool = False,
    ) -> Iterator[tuple[int, Completion | FailedRequest]]:
        """As `generate`, of prompts in token ids. With `logprobs` completions have their `logprob`; `keep_thoughts`:
        special tokens that mark reasoning stay in the text."""
        special = special_tokens(self.tokenizer)
        keeps_marks = keep_thoughts and len(special) < len(self.tokenizer.all_special_ids)
        for start in range(0, len(requests), self.batch):
            part = range(start, min(start + self.batch, len(requests)))
            began = time.perf_counter()
            new_tokens = {n: requests[n].sampling.max_new_tokens for n in part}
            answers: dict[int, Completion | FailedRequest] = {
                n: failed for n in part if (failed := too_long(len(prompts[n]), new_tokens[n], self.max_length))
            }
            fitting = [n for n in part if n not in answers]
            items = [
                {"ids": list(map(int, prompts[n])), "seed": requests[n].seed, **asdict(requests[n].sampling)}
                for n in fitting
            ]
            call = {"op": "generate", "requests": items, "logprobs": logprobs, "skip_special_tokens": not keeps_marks}
            outputs = self._worker.ask(call)["ok"] if items else []
            share = (time.perf_counter() - began) / len(part)
            for n, output in zip(fitting, outputs, strict=True):
                if "failed" in output:
                    answers[n] = FailedRequest(output["failed"])
                    continue
                text = output.pop("text")
                for token in special.values() if keeps_marks else ():
                    text = text.replace(token, "")
                answers[n] = Completion(text, **output, seconds=share)
            yield from ((n, answers[n]) for n in part)

    def option_scores(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """(log-probability in nats, whether greedy decoding would generate it) of each continuation of a prompt."""
        scores = []
        for answer in self._score(pairs, 1):
            greedy = all(gold >= top for gold, (top,) in zip(answer["gold"], answer["logp"], strict=True))
            scores.append((float(sum(answer["gold"])), greedy))
        return scores

    def score(self, pairs: Sequence[Pair]) -> Iterator[ResponseDistributions]:
        """The distributions at every token of each response, given its prompt and the response's earlier tokens.

        Neither part of a pair may be empty. `ids_NK` is int64; the others are float32, sorted downwards along K.

        Raises:
            UserError: an empty or too long pair, an id that the tokenizer does not have (given, or among the top k);
                the worker died, failed or did not answer in time.
        """
        assert self.options.top_k is not None, "an engine that scores has EngineOptions.top_k"
        for n, (prompt, response) in enumerate(pairs):
            if not prompt or not response:
                empty = "response" if prompt else "prompt"
                raise UserError(f"pair {n} has an empty {empty}; needed: at least one token of each")
            tokens = len(prompt) + len(response)
            if tokens + 1 > self.max_length:  # vLLM must generate one more token
                raise UserError(
                    f"a prompt of {len(prompt)} tokens with a response of {len(response)} does not fit: {tokens}"
                    f" tokens; allowed: {self.max_length - 1}; raise max_model_len or cut the text"
                )
            low, high = min(*prompt, *response), max(*prompt, *response)
            if low < 0 or high >= self._vocabulary:
                raise UserError(
                    f"id {low if low < 0 else high} is not a token of this model; allowed: 0 to {self._vocabulary - 1};"
                    " encode the text with the model's own tokenizer"
                )
        return (
            top_k_distributions(answer, vocabulary=self._vocabulary)
            for answer in self._score(pairs, self.options.top_k)
        )

    def _score(self, pairs: Sequence[Pair], k: int) -> Iterator[PairScores]:
        for start in range(0, len(pairs), self.batch):
            batch = [[list(map(int, part)) for part in pair] for pair in pairs[start : start + self.batch]]
            yield from self._worker.ask({"op": "score", "pairs": batch, "k": k})["ok"]

    def forget_prefixes(self) -> None:
        """Empty the prefix cache (for measurements that must start from the same state)."""
        self._worker.ask({"op": "forget"})


def top_k_distributions(answer: PairScores, *, vocabulary: int) -> ResponseDistributions:
    """The worker's answer for one pair as tensors.

    Raises:
        UserError: an id at or above `vocabulary`, the tokenizer's, is among the top k.
    """
    import torch

    from tinyllm_bench.generation.top_k import ResponseDistributions, tail_of

    ids_NK = torch.tensor(answer["ids"], dtype=torch.int64)
    highest = int(ids_NK.max())
    if highest >= vocabulary:
        raise UserError(
            f"id {highest} is among the top {ids_NK.shape[1]} tokens, but the tokenizer has only {vocabulary} entries:"
            " the model's embedding table is padded and gives its padding a probability; choose a smaller k or"
            " use teacher.cache.engine=hf, which cuts the padding off"
        )
    logp_NK, order_NK = torch.tensor(answer["logp"], dtype=torch.float32).sort(dim=-1, descending=True, stable=True)
    gold_N = torch.tensor(answer["gold"], dtype=torch.float32)
    return ResponseDistributions(ids_NK.gather(-1, order_NK), logp_NK, tail_of(logp_NK), gold_N)
