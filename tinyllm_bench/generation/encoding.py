"""What all generators share: a prompt's token ids, the word that it is too long, and where a text is cut."""

from collections.abc import Sequence
from typing import Any, Literal

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.generation.requests import Failed
from tinyllm_bench.generation.thoughts import marks_thought

Chat = Literal["auto", "always", "never"]


def uses_chat(tokenizer: Any, chat: Chat, name: str) -> bool:
    """Whether prompts go in the tokenizer's own chat template; `auto` = when it has one.

    Raises:
        UserError: `always` without a template, or an unknown word.
    """
    if chat not in ("auto", "always", "never"):
        raise unknown_name("annotations.chat", chat, ("auto", "always", "never"))
    has = tokenizer.chat_template is not None
    if chat == "always" and not has:
        raise UserError(f"{name}: annotations.chat=always, but its tokenizer has no chat template; use auto or never")
    return has and chat != "never"


def prompt_ids(tokenizer: Any, prompt: str, *, chat: bool, lead: bool) -> list[int]:
    """Token ids of a prompt: one user message in the chat template, or plain text, with `<bos>` first if `lead`."""
    if not chat:
        led = tokenizer.bos_token + prompt if lead else prompt
        return list(tokenizer(led).input_ids)
    return list(tokenizer(in_chat(tokenizer, prompt), add_special_tokens=False).input_ids)


def in_chat(tokenizer: Any, prompt: str) -> str:
    """The prompt as one user message in the tokenizer's chat template, up to where the answer begins."""
    message = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))


def left_out(tokenizer: Any) -> dict[int, str]:
    """The special tokens that are no part of a text, by id: all but those that mark a thought, which readers need."""
    special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {index: str(token) for index, token in special if not marks_thought(str(token))}


def too_long(tokens: int, new: int, limit: int) -> Failed | None:
    """The failure of a prompt that the model cannot read whole with `new` tokens of its own; prompts are never cut."""
    if tokens + new <= limit:
        return None
    return Failed(
        f"the prompt of {tokens} tokens and {new} new ones are more than the model's limit of {limit}; lower the number"
        " of demonstrations, annotations.demonstration_words, data.max_context_words or draw.max_new_tokens"
    )


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop text, and whether there was one."""
    places = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(places)], True) if places else (text, False)
