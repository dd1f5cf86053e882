"""Which models share prompts, and what the others are told."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.experiment.runs import one_cell, run_all
from tests.learning import gradients, make_groups, make_method, make_trainer
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.testing.tiny_models import bpe_tokenizer, saved
from tinyllm_bench.training.batching import choose_layout, collator_of


def chosen(pair: tuple[Any, Any], asked: Any = "auto", *, training: bool = True) -> tuple[str, str | None]:
    return choose_layout(LM(pair[0]), collator_of(*pair), asked, training=training)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_t5"])
def test_a_model_that_can_shares(family: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(family)
    assert chosen(pair) == chosen(pair, "shared") == ("shared", None)
    assert chosen(pair, "separate") == ("separate", "requested")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rounding_does_not_rule_a_model_out(dtype: torch.dtype, tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    assert chosen((model.to(dtype), tokenizer)) == ("shared", None)


def test_a_sliding_window_reads_apart(tiny_llama: tuple[Any, Any]) -> None:
    tiny_llama[0].config.layer_types = ["full_attention", "sliding_attention"]
    layout, reason = chosen(tiny_llama)
    assert layout == "separate" and reason is not None and "do not attend to the whole text" in reason
    with pytest.raises(UserError, match="layout=shared: model type 'llama'"):
        chosen(tiny_llama, "shared")


def test_dropout_reads_apart_in_training_alone(tiny_t5: tuple[Any, Any]) -> None:
    for module in tiny_t5[0].modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    assert chosen(tiny_t5)[0] == "separate" and "dropout 0.1" in str(chosen(tiny_t5)[1])
    assert chosen(tiny_t5, training=False) == ("shared", None)


def test_another_attention_reads_apart(tiny_llama: tuple[Any, Any]) -> None:
    tiny_llama[0].config._attn_implementation = "flash_attention_2"
    assert "'flash_attention_2' takes no mask of four dimensions" in str(chosen(tiny_llama)[1])


@pytest.mark.parametrize("mistake", ["positions", "mask", "boolean mask"])
def test_the_comparison_sees_what_raises_no_error(mistake: str, tiny_llama: tuple[Any, Any]) -> None:
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
    """A GPT-Neo whose second layer attends to the last tokens alone; what its configuration says of it is `kind`."""
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


def test_a_local_window_reads_apart() -> None:
    assert "do not attend to the whole text" in str(chosen(tiny_neo(256))[1])


@pytest.mark.parametrize("window", [16, 256])
def test_the_comparison_is_longer_than_a_window(window: int) -> None:
    """Here the configuration does not tell that a layer is local; on a short text nothing would be seen of it."""
    assert "computes other values with a shared prompt" in str(chosen(tiny_neo(window, "global"))[1])


def test_a_window_that_is_too_long_to_try_reads_apart() -> None:
    pair = tiny_neo(256, "global")
    pair[0].config.max_position_embeddings = pair[0].config.window_size = 100_000
    pair[0].config.window_size = 50_000
    assert "at most, too many to try it" in str(chosen(pair)[1])


@pytest.mark.parametrize("error", [RuntimeError, TypeError, IndexError, AssertionError, torch.OutOfMemoryError])
def test_a_comparison_that_fails_reads_apart(error: type[Exception], tiny_llama: tuple[Any, Any]) -> None:
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


def test_a_model_without_positions_trains_apart(tmp_path: Path) -> None:
    """Bloom reads its positions off the mask, and fails with one of four dimensions."""
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


def test_a_head_that_cannot_be_tried_is_one_line(tiny_llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
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


def _relative(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of two gradients, in parts of the norm."""
    pairs = [(found[name].double(), wanted[name].double()) for name in wanted]
    off = sum(float(((a - b) ** 2).sum()) for a, b in pairs)
    return float((off / sum(float((b**2).sum()) for _, b in pairs)) ** 0.5)


@pytest.mark.slow
@pytest.mark.bundled
@pytest.mark.parametrize("how", ["full", "lora", "gradient_checkpointing"])
def test_the_bundled_student_s_gradient_is_the_same(how: str, bundled_smollm: Any, tmp_path: Any) -> None:
    """All 30 layers in float32, in two micro-batches; loss and whole gradient within 1e-5."""
    from peft import LoraConfig, TaskType, get_peft_model

    from tinyllm_bench.models.load import load_model
    from tinyllm_bench.models.specs import parse_spec

    found: list[dict[str, torch.Tensor]] = []
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
        found.append(gradients(trainer))
        losses.append(trainer.state.losses[0])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert _relative(found[1], found[0]) < 1e-5
