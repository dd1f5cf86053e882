"""vLLM in its child process: the same answers as transformers, new weights without a new engine, clear deaths."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import one_cell
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Prediction, ScoringMode
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.evaluation.lm_eval_models import VllmLM, hf_lm
from tinyllm_bench.evaluation.runner import EvalRequest, evaluate
from tinyllm_bench.generation.vllm import VllmEngine, backend_for
from tinyllm_bench.generation.vllm_worker import forget_failures, vllm_installed
from tinyllm_bench.testing import tiny_models

SAMPLE = Source(kind="sample")
IDS = tuple(record.id for record in load_split(SAMPLE, "obqa", "test"))
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}  # vLLM's CPU attention wants heads of 32 or more
needs_vllm = pytest.mark.skipif(not vllm_installed(), reason="needs vLLM")


def eval_request(mode: ScoringMode, **more: Any) -> EvalRequest:
    return EvalRequest(**{"task": "obqa", "mode": mode, "split": "test", "ids": IDS, "source": SAMPLE, **more})


def pair(seed: int, **changes: Any) -> tuple[Any, Any]:
    return tiny_models.tiny_llama(seed, **{**HEADS, **changes})


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    with VllmEngine(start_seconds=300, answer_seconds=300) as one:
        yield one


def same_answers(ours: list[Prediction], theirs: list[Prediction]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.answer == other.answer
        assert one.option_logprobs == pytest.approx(other.option_logprobs, abs=1e-3)
        for left, right in zip(one.samples, other.samples, strict=True):
            # vLLM drops an unfinished character at the end, transformers writes a replacement for it
            assert left.text.rstrip("\ufffd") == right.text.rstrip("\ufffd")
            assert left.tokens == right.tokens


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("tied", [True, False])
def test_vllm_and_transformers_agree_before_and_after_a_reload(tied: bool, engine: VllmEngine, tmp_path: Path) -> None:
    found = {}
    for step, seed in enumerate((0, 1, 0)):
        model, tokenizer = pair(seed, tie_word_embeddings=tied)
        engine.load(tiny_models.saved((model, tokenizer), tmp_path / str(step)))
        lm = VllmLM(engine)
        assert engine.loaded == ("built" if step == 0 else "reloaded")
        for mode in ("cloze", "multiple_choice", "generate"):
            ours = evaluate(lm, eval_request(mode, max_new_tokens=24))
            same_answers(
                ours,
                evaluate(hf_lm(model, tokenizer, batch_size=8, device="cpu"), eval_request(mode, max_new_tokens=24)),
            )
            found[step, mode] = ours
    assert found[0, "cloze"] != found[1, "cloze"]


@pytest.mark.vllm
@pytest.mark.slow
@needs_vllm
def test_refusals_and_a_death_in_the_child_are_clear(engine: VllmEngine, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config.json"):
        engine.load(tmp_path)
    engine.load(tiny_models.saved(pair(0, max_position_embeddings=64), tmp_path / "short"))
    lm = VllmLM(engine)
    with pytest.raises(UserError, match="more than the model's limit"):
        evaluate(lm, eval_request("multiple_choice"))
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(UserError, match="the vLLM process died at 'score'.*backend.engine=hf"):
        evaluate(lm, eval_request("cloze", ids=IDS[:1]))
    engine.load(tmp_path / "short")
    assert len(evaluate(VllmLM(engine), eval_request("cloze", ids=IDS[:1]))) == 1


def test_the_backend_of_a_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = "vllm" if vllm_installed() else "hf"
    assert [backend_for("auto", mode, False) for mode in ("cloze", "multiple_choice", "generate")] == [
        "hf",
        "hf",
        installed,
    ]
    assert backend_for("auto", "generate", True) == "hf" == backend_for("hf", "generate", False)
    with pytest.raises(UserError, match="encoder-decoder"):
        backend_for("vllm", "generate", True)
    with pytest.raises(UserError, match=r"unknown backend 'vlm'.*Did you mean 'vllm'"):
        backend_for("vlm", "generate", False)  # type: ignore[arg-type]
    monkeypatch.setattr("tinyllm_bench.generation.vllm_worker.find_spec", lambda _: None)
    assert backend_for("auto", "generate", False) == "hf"
    with pytest.raises(UserError, match="pip install"):
        backend_for("vllm", "cloze", False)
    with pytest.raises(UserError, match="pip install"), VllmEngine():
        pass


def test_a_vllm_that_cannot_start_is_paid_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_failures()
    monkeypatch.setattr("tinyllm_bench.generation.vllm.vllm_installed", lambda: True)
    folder = tiny_models.saved(pair(0), tmp_path / "one")
    other = tiny_models.saved(pair(0, num_hidden_layers=1), tmp_path / "other")
    with VllmEngine() as engine:
        monkeypatch.setattr(engine._worker, "_module", "tests.generation.echo_worker")  # cannot load
        errors = []
        for place in (folder, folder, other):
            with pytest.raises(UserError) as refused:
                engine.load(place)
            errors.append(str(refused.value))
    assert errors[0].startswith("vLLM failed at 'load'") and errors[0].endswith("Or use backend.engine=hf.")
    assert errors[1] == errors[2] == f"vLLM is not tried again in this run: {errors[0]}"
    assert not any("\n" in line for line in errors)


def test_the_engine_that_errors_name_can_be_chosen(tiny_llama_dir: Path) -> None:
    cell = one_cell(tiny_llama_dir, "backend.engine=hf", "eval.mode=generate")
    assert cell.config.backend.engine == "hf"
