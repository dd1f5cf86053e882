"""Rows, places and masks of shared prompts, by hand."""

from typing import Any

import pytest
import torch

from tinyllm_bench.models.lm import LM, branch_block_mask, branch_mask
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Batch, Collator, Row, decoder_rows, encoder_rows

SHARED = Collator(encoder_decoder=False, pad_id=0, layout="shared")


def encoded(prompt: list[int], target: list[int], channel: str = "label") -> Encoded:
    return Encoded("r", channel, tuple(prompt), tuple(target), False)


def shared(*items: Encoded, min_shared: int = 2) -> list[Row]:
    return decoder_rows(items, "shared", min_shared=min_shared)


def test_two_branches_by_hand() -> None:
    # context 5 6 7; one branch reads 1 and writes 8 9, the other reads 2 3 and writes 4
    (row,) = shared(encoded([5, 6, 7, 1], [8, 9]), encoded([5, 6, 7, 2, 3], [4]))
    assert row.ids == (5, 6, 7, 1, 8, 2, 3)
    assert row.positions == (0, 1, 2, 3, 4, 3, 4)
    assert row.until == (7, 7, 7, 5, 5, 7, 7)
    assert [(branch.item.target, branch.places) for branch in row.branches] == [((8, 9), (3, 4)), ((4,), (6,))]
    assert row.is_tree and row.width == 7


def test_branches_share_as_much_as_they_have_in_common() -> None:
    # all begin with 5 6; two of them go on with 7 8
    (row,) = shared(encoded([5, 6, 7, 8, 1], [9]), encoded([5, 6, 9, 9], [9]), encoded([5, 6, 7, 8, 2], [9]))
    assert row.ids == (5, 6, 7, 8, 1, 2, 9, 9)
    assert row.positions == (0, 1, 2, 3, 4, 4, 2, 3)
    assert row.until == (8, 8, 6, 6, 5, 6, 8, 8)


def test_the_same_prompt_needs_no_token_of_its_own() -> None:
    """Two targets of one prompt are predicted at the same place first."""
    (row,) = shared(encoded([5, 6, 7], [8, 1]), encoded([5, 6, 7], [8, 2]), encoded([5, 6, 7], [9]))
    assert row.ids == (5, 6, 7, 8)
    assert [branch.places for branch in row.branches] == [(2,), (2, 3), (2, 3)]


def test_what_has_too_little_in_common_stays_apart() -> None:
    rows = shared(encoded([5, 6, 1], [8]), encoded([5, 6, 2], [8]), min_shared=3)
    assert [row.ids for row in rows] == [(5, 6, 1), (5, 6, 2)]
    assert not any(row.is_tree for row in rows)


def test_separate_rows_hold_one_example_each() -> None:
    items = [encoded([5, 6, 7, 1], [8, 9]), encoded([5, 6, 7, 2], [4])]
    rows = decoder_rows(items, "separate")
    assert [row.ids for row in rows] == [(5, 6, 7, 1, 8), (5, 6, 7, 2)]
    assert [row.branches[0].item for row in rows] == items


def test_an_encoder_reads_an_input_once() -> None:
    items = [encoded([5, 6, 1], [8, 1]), encoded([7, 1], [4, 1]), encoded([5, 6, 1], [9, 9, 1])]
    rows = encoder_rows(items, "shared")
    assert [row.ids for row in rows] == [(5, 6, 1), (7, 1)]
    assert [row.width for row in rows] == [8, 4]
    batch = Collator(encoder_decoder=True, pad_id=0, decoder_start_id=3, layout="shared").collate(rows)
    assert batch.read_row_D is not None and batch.read_row_D.tolist() == [0, 0, 1]
    assert batch.decoder_input_ids_DT is not None
    assert batch.decoder_input_ids_DT.tolist() == [[3, 8, 0], [3, 9, 9], [3, 4, 0]]
    assert batch.target_row_N.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert [row.ids for row in encoder_rows(items, "separate")] == [(5, 6, 1), (7, 1), (5, 6, 1)]


def two_rows() -> Batch:
    (tree,) = shared(encoded([5, 6, 7], [1]), encoded([5, 6, 8], [1]))
    (plain,) = shared(encoded([5, 6], [1]))
    return SHARED.collate([tree, plain])


def test_the_mask_by_hand() -> None:
    batch = two_rows()
    assert batch.position_ids_BT is not None and batch.position_ids_BT.tolist() == [[0, 1, 2, 2], [0, 1, 0, 0]]
    assert batch.until_BT is not None and batch.until_BT.tolist() == [[4, 4, 3, 4], [2, 2, 3, 4]]
    hidden = torch.finfo(torch.float32).min
    mask_BTT = branch_mask(batch.until_BT, torch.float32)[:, 0]
    assert mask_BTT.dtype == torch.float32 and set(mask_BTT.unique().tolist()) == {0.0, hidden}
    assert (mask_BTT == 0).int().tolist() == [
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]],  # the second branch does not see the first
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],  # padding sees itself alone
    ]


def test_the_block_mask_is_the_same_mask() -> None:
    until_BT = two_rows().until_BT
    assert until_BT is not None
    block = branch_block_mask(until_BT)
    places = torch.arange(4)
    dense_BTT = torch.stack(
        [block.mask_mod(torch.tensor(b), torch.tensor(0), places[:, None], places[None]) for b in range(2)]
    )
    assert torch.equal(dense_BTT, branch_mask(until_BT, torch.float32)[:, 0] == 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_branch_cannot_see_another(attention: str, tiny_llama: tuple[Any, Any]) -> None:
    """Other words in one branch leave every logit of the other bit-equal, and change the branch's own."""
    model, _ = tiny_llama
    model.set_attn_implementation(attention)
    context = list(range(10, 30))
    found = []
    for words in ([31, 32, 33], [41, 42, 43]):
        (row,) = shared(encoded([*context, 30], [5, 6]), encoded([*context, *words], [7]))
        batch = SHARED.collate([row])
        with torch.no_grad():
            found.append(LM(model)(batch, lambda logits_NV, rows: logits_NV))
    first, second = found
    assert torch.equal(first[:2], second[:2])
    assert not torch.allclose(first[2], second[2])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_the_same(tiny_llama: tuple[Any, Any]) -> None:
    """Uncompiled, as a CPU can run it; on a GPU it is compiled."""
    model, _ = tiny_llama
    context = list(range(10, 30))
    batch = SHARED.collate(shared(encoded([*context, 30], [5, 6]), encoded([*context, 31, 32], [7])))
    with torch.no_grad():
        wanted = LM(model)(batch, lambda logits_NV, rows: logits_NV)
        model.set_attn_implementation("flex_attention")
        with torch.compiler.set_stance("force_eager"):
            found = LM(model)(batch, lambda logits_NV, rows: logits_NV)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
