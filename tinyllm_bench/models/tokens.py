"""From text to token ids, the same for training and for lm-eval.

Decoder-only: prompt and target are tokenised as one text and split where the prompt's own ids end, as in lm-eval, so
that a token across the border, and a BOS that the tokenizer adds, are the same in training and in evaluation.
Encoder-decoder: the encoder reads the prompt; the decoder writes the target.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Example


def text_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True, add_bos: bool = False
) -> list[int]:
    """Token ids of a text in which nothing is a control token.

    A special token's name in a question or a rationale (`</s>`, `<|im_end|>`) is spelled out like any other text; the
    only special tokens are those that the tokenizer adds itself. `add_bos` puts BOS before them, for tokenizers that
    should add it and do not.
    """
    names = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    names.pop(str(tokenizer.unk_token), None)  # an unknown character, which controls nothing
    if not any(name in text for name in names):
        ids = list(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])
    else:
        encoded = tokenizer(
            text, add_special_tokens=add_special_tokens, split_special_tokens=True, return_special_tokens_mask=True
        )
        spelled = {index: _spelled(tokenizer, name) for name, index in names.items()}
        # A Unigram vocabulary (T5's) lists its control tokens as pieces and matches them all the same.
        pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        ids = [i for index, added in pairs for i in ([index] if added else spelled.get(index, [index]))]
    return [tokenizer.bos_token_id, *ids] if add_bos else ids


def without_control(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a zero-width space inside every special token's name, for engines that take a rendered template."""
    for name in tokenizer.all_special_tokens:
        text = text.replace(name, f"{name[:1]}\u200b{name[1:]}")
    return text


def _spelled(tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """The name of a special token as ids of ordinary tokens: its first character, and the rest."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        ids: Any = tokenizer.convert_tokens_to_ids(list(name))
        return list(ids)
    return [token.id for part in (name[:1], name[1:]) for token in backend.model.tokenize(part)]


class Encoded(NamedTuple):
    """One example as ids. `target` ends with EOS unless the example's text does not end, or was cut at the student's
    limit (`cut`).

    `rollout` holds numbers per token of a sampled target by name (log-probabilities, advantages).
    """

    record_id: str
    channel: str
    prompt: tuple[int, ...]
    target: tuple[int, ...]
    cut: bool
    rollout: Mapping[str, tuple[float, ...]] = {}

    @property
    def tokens(self) -> int:
        """Prompt and target tokens: what the budget counts."""
        return len(self.prompt) + len(self.target)


class Encoder:
    """Tokenises examples for one student. `add_bos` adds a BOS that the tokenizer does not add by itself; `cut_tokens`
    truncates every prompt to that many tokens."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ask: Ask,
        *,
        encoder_decoder: bool,
        add_bos: bool,
        max_prompt_tokens: int,
        max_target_tokens: int,
        cut_tokens: int | None = None,
    ) -> None:
        self.tokenizer, self.ask, self.encoder_decoder = tokenizer, ask, encoder_decoder
        self.add_bos, self.cut_tokens = add_bos, cut_tokens
        self.max_prompt_tokens, self.max_target_tokens = max_prompt_tokens, max_target_tokens
        if tokenizer.eos_token_id is None:
            raise UserError("the student's tokenizer has no end-of-sequence token; targets cannot end")
        self._eos: int = tokenizer.eos_token_id

    def encode(self, example: Example) -> Encoded:
        """Ids of one example.

        Raises:
            UserError: the prompt is too long for the student; nothing is cut silently.
        """
        text = self.ask.join(example.context, example.marker)
        answer = self.ask.delimiter + example.target.strip()
        if self.encoder_decoder:
            prompt, target = self._ids(text), tuple(text_ids(self.tokenizer, answer, add_special_tokens=False))
        else:  # white space at the prompt's end belongs to the target, as in lm-eval
            stem = text.rstrip()
            prompt = self._ids(stem)
            target = self._ids(text + answer)[len(prompt) :]
        if self.cut_tokens is not None:
            prompt = tuple(truncate_ids(prompt, self.cut_tokens, self._eos))
        if len(prompt) > self.max_prompt_tokens:
            raise UserError(
                f"{example.record_id}, channel {example.channel!r}: the prompt has {len(prompt)} tokens, the student"
                f" reads at most {self.max_prompt_tokens}; lower data.max_context_words"
            )
        if example.ends and target[-1:] != (self._eos,):
            target = (*target, self._eos)
        cut = len(target) > self.max_target_tokens
        return Encoded(example.record_id, example.channel, prompt, target[: self.max_target_tokens], cut)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(text_ids(self.tokenizer, text, add_bos=self.add_bos))


def respelled(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The closest text that a student with this tokenizer can write: decode(encode(text)) without special tokens.

    T5's tokenizer merges spaces, writes `²` as `2` and has no braces: a text for exact match must go through it first,
    as golds do in the released code of TinyLLM (`compute_metrics_text`).
    """
    ids = text_ids(tokenizer, text)
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def truncate_ids(ids: Sequence[int], size: int, end: int | None) -> list[int]:
    """The first `size` ids; a final end token stays the last, as tokenizers truncate."""
    if len(ids) <= size:
        return list(ids)
    return [*ids[: size - 1], end] if end is not None and ids[-1] == end else list(ids[:size])


def count_by_channel(encoded: Sequence[Encoded]) -> Mapping[str, int]:
    """Target tokens per channel."""
    counts: dict[str, int] = {}
    for item in encoded:
        counts[item.channel] = counts.get(item.channel, 0) + len(item.target)
    return counts
