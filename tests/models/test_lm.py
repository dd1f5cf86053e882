"""The training module: logits at target positions equal the model's own."""

from typing import Any

import pytest
import torch

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.lm import LM


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_t5"])
def test_the_head_is_the_model_s_own(family: str, request: pytest.FixtureRequest) -> None:
    LM(request.getfixturevalue(family)[0]).check()


def test_a_tied_t5_is_scaled(tiny_t5: tuple[Any, Any]) -> None:
    """A tied T5 divides its hidden states by sqrt(d_model) before the head."""
    model, _ = tiny_t5
    model.config.scale_decoder_outputs = True
    lm = LM(model)
    lm.check()
    hidden_NH = torch.randn(2, model.config.d_model)
    expected = model.lm_head(hidden_NH * model.config.d_model**-0.5)
    torch.testing.assert_close(lm.logits(hidden_NH), expected)


def test_a_softcap_is_applied(tiny_llama: tuple[Any, Any]) -> None:
    model, _ = tiny_llama
    lm = LM(model)
    hidden_NH = 50 * torch.randn(2, model.config.hidden_size)
    model.config.final_logit_softcapping = 3.0
    assert lm.logits(hidden_NH).abs().max() <= 3.0


def test_a_head_that_we_do_not_know_is_refused(tiny_llama: tuple[Any, Any]) -> None:
    model, _ = tiny_llama
    head = model.get_output_embeddings()
    model.set_output_embeddings(head)
    original = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    with pytest.raises(UserError, match="in a way this project does not know"):
        LM(model).check()
    del model.forward


@pytest.mark.bundled
def test_the_bundled_student_passes_the_check(bundled_smollm: Any) -> None:
    from tinyllm_bench.models.load import load_model
    from tinyllm_bench.models.specs import parse_spec

    LM(load_model(parse_spec("bundled:smollm2-135m?layers=0:30:15", role="student")).model).check()
