"""A local teacher run by transformers: decoder-only or encoder-decoder, in batches of like length."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.encoding import Chat, before_stop, in_chat, left_out, prompt_ids, too_long, uses_chat
from tinyllm_bench.generation.requests import Completion, Failed, GenerationRequest, SamplingConfig, TextGenerator
from tinyllm_bench.generation.thoughts import opened_thought
from tinyllm_bench.models.load import RUNS, Loaded, load_model, max_input_tokens, needs_bos
from tinyllm_bench.models.specs import ModelSpec

if TYPE_CHECKING:
    import torch


class _Asked(NamedTuple):
    """A request with its place among the requests and its prompt's token ids."""

    place: int
    request: GenerationRequest
    ids: list[int]


class HfGenerator(TextGenerator):
    """Writes with `generate`. Greedy requests share batches; sampled ones are drawn alone, each from its own seed.

    Tokens out count what was generated: the end token and the tokens of a stop text too, as servers count them. `chat`
    puts prompts in the tokenizer's own template (`auto`: when it has one).
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
        self._asked_chat: Chat = chat
        self._loaded: Loaded | None = None
        self._chat = self._lead = False
        self._left_out: dict[int, str] = {}
        self._opened = ""  # the mark with which the template begins a thought, which the reply then ends

    def __enter__(self) -> Self:
        loaded = load_model(self._spec, dtype=self._dtype, device=self._device, runs=self._runs)
        self._chat = uses_chat(loaded.tokenizer, self._asked_chat, self._spec.text)
        self._lead = needs_bos(*loaded)
        self._left_out = left_out(loaded.tokenizer)
        self._opened = opened_thought(in_chat(loaded.tokenizer, "")) if self._chat else ""
        self._loaded = loaded
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loaded = None
        if self._device != "cpu":
            import torch

            torch.cuda.empty_cache()

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[tuple[int, Completion | Failed]]:
        """`(index of the request, answer)`, batch by batch, the longest prompts first.

        Raises:
            UserError: the device has too little memory for a batch.
        """
        asked = []
        for index, request in enumerate(requests):
            ids = prompt_ids(self._open.tokenizer, request.prompt, chat=self._chat, lead=self._lead)
            if failed := self._too_long(ids, request):
                yield index, failed
            else:
                asked.append(_Asked(index, request, ids))
        for batch in _batches(asked, self.batch):
            yield from self._write_batch(batch)

    @property
    def _open(self) -> Loaded:
        assert self._loaded is not None, "use `with HfGenerator(...) as generator:`"
        return self._loaded

    @property
    def _seq2seq(self) -> bool:
        return bool(self._open.model.config.is_encoder_decoder)

    def _too_long(self, ids: Sequence[int], request: GenerationRequest) -> Failed | None:
        new = 0 if self._seq2seq else request.sampling.max_new_tokens  # an encoder's text and a decoder's stand apart
        return too_long(len(ids), new, max_input_tokens(*self._open))

    def _write_batch(self, batch: Sequence[_Asked]) -> Iterator[tuple[int, Completion]]:
        import torch

        began = time.perf_counter()
        try:
            rows = self._generate([asked.ids for asked in batch], batch[0].request)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{self._spec.text}: a batch of {len(batch)} prompts does not fit into the memory of {self._device};"
                " lower annotations.batch"
            ) from None
        share = (time.perf_counter() - began) / len(batch)
        for asked, row in zip(batch, rows, strict=True):
            yield asked.place, self._written(row, asked, share)

    def _generate(self, prompts: Sequence[list[int]], request: GenerationRequest) -> list[list[int]]:
        """New tokens of each prompt, with whatever stands after its end."""
        import torch

        from tinyllm_bench.generation.stopping import stop_criteria

        model, tokenizer = self._open
        ids_BT, mask_BT = _padded(prompts, tokenizer.pad_token_id, left=not self._seq2seq)
        start = 1 if self._seq2seq else ids_BT.shape[1]
        generate: Any = model.generate
        with torch.inference_mode(), _seeded(request, self._device):
            out_BT = generate(
                input_ids=ids_BT.to(self._device),
                attention_mask=mask_BT.to(self._device),
                max_new_tokens=request.sampling.max_new_tokens,
                stopping_criteria=stop_criteria(tokenizer, request.sampling.stop, start),
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
                **_drawing(request.sampling),
            )
        rows: list[list[int]] = out_BT[:, start:].tolist()
        return rows

    def _written(self, row: list[int], asked: _Asked, seconds: float) -> Completion:
        from tinyllm_bench.generation.stopping import cut_at_stop, end_tokens, trim

        model, tokenizer = self._open
        ids, ended = trim(row, end_tokens(model, tokenizer))
        stops = asked.request.sampling.stop
        cut = cut_at_stop(tokenizer, ids, stops)
        words = [index for index in ids if index not in self._left_out]
        whole: Any = tokenizer.decode(words, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text, _ = before_stop(whole, stops)
        finish: Literal["stop", "length"] = "stop" if ended or cut is not None else "length"
        if cut is None:
            text = text.rstrip("\ufffd")  # the first bytes of a character that was not finished; vLLM leaves them out
        tokens = len(ids) + ended if cut is None else cut
        return Completion(self._opened + text, len(asked.ids), tokens, finish, seconds)


def _batches(asked: Sequence[_Asked], size: int) -> Iterator[list[_Asked]]:
    """Wishes that can share a pass, longest first, so that memory runs out at once or not at all."""

    def kind(one: _Asked) -> tuple[bool, str, int]:
        drawn = one.request.sampling.temperature > 0
        return drawn, repr(one.request.sampling), -len(one.ids)

    order = sorted(asked, key=kind)
    for (drawn, _), group in groupby(order, key=lambda one: kind(one)[:2]):
        alike = list(group)
        step = 1 if drawn else size
        for start in range(0, len(alike), step):
            yield alike[start : start + step]


def _padded(prompts: Sequence[list[int]], pad: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both (batch, longest prompt), int64."""
    import torch

    width = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), width), pad)
    mask_BT = torch.zeros_like(ids_BT)
    for row, ids in enumerate(prompts):
        place = slice(width - len(ids), width) if left else slice(0, len(ids))
        ids_BT[row, place] = torch.tensor(ids)
        mask_BT[row, place] = 1
    return ids_BT, mask_BT


def _drawing(sampling: SamplingConfig) -> dict[str, Any]:
    if sampling.temperature == 0:
        return {"do_sample": False}
    # transformers would keep the 50 likeliest tokens alone; vLLM and APIs have no such default
    return {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}


@contextmanager
def _seeded(request: GenerationRequest, device: str) -> Iterator[None]:
    """Random numbers of the request's own seed; the process's own stay as they were."""
    import torch

    if request.sampling.temperature == 0:
        yield
        return
    with torch.random.fork_rng(devices=[] if device == "cpu" else None):
        torch.manual_seed(request.seed)
        yield
