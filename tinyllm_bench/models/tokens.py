"""From text to token ids, the same for training and for lm-eval.

Decoder-only: prompt and target are tokenised as one text and cut where the prompt's own ids end, as lm-eval does it;
so a
token that spans a border, and a BOS that the tokenizer adds, are the same in training and in evaluation.
Encoder-decoder: the encoder reads the prompt; the decoder writes the target.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Example


def text_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool = True, lead: bool = False
) -> list[int]:
    """Token ids of a text in which nothing is a control token.

    A special token's name in a question or a rationale (`</s>`, `<|im_end|>`) is spelled out like any other text; the
    only special tokens are those that the tokenizer adds itself. `lead` puts BOS before them, for tokenizers that
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
        # A Unigram vocabulary (T5's) lists its control tokens as pieces, and finds them in spite of the split.
        pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        ids = [one for index, added in pairs for one in ([index] if added else spelled.get(index, [index]))]
    return [tokenizer.bos_token_id, *ids] if lead else ids


def without_control(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a zero-width space inside every special token's name, for readers that take a rendered template."""
    for name in tokenizer.all_special_tokens:
        text = text.replace(name, f"{name[:1]}\u200b{name[1:]}")
    return text


def _spelled(tokenizer: PreTrainedTokenizerBase, name: str) -> list[int]:
    """The name of a special token in ids of ordinary tokens: its first character and the rest, apart."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        ids: Any = tokenizer.convert_tokens_to_ids(list(name))
        return list(ids)
    return [token.id for part in (name[:1], name[1:]) for token in backend.model.tokenize(part)]


class Encoded(NamedTuple):
    """One example as ids. `prompt` is read, `target` is written; it ends with EOS unless the example's text does not
    end, or was cut at the student's limit, which `cut` tells.

    `rollout` holds, of a sampled target, numbers per target token by name (log-probabilities, advantages).
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
    """Tokenises examples for one student. `add_bos` forces a BOS that the tokenizer does not add by itself;
    `cut_tokens` cuts every prompt behind so many, whatever stands there."""

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
        self.add_bos, self.max_prompt_tokens, self.max_target_tokens = (
            add_bos,
            max_prompt_tokens,
            max_target_tokens,
        )
        self.cut_tokens = cut_tokens
        if tokenizer.eos_token_id is None:
            raise UserError("the student's tokenizer has no end-of-sequence token; targets cannot end")
        self._eos: int = tokenizer.eos_token_id

    def encode(self, example: Example) -> Encoded:
        """Ids of one example.

        Raises:
            UserError: the prompt is longer than the student reads; nothing is cut silently.
        """
        text = self.ask.join(example.context, example.marker)
        said = self.ask.delimiter + example.target.strip()
        prompt, target = self._apart(text, said) if self.encoder_decoder else self._together(text, said)
        if self.cut_tokens is not None:
            prompt = tuple(cut_behind(prompt, self.cut_tokens, self._eos))
        if len(prompt) > self.max_prompt_tokens:
            raise UserError(
                f"{example.record_id}, channel {example.channel!r}: the prompt has {len(prompt)} tokens, the student"
                f" reads at most {self.max_prompt_tokens}; lower data.max_context_words"
            )
        if example.ends and target[-1:] != (self._eos,):
            target = (*target, self._eos)
        cut = len(target) > self.max_target_tokens
        return Encoded(example.record_id, example.channel, prompt, target[: self.max_target_tokens], cut)

    def _apart(self, text: str, said: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self._ids(text), tuple(text_ids(self.tokenizer, said, add_special_tokens=False))

    def _together(self, text: str, said: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of prompt and target; white space at the prompt's end belongs to the target, as in lm-eval."""
        kept = text.rstrip()
        said = text[len(kept) :] + said
        prompt = self._ids(kept)
        return prompt, self._ids(kept + said)[len(prompt) :]

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(text_ids(self.tokenizer, text, lead=self.add_bos))


def respelled(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text as a student with this tokenizer can at best write it: decode(encode(text)), special tokens left out.

    T5's tokenizer makes one space of many, writes `²` as `2` and has no braces: a text that is compared to the letter
    must have gone through it, as golds do in the released code of TinyLLM (`compute_metrics_text`).
    """
    ids = text_ids(tokenizer, text)
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def cut_behind(ids: Sequence[int], size: int, end: int | None) -> list[int]:
    """The first `size` ids; an end token that closed them stays the last, as tokenizers truncate."""
    if len(ids) <= size:
        return list(ids)
    return [*ids[: size - 1], end] if end is not None and ids[-1] == end else list(ids[:size])


def count_by_channel(encoded: Sequence[Encoded]) -> Mapping[str, int]:
    """Target tokens per channel."""
    counts: dict[str, int] = {}
    for item in encoded:
        counts[item.channel] = counts.get(item.channel, 0) + len(item.target)
    return counts
