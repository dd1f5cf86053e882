"""Stored answers worked out again: texts are read by today's parser, programs run, rankings and policies decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tinyllm_bench.answers.codec import Layout
from tinyllm_bench.answers.parser import read, to_the_letter
from tinyllm_bench.answers.sandbox import Sandbox
from tinyllm_bench.answers.voting import POT
from tinyllm_bench.data.prompts import LABEL
from tinyllm_bench.data.records import Prediction, Sample, TaskRecord
from tinyllm_bench.evaluation.sampled_answers import HowToAsk, ask_paths
from tinyllm_bench.evaluation.sampling import Wanted, Written
from tinyllm_bench.evaluation.scoring import best, option_scores
from tinyllm_bench.experiment.identity import GUESSES
from tinyllm_bench.experiment.predict import guesser

if TYPE_CHECKING:
    from tinyllm_bench.experiment.cell import Cell


class Differs(NamedTuple):
    """A field of a stored prediction that is something else when it is worked out again."""

    record_id: str
    field: str
    stored: Any
    again: Any


def malformed(cell: Cell, stored: Sequence[Prediction], records: Mapping[str, TaskRecord]) -> Iterator[Differs]:
    """Predictions that cannot be worked out again: of another reading, or without what decides them."""
    for one in stored:
        if one.reading != cell.reading:
            yield Differs(one.record_id, "reading", one.reading, cell.reading)
        elif cell.name not in GUESSES:
            yield from _lacking(cell, one, records[one.record_id])


def _lacking(cell: Cell, one: Prediction, record: TaskRecord) -> Iterator[Differs]:
    if cell.reading != "gen":
        chars = tuple(len(option) for option in cell.ask.options(record))
        if one.option_chars != chars:
            yield Differs(one.record_id, "option_chars", list(one.option_chars), list(chars))
        if len(one.option_logprobs) != len(chars) or not all(map(_is_logprob, one.option_logprobs)):
            told = f"{len(chars)} finite numbers that are not positive"
            yield Differs(one.record_id, "option_logprobs", list(one.option_logprobs), told)
        return
    spelled = len(record.choices) if cell.config.eval.match == "exact" and not _by_paths(cell) else 0
    if len(one.choices_read) != spelled:
        yield Differs(one.record_id, "choices_read", list(one.choices_read), f"{spelled} texts")
    wanted = _wanted(cell)
    texts = {channel: [s for s in one.samples if s.channel == channel] for channel in wanted}
    found = {c: (sum(not s.drawn for s in said), sum(s.drawn for s in said)) for c, said in texts.items()}
    if found != wanted or sum(map(len, texts.values())) != len(one.samples):
        yield Differs(one.record_id, "texts (greedy, drawn)", found, wanted)


def _is_logprob(value: float) -> bool:
    return math.isfinite(value) and value <= 1e-6


def _wanted(cell: Cell) -> dict[str, tuple[int, int]]:
    """Per channel how many greedy and drawn texts a question has."""
    if not _by_paths(cell):
        return {LABEL: (1, 0)}
    return {channel: (int(greedy), drawn) for channel, (greedy, drawn) in how_asked(cell, None).wanted().items()}


def _by_paths(cell: Cell) -> bool:
    return cell.method is not None and cell.method.decoding().policy is not None


def answers_again(
    cell: Cell, stored: Sequence[Prediction], records: Mapping[str, TaskRecord], architecture: str | None
) -> list[Prediction]:
    """The predictions as they follow from stored log-probabilities and texts, in the stored order.

    Raises:
        UserError: there are programs and the sandbox cannot run them.
    """
    if cell.name in GUESSES:
        return guesser(cell)([one.record_id for one in stored])
    if _by_paths(cell):
        return _paths_again(cell, stored, [records[one.record_id] for one in stored], architecture)
    if cell.reading != "gen":
        return [_ranked_again(one, records[one.record_id]) for one in stored]
    return [_read_again(one, records[one.record_id]) for one in stored]


def _ranked_again(one: Prediction, record: TaskRecord) -> Prediction:
    index = best(option_scores(one))
    rule = "logprob_per_char" if one.reading == "cloze" else "logprob"
    return replace(one, answer=index, correct=index == record.gold_key, parsed_by=rule)


def _read_again(one: Prediction, record: TaskRecord) -> Prediction:
    text = one.samples[0].text
    found = to_the_letter(text, one.choices_read) if one.choices_read else read(text, record.choices)
    return replace(one, answer=found.key, correct=found.key == record.gold_key, parsed_by=found.rule)


class _Kept:
    """A drawer that writes nothing: it hands out the stored texts of one channel, question by question."""

    def __init__(self, stored: Sequence[Prediction], channel: str) -> None:
        self._texts = [[_written(sample) for sample in one.samples if sample.channel == channel] for one in stored]

    def draw(self, wanted: Sequence[Wanted]) -> list[list[Written]]:
        """The texts in the order of the questions."""
        assert len(wanted) == len(self._texts)
        return self._texts


def _written(sample: Sample) -> Written:
    return Written(sample.text, sample.tokens or 0, sample.logprob, sample.hit_limit, not sample.drawn)


def _paths_again(
    cell: Cell, stored: Sequence[Prediction], records: Sequence[TaskRecord], architecture: str | None
) -> list[Prediction]:
    how = how_asked(cell, architecture)
    drawers = {channel: _Kept(stored, channel) for channel in how.channels}
    with ExitStack() as stack:
        sandbox: Any = stack.enter_context(Sandbox()) if POT in how.channels else None
        return ask_paths(records, cell.ask, drawers, how, sandbox)


def how_asked(cell: Cell, architecture: str | None) -> HowToAsk:
    """How the cell's paths were asked; the model's architecture tells how it writes programs, so none is opened."""
    assert cell.method is not None
    decoding = cell.method.decoding()
    return HowToAsk(
        channels=decoding.channels,
        policy=decoding.policy,  # type: ignore[arg-type]
        samples=decoding.samples,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        max_new_tokens=decoding.max_new_tokens,
        every=decoding.every,
        seed=cell.seed,
        layout=Layout() if _encoder_decoder(architecture) else None,
    )


def _encoder_decoder(architecture: str | None) -> bool:
    if architecture is None:
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

    return architecture in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()


def differences(stored: Sequence[Prediction], again: Sequence[Prediction]) -> Iterator[Differs]:
    """Where stored predictions and those that were worked out again are not the same."""
    for old, new in zip(stored, again, strict=True):
        for number, (said, found) in enumerate(zip(old.samples, new.samples, strict=True)):
            if (said.answer_key, said.executed) != (found.answer_key, found.executed):
                name = f"answer_key of text {number} ({said.channel})"
                yield Differs(old.record_id, name, said.answer_key, found.answer_key)
        before, after = asdict(old), asdict(new)
        for field in ("answer", "correct", "parsed_by", "stopped"):
            if before[field] != after[field]:
                yield Differs(old.record_id, field, before[field], after[field])
