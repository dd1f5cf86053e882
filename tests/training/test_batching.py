"""Positions and labels, by hand."""

import torch

from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Batch, Collator, Group, count_targets


def encoded(channel: str, prompt: list[int], target: list[int], record: str = "r") -> Encoded:
    return Encoded(record, channel, tuple(prompt), tuple(target), False)


def collated(collator: Collator, items: list[Encoded]) -> Batch:
    return collator.collate([row for item in items for row in collator.rows([item])])


def test_decoder_only_positions_by_hand() -> None:
    # prompt 5 6 7, target 8 9: read 5 6 7 8; position 2 (token 7) predicts 8, position 3 (token 8) predicts 9
    batch = collated(
        Collator(encoder_decoder=False, pad_id=0), [encoded("label", [5, 6, 7], [8, 9]), encoded("other", [5], [4])]
    )
    assert batch.until_BT is None and batch.position_ids_BT is None
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 8], [5, 0, 0, 0]]
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0]]
    assert batch.target_row_N.tolist() == [0, 0, 1]
    assert batch.target_position_N.tolist() == [2, 3, 0]
    assert batch.target_ids_N.tolist() == [8, 9, 4]
    assert (batch.channels, batch.channel_N.tolist()) == (("label", "other"), [0, 0, 1])


def test_encoder_decoder_positions_by_hand() -> None:
    batch = collated(
        Collator(encoder_decoder=True, pad_id=0, decoder_start_id=3),
        [encoded("label", [5, 6, 1], [8, 9, 1]), encoded("label", [7, 1], [4, 1])],
    )
    assert batch.input_ids_BT.tolist() == [[5, 6, 1], [7, 1, 0]]
    assert batch.decoder_input_ids_DT is not None
    assert batch.decoder_input_ids_DT.tolist() == [[3, 8, 9], [3, 4, 0]]
    assert batch.target_position_N.tolist() == [0, 1, 2, 0, 1]
    assert batch.target_ids_N.tolist() == [8, 9, 1, 4, 1]


def groups() -> list[Group]:
    sizes = {"a": (3, 30), "b": (4, 5), "c": (20, 2), "d": (1, 1)}
    return [
        Group(name, (encoded("label", [1] * n, [2] * 2, name), encoded("why", [1] * m, [2] * 3, name)))
        for name, (n, m) in sizes.items()
    ]


def test_targets_are_counted_per_channel() -> None:
    assert count_targets(groups()) == {"label": 8, "why": 12}


def test_a_batch_moves_whole() -> None:
    batch = collated(Collator(encoder_decoder=False, pad_id=0), [encoded("label", [5], [4])])
    moved = batch.to(torch.device("cpu"))
    assert isinstance(moved, Batch) and moved.channels == batch.channels
    assert torch.equal(moved.input_ids_BT, batch.input_ids_BT)
