"""Options as branches of one sequence have lm-eval's own log-probabilities, and its own greedy flag."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from tinyllm_bench.data.prompts import Ask
from tinyllm_bench.data.records import ScoringMode
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.evaluation.branches import continuation_logprobs
from tinyllm_bench.evaluation.lm_eval_models import hf_lm
from tinyllm_bench.models.lm import LM
from tinyllm_bench.training.batching import collator_of
from tinyllm_bench.training.settings import Layout


def requests(mode: ScoringMode, task: str = "obqa") -> list[Any]:
    """Options of eight questions, out of order, as lm-eval hands them over."""
    ask = Ask(mode=mode)
    pairs = [
        (ask.prompt(record), f" {option}")
        for record in load_split(Source("sample"), task, "test")[:8]
        for option in ask.options(record)
    ]
    mixed = sorted(pairs, key=lambda pair: pair[1])
    return [Instance("loglikelihood", {}, pair, 0) for pair in mixed]


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_t5"])
@pytest.mark.parametrize("mode", ["cloze", "multiple_choice"])
@pytest.mark.parametrize("task", ["obqa", "pubmedqa"])
def test_the_values_are_lm_eval_s(task: str, mode: ScoringMode, family: str, request: pytest.FixtureRequest) -> None:
    found: dict[Layout, Any] = {}
    for layout in ("separate", "shared"):
        lm: Any = hf_lm(*request.getfixturevalue(family), batch_size=4, device="cpu", layout=layout)
        assert lm.layout[0] == layout
        found[layout] = lm.loglikelihood(requests(mode, task))
    assert len(found["shared"]) == len(found["separate"]) >= 24
    for ours, theirs in zip(found["shared"], found["separate"], strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4) and ours[1] == theirs[1]


def test_greedy_continuations_are_known(tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    context = list(range(10, 30))
    written = model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False)[0, 20:].tolist()
    other = [*written[:2], (written[2] + 1) % 100]
    collator = replace(collator_of(model, tokenizer), layout="shared")
    found = continuation_logprobs(LM(model), collator, [(context, other), (context, written)], batch_size=2)
    assert [greedy for _, greedy in found] == [False, True]


def test_no_request_is_no_error(tiny_llama: tuple[Any, Any]) -> None:
    assert continuation_logprobs(LM(tiny_llama[0]), collator_of(*tiny_llama), [], batch_size=2) == []


def test_an_unknown_head_is_left_to_lm_eval(tiny_llama: tuple[Any, Any]) -> None:
    model, tokenizer = tiny_llama
    original = model.forward

    def scaled(*args: Any, **kwargs: Any) -> Any:
        out = original(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    layout, reason = hf_lm(model, tokenizer, batch_size=2, device="cpu").layout  # type: ignore[attr-defined]
    assert layout == "separate" and "in a way this project does not know" in str(reason)


@pytest.mark.bundled
@pytest.mark.slow
def test_the_bundled_student_s_values_are_lm_eval_s(bundled_smollm: Any) -> None:
    from tinyllm_bench.models.load import load_model
    from tinyllm_bench.models.specs import parse_spec

    loaded = load_model(parse_spec("bundled:smollm2-135m", role="student"))
    asked = requests("cloze")
    shared, separate = (
        hf_lm(*loaded, batch_size=8, device="cpu", layout=layout).loglikelihood(asked)
        for layout in ("shared", "separate")
    )
    for ours, theirs in zip(shared, separate, strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=1e-4) and ours[1] == theirs[1]
