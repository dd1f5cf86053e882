"""Two small tokenizers of different families, built in memory, which tokenize the same text differently.

`numerals`: byte-level BPE with an entry for every number below 1000 and for a few words (a Llama 3 in small).
`splitting`: SentencePiece-like BPE with byte fallback: single digits, `▁` for a space, whole emoji and CJK characters.
"""

from functools import lru_cache
from typing import Any

import pytest

WORDS = ("synthesis", "photo", "the", "cat", "sat", "is", "answer")


def _bpe_entries(words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The entries and merges that build each word from the left, one character at a time."""
    entries: dict[str, None] = {}
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for end in range(2, len(word) + 1):
            merges[word[: end - 1], word[end - 1]] = None
            entries[word[:end]] = None
    return list(entries), list(merges)


def _fast_tokenizer(backend: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def numerals() -> Any:
    """EOS is also PAD; no BOS. `photosynthesis` takes two tokens, `347` one."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    merged, merges = _bpe_entries([*(str(n) for n in range(10, 1000)), *(f"Ġ{word}" for word in WORDS), *WORDS])
    entries = ["<|end|>", "<|unknown|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *merged]
    backend = Tokenizer(models.BPE({entry: n for n, entry in enumerate(entries)}, merges, ignore_merges=True))
    three_digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([three_digits, bytewise])
    backend.decoder = decoders.ByteLevel()
    return _fast_tokenizer(backend, eos_token="<|end|>", pad_token="<|end|>", unk_token="<|unknown|>")


def splitting() -> Any:
    """BOS, EOS, PAD and UNK; `A` also as `<0x41>`; a line feed and two spaces are added tokens, as in Gemma."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    whole = ["photosynthesis", *WORDS]
    merged, merges = _bpe_entries([*(f"▁{word}" for word in whole), *whole, "日本"])
    letters = [chr(code) for code in range(33, 127)]
    entries = [
        *("<pad>", "<eos>", "<bos>", "<unk>"),
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *("\n", "▁▁", "▁", "日", "本", "🙂"),
        *letters,
        *merged,
    ]
    model = models.BPE({entry: n for n, entry in enumerate(entries)}, merges, unk_token="<unk>", byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("\n", "▁▁")])
    return _fast_tokenizer(backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


@lru_cache(maxsize=1)
def bundled() -> tuple[Any, Any]:
    """Tokenizers of SmolLM2 and Gemma 3, or a skip; the second takes seconds to load."""
    from transformers import AutoTokenizer

    from tinyllm_bench.models.bundled import bundled_folder, is_fetched

    names = ("smollm2-135m", "gemma3-270m")
    for name in names:
        if not is_fetched(name):
            pytest.skip(f"needs the bundled model: tinyllm-bench fetch {name}")
    smol, gemma = (AutoTokenizer.from_pretrained(bundled_folder(name)) for name in names)
    return smol, gemma
