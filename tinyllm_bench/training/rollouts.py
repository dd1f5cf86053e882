"""What a method does with the texts that a student samples during training; the sampler is `generation.sampler`."""

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


def named(groups: Sequence[Group]) -> list[tuple[str, Encoded]]:
    """Every example of some questions with the name that seeds its sampled text, different for each."""
    return [(f"{one.key}/{n}" if n else one.key, item) for one in groups for n, item in enumerate(one.items)]


def with_sampled_text(item: Encoded, sampled: SampledText, **numbers: Sequence[float]) -> Encoded:
    """The example with the sampled text as its target, and numbers per token beside it."""
    per_token = {"logq": sampled.logq, "logp": sampled.logp, **numbers}
    rollout = {name: tuple(values) for name, values in per_token.items() if values}
    return item._replace(target=sampled.ids, cut=not sampled.ended, rollout=rollout)


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Distinct-n: different n-grams of token ids over all n-grams of the texts; 1 where there are none."""
    grams = Counter(tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1))
    return len(grams) / grams.total() if grams else 1.0


def happens(seed: int, share: float) -> bool:
    """Whether an event of some probability happens, decided by a seed; independent of what the sampler makes of it."""
    return random.Random(f"happens/{seed}").random() < share


def probe(
    groups: Sequence[Group],
    student: LM,
    teacher: "TeacherSignal",
    *,
    channel: str,
    step: "Step",
    max_new_tokens: int,
) -> dict[str, float]:
    """What a student writes by itself on given questions, at temperature 1 with the same random numbers every time.

    reverse_kl: mean over tokens of the exact KL(q | p) in nats, absent where the teacher cannot read the student's
    ids; length: mean tokens of a text, its end included; ended: share of texts that end; distinct_2, distinct_4.
    """
    items = [(key, item) for key, item in named(groups) if item.channel == channel]
    if not items:
        return {}
    found = sample_texts(
        [item.prompt for _, item in items],
        student,
        seeds=[step.seed_of(key) for key, _ in items],
        max_new_tokens=max_new_tokens,
        teacher=teacher.lm,
        vocabulary=teacher.vocabulary,
    )
    tokens = sum(len(one.ids) for one in found)
    reverse = {} if teacher.lm is None else {"reverse_kl": sum(sum(one.kl) for one in found) / tokens}
    return {
        **reverse,
        "length": tokens / len(found),
        "ended": sum(one.ended for one in found) / len(found),
        **{f"distinct_{n}": distinct([one.ids for one in found], n) for n in (2, 4)},
    }
