"""What must add up inside one run record, beyond what every load checks: needs nothing but the record."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import isclose
from pathlib import Path
from typing import Any, NamedTuple

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.sources import find_source, load_split, manifest
from tinyllm_bench.leaderboard.record import RunRecord
from tinyllm_bench.leaderboard.stats.averages import UNPARSED, macro_f1


class Claim(NamedTuple):
    """A field of a record with what it says and what the rest of the record makes of it."""

    field: str
    found: Any
    expected: Any
    because: str

    @property
    def text(self) -> str:
        """The claim in words, long values cut."""
        found, expected = (text if len(text := str(value)) <= 60 else f"{text[:57]}..." for value in self[1:3])
        return f"{self.field} is {found}; expected {expected} ({self.because})"

    @property
    def holds(self) -> bool:
        """Whether the two are the same."""
        return bool(self.found == self.expected)


def check_consistency(record: RunRecord, path: Path) -> None:
    """Do nothing for a record that adds up: `board add` and `board build` take no other, and `verify` accepts none.

    Raises:
        UserError: names the first claim that does not hold.
    """
    broken = broken_claims(record)
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(f"{path} does not add up: {broken[0].text}{more}; run the cell again instead of editing it")


def broken_claims(record: RunRecord) -> list[Claim]:
    """The claims of a record that its other fields contradict."""
    parts = (_names, _numbers, _reference_baselines, _sizes, _budget, _costs, _training, _score)
    return [claim for part in parts for claim in part(record) if not claim.holds]


def run_id_start(record: RunRecord) -> str:
    """What a run id begins with: method, task, mode and seed; the rest is a digest of all that made the run."""
    return f"{record.name.replace('/', '.')}-{record.task}-{record.mode}-s{record.seed}-"


def _names(record: RunRecord) -> Iterator[Claim]:
    start = run_id_start(record)
    because = "a run id begins with method, task, mode and seed"
    yield Claim("run_id", record.run_id, record.run_id if record.run_id.startswith(start) else f"{start}...", because)
    seeds = record.request.get("seeds")
    if record.kind == "method" and isinstance(seeds, int):
        yield Claim("seed", record.seed, record.seed if record.seed < seeds else f"less than {seeds}", "asked.seeds")
    other = next((one for one, _, _ in record.items if not one.startswith(f"{record.task}/test/")), None)
    yield Claim("items", other, None, f"all scored questions are of {record.task}'s test split")
    yield Claim("sample", record.sample, record.data.source == "sample", f"data.source is {record.data.source}")
    if _setting(record, "data.source") == "sample":
        yield Claim("sample", record.sample, True, "config.data.source is sample")
    if not record.sample and _asks_sample_questions(record):
        yield Claim("sample", record.sample, True, "its questions are those of the sample data")


def _asks_sample_questions(record: RunRecord) -> bool:
    """Whether the data or the scored questions are those that this project wrote as a sample."""
    digests, ids = _sample(record.task)
    told = {split: info.digest for split, info in record.data.splits.items()}
    same_data = any(told.get(split) == digest for split, digest in digests.items())
    return same_data or bool(record.items and ids.issuperset(record.items.ids))


@lru_cache(maxsize=64)
def _sample(task: str) -> tuple[Mapping[str, str], frozenset[str]]:
    """Digests of the splits and ids of the test questions of a built-in task's sample; empty for any other task.

    The sample of a task from a package may be the beginning of its real data, which only its author can tell.
    """
    if plugins.origin("task", task) is not None:
        return {}, frozenset()
    try:
        source = find_source("sample", None)
        facts = {split: str(found["digest"]) for split, found in manifest(source, task).items()}
        return facts, frozenset(record.id for record in load_split(source, task, "test"))
    except UserError:
        return {}, frozenset()


def _setting(record: RunRecord, name: str) -> Any:
    """A setting by its dotted name; None where it is not told."""
    group, _, key = name.partition(".")
    return (record.config.get(group) or {}).get(key)


def _numbers(record: RunRecord) -> Iterator[Claim]:
    """Settings that other claims count with."""
    for name in ("eval.limit", "data.train_limit", "data.max_context_words"):
        value = _setting(record, name)
        if value is not None and type(value) is not int:
            yield Claim(f"config.{name}", value, "a whole number or null", "it is a count")


def _reference_baselines(record: RunRecord) -> Iterator[Claim]:
    if record.kind == "reference_baseline":
        yield Claim("training", record.training and "told", None, "a reference baseline was not trained")
    if record.expected_accuracy is not None:
        asked = record.student and record.student.spec
        yield Claim("student", asked, None, "only of a guess, which asks no model, the accuracy is known exactly")
    if record.score is not None:
        yield Claim(
            "test_evaluations",
            record.test_evaluations,
            max(record.test_evaluations, 1),
            "it was scored on the test split",
        )


def _sizes(record: RunRecord) -> Iterator[Claim]:
    splits = record.data.splits
    yield from _limited(record.protocol["n"], "protocol.n", splits, "test", _setting(record, "eval.limit"))
    if record.data.n_train is not None:
        limit = _setting(record, "data.train_limit")
        yield from _limited(record.data.n_train, "data.n_train", splits, "train", limit)
    words = _setting(record, "data.max_context_words")
    if words is not None:
        found = record.protocol["max_context_words"]
        yield Claim("protocol.max_context_words", found, words, "config.data.max_context_words")


def _limited(found: int, field: str, splits: Any, split: str, limit: Any) -> Iterator[Claim]:
    if split in splits and (limit is None or type(limit) is int):
        rows = splits[split].rows
        expected = rows if limit is None else min(rows, limit)
        told = f"{rows} {split} rows" + ("" if limit is None else f" and a limit of {limit}")
        yield Claim(field, found, expected, told)


def _budget(record: RunRecord) -> Iterator[Claim]:
    budget = record.budget
    if budget is None or record.kind != "method":
        return
    settings = record.config.get("budget") or {}
    asked = settings.get("student_tokens")
    if budget.track is not None:
        told = [(name, amount) for name, amount in settings.items() if amount is not None]
        yield Claim("budget.track and amount", [(budget.track, budget.amount)], told, "config.budget")
    yield Claim("budget.student_tokens_limit", budget.student_tokens_limit, asked, "config.budget.student_tokens")
    targets = sum(budget.tokens_by_channel.values())
    if budget.target_tokens is not None and budget.tokens_by_channel:
        yield Claim("budget.target_tokens", budget.target_tokens, targets, "the sum of budget.tokens_by_channel")
    if budget.tokens_per_second is not None and budget.train_seconds:
        speed = round(budget.student_tokens / budget.train_seconds, 2)
        yield Claim("budget.tokens_per_second", budget.tokens_per_second, speed, "student_tokens / train_seconds")


def _costs(record: RunRecord) -> Iterator[Claim]:
    costs = [info.cost for info in record.annotations if info.cost is not None]
    if not costs or record.budget is None:
        return
    for key in ("tokens_in", "tokens_out", "seconds"):
        total = sum(getattr(cost, key) for cost in costs)
        yield Claim(
            f"budget.teacher_{key}", getattr(record.budget, f"teacher_{key}"), total, "the sum over annotations"
        )


def _training(record: RunRecord) -> Iterator[Claim]:
    training, budget = record.training, record.budget
    if training is None or budget is None:
        return
    yield Claim("training.steps", training.steps, budget.steps, "budget.steps")
    select = _setting(record, "train.select")
    if select is not None:
        yield Claim("training.select", training.select, select, "config.train.select")
    if training.evaluations:
        chosen = sum(one.selected for one in training.evaluations)
        yield Claim("training.evaluations", f"{chosen} selected", "1 selected", "one evaluation chooses the student")


def _score(record: RunRecord) -> Iterator[Claim]:
    if record.score is None:
        return
    for key, share in record.secondary.items():
        if not key.startswith("accuracy"):
            continue
        count = share * record.score.n
        whole = abs(count - round(count)) < 1e-6 and 0 <= share <= 1
        yield Claim(f"secondary.{key}", share, share if whole else round(count) / record.score.n, "a share of n")
    told = record.secondary.get("macro_f1")
    if record.gold and told is not None:
        given = [[answer if isinstance(answer, int) else UNPARSED] for _, answer, _ in record.items]
        own = macro_f1(record.gold, given)
        expected = told if isclose(told, own, rel_tol=1e-9) else own
        yield Claim("secondary.macro_f1", told, expected, "items and gold")
    if record.mode != "generate":
        yield Claim("score.unparsed", record.score.unparsed, 0, "rankings always answer")
        yield Claim("score.hit_token_limit", record.score.hit_token_limit, 0, "rankings write nothing")
