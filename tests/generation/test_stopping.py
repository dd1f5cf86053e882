"""Ends of texts: end tokens, stop texts however they are tokenised, each row for itself."""

from typing import Any

import pytest
import torch

from tinyllm_bench.generation.encoding import cut_at_stop, trim
from tinyllm_bench.generation.hf import StopTexts
from tinyllm_bench.testing.tiny_models import bpe_tokenizer


def ids(text: str) -> list[int]:
    return list(bpe_tokenizer()(text).input_ids)


def test_trim_and_cut_count_tokens() -> None:
    assert trim([5, 6, 7, 6], {6, 9}) == ([5], True)
    assert trim([5, 7], {6, 9}) == ([5, 7], False)
    text = ids("It rains.\nQuestion: why?")
    needed = cut_at_stop(bpe_tokenizer(), text, ["\nQuestion:", "\nQ:"])
    assert needed is not None
    assert "\nQuestion:" in bpe_tokenizer().decode(text[:needed])
    assert "\nQuestion:" not in bpe_tokenizer().decode(text[: needed - 1])
    assert cut_at_stop(bpe_tokenizer(), text, ["\nAnswer:"]) is None


@pytest.mark.parametrize("spelled", ["whole", "by bytes"])
def test_rows_end_at_their_own_stop_text_and_prompts_do_not_count(spelled: str) -> None:
    prompt, tails = "Question: 1\n", ["so.\nQuestion:", "yes, well\n#", "no Question: in"]
    by_byte: Any = lambda text: [token for character in text for token in ids(character)]  # noqa: E731
    rows = [ids(prompt) + (by_byte if spelled == "by bytes" else ids)(tail) for tail in tails]
    criteria = StopTexts(bpe_tokenizer(), ["\nQuestion:", "", "\n#"], len(ids(prompt)))
    assert [bool(criteria(torch.tensor([row]), None)) for row in rows] == [True, True, False]
    assert not StopTexts(bpe_tokenizer(), (), 0)(torch.tensor([rows[0]]), None)
