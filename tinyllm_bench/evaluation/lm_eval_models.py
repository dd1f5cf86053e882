"""Models of the generation layer as lm-eval LMs.

lm-eval's own classes would change the model or the question without saying so: they tie the weights of a model handed
over, cut prompts that are too long, add the encoder's length to the number of tokens a T5 may write, never stop a T5
at a stop text, and end a batch only when every row has written the same one. So lm-eval tokenizes and asks, and
`generation` writes. Import this module late: lm-eval takes seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.evaluation.branches import continuation_logprobs
from tinyllm_bench.evaluation.runner import Finish
from tinyllm_bench.generation.encoding import check_length
from tinyllm_bench.generation.hf import complete, evaluating
from tinyllm_bench.generation.requests import Completion, Failed, GenerationRequest, SamplingConfig
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.load import Loaded
from tinyllm_bench.models.tokens import cut_behind, text_ids, without_control
from tinyllm_bench.training.batching import choose_layout, collator_of
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
    `cut_tokens` cuts every prompt of a generation behind so many.

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
    """How an lm-eval LM tokenises: names of special tokens in a question are text, as in training.

    In a conversation that a chat template renders, the template's special tokens are control tokens; those that a
    message spells are broken up before.
    """

    tokenizer: Any
    add_bos_token: bool | None = None  # as lm-eval's: False adds no special token at all
    leads = False  # whether BOS leads every prompt, for tokenizers that should add it and do not
    _templated = False

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; a prompt (default special tokens) gets the BOS token if one was asked for."""
        special = self.add_bos_token is not False if add_special_tokens is None else add_special_tokens
        lead = self.leads and add_special_tokens is None
        if not self._templated:
            return text_ids(self.tokenizer, string, add_special_tokens=special, lead=lead)
        bos = str(self.tokenizer.bos_token or "")
        if lead and not string.startswith(bos):
            string = bos + string
        if add_special_tokens is None and bos and string.startswith(bos):
            special = False  # the template brings its own
        return list(self.tokenizer.encode(string, add_special_tokens=special))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model's own template writes it."""
        self._templated = True
        plain = [{**one, "content": without_control(self.tokenizer, one["content"])} for one in chat_history]
        return str(
            self.tokenizer.apply_chat_template(
                plain,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )


class InMemoryLM(PlainText, HFLM):
    """HFLM around a model in memory. `finished` maps each prompt that was completed to how its text ended."""

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
        self._asked_layout, self._cut = layout, cut_tokens
        self.leads = bool(add_bos)
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

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """The greedy text per request, in evaluation mode; `finished` then tells how each one ended."""
        asked = _asked(requests, self._prompt_ids, self.tokenizer)
        for one in asked:
            new = one.request.sampling.max_new_tokens if self.backend == "causal" else 0
            check_length(one.name, len(one.ids) + new, self.max_length)
        loaded = Loaded(self.model, self.tokenizer)
        found = complete(loaded, [one.ids for one in asked], [one.request for one in asked], batch=int(self.batch_size))
        self.finished, texts = _texts(asked, found)
        return texts

    def _prompt_ids(self, prompt: str) -> list[int]:
        ids = self.tok_encode(prompt)
        return ids if self._cut is None else cut_behind(ids, self._cut, self.tokenizer.eos_token_id)

    def get_model_info(self) -> dict[str, Any]:
        """Nothing; the original asks the hub."""
        return {}


class VllmLM(PlainText, TemplateLM):
    """The model that a `VllmEngine` holds when it is asked; LMs of models before it go stale.

    `finished` maps each prompt that was completed to how its text ended.
    """

    def __init__(self, engine: VllmEngine) -> None:
        super().__init__()
        self._vllm, self.max_length, self.tokenizer = engine, engine.max_length, engine.tokenizer
        self.leads = engine.lead
        self.finished: dict[str, Finish] = {}
        self._names: list[str] = []

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a continuation without a context is scored behind."""
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
            # vLLM must be asked for one more token
            check_length(name, len(context) + len(continuation), self.max_length - 1)
        return self._vllm.option_scores(pairs)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> list[str]:
        """The greedy text per request; `finished` then tells how each one ended."""
        asked = _asked(requests, self.tok_encode, self.tokenizer)
        for one in asked:
            check_length(one.name, len(one.ids) + one.request.sampling.max_new_tokens, self.max_length)
        found = self._vllm.complete([one.ids for one in asked], [one.request for one in asked])
        self.finished, texts = _texts(asked, found)
        return texts

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> list[float]:
        """Not needed by any scoring mode."""
        raise NotImplementedError("no task asks for rolling log-likelihoods")


class _Asked(NamedTuple):
    """A greedy generation that lm-eval asks for: its name in errors, the request, and the prompt's token ids."""

    name: str
    request: GenerationRequest
    ids: list[int]


def _asked(requests: Sequence[Any], encode: Callable[[str], list[int]], tokenizer: Any) -> list[_Asked]:
    asked = []
    for name, request in zip(_names_of(requests), requests, strict=True):
        prompt, options = request.args
        # lm-eval stops at the end token's letters too, should a model spell them
        stops = handle_stop_sequences(list(options.get("until") or ()), eos=tokenizer.decode(tokenizer.eos_token_id))
        sampling = SamplingConfig(max_new_tokens=int(options["max_gen_toks"]), stop=tuple(filter(None, stops)))
        asked.append(_Asked(name, GenerationRequest(prompt, sampling), encode(prompt)))
    return asked


def _texts(
    asked: Sequence[_Asked], answers: Iterable[tuple[int, Completion | Failed]]
) -> tuple[dict[str, Finish], list[str]]:
    """By prompt how its text ended, and the texts in the order of the requests."""
    found: dict[int, Completion] = {}
    for n, answer in answers:
        if isinstance(answer, Failed):
            raise UserError(f"{asked[n].name}: {answer.reason}")
        found[n] = answer
    finished = {
        one.request.prompt: Finish(tokens=c.tokens_out - c.ended, hit_limit=c.finish == "length")
        for one, c in ((one, found[n]) for n, one in enumerate(asked))
    }
    return finished, [found[n].text for n in range(len(asked))]


def _names_of(requests: Sequence[Any]) -> list[str]:
    """What to call each lm-eval request in an error: the record's id, else the prompt's last words."""
    return [str((request.doc or {}).get("id") or f"…{request.args[0][-60:]!r}") for request in requests]
