"""Answers by rationales and programs: texts are sampled, programs are run in the sandbox, and a policy decides.

Every path stands in the prediction with its answer key, so that each policy can be worked out again from a record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tinyllm_bench.answers.codec import Layout, decode_program
from tinyllm_bench.answers.parser import read
from tinyllm_bench.answers.programs import answer_of, index_of, inputs_for, key_of
from tinyllm_bench.answers.voting import COT, POLICIES, POT, Path, PathFacts, Policy, decide, facts_of, needed
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Prediction, Sample, TaskRecord
from tinyllm_bench.generation.requests import Completion, Failed, Generate, GenerationRequest, SamplingConfig

if TYPE_CHECKING:
    from tinyllm_bench.answers.sandbox import Sandbox
    from tinyllm_bench.data.prompts import Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class HowToAsk:
    """Which texts are sampled and how they decide.

    channels: what the student was taught (`cot`, `pot`); samples: sampled texts per channel; every: sample what any
    policy needs, so that all of them can be reported; layout: how programs were written for a student that loses
    newlines.
    """

    channels: tuple[str, ...]
    policy: Policy
    samples: Mapping[str, int]
    temperature: float
    top_p: float
    max_new_tokens: int
    every: bool
    seed: int
    layout: Layout | None = None

    def wanted(self) -> dict[str, tuple[bool, int]]:
        """Per channel, whether the greedy text is written and how many are sampled."""
        policies = possible(self.channels) if self.every else (self.policy,)
        found = [needed(policy, self.samples) for policy in policies]
        return {
            channel: (
                any(one.get(channel, (False, 0))[0] for one in found),
                max(one.get(channel, (False, 0))[1] for one in found),
            )
            for channel in self.channels
        }


def possible(channels: Sequence[str]) -> tuple[Policy, ...]:
    """The policies that a student of these channels can be read by; the two that compare need both."""
    if set(channels) >= {COT, POT}:
        return POLICIES
    return ("single_cot", "vote") if COT in channels else ("single_pot", "vote")


def ask_paths(
    records: Sequence[TaskRecord], ask: Ask, generate: Mapping[str, Generate], how: HowToAsk, sandbox: Sandbox
) -> list[Prediction]:
    """Predictions for some records; `generate` writes the texts of each channel (an ensemble has two students).

    Raises:
        UserError: a prompt that leaves no room for what is to be written.
    """
    texts = {channel: _texts(records, ask, generate[channel], how, channel) for channel in how.channels}
    keys = {channel: _keys(records, texts[channel], how, channel, sandbox) for channel in how.channels}
    predictions = []
    for number, record in enumerate(records):
        samples = []
        for channel in how.channels:
            greedy, _ = how.wanted()[channel]
            for place, (text, key) in enumerate(zip(texts[channel][number], keys[channel][number], strict=True)):
                samples.append(
                    Sample(
                        channel=channel,
                        text=text.text,
                        answer_key=key,
                        executed=key is not None if channel == POT else None,
                        logprob=None if text.logprob is None else round(text.logprob, 6),
                        tokens=text.tokens_out,
                        sampled=place >= int(greedy),
                        hit_limit=text.finish == "length",
                    )
                )
        predictions.append(_decided(record, samples, how.policy))
    return predictions


def _texts(
    records: Sequence[TaskRecord], ask: Ask, generate: Generate, how: HowToAsk, channel: str
) -> list[list[Completion]]:
    """Per record the greedy text, if a policy needs it, then the sampled ones in the order of their seeds."""
    greedy, samples = how.wanted()[channel]
    sampling = SamplingConfig(
        temperature=how.temperature, top_p=how.top_p, max_new_tokens=how.max_new_tokens, stop=("\n\n",)
    )
    requests = []
    for record in records:
        prompt, seed = ask.prompt(record, channel), seed_of(f"{how.seed}/{record.id}/{channel}")
        if greedy:
            requests.append(GenerationRequest(prompt, replace(sampling, temperature=0.0, top_p=1.0)))
        requests += [GenerationRequest(prompt, sampling, seed_of(f"{seed}/{number}")) for number in range(samples)]
    completions: dict[int, Completion] = {}
    for index, answer in generate(requests):
        if isinstance(answer, Failed):
            raise UserError(f"…{requests[index].prompt[-60:]!r}: {answer.reason}")
        completions[index] = answer
    each = int(greedy) + samples
    return [[completions[n * each + place] for place in range(each)] for n in range(len(records))]


def seed_of(text: str) -> int:
    """A seed of 31 bits that depends on nothing but a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def _keys(
    records: Sequence[TaskRecord], texts: Sequence[Sequence[Completion]], how: HowToAsk, channel: str, sandbox: Sandbox
) -> list[list[str | None]]:
    if channel != POT:
        return [[read_key(text.text, record) for text in found] for record, found in zip(records, texts, strict=True)]
    flat = [
        (record, decode_program(text.text.strip(), how.layout))
        for record, found in zip(records, texts, strict=True)
        for text in found
    ]
    results = sandbox.map([code for _, code in flat], [inputs_for(record.choices) for record, _ in flat])
    keys = iter([answer_of(result, record.choices).key for (record, _), result in zip(flat, results, strict=True)])
    return [[next(keys) for _ in found] for found in texts]


