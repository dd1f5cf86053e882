"""The class behind `hf.hf_lm`; apart from it, because lm-eval's import takes seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

from lm_eval.models.huggingface import HFLM

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.evaluation.branches import continuation_logprobs
from tinyllm_bench.evaluation.hf import check_length, names_of
from tinyllm_bench.evaluation.runner import Finish
from tinyllm_bench.generation.stopping import cut_at_stop, end_tokens, stop_criteria, trim
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import cut_behind
from tinyllm_bench.training.batching import collator_of
from tinyllm_bench.training.layout import Layout, LayoutChoice
from tinyllm_bench.training.sharing import choose_layout

_NO_LIMIT = 1_000_000  # tokens; T5 has relative positions and so no longest input


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    import torch

    mode = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(mode)


class InMemoryLM(HFLM):
    """HFLM around a model in memory."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int,
        add_bos: bool | None,
        layout: LayoutChoice,
        cut_tokens: int | None = None,
    ) -> None:
        seq2seq = bool(model.config.is_encoder_decoder)
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="seq2seq" if seq2seq else "causal",
            batch_size=batch_size,
            softmax_dtype="float32",  # a bfloat16 student would be ranked with three digits
            max_length=_NO_LIMIT if seq2seq else None,
            add_bos_token=False if add_bos is False else None,
        )
        self.finished: dict[str, Finish] = {}
        self._asked_layout, self._cut = layout, cut_tokens
        self._lead = tokenizer.bos_token if add_bos else ""
        self._names: list[str] = []
        self._prompts: Sequence[str] = ()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Token ids of a text; a prompt (default special tokens) gets the BOS token if one was asked for."""
        if add_special_tokens is None:
            string = self._led(string)
        return super().tok_encode(string, add_special_tokens=add_special_tokens, **options)

    def _led(self, text: str) -> str:
        return text if text.startswith(self._lead) else self._lead + text

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """(log-probability, is greedy) per request, in evaluation mode; a prompt that is too long is refused."""
        self._names = names_of(requests)
        with _evaluating(self.model):
            return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> Any:
        for name, (_, context, continuation) in zip(self._names, requests, strict=True):
            total = len(context) + len(continuation) - 1 if self.backend == "causal" else len(context)
            check_length(name, total, self.max_length)
        if self.layout[0] == "separate":
            return super()._loglikelihood_tokens(requests, **options)
        pairs = [(context, continuation) for _, context, continuation in requests]
        collator = replace(collator_of(self.model, self.tokenizer), layout="shared")
        return continuation_logprobs(LM(self.model), collator, pairs, batch_size=int(self.batch_size))

    @cached_property
    def layout(self) -> tuple[Layout, str | None]:
        """`shared` (a question's options are branches of one sequence) or `separate` (lm-eval's own code) and why.

        Raises:
            UserError: `shared` was asked for and this model cannot take it.
        """
        lm = LM(self.model)
        collator = collator_of(self.model, self.tokenizer)
        if self._asked_layout == "auto":
            try:
                lm.check()
            except UserError as unknown_head:
                return "separate", str(unknown_head)
        return choose_layout(lm, collator, self._asked_layout, training=False)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """The greedy text per request, in evaluation mode; `finished` then tells how each one ended."""
        for name, request in zip(names_of(requests), requests, strict=True):
            prompt, wanted = request.args
            room = int(wanted.get("max_gen_toks", self.max_gen_toks)) if self.backend == "causal" else 0
            check_length(name, len(self._cut_encode(prompt)) + room, self.max_length)
        self.finished.clear()
        with _evaluating(self.model):
            return super().generate_until(requests, disable_tqdm=True)

    def tok_batch_encode(self, strings: Any, **options: Any) -> Any:
        """A padded batch of prompts: (ids, attention mask), both (batch, length)."""
        self._prompts = strings  # the prompts of the batch that `_model_generate` gets next
        if self._cut is not None:
            batch = self.tokenizer.pad(
                {"input_ids": [self._cut_encode(text) for text in strings]},
                padding_side=options.get("padding_side", "left"),
                return_tensors="pt",
            )
            return batch["input_ids"], batch["attention_mask"]
        return super().tok_batch_encode([self._led(text) for text in strings], **options)

    def _cut_encode(self, text: str) -> list[int]:
        ids = self.tok_encode(text)
        return ids if self._cut is None else cut_behind(ids, self._cut, self.tokenizer.eos_token_id)

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **options: Any) -> Any:
        start = context.shape[1] if self.backend == "causal" else 1
        room = max_length - context.shape[1]
        options.pop("temperature", None)
        options["do_sample"] = False
        out = self.model.generate(
            input_ids=context,
            max_new_tokens=room,
            min_new_tokens=None,
            stopping_criteria=stop_criteria(self.tokenizer, stop, start),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **options,
        )
        ends = end_tokens(self.model, self.tokenizer)
        rows = [trim(row, ends) for row in out[:, start:].tolist()]
        for number, (ids, _) in enumerate(rows):
            # lm-eval leaves special tokens out of the text; an end that only the configuration names need not be one
            out[number, start + len(ids) :] = self.tokenizer.eos_token_id
        self._note(rows, stop, room)
        return out

    def _note(self, rows: list[tuple[list[int], bool]], stop: list[str], room: int) -> None:
        for prompt, (ids, ended) in zip(self._prompts, rows, strict=True):
            stopped = cut_at_stop(self.tokenizer, ids, stop)
            self.finished[prompt] = Finish(
                tokens=len(ids) if stopped is None else stopped,
                hit_limit=not ended and stopped is None and len(ids) >= room,
            )

    def get_model_info(self) -> dict[str, Any]:
        """Nothing; the original asks the hub."""
        return {}
