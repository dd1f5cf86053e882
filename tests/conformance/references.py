"""The expected values of the vectors: definitions in probability space with 50 digits, and central differences.

Nothing here is shared with the code under test: no torch, no log space, no closed-form gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
from mpmath import mpf

mpmath.mp.dps = 50
STEP = mpf(10) ** -18  # the error of a central difference is of the order of its square
Logits = Sequence[float]
Probabilities = list[Any]
IMPOSSIBLE = "-inf"


def softmax(logits: Sequence[Any], temperature: float = 1.0) -> Probabilities:
    """Probabilities; 0 for an impossible token."""
    weights = [mpf(0) if z == IMPOSSIBLE else mpmath.exp(mpf(z) / mpf(temperature)) for z in logits]
    return [weight / sum(weights) for weight in weights]


def kl(a: Probabilities, b: Probabilities) -> Any:
    """Sum of a log(a / b) where a > 0."""
    return sum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def mix(a: Probabilities, b: Probabilities, share: float) -> Probabilities:
    """share * a + (1 - share) * b."""
    return [mpf(share) * x + (1 - mpf(share)) * y for x, y in zip(a, b, strict=True)]


def jsd(p: Probabilities, q: Probabilities, beta: float) -> Any:
    """GKD's generalised Jensen-Shannon divergence."""
    m = mix(p, q, beta)
    return mpf(beta) * kl(p, m) + (1 - mpf(beta)) * kl(q, m)


def head_weight(p: Probabilities, q: Probabilities, mu: float) -> Any:
    """AKL's weight of the forward KL: share of |p - q| in the head {cumulative <= mu}, which always has the first."""
    order = sorted(range(len(p)), key=lambda i: -p[i])
    head, mass = {order[0]}, mpf(0)
    for i in order:
        mass += p[i]
        if mass > mu:
            break
        head.add(i)
    gaps = [abs(x - y) for x, y in zip(p, q, strict=True)]
    return sum(gaps[i] for i in head) / sum(gaps)


def divergence(kind: str, q: Probabilities, p: Probabilities, options: Mapping[str, Any], frozen: Any = None) -> Any:
    """One position. `frozen` is AKL's weight, which must not depend on q, because it carries no gradient."""
    skew = options.get("skew", 0.1)
    if kind == "jsd":
        beta = mpf(options.get("beta", 0.5))
        return jsd(p, q, beta) / (beta * (1 - beta) if options.get("normalize") else 1)
    if kind == "adaptive_kl":
        return frozen * kl(p, q) + (1 - frozen) * kl(q, p)
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "skew_forward_kl": lambda: kl(p, mix(p, q, skew)),
        "skew_reverse_kl": lambda: kl(q, mix(q, p, skew)),
        "total_variation": lambda: sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2,
    }[kind]()


def buckets(q: Probabilities, ids: Sequence[int]) -> Probabilities:
    """Probabilities of chosen tokens, and of all others together."""
    return [*(q[i] for i in ids), sum(x for i, x in enumerate(q) if i not in ids)]


def position(kind: str, teacher: Any, options: Mapping[str, Any], base: Logits) -> Callable[[Sequence[Any]], Any]:
    """The divergence of one position as a function of the student's logits; `teacher`: logits, or a dictionary."""
    size, tau = options.get("vocabulary", len(base)), options.get("temperature", 1.0)
    factor = mpf(tau) ** 2 if options.get("temperature_squared") else mpf(1)
    if isinstance(teacher, dict):
        p = [mpmath.exp(mpf(x)) for x in (*teacher["log_probs"], teacher["tail"])]
        return lambda z: factor * divergence(kind, buckets(softmax(z), teacher["ids"]), p, options)
    p = softmax(teacher[:size], tau)
    frozen = head_weight(p, softmax(base[:size], tau), options.get("mu", 0.5)) if kind == "adaptive_kl" else None
    return lambda z: factor * divergence(kind, softmax(z[:size], tau), p, options, frozen)


def cross_entropy(target: int) -> Callable[[Sequence[Any]], Any]:
    """-log q(target) as a function of the logits."""
    return lambda z: -mpmath.log(softmax(z)[target])


def weight(action: int, old: float, teacher: float, alpha: float) -> Callable[[Sequence[Any]], Any]:
    """q(y) / (alpha p(y) + (1 - alpha) q_old(y))."""
    sampled = mpf(alpha) * mpmath.exp(mpf(teacher)) + (1 - mpf(alpha)) * mpmath.exp(mpf(old))
    return lambda z: softmax(z)[action] / sampled


def clipped(ratio: Any, advantage: float, epsilon: float) -> Any:
    """PPO's loss of one token."""
    low, high = 1 - mpf(epsilon), 1 + mpf(epsilon)
    return -min(ratio * mpf(advantage), min(max(ratio, low), high) * mpf(advantage))


def returns(rewards: Logits, mask: Sequence[int], gamma: float, *, length_normalize: bool) -> list[float]:
    """Sum over k > t of gamma^(k-t-1) r_k, or its weighted mean; by the definition."""
    results = []
    for t in range(len(rewards)):
        powers = [(mpf(gamma) ** (k - t - 1) * mask[k], k) for k in range(t + 1, len(rewards))]
        total, count = sum(g * mpf(rewards[k]) for g, k in powers), sum(g for g, _ in powers)
        results.append(float(mask[t] * (total / count if length_normalize and count else total)))
    return results


def whitened(values: Sequence[Logits], mask: Sequence[Sequence[int]]) -> list[list[float]]:
    """(value - mean) / sqrt(variance + 1e-8) over the masked values; 0 elsewhere."""
    rows = [list(zip(map(mpf, row), on, strict=True)) for row, on in zip(values, mask, strict=True)]
    counted = [v for row in rows for v, on in row if on]
    mean = sum(counted) / len(counted)
    deviation = mpmath.sqrt(sum((v - mean) ** 2 for v in counted) / len(counted) + mpf("1e-8"))
    return [[float((v - mean) / deviation) if on else 0.0 for v, on in row] for row in rows]


def slopes(function: Callable[[Sequence[Any]], Any], logits: Sequence[Any]) -> list[Any]:
    """Central differences; 0 at an impossible token."""

    def at(i: int, step: Any) -> Any:
        return function([mpf(z) + step if i == j else z for j, z in enumerate(logits)])

    return [mpf(0) if z == IMPOSSIBLE else (at(i, STEP) - at(i, -STEP)) / (2 * STEP) for i, z in enumerate(logits)]
