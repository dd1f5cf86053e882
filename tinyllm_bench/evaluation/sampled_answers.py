"""Answers by sampled chain-of-thought and programs: texts are sampled, programs run in the sandbox, a policy decides.

A prediction contains every text with its answer key, so that any policy can be computed from it later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tinyllm_bench.answers.codec import LayoutTokens, decode_program
from tinyllm_bench.answers.keys import answer_of, index_of, inputs_for, key_of
from tinyllm_bench.answers.parser import read
from tinyllm_bench.answers.voting import (
    COT,
    POLICIES,
    POT,
    PathStatistics,
    Policy,
    ReasoningPath,
    decide,
    needed,
    path_statistics,
)
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Prediction, Sample, TaskRecord
from tinyllm_bench.generation.requests import Completion, FailedRequest, Generate, GenerationRequest, SamplingConfig

if TYPE_CHECKING:
    from tinyllm_bench.answers.sandbox.pool import Sandbox
    from tinyllm_bench.data.prompts import Ask


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingConfig:
    """Which texts are sampled, and the policy that decides between them.

    channels: those that the student was trained on (`cot`, `pot`); samples: sampled texts per channel; every: sample
    what any policy needs, so that all of them can be reported; layout: how programs are written for a student whose
    tokenizer loses newlines.
    """

    channels: tuple[str, ...]
    policy: Policy
    samples: Mapping[str, int]
    temperature: float
    top_p: float
    max_new_tokens: int
    every: bool
    seed: int
    layout: LayoutTokens | None = None

    def texts_needed(self) -> dict[str, tuple[bool, int]]:
        """Per channel, whether the greedy text is needed and how many sampled ones are."""
        policies = policies_for(self.channels) if self.every else (self.policy,)
        counts = [needed(policy, self.samples) for policy in policies]
        return {
            channel: (
                any(texts.get(channel, (False, 0))[0] for texts in counts),
                max(texts.get(channel, (False, 0))[1] for texts in counts),
            )
            for channel in self.channels
        }


def policies_for(channels: Sequence[str]) -> tuple[Policy, ...]:
    """The policies that these channels allow; those that compare rationales with programs need both."""
    if set(channels) >= {COT, POT}:
        return POLICIES
    return ("single_cot", "vote") if COT in channels else ("single_pot", "vote")


def sample_answers(
    records: Sequence[TaskRecord],
    ask: Ask,
    generate: Mapping[str, Generate],
    decoding: DecodingConfig,
    sandbox: Sandbox,
) -> list[Prediction]:
    """Predictions for some records; `generate` samples the texts of each channel (an ensemble has two students).

    Raises:
        UserError: a prompt that leaves no space for the answer.
    """
    needed_texts = decoding.texts_needed()
    texts = {channel: _texts(records, ask, generate[channel], decoding, channel) for channel in decoding.channels}
    keys = {channel: _answer_keys(records, texts[channel], decoding, channel, sandbox) for channel in decoding.channels}
    predictions = []
    for number, record in enumerate(records):
        samples = []
        for channel in decoding.channels:
            greedy, _ = needed_texts[channel]
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
        predictions.append(_with_decision(record, samples, decoding.policy))
    return predictions


def _texts(
    records: Sequence[TaskRecord], ask: Ask, generate: Generate, decoding: DecodingConfig, channel: str
) -> list[list[Completion]]:
    """Per record the greedy text, if a policy needs it, then the sampled ones in the order of their seeds."""
    greedy, samples = decoding.texts_needed()[channel]
    sampling = SamplingConfig(
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        max_new_tokens=decoding.max_new_tokens,
        stop=("\n\n",),
    )
    requests = []
    for record in records:
        prompt, seed = ask.prompt(record, channel), seed_of(f"{decoding.seed}/{record.id}/{channel}")
        if greedy:
            requests.append(GenerationRequest(prompt, replace(sampling, temperature=0.0, top_p=1.0)))
        requests += [GenerationRequest(prompt, sampling, seed_of(f"{seed}/{number}")) for number in range(samples)]
    completions: dict[int, Completion] = {}
    for index, answer in generate(requests):
        if isinstance(answer, FailedRequest):
            raise UserError(f"…{requests[index].prompt[-60:]!r}: {answer.reason}")
        completions[index] = answer
    each = int(greedy) + samples
    return [[completions[n * each + place] for place in range(each)] for n in range(len(records))]


def seed_of(text: str) -> int:
    """A seed of 31 bits that depends on a text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def _answer_keys(
    records: Sequence[TaskRecord],
    texts: Sequence[Sequence[Completion]],
    decoding: DecodingConfig,
    channel: str,
    sandbox: Sandbox,
) -> list[list[str | None]]:
    """The answer key of each text: rationales are parsed, programs run (all of them in one call of the sandbox)."""
    if channel != POT:
        return [[parse_key(text.text, record) for text in own] for record, own in zip(records, texts, strict=True)]
    programs = [
        (record, decode_program(text.text.strip(), decoding.layout))
        for record, own in zip(records, texts, strict=True)
        for text in own
    ]
    results = sandbox.map([code for _, code in programs], [inputs_for(record.choices) for record, _ in programs])
    keys = iter([answer_of(result, record.choices).key for (record, _), result in zip(programs, results, strict=True)])
    return [[next(keys) for _ in own] for own in texts]


