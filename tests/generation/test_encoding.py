"""Prompts as token ids, and where a text ends: what all generators share."""

import pytest

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.generation.encoding import before_stop, cut_at_stop, prompt_ids, too_long, trim, uses_chat
from tinyllm_bench.testing.tiny_models import bpe_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def ids(text: str) -> list[int]:
    return list(bpe_tokenizer()(text).input_ids)


def test_a_chat_template_is_used_when_it_exists_and_the_setting_allows_it() -> None:
    plain, chatty = bpe_tokenizer(), bpe_tokenizer()
    chatty.chat_template = TEMPLATE
    assert [uses_chat(chatty, how, "m") for how in ("auto", "always", "never")] == [True, True, False]  # type: ignore[arg-type]
    assert [uses_chat(plain, how, "m") for how in ("auto", "never")] == [False, False]  # type: ignore[arg-type]
    with pytest.raises(UserError, match="dir:x: annotations.chat=always.*no chat template"):
        uses_chat(plain, "always", "dir:x")
    with pytest.raises(UserError, match="'allways'. Did you mean 'always'"):
        uses_chat(plain, "allways", "m")  # type: ignore[arg-type]


def test_a_prompt_is_one_user_message_and_the_beginning_of_the_answer() -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TEMPLATE
    assert tokenizer.decode(prompt_ids(tokenizer, "Why?", chat=True, add_bos=False)) == "<|user|>Why?\n<|assistant|>"
    assert tokenizer.decode(prompt_ids(tokenizer, "Why?", chat=False, add_bos=False)) == "Why?"
    tokenizer.bos_token = "<eos>"
    assert tokenizer.decode(prompt_ids(tokenizer, "Why?", chat=False, add_bos=True)) == "<eos>Why?"


def test_a_prompt_that_just_fits_and_one_that_does_not() -> None:
    assert too_long(90, 10, 100) is None
    failed = too_long(91, 10, 100)
    assert failed is not None and "prompt of 91 tokens and 10 new ones" in failed.reason and "of 100;" in failed.reason


def test_a_text_ends_before_the_first_of_its_stop_texts() -> None:
    assert before_stop("one\nB two\nA three", ("\nA", "\nB")) == ("one", True)
    assert before_stop("one two", ("\nA", "\nB")) == ("one two", False)
    assert before_stop("one", ()) == ("one", False)


def test_special_tokens_of_a_prompt_are_text_and_those_of_the_template_control() -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("\n{%", "<eos>\n{%")
    end = tokenizer.eos_token_id
    plain = prompt_ids(tokenizer, "Why?", chat=True, add_bos=False)
    spelled = prompt_ids(tokenizer, "Why <eos> now?", chat=True, add_bos=False)
    assert plain.count(end) == spelled.count(end) == 1
    assert tokenizer.decode(spelled) == "<|user|>Why <eos> now?<eos>\n<|assistant|>"
    assert end not in prompt_ids(tokenizer, "Why <eos> now?", chat=False, add_bos=False)


def test_trim_and_cut_count_tokens() -> None:
    assert trim([5, 6, 7, 6], {6, 9}) == ([5], True)
    assert trim([5, 7], {6, 9}) == ([5, 7], False)
    text = ids("It rains.\nQuestion: why?")
    needed = cut_at_stop(bpe_tokenizer(), text, ["\nQuestion:", "\nQ:"])
    assert needed is not None
    assert "\nQuestion:" in bpe_tokenizer().decode(text[:needed])
    assert "\nQuestion:" not in bpe_tokenizer().decode(text[: needed - 1])
    assert cut_at_stop(bpe_tokenizer(), text, ["\nAnswer:"]) is None
