"""Models of the generation layer as lm-eval LMs.

lm-eval's own classes would silently change the model or the question: they tie the weights of a model handed over, cut
prompts that are too long, add the encoder's length to the number of tokens a T5 may write, never stop a T5 at a stop
text, and end a batch only when every row has written the same one. So lm-eval makes the requests and tokenizes them,
and `generation` completes them. Import this module late: importing lm-eval takes seconds.

Shape suffixes: N target positions, V vocabulary, M continuations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences
from torch import Tensor

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.evaluation.runner import Finish
from tinyllm_bench.generation.encoding import check_length
from tinyllm_bench.generation.hf import complete, evaluating
from tinyllm_bench.generation.requests import Completion, FailedRequest, GenerationRequest, SamplingConfig
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded
from tinyllm_bench.models.tokens import Encoded, text_ids, truncate_ids, without_control
from tinyllm_bench.training.batching import Batch, Collator, choose_layout, collator_of, micro_batches
from tinyllm_bench.training.losses import cross_entropy_N
from tinyllm_bench.training.settings import Layout, LayoutChoice

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tinyllm_bench.generation.vllm import VllmEngine

_NO_LIMIT = 1_000_000  # tokens; T5 has relative positions and so no longest input


def hf_lm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    device: str,
    add_bos: bool | None = None,
    layout: LayoutChoice = "auto",
    cut_tokens: int | None = None,
) -> InMemoryLM:
    """Wrap a model for lm-eval; it is moved to `device`, otherwise unchanged (mode, weights, embedding size).

    `add_bos`: None = the tokenizer decides by itself; True = the BOS token leads every prompt; False = no special token
    is added to a prompt. `layout`: whether the options of a question are scored as branches of one sequence.
    `cut_tokens`: the length in tokens to which every prompt of a generation is cut.

    Raises:
        UserError: `add_bos` without a BOS token; later, from scoring: a prompt longer than the model's limit.
    """
    if add_bos and tokenizer.bos_token is None:
        raise UserError("add_bos=True, but the tokenizer has no BOS token; allowed here: add_bos=None or False")
    model.to(device)  # type: ignore[arg-type]
    mode, logger = model.training, logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of any model in memory
    # HFLM ties weights, which would overwrite a T5's own output head
    model.tie_weights = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        return InMemoryLM(model, tokenizer, batch_size, add_bos, layout, cut_tokens)
    finally:
        del model.tie_weights
        model.train(mode)
        logger.setLevel(level)


class PlainText:
    """Tokenization of an lm-eval LM: names of special tokens in a question are text, as in training.

    In a conversation that a chat template renders, the template's special tokens are control tokens; those that a
    message spells out are broken up first.
    """

    tokenizer: Any
    add_bos_token: bool | None = None  # as lm-eval's: False adds no special token at all
    adds_bos = False  # whether every prompt gets a BOS, for tokenizers that should add it and do not
    _templated = False

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; a prompt (default special tokens) gets the BOS token if one was requested."""
        special = self.add_bos_token is not False if add_special_tokens is None else add_special_tokens
        add_bos = self.adds_bos and add_special_tokens is None
        if not self._templated:
            return text_ids(self.tokenizer, string, add_special_tokens=special, add_bos=add_bos)
        bos = str(self.tokenizer.bos_token or "")
        if add_bos and not string.startswith(bos):
            string = bos + string
        if add_special_tokens is None and bos and string.startswith(bos):
            special = False  # the template brings its own
        return list(self.tokenizer.encode(string, add_special_tokens=special))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's own template writes it."""
        self._templated = True
        plain = [{**turn, "content": without_control(self.tokenizer, turn["content"])} for turn in chat_history]
        return str(
            self.tokenizer.apply_chat_template(
                plain,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )


class InMemoryLM(PlainText, HFLM):
    """HFLM around a model in memory. `finished` maps each completed prompt to how its text ended."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int,
        add_bos: bool | None,
        layout: LayoutChoice,
        cut_tokens: int | None = None,
    ) -> None:
        encoder_decoder = bool(model.config.is_encoder_decoder)
        super().__init__(
            pretrained=model,
            tokenizer=tokenizer,
            backend="seq2seq" if encoder_decoder else "causal",
            batch_size=batch_size,
            softmax_dtype="float32",  # a bfloat16 student would be ranked with three digits
            max_length=_NO_LIMIT if encoder_decoder else None,
            add_bos_token=False if add_bos is False else None,
        )
        self.finished: dict[str, Finish] = {}
        self._layout_choice, self._cut = layout, cut_tokens
        self.adds_bos = bool(add_bos)
        self._names: list[str] = []

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """(log-probability, is greedy) per request, in evaluation mode; a prompt that is too long is refused."""
        self._names = _names_of(requests)
        with evaluating(self.model):
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
            UserError: `shared` was requested and this model cannot take it.
        """
        lm = LM(self.model)
        collator = collator_of(self.model, self.tokenizer)
        if self._layout_choice == "auto":
            try:
                lm.check()
            except UserError as unknown_head:
                return "separate", str(unknown_head)
        return choose_layout(lm, collator, self._layout_choice, training=False)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """The greedy text per request, in evaluation mode; `finished` then holds how each one ended."""

        def encode(prompt: str) -> list[int]:
            ids = self.tok_encode(prompt)
            return ids if self._cut is None else truncate_ids(ids, self._cut, self.tokenizer.eos_token_id)

        prompts = _greedy_prompts(requests, encode, self.tokenizer)
        for prompt in prompts:
            new = prompt.request.sampling.max_new_tokens if self.backend == "causal" else 0
            check_length(prompt.name, len(prompt.ids) + new, self.max_length)
        completions = complete(
            Loaded(self.model, self.tokenizer),
            [prompt.ids for prompt in prompts],
            [prompt.request for prompt in prompts],
            batch=int(self.batch_size),
        )
        self.finished, texts = _texts(prompts, completions)
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """Nothing: lm-eval's own method queries the hub."""
        return {}


class VllmLM(PlainText, TemplateLM):
    """The model that a `VllmEngine` has loaded at the time of a call; `finished` as in `InMemoryLM`."""

    def __init__(self, engine: VllmEngine) -> None:
        super().__init__()
        self._vllm, self.max_length, self.tokenizer = engine, engine.max_length, engine.tokenizer
        self.adds_bos = engine.add_bos
        self.finished: dict[str, Finish] = {}
        self._names: list[str] = []

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The context of a continuation that has none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """The folder's name, part of lm-eval's cache key."""
        return str(self._vllm.folder).replace("/", "__")

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-probability, is greedy) per request; a prompt that is too long is refused."""
        self._names = _names_of(requests)
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        for name, (context, continuation) in zip(self._names, pairs, strict=True):
            # vLLM has to generate one more token
            check_length(name, len(context) + len(continuation), self.max_length - 1)
        return self._vllm.option_scores(pairs)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """The greedy text per request; `finished` then holds how each one ended."""
        prompts = _greedy_prompts(requests, self.tok_encode, self.tokenizer)
        for prompt in prompts:
            check_length(prompt.name, len(prompt.ids) + prompt.request.sampling.max_new_tokens, self.max_length)
        completions = self._vllm.complete([prompt.ids for prompt in prompts], [prompt.request for prompt in prompts])
        self.finished, texts = _texts(prompts, completions)
        return texts

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Not needed by any scoring mode."""
        raise NotImplementedError("no task needs rolling log-likelihoods")


