"""Batches: groups of a question's examples, packed by length; the only place that shifts labels.

Shape suffixes: B rows, T positions, N target positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tinyllm_bench.models.tokens import Encoded, count_by_channel


class Group(NamedTuple):
    """All examples of one question: they meet the same optimiser step."""

    record_id: str
    items: tuple[Encoded, ...]

    @property
    def tokens(self) -> int:
        """Non-pad tokens through the student."""
        return sum(item.tokens for item in self.items)


@dataclass(slots=True, kw_only=True)
class Batch:
    """One micro-batch.

    Position n of the targets is predicted from row `target_row_N[n]` at position `target_position_N[n]`, should be
    `target_ids_N[n]`, and belongs to channel `channels[channel_N[n]]`. `teacher_view` is what a white-box teacher
    needs.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    decoder_input_ids_BT: Tensor | None
    target_row_N: Tensor
    target_position_N: Tensor
    target_ids_N: Tensor
    channel_N: Tensor
    channels: tuple[str, ...]
    record_ids: tuple[str, ...]
    teacher_view: Any = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its tensors on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in moved.items()}
        return replace(self, **moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collator:
    """Turns examples into a `Batch` for one family of students."""

    encoder_decoder: bool
    pad_id: int
    decoder_start_id: int | None = None

    def collate(self, items: Sequence[Encoded]) -> Batch:
        """Pad examples on the right and place their targets."""
        channels = tuple(dict.fromkeys(item.channel for item in items))
        if self.encoder_decoder:
            read = [item.prompt for item in items]
            start = self.decoder_start_id if self.decoder_start_id is not None else self.pad_id
            written = [(start, *item.target[:-1]) for item in items]
            first = [0] * len(items)
        else:
            read = [(*item.prompt, *item.target[:-1]) for item in items]
            written = None
            first = [len(item.prompt) - 1 for item in items]
        rows = [row for row, item in enumerate(items) for _ in item.target]
        return Batch(
            input_ids_BT=_pad(read, self.pad_id),
            attention_mask_BT=_pad([(1,) * len(ids) for ids in read], 0),
            decoder_input_ids_BT=None if written is None else _pad(written, self.pad_id),
            target_row_N=torch.tensor(rows),
            target_position_N=torch.cat([first[i] + torch.arange(len(e.target)) for i, e in enumerate(items)]),
            target_ids_N=torch.tensor([token for item in items for token in item.target]),
            channel_N=torch.tensor([channels.index(items[row].channel) for row in rows]),
            channels=channels,
            record_ids=tuple(item.record_id for item in items),
        )


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([value] * (width - len(row)))] for row in rows])


def micro_batches(groups: Sequence[Group], *, max_tokens: int, keep_groups: bool) -> list[list[Encoded]]:
    """Split one mini-batch into micro-batches of at most `max_tokens` padded tokens, like lengths together.

    Losses are sums that only the trainer divides, so the split changes memory and time, never the optimisation.
    `keep_groups` leaves a question's examples in one micro-batch. A unit larger than the limit stands alone. One
    that is an eighth full is closed rather than padded by more than a quarter of its tokens.
    """
    units = [list(g.items) for g in groups] if keep_groups else [[item] for g in groups for item in g.items]
    units = sorted((unit for unit in units if unit), key=lambda unit: -max(item.tokens for item in unit))
    packed: list[list[Encoded]] = []
    for unit in units:
        if packed and _fits([*packed[-1], *unit], len(packed[-1]), max_tokens):
            packed[-1].extend(unit)
        else:
            packed.append(list(unit))
    return packed


def _fits(items: Sequence[Encoded], before: int, max_tokens: int) -> bool:
    """Whether items (the first `before` are in already) may share a micro-batch; the first is the longest."""
    widest = max(item.tokens for item in items)
    padded, real = len(items) * widest, sum(item.tokens for item in items)
    return padded <= max_tokens and (padded <= 1.25 * real or before * widest < max_tokens // 8)


def count_targets(groups: Sequence[Group]) -> Mapping[str, int]:
    """Target tokens per channel of a mini-batch."""
    return count_by_channel([item for group in groups for item in group.items])