def parse_key(text: str, record: TaskRecord) -> str | None:
    """The answer key of a text, by the parser of the record's kind; None where it finds no answer."""
    key = read(text, record.choices).key
    return key_of(key, record.choices) if isinstance(key, int) else key


def gold_answer_key(record: TaskRecord) -> str:
    """The answer key of the right answer."""
    gold = record.gold_key
    return key_of(gold, record.choices) if isinstance(gold, int) else gold


def _with_decision(record: TaskRecord, samples: Sequence[Sample], policy: Policy) -> Prediction:
    """The prediction that a policy makes of a question's texts."""
    unanswered = Prediction(record_id=record.id, mode="generate", answer=None, correct=False, samples=tuple(samples))
    decision = decide(reasoning_paths(unanswered), policy)
    answer: int | str | None = decision.key
    if decision.key is not None and (index := index_of(decision.key, record.choices)) is not None:
        answer = index
    return replace(
        unanswered,
        answer=answer,
        correct=answer == record.gold_key,
        parsed_by=None if answer is None else f"{policy}: {decision.rule}",
        stopped="limit" if answer is None and any(sample.hit_limit for sample in samples) else "stop",
    )


def reasoning_paths(prediction: Prediction) -> list[ReasoningPath]:
    """The texts of a prediction as the policies compare them."""
    return [
        ReasoningPath(
            channel=sample.channel,
            key=sample.answer_key,
            greedy=not sample.sampled,
            logprob=sample.logprob,
            tokens=sample.tokens or 0,
        )
        for sample in prediction.samples
    ]


def policy_report(
    predictions: Sequence[Prediction], records: Sequence[TaskRecord], channels: Sequence[str], *, every: bool
) -> dict[str, float]:
    """Accuracy by every policy that the texts allow (`accuracy_<policy>`), and measures of the texts (`paths_<name>`).

    `tokens_<policy>` are the tokens per question that a policy used.
    """
    gold = {record.id: gold_answer_key(record) for record in records}
    questions = [(reasoning_paths(prediction), gold[prediction.record_id]) for prediction in predictions]
    report: dict[str, float] = {}
    for policy in policies_for(channels) if every else ():
        decisions = [(decide(paths, policy), right) for paths, right in questions]
        report[f"accuracy_{policy}"] = sum(decision.key == right for decision, right in decisions) / len(decisions)
        used = sum(path.tokens for decision, _ in decisions for path in decision.used)
        report[f"tokens_{policy}"] = used / len(decisions)
    facts: PathStatistics = path_statistics(questions)
    return report | {f"paths_{name}": value for name, value in facts._asdict().items() if value is not None}