class _GreedyPrompt(NamedTuple):
    """A greedy generation that lm-eval requests: its name in errors, the request, and the prompt's token ids."""

    name: str
    request: GenerationRequest
    ids: list[int]


def _greedy_prompts(requests: Sequence[Any], encode: Callable[[str], list[int]], tokenizer: Any) -> list[_GreedyPrompt]:
    prompts = []
    for name, request in zip(_names_of(requests), requests, strict=True):
        prompt, options = request.args
        # lm-eval also stops at the end token's name, should a model spell it out
        stops = handle_stop_sequences(list(options.get("until") or ()), eos=tokenizer.decode(tokenizer.eos_token_id))
        sampling = SamplingConfig(max_new_tokens=int(options["max_gen_toks"]), stop=tuple(filter(None, stops)))
        prompts.append(_GreedyPrompt(name, GenerationRequest(prompt, sampling), encode(prompt)))
    return prompts


def _texts(
    prompts: Sequence[_GreedyPrompt], answers: Iterable[tuple[int, Completion | FailedRequest]]
) -> tuple[dict[str, Finish], list[str]]:
    """How the text of each prompt ended, and the texts in the order of the requests."""
    completions: dict[int, Completion] = {}
    for n, answer in answers:
        if isinstance(answer, FailedRequest):
            raise UserError(f"{prompts[n].name}: {answer.reason}")
        completions[n] = answer
    finished = {
        prompt.request.prompt: Finish(tokens=c.tokens_out - c.ended, hit_limit=c.finish == "length")
        for prompt, c in ((prompt, completions[n]) for n, prompt in enumerate(prompts))
    }
    return finished, [completions[n].text for n in range(len(prompts))]


