"""Batches: the examples of questions as padded tensors.

Shape suffixes: B rows, T positions, D decoder rows of an encoder-decoder, N target positions.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tinyllm_bench.models.tokens import Encoded, count_by_channel
from tinyllm_bench.training.layout import Branch, Layout, Row, decoder_rows, encoder_rows


class Group(NamedTuple):
    """All examples of one question: they meet the same optimiser step.

    occurrence: how often the question stands in its round already; where texts are drawn, each time is drawn anew.
    """

    record_id: str
    items: tuple[Encoded, ...]
    occurrence: int = 0

    @property
    def key(self) -> str:
        """Names this occurrence among all of its round; what is random about it is seeded by it."""
        return f"{self.record_id}#{self.occurrence}" if self.occurrence else self.record_id

    @property
    def tokens(self) -> int:
        """Non-pad tokens through the student."""
        return sum(item.tokens for item in self.items)


@dataclass(slots=True, kw_only=True)
class Batch:
    """One micro-batch.

    Position n of the targets is predicted from row `target_row_N[n]` at place `target_position_N[n]`, should be
    `target_ids_N[n]`, and belongs to example `items[item_N[n]]` and to channel `channels[channel_N[n]]`; for an
    encoder-decoder these are places of `decoder_input_ids_DT`, whose row d reads the encoder's row `read_row_D[d]`.
    Where examples share a prompt, `position_ids_BT` and `until_BT` are set: place j is seen by the places j up to, not
    including, `until_BT[b, j]`. Otherwise they are None and a row is an ordinary sequence.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    position_ids_BT: Tensor | None
    until_BT: Tensor | None
    decoder_input_ids_DT: Tensor | None
    read_row_D: Tensor | None
    target_row_N: Tensor
    target_position_N: Tensor
    target_ids_N: Tensor
    item_N: Tensor
    channel_N: Tensor
    channels: tuple[str, ...]
    items: tuple[Encoded, ...]

    def drawn_N(self, name: str) -> Tensor:
        """A number per target position that a rollout kept, float32; 0 for examples that no rollout drew."""
        found = [n for item in self.items for n in item.drawn.get(name, (0.0,) * len(item.target))]
        return torch.tensor(found, dtype=torch.float32, device=self.target_ids_N.device)

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Turns a question's examples into rows, and rows into a `Batch`, for one family of students."""

    encoder_decoder: bool
    pad_id: int
    decoder_start_id: int | None = None
    layout: Layout = "separate"

    @property
    def packs(self) -> bool:
        """Whether several questions may stand in one row, apart from each other by the mask."""
        return self.layout == "shared" and not self.encoder_decoder

    def rows(self, items: Sequence[Encoded]) -> list[Row]:
        """The sequences of one question's examples."""
        return (encoder_rows if self.encoder_decoder else decoder_rows)(items, self.layout)

    def collate(self, rows: Sequence[Row]) -> Batch:
        """Pad rows on the right and place their targets."""
        branches = [branch for row in rows for branch in row.branches]
        owners = [number for number, row in enumerate(rows) for _ in row.branches]
        channels = tuple(dict.fromkeys(branch.item.channel for branch in branches))
        written = list(range(len(branches))) if self.encoder_decoder else owners
        trees = not self.encoder_decoder and any(row.is_tree for row in rows)
        item_N = torch.arange(len(branches)).repeat_interleave(torch.tensor([len(b.item.target) for b in branches]))
        channel_of = torch.tensor([channels.index(branch.item.channel) for branch in branches])
        return Batch(
            input_ids_BT=_pad([row.ids for row in rows], self.pad_id),
            attention_mask_BT=_pad([(1,) * len(row.ids) for row in rows], 0),
            position_ids_BT=_pad([row.positions for row in rows], 0) if trees else None,
            until_BT=_until([row.until for row in rows]) if trees else None,
            decoder_input_ids_DT=self._written(branches) if self.encoder_decoder else None,
            read_row_D=torch.tensor(owners) if self.encoder_decoder else None,
            target_row_N=torch.tensor(written)[item_N],
            target_position_N=torch.tensor([place for branch in branches for place in branch.places]),
            target_ids_N=torch.tensor([token for branch in branches for token in branch.item.target]),
            item_N=item_N,
            channel_N=channel_of[item_N],
            channels=channels,
            items=tuple(branch.item for branch in branches),
        )

    def _written(self, branches: Sequence[Branch]) -> Tensor:
        start = self.decoder_start_id if self.decoder_start_id is not None else self.pad_id
        return _pad([(start, *branch.item.target[:-1]) for branch in branches], self.pad_id)


def collator_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Collator:
    """The collator of a model's family, in the separate layout."""
    return Collator(
        encoder_decoder=bool(model.config.is_encoder_decoder),
        pad_id=tokenizer.pad_token_id or 0,
        decoder_start_id=getattr(model.config, "decoder_start_token_id", None),
    )


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows])


def _until(rows: Sequence[Sequence[int]]) -> Tensor:
    """Padded places are seen by themselves alone, so that no row of the mask is empty."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *range(len(row) + 1, width + 1)] for row in rows])


def count_targets(groups: Sequence[Group]) -> Mapping[str, int]:
    """Target tokens per channel of a mini-batch."""
    return count_by_channel([item for group in groups for item in group.items])


def count_examples(groups: Sequence[Group]) -> Mapping[str, int]:
    """Examples per channel of a mini-batch."""
    return Counter(item.channel for group in groups for item in group.items)
