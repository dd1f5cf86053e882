"""Between text and token ids: how a prompt is encoded, whether it fits, and where a generated text ends."""

from collections.abc import Sequence
from typing import Any, Literal

from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.generation.requests import Completion, FailedRequest
from tinyllm_bench.generation.thoughts import marks_thought
from tinyllm_bench.models.tokens import text_ids

Chat = Literal["auto", "always", "never"]
_MESSAGE = "the place of the message"  # as the message, it shows where a template puts one


def uses_chat(tokenizer: Any, chat: Chat, name: str) -> bool:
    """Whether prompts go in the tokenizer's own chat template; `auto` = when it has one.

    Raises:
        UserError: `always` without a template, or an unknown value.
    """
    if chat not in ("auto", "always", "never"):
        raise unknown_name("annotations.chat", chat, ("auto", "always", "never"))
    has_template = tokenizer.chat_template is not None
    if chat == "always" and not has_template:
        raise UserError(f"{name}: annotations.chat=always, but its tokenizer has no chat template; use auto or never")
    return has_template and chat != "never"


def prompt_ids(tokenizer: Any, prompt: str, *, chat: bool, add_bos: bool) -> list[int]:
    """Token ids of a prompt: one user message in the chat template, or plain text, with `<bos>` first if `add_bos`.

    The template's special tokens are control tokens; their names in the prompt are text.
    """
    if not chat:
        return text_ids(tokenizer, prompt, add_bos=add_bos)
    whole = in_chat(tokenizer, prompt)
    if not any(name in prompt for name in tokenizer.all_special_tokens):
        return list(tokenizer(whole, add_special_tokens=False).input_ids)
    message = prompt if prompt in whole else prompt.strip()  # some templates trim
    before, *after = in_chat(tokenizer, _MESSAGE).split(_MESSAGE)
    ids = list(tokenizer(before, add_special_tokens=False).input_ids)
    for piece in after:
        ids += text_ids(tokenizer, message, add_special_tokens=False)
        ids += tokenizer(piece, add_special_tokens=False).input_ids
    return ids


def in_chat(tokenizer: Any, prompt: str) -> str:
    """The prompt as one user message in the tokenizer's chat template, up to where the answer begins."""
    message = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False))


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """The special tokens to leave out of a text, by id: all but those that mark reasoning, which parsers need."""
    special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return {index: str(token) for index, token in special if not marks_thought(str(token))}


def too_long(tokens: int, new: int, limit: int) -> FailedRequest | None:
    """The failure of a prompt that does not fit the model's limit with `new` generated tokens, or None.

    Prompts are never cut.
    """
    if tokens + new <= limit:
        return None
    return FailedRequest(
        f"the prompt of {tokens} tokens and {new} new ones are more than the model's limit of {limit}; lower the number"
        " of demonstrations, annotations.demonstration_words, data.max_context_words or sampling.max_new_tokens"
    )


def check_length(name: str, tokens: int, limit: int) -> None:
    """Refuse a prompt that the model cannot read whole; lm-eval would cut its beginning off."""
    if tokens > limit:
        raise UserError(
            f"{name}: {tokens} tokens (prompt and answer) are more than the model's limit of {limit}; only the"
            " context is ever cut: lower data.max_context_words or the number of shots, or take a model that reads more"
        )


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The token ids that end a text of this model."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = set(configured) if isinstance(configured, list) else {configured}
    return {token for token in ends | {tokenizer.eos_token_id} if token is not None}


def trim(ids: Sequence[int], ends: set[int]) -> tuple[list[int], bool]:
    """New tokens before the first end token, and whether there was one."""
    for position, token in enumerate(ids):
        if token in ends:
            return list(ids[:position]), True
    return list(ids), False


def cut_at_stop(tokenizer: Any, ids: list[int], stops: Sequence[str]) -> int | None:
    """The number of tokens up to the end of the first stop text; None if there is none."""
    text = tokenizer.decode(ids)
    if not any(stop in text for stop in stops):
        return None
    return next(n for n in range(1, len(ids) + 1) if any(stop in tokenizer.decode(ids[:n]) for stop in stops))


def before_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop text, and whether there was one."""
    starts = [text.find(stop) for stop in stops if stop in text]
    return (text[: min(starts)], True) if starts else (text, False)


def completion_of(
    tokenizer: Any,
    prompt: Sequence[int],
    ids: list[int],
    stops: Sequence[str],
    *,
    ended: bool,
    keep_thoughts: bool = False,
) -> Completion:
    """The completion of generated ids, given without the end token that followed them (`ended`); `seconds` is 0.

    Special tokens are left out of the text; with `keep_thoughts`, those that mark reasoning stay.
    """
    cut = cut_at_stop(tokenizer, ids, stops)
    special = special_tokens(tokenizer) if keep_thoughts else set(tokenizer.all_special_ids)
    shown = [token for token in ids if token not in special]
    whole: Any = tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return Completion(
        text=before_stop(whole, stops)[0],
        tokens_in=len(prompt),
        tokens_out=len(ids) + ended if cut is None else cut,
        finish="stop" if ended or cut is not None else "length",
        seconds=0.0,
        ended=ended and cut is None,
    )
