"""Writes the conformance vectors: `python -m tests.conformance.make_vectors [FOLDER]`, the same bytes every time.

Inputs are random with fixed seeds; expected values come from `references`.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mpmath

from tests.conformance import references as ref

FOLDER = Path(__file__).parents[2] / "tinyllm_bench" / "training" / "vectors"
TOLERANCE = 1e-6  # so that a loss in float32 can pass; the test of our losses requires 1e-9
WILD = 40.0  # spread of logits at padded positions, so that a leak shows
Call = dict[str, Any]
Functions = list[list[Callable[[Sequence[Any]], Any] | None]]


def random_numbers(rng: random.Random, *shape: int, spread: float = 1.5) -> Any:
    """Nested lists of rounded normal random numbers."""
    if not shape:
        return round(rng.gauss(0, spread), 3)
    return [random_numbers(rng, *shape[1:], spread=spread) for _ in range(shape[0])]


def mask_of(lengths: Sequence[int], width: int) -> list[list[int]]:
    """1 at the first `length` positions of each row."""
    return [[int(t < length) for t in range(width)] for length in lengths]


def logits_of(rng: random.Random, mask: Sequence[Sequence[int]], size: int) -> Any:
    """Logits, large where the mask is 0."""
    return [[random_numbers(rng, size, spread=1.5 if on else WILD) for on in row] for row in mask]


def call(
    rng: random.Random, lengths: Sequence[int], size: int, teacher_size: int | None = None, **options: Any
) -> Call:
    """One micro-batch with padding on the right."""
    mask = mask_of(lengths, max(max(lengths), 3))
    student, teacher = logits_of(rng, mask, size), logits_of(rng, mask, teacher_size or size)
    return {"student_logits": student, "teacher_logits": teacher, "mask": mask, "options": options}


def sequence_call(rng: random.Random, size: int, *, teacher: bool, **options: Any) -> Call:
    """Three texts whose padding is their end token; logits at every position, and no mask."""
    end, prompts, lengths = 2, [2, 1, 3], [5, 6, 4]
    ids = [[rng.choice([0, 1, 3, 4]) for _ in range(length - 1)] + [end] for length in lengths]
    ids = [[*row, *([end] * (max(lengths) - len(row)))] for row in ids]
    options |= {"input_ids": ids, "prompt_lengths": prompts, "lengths": lengths, "pad_id": end, "eos_id": end}
    is_input = mask_of([length - 1 for length in lengths], max(lengths))
    logits = logits_of(rng, is_input, size)
    return {
        "student_logits": logits,
        "teacher_logits": logits_of(rng, is_input, size) if teacher else None,
        "mask": None,
        "options": options,
    }


def targets(call: Call) -> Iterator[tuple[int, int, int]]:
    """(row, position, target) of the response's tokens, EOS included: each is predicted at the position before it."""
    options = call["options"]
    for row, (start, end) in enumerate(zip(options["prompt_lengths"], options["lengths"], strict=True)):
        for position in range(start - 1, end - 1):
            yield row, position, options["input_ids"][row][position + 1]


def functions(kind: str, call: Call) -> Functions:
    """The contribution of each position to the sum, as a function of its logits; None if it has none."""
    rows = call["student_logits"]
    contributions: Functions = [[None for _ in row] for row in rows]
    options = call["options"]
    if call["mask"] is None:
        positions = list(targets(call))
    else:
        positions = [(b, t, -1) for b, row in enumerate(call["mask"]) for t, on in enumerate(row) if on]
    for b, t, target in positions:
        if kind == "cross_entropy":
            contributions[b][t] = ref.cross_entropy(target)
        elif kind in ("importance_weight", "ppo_clip"):
            contributions[b][t] = _policy(kind, options, b, t)
        else:
            teacher = options["top_k"][b][t] if "top_k" in options else call["teacher_logits"][b][t]
            contributions[b][t] = ref.position(kind, teacher, options, rows[b][t])
    return contributions


def _policy(kind: str, options: Mapping[str, Any], b: int, t: int) -> Callable[[Sequence[Any]], Any]:
    old, teacher = options["old_log_probs"][b][t], options["teacher_log_probs"][b][t]
    ratio = ref.weight(options["actions"][b][t], old, teacher, options["alpha"])
    if kind == "importance_weight":
        return ratio
    return lambda z: ref.clipped(ratio(z), options["advantages"][b][t], options["epsilon"])


def vector(name: str, about: str, kind: str, *calls: Call) -> dict[str, Any]:
    """A vector whose value is a sum over micro-batches, divided by the tokens of all of them."""
    value, gradients = mpmath.mpf(0), []
    for micro_batch in calls:
        divisor = micro_batch["options"]["tokens"]
        table = [
            list(zip(fs, zs, strict=True))
            for fs, zs in zip(functions(kind, micro_batch), micro_batch["student_logits"], strict=True)
        ]
        value += sum(f(z) for row in table for f, z in row if f) / divisor
        gradients.append([[_slopes(f, z, divisor) for f, z in row] for row in table])
    return _vector(name, about, kind, calls, float(value), gradients)


