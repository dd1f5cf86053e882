"""What `data check` and `data info` say: is the release whole, and what does a task's data look like."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data import release
from tinyllm_bench.data.records import SPLITS, Split, TaskInfo, TaskRecord
from tinyllm_bench.data.sources import Source, load_rationales, load_split


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """What was found of one task. `rationales` counts the texts that are not empty, per teacher and split."""

    task: str
    ok: bool
    counts: Mapping[Split, int] = field(default_factory=dict)
    rationales: Mapping[str, Mapping[Split, int]] = field(default_factory=dict)
    rebuilt: bool = False
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The line for people: counts and digests where all is well, the problems otherwise."""
        if not self.ok:
            return f"{self.task}: FAILED: {'; '.join(self.problems)}"
        counts = " / ".join(f"{self.counts[split]}" for split in SPLITS)
        teachers = ", ".join(
            f"{key} {' / '.join(str(found[split]) for split in SPLITS)}" for key, found in self.rationales.items()
        )
        rebuilt = "; train rebuilt from the rationale files" if self.rebuilt else ""
        return (
            f"{self.task}: {counts} rows (train / valid / test), digests ok; rationales: {teachers or 'none'}{rebuilt}"
        )


def check_release(folder: str | Path, *, tasks: Iterable[str] | None = None) -> list[CheckLine]:
    """One line a task (all of them by default): rows and digests of every split, rationales of every teacher.

    A problem does not stop the check: every split and teacher is looked at, and each problem is reported once.
    """
    source = Source("release", str(folder))
    load_split.cache_clear()  # the folder may have been repaired since the last look
    return [_check_task(source, name) for name in (plugins.names("task") if tasks is None else tasks)]


def _check_task(source: Source, name: str) -> CheckLine:
    info: TaskInfo = plugins.load_task(name)
    counts: dict[Split, int] = {}
    rationales: dict[str, dict[Split, int]] = {key: {} for key in info.rationale_keys}
    problems: list[str] = []
    for split in SPLITS:
        try:
            counts[split] = len(load_split(source, name, split))
            for key in info.rationale_keys:
                texts = load_rationales(source, name, split, key)
                rationales[key][split] = sum(bool(text) for text in texts.values())
        except UserError as error:
            problems.append(str(error))
    return CheckLine(
        task=name,
        ok=not problems,
        counts=counts,
        rationales=rationales,
        rebuilt=release.is_rebuilt(Path(source.folder or ""), info, "train"),
        problems=tuple(problems),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """Facts of one task's data for `data info`; levels and shares are between 0 and 1, lengths in words."""

    task: str
    title: str
    licence: str
    source: str
    sizes: Mapping[Split, int]
    chance: float
    majority: float
    majority_answer: int
    overlap: int
    overlap_share: float
    question_words: tuple[float, int]
    context_words: tuple[float, int]


def task_facts(source: Source, task: str) -> TaskFacts:
    """Licence, source, sizes, chance and majority level on test, leakage from train, and lengths (mean, longest).

    `majority_answer` is the option position that is right most often in train; `overlap` counts the test questions that
    stand in train too, with `question_key` as the measure.
    """
    info: TaskInfo = plugins.load_task(task)
    by_split = {split: load_split(source, task, split) for split in SPLITS}
    train, test = by_split["train"], by_split["test"]
    counted = Counter(record.answer for record in train)
    answer = min(counted, key=lambda position: (-counted[position], position))
    everything = [record for records in by_split.values() for record in records]
    shared = overlap(train, test)
    return TaskFacts(
        task=task,
        title=info.title,
        licence=info.licence,
        source=info.source,
        sizes={split: len(records) for split, records in by_split.items()},
        chance=fmean(1 / len(record.choices) for record in test),
        majority=fmean(record.answer == answer for record in test),
        majority_answer=answer,
        overlap=shared,
        overlap_share=shared / len(test),
        question_words=_lengths(record.question for record in everything),
        context_words=_lengths(record.context for record in everything),
    )


def _lengths(texts: Iterable[str]) -> tuple[float, int]:
    words = [len(text.split()) for text in texts]
    return fmean(words), max(words)


def question_key(record: TaskRecord) -> str:
    """A question without case, white space and punctuation: equal keys are the same question."""
    return " ".join(re.findall(r"\w+", record.question.casefold()))


def overlap(seen: Sequence[TaskRecord], asked: Sequence[TaskRecord]) -> int:
    """How many of the asked questions stand among the seen ones."""
    known = {question_key(record) for record in seen}
    return sum(question_key(record) in known for record in asked)


def context_cut_share(records: Sequence[TaskRecord], max_words: int) -> float:
    """The share of records whose context is longer than `max_words` white-space words and is cut."""
    return fmean(len(record.context.split()) > max_words for record in records) if records else 0.0


def context_words_cut_share(records: Sequence[TaskRecord], max_words: int) -> float:
    """The share of all context words that the cut at `max_words` drops."""
    words = [len(record.context.split()) for record in records]
    return sum(max(0, count - max_words) for count in words) / max(1, sum(words))
