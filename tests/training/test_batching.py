"""Layouts, batches and batch_rows-batches by hand, and which models share prompts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.experiment.runs import one_cell, run_all
from tests.learning import gradients, make_groups, make_method, make_trainer
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM, branch_block_mask, branch_mask
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.testing.tiny_models import bpe_tokenizer, saved
from tinyllm_bench.training.batching import (
    Batch,
    Collator,
    Group,
    InputRow,
    choose_layout,
    collator_of,
    count_targets,
    decoder_rows,
    encoder_rows,
    micro_batches,
    side_by_side,
)

# --- Layout ----------------------------------------------------------------------------------------------------------

SHARED = Collator(encoder_decoder=False, pad_id=0, layout="shared")


def example(prompt: list[int], target: list[int], channel: str = "label") -> Encoded:
    return Encoded("r", channel, tuple(prompt), tuple(target), False)


def shared(*items: Encoded, min_shared: int = 2) -> list[InputRow]:
    return decoder_rows(items, "shared", min_shared=min_shared)


def test_two_branches_by_hand() -> None:
    # context 5 6 7; one branch has prompt 1 and target 8 9, the other prompt 2 3 and target 4
    (row,) = shared(example([5, 6, 7, 1], [8, 9]), example([5, 6, 7, 2, 3], [4]))
    assert row.ids == (5, 6, 7, 1, 8, 2, 3)
    assert row.positions == (0, 1, 2, 3, 4, 3, 4)
    assert row.until == (7, 7, 7, 5, 5, 7, 7)
    assert [(branch.item.target, branch.indices) for branch in row.branches] == [((8, 9), (3, 4)), ((4,), (6,))]
    assert row.is_tree and row.width == 7


def test_branches_share_as_much_as_they_have_in_common() -> None:
    # all begin with 5 6; two of them continue with 7 8
    (row,) = shared(example([5, 6, 7, 8, 1], [9]), example([5, 6, 9, 9], [9]), example([5, 6, 7, 8, 2], [9]))
    assert row.ids == (5, 6, 7, 8, 1, 2, 9, 9)
    assert row.positions == (0, 1, 2, 3, 4, 4, 2, 3)
    assert row.until == (8, 8, 6, 6, 5, 6, 8, 8)


def test_the_same_prompt_occurs_once() -> None:
    """Two targets of one prompt are predicted at the same place first."""
    (row,) = shared(example([5, 6, 7], [8, 1]), example([5, 6, 7], [8, 2]), example([5, 6, 7], [9]))
    assert row.ids == (5, 6, 7, 8)
    assert [branch.indices for branch in row.branches] == [(2,), (2, 3), (2, 3)]


def test_examples_with_too_short_a_common_prefix_get_separate_rows() -> None:
    rows = shared(example([5, 6, 1], [8]), example([5, 6, 2], [8]), min_shared=3)
    assert [row.ids for row in rows] == [(5, 6, 1), (5, 6, 2)]
    assert not any(row.is_tree for row in rows)


def test_separate_rows_hold_one_example_each() -> None:
    items = [example([5, 6, 7, 1], [8, 9]), example([5, 6, 7, 2], [4])]
    rows = decoder_rows(items, "separate")
    assert [row.ids for row in rows] == [(5, 6, 7, 1, 8), (5, 6, 7, 2)]
    assert [row.branches[0].item for row in rows] == items


def test_an_encoder_gets_an_input_once() -> None:
    items = [example([5, 6, 1], [8, 1]), example([7, 1], [4, 1]), example([5, 6, 1], [9, 9, 1])]
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
    (tree,) = shared(example([5, 6, 7], [1]), example([5, 6, 8], [1]))
    (plain,) = shared(example([5, 6], [1]))
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
    """Other tokens in one branch leave all logits of the other bit-equal, and change its own."""
    model, _ = tiny_llama
    model.set_attn_implementation(attention)
    context = list(range(10, 30))
    results = []
    for words in ([31, 32, 33], [41, 42, 43]):
        (row,) = shared(example([*context, 30], [5, 6]), example([*context, *words], [7]))
        batch = SHARED.collate([row])
        with torch.no_grad():
            results.append(LM(model)(batch, lambda logits_NV, rows: logits_NV))
    first, second = results
    assert torch.equal(first[:2], second[:2])
    assert not torch.allclose(first[2], second[2])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_the_same(tiny_llama: tuple[Any, Any]) -> None:
    """Uncompiled, as a CPU can run it; on a GPU it is compiled."""
    model, _ = tiny_llama
    context = list(range(10, 30))
    batch = SHARED.collate(shared(example([*context, 30], [5, 6]), example([*context, 31, 32], [7])))
    with torch.no_grad():
        expected = LM(model)(batch, lambda logits_NV, rows: logits_NV)
        model.set_attn_implementation("flex_attention")
        with torch.compiler.set_stance("force_eager"):
            actual = LM(model)(batch, lambda logits_NV, rows: logits_NV)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# --- Batch -----------------------------------------------------------------------------------------------------------


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


# --- Micro-batches ---------------------------------------------------------------------------------------------------


def rows_of(groups: list[Group]) -> list[list[InputRow]]:
    collator = Collator(encoder_decoder=False, pad_id=0)
    return [collator.rows(group.items) for group in groups]


def items_of(batch_rows: list[InputRow]) -> list[Encoded]:
    return [branch.item for row in batch_rows for branch in row.branches]


def test_micro_batches_lose_nothing_and_respect_the_limit() -> None:
    packed = micro_batches(rows_of(groups()), max_tokens=60, keep_groups=False, pack=False)
    items = [item for batch_rows in packed for item in items_of(batch_rows)]
    assert sorted(items) == sorted(item for group in groups() for item in group.items)
    for batch_rows in packed:
        assert len(batch_rows) == 1 or len(batch_rows) * max(row.width for row in batch_rows) <= 60


def test_packing_puts_similar_lengths_together() -> None:
    packed = micro_batches(rows_of(groups()), max_tokens=60, keep_groups=False, pack=False)
    widest = [max(row.width for row in batch_rows) for batch_rows in packed]
    assert widest == sorted(widest, reverse=True)


def test_short_examples_are_not_padded_to_long_ones_once_a_micro_batch_is_well_filled() -> None:
    long = [Group(f"l{i}", (encoded("why", [1] * 99, [2] * 2),)) for i in range(4)]
    short = [Group(f"s{i}", (encoded("label", [1] * 9, [2] * 2),)) for i in range(8)]
    packed = micro_batches(rows_of([*short, *long]), max_tokens=3000, keep_groups=False, pack=False)
    # 4 x 100 tokens are more than an eighth of 3000; one short beside them pads 410 to 500 (1.22), two 420 to 600
    assert [len(batch_rows) for batch_rows in packed] == [5, 7]


def test_groups_stay_together_if_a_method_needs_it() -> None:
    for batch_rows in micro_batches(rows_of(groups()), max_tokens=40, keep_groups=True, pack=False):
        names = [item.record_id for item in items_of(batch_rows)]
        assert all(names.count(name) == 2 for name in names)


def test_rows_side_by_side_by_hand() -> None:
    (tree,) = decoder_rows([encoded("a", [5, 6, 1], [9]), encoded("b", [5, 6, 2], [8])], "shared", min_shared=2)
    (plain,) = decoder_rows([encoded("a", [7, 7], [3, 4])], "shared")
    row = side_by_side([tree, plain])
    assert row.ids == (5, 6, 1, 2, 7, 7, 3)
    assert row.positions == (0, 1, 2, 2, 0, 1, 2)
    assert row.until == (4, 4, 3, 4, 7, 7, 7)
    assert [(branch.item.target, branch.indices) for branch in row.branches] == [
        ((9,), (2,)),
        ((8,), (3,)),
        ((3, 4), (5, 6)),
    ]


def of_width(width: int, name: str) -> list[InputRow]:
    return decoder_rows([encoded("why", [1] * width, [2], name)], "shared")


def test_short_rows_fill_the_space_beside_the_longest() -> None:
    units = [of_width(n, str(i)) for i, n in enumerate((10, 4, 6, 3, 3, 3))]
    (packed,) = micro_batches(units, max_tokens=1000, keep_groups=False, pack=True)
    assert [row.width for row in packed] == [10, 10, 9]  # 10; 6 + 4; 3 + 3 + 3


def test_packed_micro_batches_keep_to_the_limit_and_start_with_their_own_width() -> None:
    units = [of_width(n, str(i)) for i, n in enumerate((10, 9, 3, 3, 2))]
    packed = micro_batches(units, max_tokens=20, keep_groups=False, pack=True)
    assert [[row.width for row in batch_rows] for batch_rows in packed] == [[10, 9], [3, 3, 2]]


def test_one_long_row_does_not_make_all_others_wide() -> None:
    units = [of_width(n, str(n)) for n in (748, 503, 490, 484, 461, 422, 395, 365)]
    packed = micro_batches(units, max_tokens=4096, keep_groups=False, pack=True)
    # 748 + 503 are padded to 1,496 (1.20 of their tokens), a third would make it 2,244 (1.29)
    assert [[row.width for row in batch_rows] for batch_rows in packed] == [[748, 503], [490, 484, 461, 422, 395, 365]]


@pytest.mark.parametrize("keep_groups", [True, False])
def test_packing_side_by_side_loses_nothing(keep_groups: bool) -> None:
    packed = micro_batches(rows_of(groups()), max_tokens=45, keep_groups=keep_groups, pack=True)
    items = [item for batch_rows in packed for item in items_of(batch_rows)]
    assert sorted(items) == sorted(item for group in groups() for item in group.items)
    for batch_rows in packed:
        names = [item.record_id for item in items_of(batch_rows)]
        assert not keep_groups or all(names.count(name) == 2 for name in names)


# --- Which layouts a model supports ----------------------------------------------------------------------------------


def chosen(pair: tuple[Any, Any], requested: Any = "auto", *, training: bool = True) -> tuple[str, str | None]:
    return choose_layout(LM(pair[0]), collator_of(*pair), requested, training=training)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_t5"])
def test_a_model_that_supports_it_shares_prompts(family: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(family)
    assert chosen(pair) == chosen(pair, "shared") == ("shared", None)
    assert chosen(pair, "separate") == ("separate", "requested")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rounding_does_not_rule_a_model_out(dtype: torch.dtype, tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    assert chosen((model.to(dtype), tokenizer)) == ("shared", None)


def test_a_sliding_window_needs_separate_rows(tiny_llama: tuple[Any, Any]) -> None:
    tiny_llama[0].config.layer_types = ["full_attention", "sliding_attention"]
    layout, reason = chosen(tiny_llama)
    assert layout == "separate" and reason is not None and "do not attend to the whole text" in reason
    with pytest.raises(UserError, match="layout=shared: model type 'llama'"):
        chosen(tiny_llama, "shared")


def test_dropout_needs_separate_rows_in_training_only(tiny_t5: tuple[Any, Any]) -> None:
    for module in tiny_t5[0].modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    assert chosen(tiny_t5)[0] == "separate" and "dropout 0.1" in str(chosen(tiny_t5)[1])
    assert chosen(tiny_t5, training=False) == ("shared", None)


def test_another_attention_needs_separate_rows(tiny_llama: tuple[Any, Any]) -> None:
    tiny_llama[0].config._attn_implementation = "flash_attention_2"
    assert "'flash_attention_2' does not support a four-dimensional mask" in str(chosen(tiny_llama)[1])


@pytest.mark.parametrize("mistake", ["positions", "mask", "boolean mask"])
def test_the_comparison_detects_what_raises_no_error(mistake: str, tiny_llama: tuple[Any, Any]) -> None:
    model, _ = tiny_llama
    original = model.model.forward
    if mistake == "boolean mask":
        model.set_attn_implementation("eager")

    def wrong(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            if mistake == "positions":
                kwargs["position_ids"] = None
            elif mistake == "mask":
                kwargs["attention_mask"] = None
            else:
                kwargs["attention_mask"] = mask == 0
        return original(*args, **kwargs)

    model.model.forward = wrong
    assert "computes other values with a shared prompt" in str(chosen(tiny_llama)[1])


def tiny_neo(window: int, kind: str = "local") -> tuple[Any, Any]:
    """A GPT-Neo whose second layer attends only to the last tokens; its configuration calls it `kind`."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    tokenizer = bpe_tokenizer()
    config = GPTNeoConfig(
        vocab_size=384,
        hidden_size=64,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=window,
        max_position_embeddings=1024,
        initializer_range=0.2,
        embed_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(config).eval()
    model.config.attention_layers = ["global", kind]
    return model, tokenizer


def test_a_local_window_needs_separate_rows() -> None:
    assert "do not attend to the whole text" in str(chosen(tiny_neo(256))[1])


@pytest.mark.parametrize("window", [16, 256])
def test_the_comparison_is_longer_than_a_window(window: int) -> None:
    """Here the configuration hides that a layer is local; on a short text it would not show."""
    assert "computes other values with a shared prompt" in str(chosen(tiny_neo(window, "global"))[1])


def test_a_window_that_is_too_long_to_test_needs_separate_rows() -> None:
    pair = tiny_neo(256, "global")
    pair[0].config.max_position_embeddings = pair[0].config.window_size = 100_000
    pair[0].config.window_size = 50_000
    assert "at most, too many to try it" in str(chosen(pair)[1])


@pytest.mark.parametrize("error", [RuntimeError, TypeError, IndexError, AssertionError, torch.OutOfMemoryError])
def test_a_comparison_that_fails_means_separate_rows(error: type[Exception], tiny_llama: tuple[Any, Any]) -> None:
    model, _ = tiny_llama
    original = model.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            raise error("no such mask\nat all")
        return original(*args, **kwargs)

    model.model.forward = forward
    layout, reason = chosen(tiny_llama)
    assert layout == "separate" and f"fails with a shared prompt ({error.__name__}: no such mask)" in str(reason)
    with pytest.raises(UserError, match="layout=shared: .*fails with a shared prompt"):
        chosen(tiny_llama, "shared")


def test_a_model_without_positions_is_trained_on_separate_rows(tmp_path: Path) -> None:
    """Bloom derives positions from the mask, and fails with a four-dimensional one."""
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = bpe_tokenizer()
    config = BloomConfig(
        vocab_size=384,
        hidden_size=64,
        n_layer=2,
        n_head=4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    pair = (BloomForCausalLM(config).eval(), tokenizer)
    assert chosen(pair)[0] == "separate"
    runs = tmp_path / "runs"
    (done,) = run_all([one_cell(saved(pair, tmp_path / "bloom"), runs=runs)], runs)
    assert done.record is not None


def test_an_unknown_head_is_one_line(tiny_llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny_llama
    monkeypatch.setattr(type(model), "base_model_prefix", "nothing")
    with pytest.raises(UserError, match="computes its logits in a way this project does not know"):
        LM(model).check()


@pytest.mark.bundled
def test_the_bundled_student_shares(bundled_smollm: Any) -> None:
    from tinyllm_bench.models.load import load_model
    from tinyllm_bench.models.specs import parse_spec

    loaded = load_model(parse_spec("bundled:smollm2-135m?layers=0:30:15", role="student"))
    assert chosen((loaded.model, loaded.tokenizer)) == ("shared", None)


def _relative(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of two gradients, in parts of the norm."""
    pairs = [(results[name].double(), expected[name].double()) for name in expected]
    off = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return float((off / sum(float((b**2).sum()) for _, b in pairs)) ** 0.5)


@pytest.mark.slow
@pytest.mark.bundled
@pytest.mark.parametrize("how", ["full", "lora", "gradient_checkpointing"])
def test_the_bundled_student_s_gradient_is_the_same(how: str, bundled_smollm: Any, tmp_path: Any) -> None:
    """All 30 layers in float32, in two batch_rows-batches; loss and whole gradient within 1e-5."""
    from peft import LoraConfig, TaskType, get_peft_model

    from tinyllm_bench.models.load import load_model
    from tinyllm_bench.models.specs import parse_spec

    results: list[dict[str, torch.Tensor]] = []
    losses: list[float] = []
    for layout in ("separate", "shared"):
        model, tokenizer = load_model(parse_spec("bundled:smollm2-135m", role="student"))
        student: Any = model
        if how == "lora":
            torch.manual_seed(0)
            settings = LoraConfig(
                r=4, target_modules="all-linear", task_type=TaskType.CAUSAL_LM, init_lora_weights=False
            )
            student = get_peft_model(model, settings)
        groups = make_groups(make_method("tinyllm"), tokenizer, count=3)
        trainer = make_trainer(
            student,
            tokenizer,
            make_method("tinyllm"),
            groups,
            tmp_path / layout,
            layout=layout,
            micro_batch_tokens=400,
            gradient_checkpointing=how == "gradient_checkpointing",
        )
        results.append(gradients(trainer))
        losses.append(trainer.state.losses[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert _relative(results[1], results[0]) < 1e-5