def _slopes(function: Callable[[Sequence[Any]], Any] | None, logits: Sequence[Any], divisor: int) -> list[float]:
    return [float(s / divisor) for s in ref.slopes(function, logits)] if function else [0.0] * len(logits)


def _vector(name: str, about: str, kind: str, calls: Sequence[Call], value: Any, gradient: Any) -> dict[str, Any]:
    expected = {"value": value, "gradient": gradient}
    about_it = {"name": name, "about": about, "kind": kind, "tolerance": TOLERANCE}
    return {**about_it, "calls": list(calls), "expected": expected}


def kinds() -> Iterator[dict[str, Any]]:
    """Each divergence with padding, and the settings that change its formula."""
    for number, (name, kind, options) in enumerate(
        [
            ("forward_kl", "forward_kl", {}),
            ("reverse_kl", "reverse_kl", {}),
            ("jsd", "jsd", {"beta": 0.5}),
            ("jsd_uneven", "jsd", {"beta": 0.1}),
            ("jsd_normalized", "jsd", {"beta": 0.01, "normalize": True}),
            ("skew_forward_kl", "skew_forward_kl", {"skew": 0.1}),
            ("skew_reverse_kl", "skew_reverse_kl", {"skew": 0.1}),
            ("total_variation", "total_variation", {}),
            ("adaptive_kl", "adaptive_kl", {"mu": 0.5}),
            ("temperature", "forward_kl", {"temperature": 2.0}),
            ("temperature_reverse", "reverse_kl", {"temperature": 0.5}),
            ("temperature_squared", "forward_kl", {"temperature": 2.0, "temperature_squared": True}),
            ("temperature_squared_jsd", "jsd", {"beta": 0.5, "temperature": 3.0, "temperature_squared": True}),
        ]
    ):
        about = "two texts of 3 and 1 tokens; logits at padded positions are large"
        yield vector(name, about, kind, call(random.Random(number), (3, 1), 7, tokens=4, **options))


def accumulation() -> Iterator[dict[str, Any]]:
    """Several micro-batches with different token counts: the divisor is that of all of them."""
    for name, kind in (("accumulation", "forward_kl"), ("accumulation_reverse", "reverse_kl")):
        rng = random.Random(name)
        calls = [call(rng, lengths, 5, tokens=10) for lengths in ((3, 4), (1,), (2, 0))]
        yield vector(name, "micro-batches of 7, 1 and 2 tokens; each divides by all 10", kind, *calls)
    rng = random.Random("masked")
    calls = [call(rng, lengths, 5, tokens=2) for lengths in ((0, 0), (2,))]
    yield vector("all_masked", "a micro-batch without a counted token adds 0 and no NaN", "forward_kl", *calls)


def vocabularies() -> Iterator[dict[str, Any]]:
    """Logits beyond the tokenizer's size, impossible tokens, and logits far apart."""
    about = "tokenizer of {} tokens, the student has {} rows, the teacher {}; logits beyond are not zero"
    for name, kind, size, theirs, real in (
        ("vocabulary_padding", "forward_kl", 8, 8, 7),
        ("vocabulary_padding_reverse", "reverse_kl", 8, 8, 6),
        ("vocabulary_sizes_differ", "forward_kl", 8, 11, 7),
        ("vocabulary_sizes_differ_reverse", "reverse_kl", 10, 8, 8),
    ):
        micro_batch = call(random.Random(name), (2, 3), size, theirs, tokens=5, vocabulary=real)
        yield vector(name, about.format(real, size, theirs), kind, micro_batch)
    for kind in ("forward_kl", "reverse_kl", "jsd", "skew_reverse_kl"):
        micro_batch = call(random.Random(f"impossible {kind}"), (3,), 6, tokens=3)
        for position in range(3):
            micro_batch["student_logits"][0][position][position] = micro_batch["teacher_logits"][0][position][
                position
            ] = ref.IMPOSSIBLE
        yield vector(f"impossible_{kind}", "one token has logit -inf on both sides", kind, micro_batch)
    for kind in ("reverse_kl", "jsd"):
        micro_batch = call(random.Random(f"far {kind}"), (2, 2), 5, tokens=4)
        micro_batch["student_logits"][0][0][1], micro_batch["teacher_logits"][0][0][3] = 900.0, 850.0
        yield vector(
            f"far_apart_{kind}", "probabilities of e-800 underflow where log space does not", kind, micro_batch
        )


