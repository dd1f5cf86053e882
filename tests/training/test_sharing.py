"""Which models share prompts, and what the others are told."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.learning import gradients, make_groups, make_method, make_trainer
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM
from tinyllm_bench.training.batching import collator_of
from tinyllm_bench.training.sharing import choose_layout


def chosen(pair: tuple[Any, Any], asked: Any = "auto", *, training: bool = True) -> tuple[str, str | None]:
    return choose_layout(LM(pair[0]), collator_of(*pair), asked, training=training)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_t5"])
def test_a_model_that_can_shares(family: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(family)
    assert chosen(pair) == chosen(pair, "shared") == ("shared", None)
    assert chosen(pair, "separate") == ("separate", "asked for")


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
