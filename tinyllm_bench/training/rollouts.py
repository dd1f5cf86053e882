"""Functions for methods whose student samples texts during training; the sampler is `generation.sampler`."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinyllm_bench.generation.sampler import SampledText, sample_texts
from tinyllm_bench.models.lm import LM
from tinyllm_bench.models.tokens import Encoded
from tinyllm_bench.training.batching import Group

if TYPE_CHECKING:
    from tinyllm_bench.training.method import Step, TeacherSignal


def keyed_examples(groups: Sequence[Group]) -> list[tuple[str, Encoded]]:
    """All examples of some questions, each with a unique key that seeds its sampled text (`Step.seed_of`)."""
    return [
        (f"{group.key}/{number}" if number else group.key, item)
        for group in groups
        for number, item in enumerate(group.items)
    ]


def with_sampled_text(item: Encoded, sampled: SampledText, **numbers: Sequence[float]) -> Encoded:
    """The example with the sampled text as its target, and numbers per token: `logq`, `logp` and `numbers`."""
    per_token = {"logq": sampled.logq, "logp": sampled.logp, **numbers}
    rollout = {name: tuple(values) for name, values in per_token.items() if values}
    return item._replace(target=sampled.ids, cut=not sampled.ended, rollout=rollout)


def bernoulli(seed: int, probability: float) -> bool:
    """A seeded Bernoulli trial, independent of the random numbers that the sampler derives from the same seed."""
    return random.Random(f"happens/{seed}").random() < probability


def distinct_n(texts: Sequence[Sequence[int]], n: int) -> float:
    """Distinct-n: the share of different n-grams of token ids among all n-grams of the texts; 1 if there are none."""
    grams = Counter(tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1))
    return len(grams) / grams.total() if grams else 1.0


def sample_diagnostics(
    groups: Sequence[Group],
    student: LM,
    teacher: "TeacherSignal",
    *,
    channel: str,
    step: "Step",
    max_new_tokens: int,
) -> dict[str, float]:
    """Measures texts that a student samples for given questions, at temperature 1 and with the same seeds every time.

    reverse_kl: mean over tokens of the exact KL(q | p) in nats, absent where the teacher has another tokenizer; length:
    mean tokens of a text, its end token included; ended: share of texts that end; distinct_2, distinct_4.
    """
    examples = [(key, item) for key, item in keyed_examples(groups) if item.channel == channel]
    if not examples:
        return {}
    texts = sample_texts(
        [item.prompt for _, item in examples],
        student,
        seeds=[step.seed_of(key) for key, _ in examples],
        max_new_tokens=max_new_tokens,
        teacher=teacher.lm,
        vocabulary=teacher.vocabulary,
    )
    tokens = sum(len(text.ids) for text in texts)
    reverse_kl = {} if teacher.lm is None else {"reverse_kl": sum(sum(text.kl) for text in texts) / tokens}
    return {
        **reverse_kl,
        "length": tokens / len(texts),
        "ended": sum(text.ended for text in texts) / len(texts),
        **{f"distinct_{n}": distinct_n([text.ids for text in texts], n) for n in (2, 4)},
    }
