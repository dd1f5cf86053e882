"""The loss-conformance kit: test vectors with expected values and gradients, and a runner for any loss function.

A vector is a JSON file in `vectors/`: inputs of one or more micro-batches, and the expected results. Expected values
were computed to 50 digits from the definitions, and expected gradients by finite differences (`tests/conformance`).

The calling convention is `f(kind, student_logits, teacher_logits, mask, options)`, called once per micro-batch:

- `kind`: a divergence (`forward_kl`, `reverse_kl`, `jsd`, `skew_forward_kl`, `skew_reverse_kl`, `total_variation`,
  `adaptive_kl`), `cross_entropy`, or a piece of policy gradient (`returns`, `whiten`, `importance_weight`, `ppo_clip`);
- `student_logits`, `teacher_logits`: float64 tensors (texts, positions, vocabulary), or None if the kind needs none;
- `mask`: a bool tensor (texts, positions), True at the positions that count. None means that `options` have
  `input_ids`, `prompt_lengths`, `lengths`, `pad_id` and `eos_id`: a position predicts the next token; the response
  counts, including its end token;
- `options`: settings under the names of `DivergenceConfig`, and `tokens` (the divisor of the sum: the counted tokens of
  all micro-batches together), `vocabulary`, `top_k` (instead of teacher logits, for each text and position: `ids`,
  `log_probs`, `tail`), or what a policy kind needs (see its vector).

It returns a number: the micro-batch's share of the loss. `returns` and `whiten` return (texts, positions). If the
result is a tensor that depends on `student_logits`, its gradient is checked through autograd; a function may also
return a pair `(value, gradient)`; of any other result only the value is checked. NotImplementedError means that the
function does not support the kind.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Batch, Collator
from tinyllm_bench.training.divergences import Dense, DivergenceConfig, TopK, divergence_N
from tinyllm_bench.training.losses import cross_entropy_N
from tinyllm_bench.training.policy_gradient import (
    clipped_policy_loss_NT,
    importance_log_weight_NT,
    returns_NT,
    whitened_NT,
)

LossFunction = Callable[[str, Tensor | None, Tensor | None, Tensor | None, Mapping[str, Any]], Any]
Verdict = Literal["agrees", "value agrees", "value differs", "gradient differs", "fails", "not offered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """A test case: inputs per micro-batch, expected value (of their sum) and gradient (per micro-batch, or None)."""

    name: str
    about: str
    kind: str
    tolerance: float
    calls: tuple[Mapping[str, Any], ...]
    value: Any
    gradient: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceResult:
    """The verdict on one vector: the expected and the actual result as text, and the largest difference."""

    vector: str
    about: str
    verdict: Verdict
    expected: str
    got: str
    error: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether it agrees; None if the function does not support it."""
        return None if self.verdict == "not offered" else self.verdict in ("agrees", "value agrees")


class _Result(NamedTuple):
    """A function's value, summed over micro-batches, and its gradients, one per micro-batch."""

    value: Tensor
    gradients: list[Tensor] | None


def read_vectors() -> list[Vector]:
    """All vectors of this package, sorted by file name."""
    vectors = []
    folder = files("tinyllm_bench.training").joinpath("vectors")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            content = json.loads(file.read_text(encoding="utf-8"))
            about = {name: content[name] for name in ("name", "about", "kind", "tolerance")}
            vectors.append(Vector(**about, calls=tuple(content["calls"]), **content["expected"]))
    return vectors


def run_conformance(
    against: LossFunction | None = None,
    *,
    vectors: Sequence[Vector] | None = None,
    tolerance: float | None = None,
) -> list[ConformanceResult]:
    """Check a function (by default this package's losses) against all vectors; `tolerance` replaces theirs."""
    return [
        _check(against or package_loss, vector, tolerance)
        for vector in (read_vectors() if vectors is None else vectors)
    ]


def _check(function: LossFunction, vector: Vector, tolerance: float | None) -> ConformanceResult:
    """Check a function against one vector."""
    expected = _float64(vector.value)

    def outcome(verdict: Verdict, got: str, error: float | None = None) -> ConformanceResult:
        names = {"vector": vector.name, "about": vector.about, "expected": _shown(expected)}
        error = error if error is not None and math.isfinite(error) else None
        return ConformanceResult(**names, verdict=verdict, got=got, error=error)

    try:
        actual = _call(function, vector)
    except NotImplementedError as error:
        return outcome("not offered", str(error))
    except Exception as error:  # the function is not ours and may raise anything: only this vector has failed
        return outcome("fails", f"{type(error).__name__}: {' '.join(str(error).split())}"[:120])
    allowed = vector.tolerance if tolerance is None else tolerance
    difference = _difference(actual.value, expected)
    if not difference <= allowed:
        return outcome("value differs", _shown(actual.value), difference)
    if vector.gradient is None or actual.gradients is None:
        return outcome("value agrees" if vector.gradient is not None else "agrees", _shown(actual.value), difference)
    expected_gradients = [_float64(gradient) for gradient in vector.gradient]
    pairs = zip(actual.gradients, expected_gradients, strict=True)
    gradient_difference = max(_difference(gradient, expected) for gradient, expected in pairs)
    verdict: Verdict = "agrees" if gradient_difference <= allowed else "gradient differs"
    got = f"{_shown(actual.value)}, gradient off by {gradient_difference:.1e}"
    return outcome(verdict, got, max(difference, gradient_difference))