def _names_of(requests: Sequence[Any]) -> list[str]:
    """A name for each lm-eval request in errors: the record's id, else the prompt's last words."""
    return [str((request.doc or {}).get("id") or f"…{request.args[0][-60:]!r}") for request in requests]


# --- options of one question as branches of one sequence --------------------------------------------------------------


def continuation_logprobs(
    lm: LM, collator: Collator, requests: Sequence[tuple[Sequence[int], Sequence[int]]], *, batch_size: int
) -> list[tuple[float, bool]]:
    """(sum of token log-probabilities in nats, whether greedy decoding would write it) of each (context, continuation).

    Both are token ids. All continuations of one context are branches of one sequence: each attends to the context and
    to itself, so the values are lm-eval's own up to rounding. A batch holds at most the padded tokens of the
    `batch_size` longest sequences.
    """
    by_context: dict[tuple[int, ...], list[Encoded]] = {}
    for number, (context, continuation) in enumerate(requests):
        item = Encoded(str(number), "continuation", tuple(context), tuple(continuation), False)
        by_context.setdefault(item.prompt, []).append(item)
    groups = [collator.rows(items) for items in by_context.values()]
    longest = max((row.width for rows in groups for row in rows), default=0)
    scores: dict[int, tuple[float, bool]] = {}
    device = next(lm.parameters()).device
    limit = batch_size * longest
    for rows in micro_batches(groups, max_tokens=limit, keep_groups=False, pack=collator.packs):
        batch = collator.collate(rows).to(device)
        logprob_M, missed_M = lm(batch, partial(_sums, batch)).tolist()
        for item, logprob, missed in zip(batch.items, logprob_M, missed_M, strict=True):
            scores[int(item.record_id)] = (logprob, missed == 0)
    return [scores[number] for number in range(len(requests))]


def _sums(batch: Batch, logits_NV: Tensor, chunk: slice) -> Tensor:
    """(2, M): each continuation's log-probability, and how many of its tokens are not the most probable."""
    ids_N = batch.target_ids_N[chunk]
    logprob_N = -cross_entropy_N(logits_NV, ids_N)
    missed_N = (logits_NV.argmax(-1) != ids_N).to(logprob_N.dtype)
    sums_2M = torch.zeros(2, len(batch.items), dtype=logprob_N.dtype, device=ids_N.device)
    return sums_2M.index_add(1, batch.item_N[chunk], torch.stack([logprob_N, missed_N]))
