"""Checks that a run record adds up, beyond what every load checks; they need nothing but the record."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.sources import find_source, load_split, manifest
from tinyllm_bench.leaderboard.record import RunRecord, SplitInfo
from tinyllm_bench.leaderboard.stats.averages import UNPARSED, macro_f1


class FieldCheck(NamedTuple):
    """A field of a record, its value, and the value that follows from the rest of the record."""

    field: str
    actual: Any
    expected: Any
    reason: str

    @property
    def text(self) -> str:
        """The check in words, long values cut."""
        actual, expected = (text if len(text := str(value)) <= 60 else f"{text[:57]}..." for value in self[1:3])
        return f"{self.field} is {actual}; expected {expected} ({self.reason})"

    @property
    def holds(self) -> bool:
        """Whether the two values are equal."""
        return bool(self.actual == self.expected)


def check_consistency(record: RunRecord, path: Path) -> None:
    """Refuse a record that does not add up, in `board add`, `board build` and `verify`.

    Raises:
        UserError: names the first check that fails.
    """
    failed = failed_checks(record)
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise UserError(f"{path} does not add up: {failed[0].text}{more}; run the cell again instead of editing it")


def failed_checks(record: RunRecord) -> list[FieldCheck]:
    """The fields of a record that its other fields contradict."""
    parts = (_names, _numbers, _reference_baselines, _sizes, _budget, _costs, _training, _score)
    return [check for part in parts for check in part(record) if not check.holds]


def run_id_start(record: RunRecord) -> str:
    """The beginning of a run id: method, task, mode and seed; the rest is the digest of everything else."""
    return f"{record.name.replace('/', '.')}-{record.task}-{record.mode}-s{record.seed}-"


def _names(record: RunRecord) -> Iterator[FieldCheck]:
    start = run_id_start(record)
    reason = "a run id begins with method, task, mode and seed"
    yield FieldCheck(
        "run_id", record.run_id, record.run_id if record.run_id.startswith(start) else f"{start}...", reason
    )
    seeds = record.request.get("seeds")
    if record.kind == "method" and isinstance(seeds, int):
        yield FieldCheck(
            "seed", record.seed, record.seed if record.seed < seeds else f"less than {seeds}", "request.seeds"
        )
    other = next((question for question in record.items.ids if not question.startswith(f"{record.task}/test/")), None)
    yield FieldCheck("items", other, None, f"all scored questions are of {record.task}'s test split")
    yield FieldCheck("sample", record.sample, record.data.source == "sample", f"data.source is {record.data.source}")
    if _setting(record, "data.source") == "sample":
        yield FieldCheck("sample", record.sample, True, "config.data.source is sample")
    if not record.sample:
        digests, ids = _sample(record.task)
        own = {split: info.digest for split, info in record.data.splits.items()}
        same_data = any(own.get(split) == digest for split, digest in digests.items())
        is_sample = same_data or bool(record.items and ids.issuperset(record.items.ids))
        yield FieldCheck("sample", record.sample, is_sample, "its questions are those of the sample data")


@lru_cache(maxsize=64)
def _sample(task: str) -> tuple[Mapping[str, str], frozenset[str]]:
    """Digests of the splits and ids of the test questions of a built-in task's sample; empty for any other task.

    A plugin's sample may be the beginning of its real data, which only its author knows.
    """
    if plugins.origin("task", task) is not None:
        return {}, frozenset()
    try:
        source = find_source("sample", None)
        digests = {split: str(facts["digest"]) for split, facts in manifest(source, task).items()}
        return digests, frozenset(record.id for record in load_split(source, task, "test"))
    except UserError:
        return {}, frozenset()


def _setting(record: RunRecord, name: str) -> Any:
    """A setting by its dotted name; None where the record does not have it."""
    group, _, key = name.partition(".")
    return (record.config.get(group) or {}).get(key)


def _numbers(record: RunRecord) -> Iterator[FieldCheck]:
    """Settings that other checks count with."""
    for name in ("eval.limit", "data.train_limit", "data.max_context_words"):
        value = _setting(record, name)
        if value is not None and type(value) is not int:
            yield FieldCheck(f"config.{name}", value, "a whole number or null", "it is a count")


def _reference_baselines(record: RunRecord) -> Iterator[FieldCheck]:
    if record.kind == "reference_baseline":
        yield FieldCheck("training", record.training and "present", None, "a reference baseline was not trained")
    if record.expected_accuracy is not None:
        spec = record.student and record.student.spec
        yield FieldCheck("student", spec, None, "only the accuracy of a guess, which needs no model, is known exactly")
    if record.score is not None:
        yield FieldCheck(
            "test_evaluations",
            record.test_evaluations,
            max(record.test_evaluations, 1),
            "it was scored on the test split",
        )


def _sizes(record: RunRecord) -> Iterator[FieldCheck]:
    splits = record.data.splits
    yield from _limited(record.protocol["n"], "protocol.n", splits, "test", _setting(record, "eval.limit"))
    if record.data.n_train is not None:
        limit = _setting(record, "data.train_limit")
        yield from _limited(record.data.n_train, "data.n_train", splits, "train", limit)
    words = _setting(record, "data.max_context_words")
    if words is not None:
        own = record.protocol["max_context_words"]
        yield FieldCheck("protocol.max_context_words", own, words, "config.data.max_context_words")


def _limited(actual: int, field: str, splits: Mapping[str, SplitInfo], split: str, limit: Any) -> Iterator[FieldCheck]:
    """A number of questions follows from the rows of its split and the limit."""
    if split in splits and (limit is None or type(limit) is int):
        rows = splits[split].rows
        expected = rows if limit is None else min(rows, limit)
        reason = f"{rows} {split} rows" + ("" if limit is None else f" and a limit of {limit}")
        yield FieldCheck(field, actual, expected, reason)


def _budget(record: RunRecord) -> Iterator[FieldCheck]:
    budget = record.budget
    if budget is None or record.kind != "method":
        return
    settings = record.config.get("budget") or {}
    if budget.track is not None:
        amounts = [(name, amount) for name, amount in settings.items() if amount is not None]
        yield FieldCheck("budget.track and amount", [(budget.track, budget.amount)], amounts, "config.budget")
    limit = settings.get("student_tokens")
    yield FieldCheck("budget.student_tokens_limit", budget.student_tokens_limit, limit, "config.budget.student_tokens")
    targets = sum(budget.tokens_by_channel.values())
    if budget.target_tokens is not None and budget.tokens_by_channel:
        yield FieldCheck("budget.target_tokens", budget.target_tokens, targets, "the sum of budget.tokens_by_channel")
    if budget.tokens_per_second is not None and budget.train_seconds:
        speed = round(budget.student_tokens / budget.train_seconds, 2)
        yield FieldCheck("budget.tokens_per_second", budget.tokens_per_second, speed, "student_tokens / train_seconds")


def _costs(record: RunRecord) -> Iterator[FieldCheck]:
    costs = [info.cost for info in record.annotations if info.cost is not None]
    if not costs or record.budget is None:
        return
    for key in ("tokens_in", "tokens_out", "seconds"):
        total = sum(getattr(cost, key) for cost in costs)
        charged = getattr(record.budget, f"teacher_{key}")
        yield FieldCheck(f"budget.teacher_{key}", charged, total, "the sum over annotations")


def _training(record: RunRecord) -> Iterator[FieldCheck]:
    training, budget = record.training, record.budget
    if training is None or budget is None:
        return
    yield FieldCheck("training.steps", training.steps, budget.steps, "budget.steps")
    select = _setting(record, "train.select")
    if select is not None:
        yield FieldCheck("training.select", training.select, select, "config.train.select")
    if training.evaluations:
        selected = sum(evaluation.selected for evaluation in training.evaluations)
        yield FieldCheck(
            "training.evaluations", f"{selected} selected", "1 selected", "one evaluation chooses the student"
        )


def _score(record: RunRecord) -> Iterator[FieldCheck]:
    if record.score is None:
        return
    for key, share in record.secondary.items():
        if not key.startswith("accuracy"):
            continue
        count = share * record.score.n
        whole = abs(count - round(count)) < 1e-6 and 0 <= share <= 1
        yield FieldCheck(f"secondary.{key}", share, share if whole else round(count) / record.score.n, "a share of n")
    recorded = record.secondary.get("macro_f1")
    if record.gold and recorded is not None:
        answers = [[answer if isinstance(answer, int) else UNPARSED] for answer in record.items.answers]
        computed = macro_f1(record.gold, answers)
        expected = recorded if isclose(recorded, computed, rel_tol=1e-9) else computed
        yield FieldCheck("secondary.macro_f1", recorded, expected, "items and gold")
    if record.mode != "generate":
        yield FieldCheck("score.unparsed", record.score.unparsed, 0, "rankings always answer")
        yield FieldCheck("score.hit_token_limit", record.score.hit_token_limit, 0, "rankings generate no text")
