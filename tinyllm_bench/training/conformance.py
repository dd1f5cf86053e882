"""The loss-conformance kit: vectors with expected values and gradients, and a runner for anyone's loss function.

A vector is a JSON file in `vectors/`: inputs of one or more micro-batches, and what must come out. Expected values were
worked out in 50 digits from the definitions and expected gradients by finite differences (`tests/conformance`).

The one calling convention is `f(kind, student_logits, teacher_logits, mask, options)`, called once per micro-batch:

- `kind`: a divergence (`forward_kl`, `reverse_kl`, `jsd`, `skew_forward_kl`, `skew_reverse_kl`, `total_variation`,
  `adaptive_kl`), `cross_entropy`, or a piece of policy gradient (`returns`, `whiten`, `importance_weight`, `ppo_clip`);
- `student_logits`, `teacher_logits`: float64 tensors (texts, places, vocabulary), or None where the kind needs none;
- `mask`: a bool tensor (texts, places), True at the places that count. None says that `options` hold `input_ids`,
  `prompt_lengths`, `lengths`, `pad_id` and `eos_id`: a place predicts the next token; the response counts, its end of
  sequence included;
- `options`: settings under the names of `DivergenceConfig`, and `tokens` (what the sum is divided by: the counted
  tokens of all micro-batches together), `vocabulary`, `top_k` (in place of teacher logits, for each text and place:
  `ids`, `log_probs`, `tail`), or what a policy kind needs (see its vector).

It returns a number: the micro-batch's share of the loss. `returns` and `whiten` return (texts, places). A tensor that
hangs on `student_logits` has its gradient checked through autograd; a pair `(value, gradient)` brings its own; of any
other result the value alone is checked. NotImplementedError says that the function does not offer this.
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
    """One case: inputs per micro-batch, expected value (of their sum) and gradient (per micro-batch, or None)."""

    name: str
    about: str
    kind: str
    tolerance: float
    calls: tuple[Mapping[str, Any], ...]
    value: Any
    gradient: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a function made of a vector: both numbers in words, and the largest difference where it is one."""

    vector: str
    about: str
    verdict: Verdict
    expected: str
    got: str
    error: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether it agrees; None where it is not offered."""
        return None if self.verdict == "not offered" else self.verdict in ("agrees", "value agrees")


class _Answer(NamedTuple):
    value: Tensor
    gradients: list[Tensor] | None


def read_vectors() -> list[Vector]:
    """All vectors of this package, in their order."""
    places = sorted(files("tinyllm_bench.training").joinpath("vectors").iterdir(), key=lambda place: place.name)
    return [_vector(json.loads(place.read_text(encoding="utf-8"))) for place in places if place.name.endswith(".json")]


def run_conformance(
    against: LossFunction | None = None,
    *,
    vectors: Sequence[Vector] | None = None,
    tolerance: float | None = None,
) -> list[Outcome]:
    """Hold a function to every vector; by default our own losses. `tolerance` replaces the vectors' own."""
    return [_outcome(against or ours, vector, tolerance) for vector in (read_vectors() if vectors is None else vectors)]


def _vector(raw: Mapping[str, Any]) -> Vector:
    about = {name: raw[name] for name in ("name", "about", "kind", "tolerance")}
    return Vector(**about, calls=tuple(raw["calls"]), **raw["expected"])


def _outcome(function: LossFunction, vector: Vector, tolerance: float | None) -> Outcome:
    expected = _float64(vector.value)

    def outcome(verdict: Verdict, got: str, error: float | None = None) -> Outcome:
        names = {"vector": vector.name, "about": vector.about, "expected": _shown(expected)}
        error = error if error is not None and math.isfinite(error) else None
        return Outcome(**names, verdict=verdict, got=got, error=error)

    try:
        answer = _answer(function, vector)
    except NotImplementedError as error:
        return outcome("not offered", str(error))
    except Exception as error:  # a stranger's function may raise anything; its vector has failed, the others go on
        return outcome("fails", f"{type(error).__name__}: {' '.join(str(error).split())}"[:120])
    allowed = vector.tolerance if tolerance is None else tolerance
    off = _difference(answer.value, expected)
    if not off <= allowed:
        return outcome("value differs", _shown(answer.value), off)
    if vector.gradient is None or answer.gradients is None:
        return outcome("value agrees" if vector.gradient is not None else "agrees", _shown(answer.value), off)
    expected_gradients = [_float64(gradient) for gradient in vector.gradient]
    pairs = zip(answer.gradients, expected_gradients, strict=True)
    gradient_off = max(_difference(gradient, expected) for gradient, expected in pairs)
    verdict: Verdict = "agrees" if gradient_off <= allowed else "gradient differs"
    return outcome(verdict, f"{_shown(answer.value)}, gradient off by {gradient_off:.1e}", max(off, gradient_off))


