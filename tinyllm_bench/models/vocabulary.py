"""The bytes that a tokenizer's entries spell: the form in which vocabularies of different tokenizers are compared.

A raw entry is written in its family's own way: byte-level BPE shows each byte as a letter (a space is `Ġ`),
SentencePiece shows a space as `▁` and a byte without an entry as `<0x0A>`. Compared raw, two vocabularies of different
families seem to share far less than they do. Special tokens spell nothing; they are matched by their role only.
"""

import copy
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.load import tokenizer_digest

# One token often has two roles (a pad token that is the end-of-text token): the first in this order counts.
ROLES = ("eos", "bos", "unk", "pad")
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
Family = Literal["byte_level", "sentencepiece"]


class Overlap(NamedTuple):
    """The entries that two vocabularies share.

    pairs: (id in the first, id in the second) of entries that spell the same bytes or have the same role;
    share_of_smaller: shared spellings over those of the vocabulary that has fewer.
    """

    pairs: tuple[tuple[int, int], ...]
    share_of_smaller: float


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer's entries by id.

    pieces: the bytes of each id, None for special tokens and gaps; ids: the id that normally spells some bytes (a
    byte-fallback entry such as `<0x41>` gives way to `A`); roles: ids of the special tokens, each in one role.
    """

    pieces: tuple[bytes | None, ...]
    ids: Mapping[bytes, int]
    roles: Mapping[str, int]

    @cached_property
    def _sorted(self) -> list[bytes]:
        return sorted(self.ids)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.ids), default=0)

    def beginning_with(self, start: bytes) -> Iterator[bytes]:
        """Spellings that start with these bytes, in order."""
        for position in range(bisect_left(self._sorted, start), len(self._sorted)):
            if not self._sorted[position].startswith(start):
                return
            yield self._sorted[position]

    def longest_matches(self, text: bytes) -> tuple[int, ...]:
        """Ids that spell these bytes, longest match first; empty if they cannot be spelled."""
        matches, position = [], 0
        while position < len(text):
            ends = range(min(len(text), position + self._longest), position, -1)
            end = next((end for end in ends if text[position:end] in self.ids), None)
            if end is None:
                return ()
            matches.append(self.ids[text[position:end]])
            position = end
        return tuple(matches)


def vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """The vocabulary of a Hugging Face fast tokenizer in bytes; cached for the last tokenizers.

    Raises:
        UserError: the tokenizer is neither byte-level nor of SentencePiece's kind.
    """
    named = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    return _vocabulary(tokenizer, len(tokenizer), tuple(named.items()))


@lru_cache(maxsize=8)
def _vocabulary(tokenizer: Any, size: int, named: tuple[tuple[str, int | None], ...]) -> Vocabulary:
    roles: dict[str, int] = {}
    for role, token in named:
        if token is not None and token not in roles.values():
            roles[role] = token
    entries = tokenizer.get_vocab()
    family, added = _family(tokenizer), tokenizer.added_tokens_decoder
    special = {*roles.values(), *tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    fallback = all(f"<0x{byte:02X}>" in entries for byte in range(256))
    pieces: list[bytes | None] = [None] * (max(entries.values(), default=-1) + 1)
    written_as_byte = set()
    for entry, token in entries.items():
        if token in special:
            continue
        if family == "byte_level":
            pieces[token] = entry.encode() if token in added else _byte_level(entry)
        elif fallback and (byte := _BYTE.fullmatch(entry)):
            pieces[token] = bytes([int(byte[1], 16)])
            written_as_byte.add(token)
        else:
            pieces[token] = entry.replace("▁", " ").encode()
    ids: dict[bytes, int] = {}
    for token in sorted(range(len(pieces)), key=lambda token: (token in written_as_byte, token)):
        if piece := pieces[token]:
            ids.setdefault(piece, token)
    return Vocabulary(tuple(pieces), ids, roles)


def _family(tokenizer: Any) -> Family:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts = [getattr(backend, name) for name in ("decoder", "pre_tokenizer", "normalizer")]
        rules = [json.loads(part.__getstate__()) for part in parts if part is not None]
        kinds = {kind for rule in rules for kind in _kinds(rule)}
        if "ByteLevel" in kinds:
            return "byte_level"
        if "Metaspace" in kinds or "▁" in json.dumps(rules, ensure_ascii=False):
            return "sentencepiece"
    raise UserError(
        f"the bytes of {type(tokenizer).__name__}'s vocabulary are not known: only fast tokenizers of byte-level BPE"
        " (GPT-2, Llama 3, Qwen, SmolLM) and of SentencePiece's kind (Gemma, Llama 2, T5) can be compared"
    )


def _kinds(rule: Any) -> Iterator[str]:
    """Types of a tokenizer's rule and of the rules inside it."""
    if isinstance(rule, dict):
        yield str(rule.get("type"))
        for value in rule.values():
            yield from _kinds(value)
    elif isinstance(rule, list):
        for value in rule:
            yield from _kinds(value)


@lru_cache(maxsize=1)
def _letters() -> Mapping[str, int]:
    """The byte of each letter of byte-level BPE (GPT-2's table, inverted)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {**{chr(byte): byte for byte in shown}, **{chr(256 + n): byte for n, byte in enumerate(hidden)}}


def _byte_level(entry: str) -> bytes:
    letters = _letters()
    return bytes(letters[letter] for letter in entry) if all(x in letters for x in entry) else entry.encode()


def overlap(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> Overlap:
    """Entries of two tokenizers that match: by their bytes, special tokens by their role.

    For a tokenizer and itself every id is a pair.
    """
    a, b = vocabulary(first), vocabulary(second)
    shared = a.ids.keys() & b.ids.keys()
    share = len(shared) / max(min(len(a.ids), len(b.ids)), 1)
    if a.pieces == b.pieces and same_tokenizer(first, second):
        return Overlap(tuple((token, token) for token in range(len(a.pieces))), share)
    roles = [(token, b.roles[role]) for role, token in a.roles.items() if role in b.roles]
    return Overlap(tuple(sorted([*((a.ids[piece], b.ids[piece]) for piece in shared), *roles])), share)


def same_tokenizer(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers give the same ids for every text; chat templates may differ."""
    if first is second:
        return True
    return len(first) == len(second) and _rules(first) == _rules(second)


def _rules(tokenizer: PreTrainedTokenizerBase) -> str:
    plain = copy.copy(tokenizer)
    plain.chat_template = None
    return tokenizer_digest(plain)


def encode_bytes(tokenizer: PreTrainedTokenizerBase, texts: Sequence[bytes]) -> list[tuple[int, ...]]:
    """Ids for byte strings: the tokenizer's own where they spell the bytes again, else longest matches.

    A text that it cannot spell (a character without an entry) has no ids.
    """
    known = vocabulary(tokenizer)
    readable: dict[bytes, str] = {}
    for text in texts:
        with suppress(UnicodeDecodeError):
            if decoded := text.decode():
                readable[text] = decoded
    ids = tokenizer(list(readable.values()), add_special_tokens=False)["input_ids"] if readable else []
    own = {text: tuple(row) for text, row in zip(readable, ids, strict=True) if decode_bytes(known, row) == text}
    return [own.get(text) or known.longest_matches(text) for text in texts]


def decode_bytes(known: Vocabulary, ids: Iterable[int]) -> bytes:
    """The bytes that ids spell together; special tokens spell nothing."""
    return b"".join(known.pieces[token] or b"" for token in ids if token < len(known.pieces))
