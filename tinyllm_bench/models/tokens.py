"""From text to token ids, the same for training and for lm-eval.

Decoder-only: context, marker and target are tokenised apart and joined, so that channels can share a context.
Encoder-decoder: the encoder reads the joined prompt as one text; the decoder writes the target.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import Example


class Encoded(NamedTuple):
    """One example as ids. `prompt` is read, `target` is written and ends with EOS unless it was cut at the limit."""

    record_id: str
    channel: str
    prompt: tuple[int, ...]
    target: tuple[int, ...]
    cut: bool

    @property
    def tokens(self) -> int:
        """Prompt and target tokens: what the budget counts."""
        return len(self.prompt) + len(self.target)


class Encoder:
    """Tokenises examples for one student; remembers texts, because channels share contexts."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ask: Ask,
        *,
        encoder_decoder: bool,
        add_bos: bool,
        max_prompt_tokens: int,
        max_target_tokens: int,
    ) -> None:
        self.tokenizer, self.ask, self.encoder_decoder = tokenizer, ask, encoder_decoder
        self.add_bos, self.max_prompt_tokens, self.max_target_tokens = (
            add_bos,
            max_prompt_tokens,
            max_target_tokens,
        )
        self._known: dict[str, tuple[int, ...]] = {}

    def encode(self, example: Example) -> Encoded:
        """Ids of one example.

        Raises:
            UserError: the prompt is longer than the student reads; nothing is cut silently.
        """
        prompt = self._prompt(example)
        if len(prompt) > self.max_prompt_tokens:
            raise UserError(
                f"{example.record_id}, channel {example.channel!r}: the prompt has {len(prompt)} tokens, the student"
                f" reads at most {self.max_prompt_tokens}; lower data.max_context_words"
            )
        target = self._ids(self.ask.delimiter + example.target.strip()) + (self._eos(),)
        cut = len(target) > self.max_target_tokens
        return Encoded(example.record_id, example.channel, prompt, target[: self.max_target_tokens], cut)

    def _prompt(self, example: Example) -> tuple[int, ...]:
        if self.encoder_decoder:
            text = self.ask.join(example.context, example.marker)
            return tuple(self.tokenizer(text, add_special_tokens=True)["input_ids"])
        parts = (example.context, example.marker)
        first, second = parts if self.ask.style == "marker" else parts[::-1]
        return self._bos() + self._ids(first) + self._ids(second)

    def _bos(self) -> tuple[int, ...]:
        return (self.tokenizer.bos_token_id,) if self.add_bos else ()

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise UserError("the student's tokenizer has no end-of-sequence token; targets cannot end")
        return self.tokenizer.eos_token_id

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            self._known[text] = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return self._known[text]


def count_by_channel(encoded: Sequence[Encoded]) -> Mapping[str, int]:
    """Target tokens per channel."""
    counts: dict[str, int] = {}
    for item in encoded:
        counts[item.channel] = counts.get(item.channel, 0) + len(item.target)
    return counts
