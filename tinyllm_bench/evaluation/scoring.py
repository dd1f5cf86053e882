"""From predictions to a score: every question is correct, wrong or unparsed, and the three add up."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tinyllm_bench.answers.keys import question_kind
from tinyllm_bench.answers.parser import read, read_exact_match
from tinyllm_bench.data.records import Prediction, TaskRecord


def shared_gold(records: Sequence[TaskRecord]) -> tuple[int, ...]:
    """The indices of the right answers where all questions have the same closed choices (yes, no, maybe) in one order.

    Empty for other tasks: there an index means something else in every question.
    """
    kinds = {record.choices for record in records}
    return tuple(record.answer for record in records) if len(kinds) == 1 and question_kind(*kinds) == "yes_no" else ()


def argmax(values: Sequence[float]) -> int:
    """The index of the largest value; the lowest such index on a tie."""
    return max(range(len(values)), key=lambda i: (values[i], -i))


def option_scores(prediction: Prediction) -> tuple[float, ...]:
    """Log-probabilities of the options, per character in `cloze`; empty in `generate`."""
    if prediction.mode != "cloze":
        return prediction.option_logprobs
    return tuple(
        logprob / chars for logprob, chars in zip(prediction.option_logprobs, prediction.option_chars, strict=True)
    )


def with_answer(prediction: Prediction, choices: Sequence[str], gold: int | str) -> Prediction:
    """The prediction with the answer that follows from its log-probabilities or from its only text.

    A tie of options goes to the lowest index. A text is read by the parser, or must be one of `choices_read` to the
    letter where the prediction has any.
    """
    if prediction.mode == "generate":
        text = prediction.samples[0].text
        parsed = read_exact_match(text, prediction.choices_read) if prediction.choices_read else read(text, choices)
        return replace(prediction, answer=parsed.key, correct=parsed.key == gold, parsed_by=parsed.rule)
    index = argmax(option_scores(prediction))
    rule = "logprob_per_char" if prediction.mode == "cloze" else "logprob"
    return replace(prediction, answer=index, correct=index == gold, parsed_by=rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """The score of one task in one mode.

    `n = correct + wrong + unparsed`. Outside the sum: `hit_token_limit`, `context_cut` and `ties` (best option not
    unique; the lowest index was taken). `plain_correct` counts by log-probability without the division by length and
    `gold_probability` is the mean probability of the right option under a softmax of the compared scores; both are
    None in `generate`.
    """

    n: int
    correct: int
    wrong: int
    unparsed: int
    hit_token_limit: int = 0
    context_cut: int = 0
    ties: int = 0
    plain_correct: int | None = None
    gold_probability: float | None = None

    def __post_init__(self) -> None:
        assert self.n == self.correct + self.wrong + self.unparsed, "correct, wrong and unparsed must add up to n"

    @property
    def accuracy(self) -> float:
        """Share of all questions answered correctly; unparsed ones count as incorrect."""
        return self.correct / self.n if self.n else 0.0

    @property
    def accuracy_plain(self) -> float | None:
        """Accuracy by plain log-probability: secondary in `cloze`, `accuracy` elsewhere; None in `generate`."""
        return None if self.plain_correct is None else self.plain_correct / max(self.n, 1)


def score(predictions: Sequence[Prediction], records: Iterable[TaskRecord], *, context_cut: int = 0) -> TaskScore:
    """Score predictions against their records (in any order; there may be more records than predictions).

    `context_cut`, how many of the records lost words of their context, is copied into the score.

    Raises:
        AssertionError: a prediction without a record, or whose `correct` disagrees with the record.
    """
    by_id = {record.id: record for record in records}
    for prediction in predictions:
        correct = prediction.answer == by_id[prediction.record_id].gold_key
        assert prediction.correct == correct, prediction.record_id
    scored = [(option_scores(p), by_id[p.record_id].answer, p) for p in predictions if p.option_logprobs]
    n_correct = sum(p.correct for p in predictions)
    unparsed = sum(p.answer is None for p in predictions)
    gold_probabilities = []
    for scores, gold, _ in scored:
        top = max(scores)
        weights = [math.exp(value - top) for value in scores]  # softmax, without overflow
        gold_probabilities.append(weights[gold] / math.fsum(weights))
    return TaskScore(
        n=len(predictions),
        correct=n_correct,
        wrong=len(predictions) - n_correct - unparsed,
        unparsed=unparsed,
        hit_token_limit=sum(p.stopped == "limit" for p in predictions),
        context_cut=context_cut,
        ties=sum(scores.count(max(scores)) > 1 for scores, _, _ in scored),
        plain_correct=sum(argmax(p.option_logprobs) == answer for _, answer, p in scored) if scored else None,
        gold_probability=math.fsum(gold_probabilities) / len(scored) if scored else None,
    )