def _answer(function: LossFunction, vector: Vector) -> _Answer:
    """The function's values summed over micro-batches, and its gradient by each one's logits."""
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
    known = [gradient for gradient in gradients if gradient is not None]
    return _Answer(torch.stack(values).sum(0), known if len(known) == len(gradients) else None)


def _logits(rows: Any) -> Tensor | None:
    """Nested lists as a tensor; `"-inf"` is an impossible token, for JSON has no number for it."""

    def numbers(values: Any) -> Any:
        return [numbers(value) for value in values] if isinstance(values, list) else float(values)

    return None if rows is None else _float64(numbers(rows))


def _float64(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference, relative where the expected number is above 1; inf for NaN or for another shape."""
    if got.shape != expected.shape or got.isnan().any():
        return float("inf")
    return float(((got - expected).abs() / expected.abs().clamp_min(1)).max())


def _shown(value: Tensor) -> str:
    if value.ndim == 0:
        return f"{value.item():.6g}"
    return f"{'x'.join(map(str, value.shape))} numbers, sum {value.sum().item():.6g}"


# --- This package's own losses --------------------------------------------------------------------------------------


def ours(
    kind: str, student_logits: Any, teacher_logits: Any, mask: Tensor | None, options: Mapping[str, Any]
) -> Tensor:
    """This package's losses in the calling convention of the kit."""
    if kind in ("returns", "whiten"):
        assert mask is not None
        return _over_texts(kind, mask, options)
    if kind in ("importance_weight", "ppo_clip"):
        return _policy_NT(kind, student_logits, options)[mask].sum() / options["tokens"]
    batch = _batch(options) if mask is None else None
    student_NV = _at_targets(student_logits, mask, batch)
    if kind == "cross_entropy":
        assert batch is not None
        values_N = cross_entropy_N(student_NV, batch.target_ids_N)
    else:
        if "top_k" in options:
            teacher: Dense | TopK = _top_k(options["top_k"], mask)
        else:
            teacher = Dense(_at_targets(teacher_logits, mask, batch).log_softmax(-1))
        settings = {name: options[name] for name in DivergenceConfig.model_fields if name in options}
        values_N = divergence_N(
            student_NV, teacher, DivergenceConfig(**{**settings, "kind": kind}), vocabulary=options.get("vocabulary")
        )
    return values_N.sum() / options["tokens"]


def _over_texts(kind: str, mask: Tensor, options: Mapping[str, Any]) -> Tensor:
    if kind == "whiten":
        return whitened_NT(_float64(options["values"]), mask)
    rewards_NT = _float64(options["rewards"])
    return returns_NT(rewards_NT, mask, gamma=options["gamma"], length_normalize=options["length_normalize"])


def _policy_NT(kind: str, logits_NTV: Tensor, options: Mapping[str, Any]) -> Tensor:
    actions_NT = torch.tensor(options["actions"])
    new_NT = logits_NTV.log_softmax(-1).gather(-1, actions_NT[..., None])[..., 0]
    old_NT, teacher_NT = _float64(options["old_log_probs"]), _float64(options["teacher_log_probs"])
    log_ratio_NT = importance_log_weight_NT(new_NT, old_NT, teacher_NT, options["alpha"])
    if kind == "importance_weight":
        return log_ratio_NT.exp()
    return clipped_policy_loss_NT(log_ratio_NT, _float64(options["advantages"]), epsilon=options["epsilon"])


def _batch(options: Mapping[str, Any]) -> Batch:
    """Through the collator that training uses, so that its shift and its padding are what is tested."""
    texts = zip(options["input_ids"], options["prompt_lengths"], options["lengths"], strict=True)
    items = [Encoded("vector", "label", tuple(ids[:start]), tuple(ids[start:end]), False) for ids, start, end in texts]
    collator = Collator(encoder_decoder=False, pad_id=options["pad_id"])
    return collator.collate(collator.rows(items))


def _at_targets(logits_BTV: Tensor, mask: Tensor | None, batch: Batch | None) -> Tensor:
    return logits_BTV[mask] if batch is None else logits_BTV[batch.target_row_N, batch.target_position_N]


def _top_k(entries: Any, mask: Tensor | None) -> TopK:
    def gathered(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[place[name] for place in row] for row in entries], dtype=dtype)[mask]

    return TopK(gathered("ids", torch.int32), gathered("log_probs", torch.float64), gathered("tail", torch.float64))
