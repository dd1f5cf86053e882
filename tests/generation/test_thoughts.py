"""What a reasoning model only thinks is no answer."""

import pytest

from tinyllm_bench.generation.encoding import special_tokens
from tinyllm_bench.generation.thoughts import marks_thought, opened_thought, without_thoughts
from tinyllm_bench.testing.tiny_models import bpe_tokenizer

HARMONY = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Iron rusts.<|return|>"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("<think>hm</think>Iron rusts.", "Iron rusts."),
        ("<THINK>\nhm\n</THINK>\n\nIron rusts.", "Iron rusts."),
        ("<thinking>hm</thinking>Iron rusts.", "Iron rusts."),
        ("<reasoning>hm</reasoning> Iron rusts.", "Iron rusts."),
        ("[THINK]hm[/THINK]Iron rusts.", "Iron rusts."),
        ("<|begin_of_thought|>hm<|end_of_thought|>Iron rusts.", "Iron rusts."),
        (HARMONY, "Iron rusts."),
        ("analysisWe need itassistantfinalIron rusts.", "Iron rusts."),  # special tokens left out by a server
        ("hm</think>Iron rusts.", "Iron rusts."),  # the template opened it
        ("<think></think>Iron rusts.", "Iron rusts."),
        ("<think>a</think>Iron<think>b</think>rusts.", "Iron\nrusts."),
        ("<think>a <think> b</think>c</think>Iron rusts.", "Iron rusts."),
        ("Iron rusts, on analysis of <b> it.", "Iron rusts, on analysis of <b> it."),
    ],
)
def test_the_text_after_the_reasoning_is_the_text(text: str, rest: str) -> None:
    assert without_thoughts(text) == (rest, False)


@pytest.mark.parametrize(
    "text",
    [
        "<think>hm",
        "<think>a</think>b<think>c",
        "[THINK] hm",
        "<|channel|>analysis<|message|>hm",
        "<Reasoning>The answer",
    ],
)
def test_reasoning_without_an_end_is_marked(text: str) -> None:
    assert without_thoughts(text).unclosed and marks_thought(text)


def test_a_template_that_begins_a_thought_is_seen() -> None:
    assert opened_thought("<|assistant|><think>\n") == "<think>"
    assert opened_thought("<|assistant|><think>\n\n</think>\n\n") == "" == opened_thought("<|assistant|>")


def test_special_tokens_that_mark_a_thought_stay_in_a_text() -> None:
    tokenizer = bpe_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]", "<|im_end|>"]})
    gone = special_tokens(tokenizer)
    assert "<|im_end|>" in gone.values() and not {"[THINK]", "[/THINK]"} & set(gone.values())
