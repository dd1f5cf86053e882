"""A model in this process, run by transformers: decoder-only or encoder-decoder, in batches of similar length.

`complete` is greedy decoding and plain sampling by transformers' own `generate`. `SampledCompletions` samples with
log-probabilities and several seeds in one batch, by the loop that rollouts use (`generation.sampler`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.encoding import (
    Chat,
    completion_of,
    end_tokens,
    in_chat,
    prompt_ids,
    too_long,
    trim,
    uses_chat,
)
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest, TextGenerator
from tinyllm_bench.generation.sampler import sample_texts
from tinyllm_bench.generation.thoughts import opened_thought
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import RUNS, Loaded, load_model, max_input_tokens, needs_bos
from tinyllm_bench.models.specs import ModelSpec


class StopTexts(StoppingCriteria):
    """Ends each row of a batch at its own first stop text; `start` is the position of the first new token.

    lm-eval's criterion ends a batch only when every row holds the same stop text, so that one row that ends with its
    end token makes all the others run to the limit.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], start: int) -> None:
        self._tokenizer, self._stops, self._start = tokenizer, [stop for stop in stops if stop], start
        # a token holds a byte or more, so this many reach back over a stop text however it is split
        self._reach = max((len(stop.encode()) for stop in self._stops), default=0) + 1

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Which rows are done: bool, (batch,)."""
        tails = self._tokenizer.batch_decode(input_ids[:, self._start :][:, -self._reach :])
        done = [any(stop in tail for stop in self._stops) for tail in tails]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


def complete(
    loaded: Loaded,
    prompts: Sequence[Sequence[int]],
    requests: Sequence[GenerationRequest],
    *,
    batch: int,
    keep_thoughts: bool = False,
) -> Iterator[tuple[int, Completion]]:
    """`(index, completion)` for prompts in token ids, batch by batch, the longest first.

    Greedy requests share batches; sampled ones run alone, each from its own seed, because `generate` samples the rows
    of a batch from one random stream. The model is put into evaluation mode meanwhile. `keep_thoughts`: special tokens
    that mark reasoning stay in the text, for the parsing of a reasoning model's replies.

    Raises:
        torch.OutOfMemoryError: a batch does not fit.
    """

    def kind(n: int) -> tuple[bool, str]:
        return requests[n].sampling.temperature > 0, repr(requests[n].sampling)

    order = sorted(range(len(requests)), key=lambda n: (*kind(n), -len(prompts[n])))
    for (is_sampled, _), group in groupby(order, key=kind):
        same, step = list(group), 1 if is_sampled else batch
        for start in range(0, len(same), step):
            part = same[start : start + step]
            began = time.perf_counter()
            completions = list(_complete_batch(loaded, [prompts[n] for n in part], requests[part[0]], keep_thoughts))
            share = (time.perf_counter() - began) / len(part)
            for n, completion in zip(part, completions, strict=True):
                yield n, completion._replace(seconds=share)


def _complete_batch(
    loaded: Loaded, prompts: Sequence[Sequence[int]], request: GenerationRequest, keep_thoughts: bool
) -> Iterator[Completion]:
    """A completion of each prompt; all are sampled as `request` says."""
    model, tokenizer = loaded
    sampling, encoder_decoder = request.sampling, bool(model.config.is_encoder_decoder)
    width = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), width), int(tokenizer.pad_token_id))
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(prompts):
        columns = slice(0, len(ids)) if encoder_decoder else slice(width - len(ids), width)
        ids_BT[row, columns] = torch.tensor(ids)
        mask_BT[row, columns] = 1
    start = 1 if encoder_decoder else width
    decoding: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        # transformers' own default samples from the top 50 tokens; vLLM and APIs have no such default
        decoding = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    generate: Any = model.generate
    with evaluating(model), _seeded(request, model.device):
        out_BT = generate(
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            max_new_tokens=sampling.max_new_tokens,
            stopping_criteria=StoppingCriteriaList([StopTexts(tokenizer, sampling.stop, start)]),
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            **decoding,
        )
    ends = end_tokens(model, tokenizer)
    for prompt, row in zip(prompts, out_BT[:, start:].tolist(), strict=True):
        new_ids, ended = trim(row, ends)
        yield completion_of(tokenizer, prompt, new_ids, sampling.stop, ended=ended, keep_thoughts=keep_thoughts)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without gradients and in evaluation mode; the mode is as before afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _seeded(request: GenerationRequest, device: torch.device) -> Iterator[None]:
    """Random numbers of the request's own seed; the process's own stay as they were."""
    if request.sampling.temperature == 0:
        yield
        return
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else None):
        torch.manual_seed(request.seed)
        yield


class HfGenerator(TextGenerator):
    """A local model that is loaded when the generator is entered.

    `chat` puts prompts in the tokenizer's own template (`auto`: when it has one).
    """

    engine = "hf"

    def __init__(
        self,
        spec: ModelSpec,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        chat: Chat = "auto",
        batch: int = 8,
        runs: Path = RUNS,
    ) -> None:
        self.batch = batch
        self._spec, self._dtype, self._device, self._runs = spec, dtype, device, runs
        self._chat_setting: Chat = chat
        self._loaded: Loaded | None = None
        self._chat = self._add_bos = False
        self._opened = ""  # the reasoning tag that ends the template; the reply begins inside it

    def __enter__(self) -> Self:
        loaded = load_model(self._spec, dtype=self._dtype, device=self._device, runs=self._runs)
        self._chat = uses_chat(loaded.tokenizer, self._chat_setting, self._spec.text)
        self._add_bos = needs_bos(*loaded)
        self._opened = opened_thought(in_chat(loaded.tokenizer, "")) if self._chat else ""
        self._loaded = loaded
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded = None
        if self._device != "cpu":
            torch.cuda.empty_cache()

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        """`(index of the request, answer)`, batch by batch, the longest prompts first.

        Raises:
            UserError: the device has too little memory for a batch.
        """
        assert self._loaded is not None, "use `with HfGenerator(...) as generator:`"
        model, tokenizer = self._loaded
        limit = max_input_tokens(model, tokenizer)
        fitting: list[tuple[int, list[int]]] = []
        for index, request in enumerate(requests):
            ids = prompt_ids(tokenizer, request.prompt, chat=self._chat, add_bos=self._add_bos)
            # an encoder's prompt and a decoder's text have limits of their own
            new = 0 if model.config.is_encoder_decoder else request.sampling.max_new_tokens
            if failed := too_long(len(ids), new, limit):
                yield index, failed
            else:
                fitting.append((index, ids))
        served = [requests[index] for index, _ in fitting]
        try:
            prompts = [ids for _, ids in fitting]
            for n, completion in complete(self._loaded, prompts, served, batch=self.batch, keep_thoughts=True):
                text = completion.text
                if completion.finish == "length" or completion.ended:
                    # the first bytes of an unfinished character; vLLM leaves them out
                    text = text.rstrip("\ufffd")
                yield fitting[n][0], completion._replace(text=self._opened + text)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{self._spec.text}: a batch of {min(self.batch, len(served))} prompts does not fit into the memory of"
                f" {self._device}; lower annotations.batch"
            ) from None


class HfSampler:
    """Greedy and sampled texts of a model in memory, with their log-probabilities; several seeds share a pass.

    A prompt's trailing white space is left out for a decoder-only model, as in training.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | FailedRequest]]:
        """`(index of the request, answer)`, requests of one `SamplingConfig` together."""
        model, tokenizer = self._loaded
        lm, add_bos = LM(model), needs_bos(model, tokenizer)
        limit = max_input_tokens(model, tokenizer)
        fitting: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            prompt = request.prompt if lm.encoder_decoder else request.prompt.rstrip()
            ids = prompt_ids(tokenizer, prompt, chat=False, add_bos=add_bos and not lm.encoder_decoder)
            if failed := too_long(len(ids), 0 if lm.encoder_decoder else request.sampling.max_new_tokens, limit):
                yield index, failed
            else:
                fitting[index] = ids
        for sampling in dict.fromkeys(requests[index].sampling for index in fitting):
            together = [index for index in fitting if requests[index].sampling == sampling]
            began = time.perf_counter()
            texts = sample_texts(
                [fitting[index] for index in together],
                lm,
                seeds=[requests[index].seed for index in together],
                max_new_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                vocabulary=len(tokenizer),
            )
            share = (time.perf_counter() - began) / len(together)
            for index, text in zip(together, texts, strict=True):
                ids = list(text.ids[:-1] if text.ended else text.ids)
                completion = completion_of(tokenizer, fitting[index], ids, sampling.stop, ended=text.ended)
                tokens = completion.tokens_out
                mean = sum(text.logq[:tokens]) / tokens if tokens else None
                yield index, completion._replace(seconds=share, logprob=mean)
