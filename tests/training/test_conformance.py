"""The conformance kit: ours passes, ten planted bugs do not, and strangers' functions are judged fairly."""

import importlib
import importlib.util
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import tinyllm_bench.training
from benchmarks import foreign_losses
from tests.conformance import make_vectors
from tinyllm_bench.training.conformance import (
    ConformanceResult,
    LossFunction,
    Vector,
    package_loss,
    read_vectors,
    run_conformance,
)

TRAINING = Path(tinyllm_bench.training.__file__).parent
COPY = "training_with_a_bug"

# name of the bug: file, the right code, the code with the bug, a vector that must detect it
BUGS = {
    "padding in the mask": (
        "conformance.py",
        "return logits_BTV[positions]",
        "return logits_BTV.flatten(0, 1)",
        "forward_kl",
    ),
    "shifted labels": (
        "batching.py",
        "tuple(path[len(item.prompt) - 1 :])",
        "tuple(place + 1 for place in path[len(item.prompt) - 1 :])",
        "sequence_cross_entropy",
    ),
    "division by the micro-batch count": (
        "conformance.py",
        'values_N.sum() / options["tokens"]',
        "values_N.mean()",
        "accumulation",
    ),
    "swapped KL direction": (
        "divergences.py",
        '"forward_kl": _forward_kl_term',
        '"forward_kl": _reverse_kl_term',
        "forward_kl",
    ),
    "dropped T squared": ("divergences.py", "self.temperature**2 if", "1.0 if", "temperature_squared"),
    "gamma^t scaling": (
        "policy_gradient.py",
        "from_here_N if include_current else after_N\n",
        "gamma**t * (from_here_N if include_current else after_N)\n",
        "returns_discounted",
    ),
    "truncated top-k without tail": (
        "divergences.py",
        "torch.cat([teacher.logp_NK, teacher.tail_N[:, None]], -1)",
        "torch.nn.functional.pad(teacher.logp_NK.log_softmax(-1), (0, 1), value=-math.inf)",
        "top_k",
    ),
    "EOS masked": (
        "conformance.py",
        "values_N = cross_entropy_N(_at_targets(student_logits, batch), batch.target_ids_N)",
        "values_N = cross_entropy_N(_at_targets(student_logits, batch), batch.target_ids_N)"
        '[batch.target_ids_N != options["pad_id"]]',
        "sequence_cross_entropy",
    ),
    "missing vocabulary padding": (
        "divergences.py",
        "logits_NV = logits_NV[:, :vocabulary]\n",
        "pass\n",
        "vocabulary_padding",
    ),
    "importance weight inverted": (
        "policy_gradient.py",
        "return _wide(logq_new_NT) - mixed_log_probs(_wide(logq_old_NT), _wide(logp_NT), alpha).detach()",
        "return mixed_log_probs(_wide(logq_old_NT), _wide(logp_NT), alpha).detach() - _wide(logq_new_NT)",
        "importance_weight",
    ),
}


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package `training` that imports itself."""
    folder = Path(shutil.copytree(TRAINING, tmp_path / COPY, ignore=shutil.ignore_patterns("__pycache__", "vectors")))
    for file in folder.glob("*.py"):
        file.write_text(file.read_text().replace("tinyllm_bench.training", COPY))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == COPY]:
        del sys.modules[name]


def answer_of(folder: Path) -> LossFunction:
    importlib.invalidate_caches()
    module = importlib.import_module(f"{COPY}.conformance")
    assert Path(str(module.__file__)).parent == folder
    return module.package_loss


def failed(results: list[ConformanceResult]) -> dict[str, str]:
    return {result.vector: result.verdict for result in results if not result.passed}


def test_ours_agrees_with_every_vector_to_a_billionth() -> None:
    results = run_conformance(tolerance=1e-9)
    assert {result.verdict for result in results} == {"agrees"} and len(results) == len(read_vectors()) > 40


def test_a_copy_without_a_bug_agrees(copied: Path) -> None:
    assert failed(run_conformance(answer_of(copied))) == {}


@pytest.mark.parametrize("bug", BUGS)
def test_each_bug_is_noticed(bug: str, copied: Path) -> None:
    name, right, wrong, vector = BUGS[bug]
    source = (copied / name).read_text()
    assert source.count(right) == 1, "the bug has lost its place"
    (copied / name).write_text(source.replace(right, wrong))
    results = run_conformance(answer_of(copied))
    assert failed(results)[vector] in ("value differs", "gradient differs")  # noticed, not merely broken
    assert any(result.passed for result in results)


def test_the_stored_vectors_are_the_generated_ones(tmp_path: Path) -> None:
    make_vectors.main(tmp_path)
    generated, stored = ({p.name: p.read_text() for p in d.glob("*.json")} for d in (tmp_path, TRAINING / "vectors"))
    assert generated == stored, "run `python -m tests.conformance.make_vectors`"


def test_vectors_cover_all_kinds_and_settings() -> None:
    vectors = read_vectors()
    padded = [c for v in vectors for c in v.calls if c["mask"] and not all(map(all, c["mask"]))]
    assert padded and len({v.name for v in vectors}) == len(vectors)
    tokens = [[sum(map(sum, c["mask"])) for c in v.calls] for v in vectors if v.name.startswith("accumulation")]
    assert tokens and all(len(set(counts)) > 1 for counts in tokens)
    for vector in vectors:
        for call in vector.calls:
            if "pad_id" in call["options"]:
                assert call["options"]["pad_id"] == call["options"]["eos_id"]


VECTOR = Vector(
    name="two",
    about="a sum of two micro-batches",
    kind="anything",
    tolerance=1e-6,
    calls=({"student_logits": [[[1.0, 2.0]]], "teacher_logits": None, "mask": [[1]], "options": {}},) * 2,
    value=10.0,
    gradient=[[[[2.0, 4.0]]]] * 2,
)


def square(kind: str, student: Any, teacher: Any, mask: Any, options: Mapping[str, Any]) -> Any:
    return (student**2).sum()


def test_verdicts() -> None:
    def no_gradient(*args: Any) -> float:
        return 5.0

    def own_gradient(*args: Any) -> Any:
        return 5.0, [[[2.0, 4.0]]]

    def wrong_gradient(*args: Any) -> Any:
        return 5.0, [[[2.0, 4.1]]]

    def not_a_number(*args: Any) -> float:
        return math.nan

    def missing(*args: Any) -> Any:
        raise NotImplementedError("no such loss")

    def broken(*args: Any) -> Any:
        raise KeyError("x")

    answers = {
        square: "agrees",
        no_gradient: "value agrees",
        own_gradient: "agrees",
        wrong_gradient: "gradient differs",
    }
    answers |= {not_a_number: "value differs", missing: "not offered", broken: "fails"}
    for function, verdict in answers.items():
        (result,) = run_conformance(function, vectors=[VECTOR])
        assert result.verdict == verdict and result.passed is (
            None if verdict == "not offered" else "agrees" in verdict
        )
        json.dumps(result.error, allow_nan=False)


def test_a_value_of_another_shape_differs() -> None:
    (result,) = run_conformance(lambda *args: square(*args).reshape(1), vectors=[VECTOR])
    assert result.verdict == "value differs" and result.error is None


def test_a_mask_is_a_bool_tensor_and_an_impossible_token_is_minus_infinity() -> None:
    recorded: list[torch.Tensor] = []

    def looking(kind: str, student: Any, teacher: Any, mask: Any, options: Mapping[str, Any]) -> Any:
        if mask is not None and student is not None:
            assert mask.dtype == torch.bool and mask.shape == student.shape[:2] and student.dtype == torch.float64
            recorded.append(student.detach())
        return package_loss(kind, student, teacher, mask, options)

    assert failed(run_conformance(looking)) == {} and any(logits.isneginf().any() for logits in recorded)


def test_the_loss_of_transformers_agrees() -> None:
    results = run_conformance(foreign_losses.huggingface)
    assert {result.vector: result.verdict for result in results if result.passed is not None} == {
        "sequence_cross_entropy": "agrees",
        "sequence_accumulation": "agrees",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "package"), [("trl", "trl"), ("liger", "liger_kernel")])
def test_other_libraries_disagree_only_where_it_is_explained(name: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; it is no part of this project")
    results = run_conformance(getattr(foreign_losses, name))
    assert sorted(failed([result for result in results if result.passed is not None])) == sorted(
        foreign_losses.WHY[name]
    )
    assert sum(result.passed is True for result in results) >= 9