def read_key(text: str, record: TaskRecord) -> str | None:
    """The answer key of a text, read by the parser of the record's kind; None where nothing could be read."""
    found = read(text, record.choices).key
    return key_of(found, record.choices) if isinstance(found, int) else found


def gold_key(record: TaskRecord) -> str:
    """The answer key of the right answer."""
    gold = record.gold_key
    return key_of(gold, record.choices) if isinstance(gold, int) else gold


def paths_of(prediction: Prediction) -> list[Path]:
    """The paths of a prediction."""
    return [
        Path(
            channel=sample.channel,
            key=sample.answer_key,
            greedy=not sample.sampled,
            logprob=sample.logprob,
            tokens=sample.tokens or 0,
        )
        for sample in prediction.samples
    ]


def _decided(record: TaskRecord, samples: Sequence[Sample], policy: Policy) -> Prediction:
    bare = Prediction(record_id=record.id, mode="generate", answer=None, correct=False, samples=tuple(samples))
    found = decide(paths_of(bare), policy)
    answer = None if found.key is None else _answer(found.key, record)
    return Prediction(
        record_id=record.id,
        mode="generate",
        answer=answer,
        correct=answer == record.gold_key,
        samples=tuple(samples),
        parsed_by=None if answer is None else f"{policy}: {found.rule}",
        stopped="limit" if answer is None and any(sample.hit_limit for sample in samples) else "stop",
    )


def _answer(key: str, record: TaskRecord) -> int | str:
    index = index_of(key, record.choices)
    return key if index is None else index


def path_report(
    predictions: Sequence[Prediction], records: Sequence[TaskRecord], channels: Sequence[str], *, every: bool
) -> dict[str, float]:
    """Accuracy by every policy that the paths allow (`accuracy_<policy>`), and what the paths are like.

    `tokens_<policy>` are the tokens per question that a policy took.
    """
    gold = {record.id: gold_key(record) for record in records}
    questions = [(paths_of(prediction), gold[prediction.record_id]) for prediction in predictions]
    report: dict[str, float] = {}
    for policy in possible(channels) if every else ():
        outcomes = [(decide(paths, policy), right) for paths, right in questions]
        report[f"accuracy_{policy}"] = sum(found.key == right for found, right in outcomes) / len(outcomes)
        used = sum(path.tokens for found, _ in outcomes for path in found.used)
        report[f"tokens_{policy}"] = used / len(outcomes)
    facts: PathFacts = facts_of(questions)
    return report | {f"paths_{name}": value for name, value in facts._asdict().items() if value is not None}