def cached() -> Iterator[dict[str, Any]]:
    """A teacher's top-k tokens, with the mass of the rest."""
    for name, kind, k, size in (
        ("top_k", "forward_kl", 3, 8),
        ("top_k_one", "forward_kl", 1, 8),
        ("top_k_skew", "skew_forward_kl", 3, 8),
        ("top_k_jsd", "jsd", 2, 7),
        ("top_k_total_variation", "total_variation", 3, 8),
    ):
        micro_batch = call(random.Random(name), (3, 2), size, tokens=5)
        micro_batch["options"]["top_k"] = [[_top(z, k) for z in row] for row in micro_batch["teacher_logits"]]
        micro_batch["teacher_logits"] = None
        yield vector(name, f"{k} of {size} tokens and the rest as one outcome", kind, micro_batch)


def _top(logits: Sequence[float], k: int) -> dict[str, Any]:
    p = ref.softmax(logits)
    ids = sorted(range(len(p)), key=lambda i: -p[i])[:k]
    tail = 1 - sum(p[i] for i in ids)
    return {"ids": ids, "log_probs": [float(mpmath.log(p[i])) for i in ids], "tail": float(mpmath.log(tail))}


def sequences() -> Iterator[dict[str, Any]]:
    """Inputs are token ids and prompt lengths: the function handles shift, end of sequence and padding."""
    about = "three texts, padded with their end-of-sequence token, which counts once"
    for kind in ("cross_entropy", "forward_kl", "reverse_kl"):
        micro_batch = sequence_call(random.Random(kind), 5, teacher=kind != "cross_entropy", tokens=9)
        yield vector(f"sequence_{kind}", about, kind, micro_batch)
    rng = random.Random("two")
    calls = [sequence_call(rng, 5, teacher=False, tokens=18) for _ in range(2)]
    yield vector("sequence_accumulation", f"{about}; two micro-batches", "cross_entropy", *calls)


def policy() -> Iterator[dict[str, Any]]:
    """Pieces of MiniLLM's policy gradient."""
    for name, gamma, mean in (
        ("returns", 1.0, False),
        ("returns_mean", 1.0, True),
        ("returns_discounted", 0.95, False),
        ("returns_discounted_mean", 0.95, True),
    ):
        mask = mask_of((7, 4, 1), 7)
        rewards = random_numbers(random.Random(name), 3, 7)
        value = [ref.returns(r, m, gamma, length_normalize=mean) for r, m in zip(rewards, mask, strict=True)]
        micro_batch = _bare(mask, rewards=rewards, gamma=gamma, length_normalize=mean)
        yield _vector(
            name, "rewards strictly after each token; 0 after the last", "returns", [micro_batch], value, None
        )
    rng, mask = random.Random("whiten"), mask_of((5, 2), 5)
    values = [[random_numbers(rng, spread=1.5 if on else WILD) for on in row] for row in mask]
    value = ref.whitened(values, mask)
    about = "mean and variance over counted tokens only"
    yield _vector("whitening", about, "whiten", [_bare(mask, values=values)], value, None)
    for kind in ("importance_weight", "ppo_clip"):
        yield vector(kind, "tokens sampled from 0.2 teacher + 0.8 old student", kind, _sampled(random.Random(kind)))


def _bare(mask: Any, **options: Any) -> Call:
    return {"student_logits": None, "teacher_logits": None, "mask": mask, "options": options}


def _sampled(rng: random.Random) -> Call:
    """Ratios on both sides of the clip and within it, for both signs of the advantage."""
    micro_batch = call(rng, (6, 3), 5, tokens=9, alpha=0.2, epsilon=0.2)
    micro_batch["teacher_logits"] = None
    actions = [[rng.randrange(5) for _ in row] for row in micro_batch["mask"]]
    drift = [[rng.choice([-0.6, -0.05, 0.05, 0.6]) for _ in row] for row in micro_batch["mask"]]
    old = [
        [round(float(mpmath.log(ref.softmax(z)[a])) - d, 3) for z, a, d in zip(zs, row, ds, strict=True)]
        for zs, row, ds in zip(micro_batch["student_logits"], actions, drift, strict=True)
    ]
    teacher = [[round(x + rng.gauss(0, 0.5), 3) for x in row] for row in old]
    advantages = [[rng.choice([-1, 1]) * round(rng.uniform(0.3, 2), 3) for _ in row] for row in micro_batch["mask"]]
    micro_batch["options"] |= {"actions": actions, "old_log_probs": old, "teacher_log_probs": teacher}
    micro_batch["options"] |= {"advantages": advantages}
    return micro_batch


def everything() -> Iterator[dict[str, Any]]:
    """All vectors, in order."""
    for part in (kinds, accumulation, vocabularies, cached, sequences, policy):
        yield from part()


def main(folder: Path) -> None:
    """Write one file per vector."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(everything(), start=1):
        (folder / f"{number:02d}_{content['name']}.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