def _call(function: LossFunction, vector: Vector) -> _Result:
    """The function's value summed over micro-batches, and its gradient in the logits of each."""
    values, gradients = [], []
    for call in vector.calls:
        student = _logits(call["student_logits"])
        if student is not None:
            student.requires_grad_()
        mask = None if call["mask"] is None else torch.tensor(call["mask"], dtype=torch.bool)
        result = function(vector.kind, student, _logits(call["teacher_logits"]), mask, call["options"])
        value, gradient = result if isinstance(result, tuple) else (result, None)
        value = torch.as_tensor(value)
        if gradient is None and student is not None and value.requires_grad:
            gradient = torch.autograd.grad(value, student, allow_unused=True, materialize_grads=True)[0]
        values.append(value.detach().double())
        gradients.append(None if gradient is None else torch.as_tensor(gradient, dtype=torch.float64))
    present = [gradient for gradient in gradients if gradient is not None]
    return _Result(torch.stack(values).sum(0), present if len(present) == len(gradients) else None)


def _logits(rows: Any) -> Tensor | None:
    """Nested lists as a tensor; an impossible token is the string `"-inf"`, which JSON has no number for."""

    def numbers(values: Any) -> Any:
        return [numbers(value) for value in values] if isinstance(values, list) else float(values)

    return None if rows is None else _float64(numbers(rows))


def _float64(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative for expected numbers above 1; inf for NaN or for another shape."""
    if actual.shape != expected.shape or actual.isnan().any():
        return float("inf")
    return float(((actual - expected).abs() / expected.abs().clamp_min(1)).max())


def _shown(value: Tensor) -> str:
    if value.ndim == 0:
        return f"{value.item():.6g}"
    return f"{'x'.join(map(str, value.shape))} numbers, sum {value.sum().item():.6g}"


# --- This package's own losses --------------------------------------------------------------------------------------


def package_loss(
    kind: str, student_logits: Any, teacher_logits: Any, mask: Tensor | None, options: Mapping[str, Any]
) -> Tensor:
    """This package's losses in the calling convention of the kit."""
    match kind:
        case "whiten":
            assert mask is not None
            return whitened_NT(_float64(options["values"]), mask)
        case "returns":
            assert mask is not None
            rewards_NT = _float64(options["rewards"])
            return returns_NT(rewards_NT, mask, gamma=options["gamma"], length_normalize=options["length_normalize"])
        case "importance_weight" | "ppo_clip":
            values_NT = _policy_values_NT(kind, student_logits, options)
            return values_NT[mask].sum() / options["tokens"]
        case "cross_entropy":
            batch = _collate(options)
            values_N = cross_entropy_N(_at_targets(student_logits, batch), batch.target_ids_N)
        case _:
            positions = _collate(options) if mask is None else mask
            student_NV = _at_targets(student_logits, positions)
            if "top_k" in options:
                teacher: Dense | TopK = _top_k(options["top_k"], mask)
            else:
                teacher = Dense(_at_targets(teacher_logits, positions).log_softmax(-1))
            settings = {name: options[name] for name in DivergenceConfig.model_fields if name in options}
            config = DivergenceConfig(**{**settings, "kind": kind})
            values_N = divergence_N(student_NV, teacher, config, vocabulary=options.get("vocabulary"))
    return values_N.sum() / options["tokens"]


def _policy_values_NT(kind: str, logits_NTV: Tensor, options: Mapping[str, Any]) -> Tensor:
    actions_NT = torch.tensor(options["actions"])
    new_NT = logits_NTV.log_softmax(-1).gather(-1, actions_NT[..., None])[..., 0]
    old_NT, teacher_NT = _float64(options["old_log_probs"]), _float64(options["teacher_log_probs"])
    log_ratio_NT = importance_log_weight_NT(new_NT, old_NT, teacher_NT, options["alpha"])
    if kind == "importance_weight":
        return log_ratio_NT.exp()
    return clipped_policy_loss_NT(log_ratio_NT, _float64(options["advantages"]), epsilon=options["epsilon"])


def _collate(options: Mapping[str, Any]) -> Batch:
    """A batch of the collator that training uses, so that its shift and its padding are tested."""
    texts = zip(options["input_ids"], options["prompt_lengths"], options["lengths"], strict=True)
    items = [Encoded("vector", "label", tuple(ids[:start]), tuple(ids[start:end]), False) for ids, start, end in texts]
    collator = Collator(encoder_decoder=False, pad_id=options["pad_id"])
    return collator.collate(collator.rows(items))


def _at_targets(logits_BTV: Tensor, positions: Tensor | Batch) -> Tensor:
    """Logits at the positions of a mask, or at a batch's target positions."""
    if isinstance(positions, Batch):
        return logits_BTV[positions.target_row_N, positions.target_position_N]
    return logits_BTV[positions]


def _top_k(entries: Any, mask: Tensor | None) -> TopK:
    """The entries at the positions of a mask."""

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[position[name] for position in text] for text in entries], dtype=dtype)[mask]

    return TopK(column("ids", torch.int32), column("log_probs", torch.float64), column("tail", torch.float64))
