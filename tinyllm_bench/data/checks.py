"""The checks behind `data check` and `data info`: whether the release is complete, and facts of a task's data."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data import release
from tinyllm_bench.data.records import SPLITS, Recorded, Split, TaskInfo, TaskRecord
from tinyllm_bench.data.sources import Source, load_rationales, load_split
from tinyllm_bench.data.splits import shipped_facts


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCheck:
    """The result for one task. `rationales` and `programs` count texts that are not empty, per teacher and split.

    `absent` names the task's own file or folder if it is missing: such a task cannot be run, which is not an error.
    """

    task: str
    ok: bool
    counts: Mapping[Split, int] = field(default_factory=dict)
    rationales: Mapping[str, Mapping[Split, int]] = field(default_factory=dict)
    programs: Mapping[str, Mapping[Split, int]] = field(default_factory=dict)
    absent: str | None = None
    rebuilt: bool = False
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The result as a line: counts and digests, or the problems."""
        if not self.ok:
            return f"{self.task}: FAILED: {'; '.join(self.problems)}"
        if self.absent is not None:
            where = "neither inside the release folder nor beside it"
            return f"{self.task}: not present, and no other task needs it ({self.absent} is {where})"
        counts = " / ".join(f"{self.counts[split]}" for split in SPLITS)
        teachers = _teachers(self.rationales) or "none"
        programs = f"; programs: {_teachers(self.programs)}" if self.programs else ""
        rebuilt = "; train rebuilt from the rationale files" if self.rebuilt else ""
        return (
            f"{self.task}: {counts} rows (train / valid / test), digests ok; rationales: {teachers}{programs}{rebuilt}"
        )


def _teachers(texts: Mapping[str, Mapping[Split, int]]) -> str:
    return ", ".join(f"{key} {' / '.join(str(counts[split]) for split in SPLITS)}" for key, counts in texts.items())


def check_release(folder: str | Path, *, tasks: Iterable[str] | None = None) -> list[TaskCheck]:
    """One line a task (all of them by default): rows and digests of every split, texts of every teacher.

    By default a task whose own file is missing, and one that was never part of the release, is reported as absent;
    requested by name, it has a problem.

    A problem does not stop the check: every split and teacher is checked, and each problem is reported once.
    """
    source = Source("release", str(folder))
    load_split.cache_clear()  # the folder may have been repaired since
    if tasks is not None:
        return [_check_task(source, name) for name in tasks]
    lines = []
    for name in plugins.loadable_names("task"):
        info: TaskInfo = plugins.load_task(name)
        if release.has_task(Path(folder), info) or (info.file is None and name in shipped_facts()):
            lines.append(_check_task(source, name))
        else:
            lines.append(TaskCheck(task=name, ok=True, absent=name if info.file is None else info.file.path))
    return lines


def _check_task(source: Source, name: str) -> TaskCheck:
    info: TaskInfo = plugins.load_task(name)
    counts: dict[Split, int] = {}
    kinds: dict[Recorded, tuple[str, ...]] = {"rationale": info.rationale_keys, "program": info.program_keys}
    text_counts: dict[Recorded, dict[str, dict[Split, int]]] = {
        kind: {key: {} for key in keys} for kind, keys in kinds.items()
    }
    problems: list[str] = []
    for split in SPLITS:
        try:
            counts[split] = len(load_split(source, name, split))
            for kind, key in ((kind, key) for kind, keys in kinds.items() for key in keys):
                texts = load_rationales(source, name, split, key, kind=kind)
                text_counts[kind][key][split] = sum(map(bool, texts.values()))
        except UserError as error:
            problems.append(str(error))
    return TaskCheck(
        task=name,
        ok=not problems,
        counts=counts,
        rationales=text_counts["rationale"],
        programs=text_counts["program"],
        rebuilt=release.is_rebuilt(Path(source.folder or ""), info, "train"),
        problems=tuple(dict.fromkeys(problems)),
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
    majority_answer: int | str
    overlap: int
    overlap_share: float
    question_words: tuple[float, int]
    context_words: tuple[float, int]


def task_facts(source: Source, task: str) -> TaskFacts:
    """Licence, source, sizes, chance and majority level on test, leakage from train, and lengths (mean, longest).

    `majority_answer` is the option position, or the number, that is right most often in train; the chance level of a
    number is 0. `overlap` counts the test questions that are in train, too, compared by `question_key`.
    """
    info: TaskInfo = plugins.load_task(task)
    by_split = {split: load_split(source, task, split) for split in SPLITS}
    train, test = by_split["train"], by_split["test"]
    answer = most_frequent(record.gold_key for record in train)
    everything = [record for records in by_split.values() for record in records]
    shared = overlap(train, test)
    return TaskFacts(
        task=task,
        title=info.title,
        licence=info.licence,
        source=info.source,
        sizes={split: len(records) for split, records in by_split.items()},
        chance=chance_level(test),
        majority=fmean(record.gold_key == answer for record in test),
        majority_answer=answer,
        overlap=shared,
        overlap_share=shared / len(test),
        question_words=_lengths(record.question for record in everything),
        context_words=_lengths(record.context for record in everything),
    )


def most_frequent(keys: Iterable[int | str]) -> int | str:
    """The most frequent answer key; on a tie the lowest option position, or the smallest number."""
    counted = Counter(keys)
    return min(counted, key=lambda key: (-counted[key], float(key)))


def chance_level(records: Sequence[TaskRecord]) -> float:
    """Expected accuracy of a random guess: the mean of one over the number of options, and 0 for a number."""
    return fmean(1 / len(record.choices) if record.choices else 0.0 for record in records)


def _lengths(texts: Iterable[str]) -> tuple[float, int]:
    words = [len(text.split()) for text in texts]
    return fmean(words), max(words)


def question_key(record: TaskRecord) -> str:
    """A question without case, white space and punctuation: equal keys mean the same question."""
    return " ".join(re.findall(r"\w+", record.question.casefold()))


def clusters(records: Sequence[TaskRecord]) -> tuple[int, ...]:
    """A cluster number for each record: connected components of records that share their context or their question;
    empty if no two do."""
    number: dict[str, int] = {}
    members: list[int] = []
    for record in records:
        keys = [f"question {question_key(record)}", *([f"context {record.context}"] if record.context else [])]
        known = sorted({number[key] for key in keys if key in number})
        own = known[0] if known else len(members)
        if len(known) > 1:  # this record joins two clusters
            number = {key: own if value in known else value for key, value in number.items()}
            members = [own if value in known else value for value in members]
        number.update(dict.fromkeys(keys, own))
        members.append(own)
    order = {value: number for number, value in enumerate(dict.fromkeys(members))}
    return tuple(order[value] for value in members) if len(order) < len(members) else ()


def overlap(train: Sequence[TaskRecord], test: Sequence[TaskRecord]) -> int:
    """The number of test questions that are among the training questions."""
    known = {question_key(record) for record in train}
    return sum(question_key(record) in known for record in test)


def context_cut_share(records: Sequence[TaskRecord], max_words: int) -> float:
    """The share of records whose context is longer than `max_words` words and is cut."""
    return fmean(len(record.context.split()) > max_words for record in records) if records else 0.0


def context_words_cut_share(records: Sequence[TaskRecord], max_words: int) -> float:
    """The share of all context words that the cut at `max_words` drops."""
    words = [len(record.context.split()) for record in records]
    return sum(max(0, count - max_words) for count in words) / max(1, sum(words))
