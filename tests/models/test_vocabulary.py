"""Vocabularies of different families, compared by the bytes their entries spell."""

from typing import Any

import pytest

from tests.tokenizer_pair import bundled, numerals, splitting
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.vocabulary import decode_bytes, encode_bytes, overlap, same_tokenizer, vocabulary
from tinyllm_bench.testing import tiny_models

TEXTS = ("the cat sat", "  two spaces\nand a line", "日本 🙂🙂", "é ü ß", "1234 A\x07", "naïve — “quoted”")


def entry(tokenizer: Any, text: str) -> int:
    return int(tokenizer.get_vocab()[text])


@pytest.mark.parametrize("tokenizer", [numerals(), splitting(), tiny_models.bpe_tokenizer()])
@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_text_s_ids_are_the_text_s(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert decode_bytes(vocabulary(tokenizer), ids) == text.encode()


def test_a_space_is_one_in_every_family() -> None:
    bytewise, pieces = numerals(), splitting()
    assert (
        vocabulary(bytewise).pieces[entry(bytewise, "Ġcat")]
        == b" cat"
        == vocabulary(pieces).pieces[entry(pieces, "▁cat")]
    )
    unigram = tiny_models.unigram_tokenizer()
    assert vocabulary(unigram).pieces[entry(unigram, "▁the")] == b" the"


def test_special_tokens_spell_nothing_and_added_text_does() -> None:
    pieces = splitting()
    result = vocabulary(pieces).pieces
    assert [result[entry(pieces, name)] for name in ("<pad>", "<eos>", "<bos>", "<unk>")] == [None] * 4
    assert [result[entry(pieces, name)] for name in ("\n", "▁▁", "<0x0A>")] == [b"\n", b"  ", b"\n"]


def test_the_normal_token_wins_over_its_byte() -> None:
    known, pieces = vocabulary(splitting()), splitting()
    assert known.ids[b"A"] == entry(pieces, "A") != entry(pieces, "<0x41>")
    assert known.ids[b"\x07"] == entry(pieces, "<0x07>")
    assert known.pieces[entry(pieces, "<0x41>")] == b"A"


def test_a_token_with_two_roles_is_paired_once() -> None:
    one, two = numerals(), splitting()
    pairs = overlap(one, two).pairs
    assert vocabulary(one).roles == {"eos": 0, "unk": 1}  # the pad token is the end-of-text token
    assert (0, two.eos_token_id) in pairs and (1, two.unk_token_id) in pairs
    assert {b for _, b in pairs} & {two.pad_token_id, two.bos_token_id} == set()
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


def test_overlap_counts_spellings_and_not_how_they_are_shown() -> None:
    one, two = numerals(), splitting()
    result = overlap(one, two)
    assert (entry(one, "Ġcat"), entry(two, "▁cat")) in result.pairs
    shared = {b"\n", b"  "} | {bytes([n]) for n in range(256)} | {w for w in vocabulary(two).ids if len(w) > 1}
    expected = len(shared & vocabulary(one).ids.keys()) / len(vocabulary(two).ids)
    assert result.share_of_smaller == pytest.approx(expected)
    raw = len(one.get_vocab().keys() & two.get_vocab().keys()) / len(two)
    assert raw < result.share_of_smaller


def test_one_tokenizer_shares_every_id_with_itself() -> None:
    result = overlap(splitting(), splitting())
    assert result.pairs == tuple((n, n) for n in range(len(splitting()))) and result.share_of_smaller == 1


def test_tokenizers_are_one_by_their_rules_and_not_by_their_size() -> None:
    from tokenizers import pre_tokenizers

    one, other, swapped = numerals(), numerals(), numerals()
    other.chat_template = "{{ messages }}"
    assert same_tokenizer(one, other) and other.chat_template == "{{ messages }}"
    swapped.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert len(swapped) == len(one) and not same_tokenizer(one, swapped)
    assert not same_tokenizer(one, splitting())


def test_bytes_are_spelled_the_tokenizer_s_own_way() -> None:
    pieces = splitting()
    rows = encode_bytes(pieces, [b"cat", b" photosynthesis", b"347", b"\xe6\x97", b"\xff"])
    assert [[vocabulary(pieces).pieces[token] for token in row] for row in rows] == [
        *([b"cat"], [b" photosynthesis"], [b"3", b"4", b"7"]),
        *([b"\xe6", b"\x97"], [b"\xff"]),
    ]


def test_a_tokenizer_that_puts_a_space_in_front_spells_without_it_where_it_can() -> None:
    unigram = tiny_models.unigram_tokenizer()
    (row,) = encode_bytes(unigram, [b"he"])
    assert decode_bytes(vocabulary(unigram), row) == b"he"
    assert encode_bytes(unigram, ["🙂".encode()]) == [()]


def test_an_unknown_family_is_refused_by_name() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")))
    with pytest.raises(UserError, match=r"only fast tokenizers of byte-level BPE .* and of SentencePiece's kind"):
        vocabulary(words)


@pytest.mark.bundled
def test_the_bundled_pair_shares_most_of_the_smaller_vocabulary() -> None:
    smol, gemma = bundled()
    raw = len(smol.get_vocab().keys() & gemma.get_vocab().keys()) / len(smol)
    result = overlap(smol, gemma)
    assert raw < 0.31 and result.share_of_smaller > 0.93
    assert (smol.eos_token_id, gemma.eos_token_id) in result.pairs
    for text in TEXTS:
        for tokenizer in (smol, gemma):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert decode_bytes(vocabulary(tokenizer), ids) == text.encode()
