"""How good teachers' texts are, per teacher and task: length, flaws, own answers, agreement, cost, samples to read.

The same figures for recorded and for live teachers. Shares are counts out of counts, so that a reader sees both.

On the release's train splits the figures lie within one percentage point of those measured before this code was
written (tests/teachers/test_quality.py). The patterns behind two of the old figures were not kept:
`ends_on_punctuation` and `invented_question` are plain definitions that were searched for until they gave the old
shares on all five sets with a LLaMA-2 part, so that their agreement says that the same thing is counted, not that it
was counted twice.

words: white-space words of the text as recorded, the trigger "Let's think step by step." included.
under_five_words: fewer than five words after the trigger; empty texts and "nan" are among them.
ends_on_punctuation: the last character of the text as recorded, trigger included, is one of . ! ? " )
invented_question: "Question:", a hash before a number ("# 17"), "##" or a web address stands in the text. The filters
    `prompt_junk` and `follow_up` are not this figure: the one asks for "# 17." with its stop, the other also finds
    "Q.", a bare "Question" and lists of options, and no web address.
contains_gold: the gold answer's text occurs, both normalised, as a piece of text: the "no" in "known" counts, which
    makes it a weak figure where the answers are yes and no. A number must stand for itself: no "5" in "51" or "1/5".
Not compared: how often a text names a letter, since `own` counts what the teacher named, not a pattern.
"""

import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tinyllm_bench.answers.numbers import bare_number, numbers_in
from tinyllm_bench.answers.parser import normalised, read
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.data.records import Annotation, Split, TaskRecord
from tinyllm_bench.data.sources import Source, load_split, rationale_keys
from tinyllm_bench.teachers.filters import FILTERS, NEEDS, Candidate, body, candidates, check_names, rejected_by
from tinyllm_bench.teachers.quality_report import Accuracy, Agreement, Share, Shown, TeacherReport, Words
from tinyllm_bench.teachers.teacher import recorded_annotations

_INVENTED = re.compile(r"question:|#\s*\d|##|https?://|www\.", re.IGNORECASE)
_ENDS = (".", "!", "?", '"', ")")
SAMPLES = 3


def teacher_reports(
    annotations: Sequence[Annotation],
    records: Mapping[str, TaskRecord],
    filters: Sequence[str],
    *,
    prompts: Mapping[str, Mapping[str, str]] | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> list[TeacherReport]:
    """A report for every task and teacher, in the order in which they first occur.

    Args:
        annotations: What the teachers said.
        records: By id; all that the annotations speak of.
        filters: Those whose joint verdict is `kept` and `rejected`; `alone` judges with all there are.
        prompts: By teacher and record id, where they are known.
        samples: How many texts of each to show.
        seed: Which ones.

    Raises:
        UserError: a filter's name is unknown.
    """
    check_names(filters)
    groups: dict[str, dict[str, list[Annotation]]] = {}
    for one in annotations:
        groups.setdefault(records[one.record_id].task, {}).setdefault(one.teacher, []).append(one)
    found = []
    for teachers in groups.values():
        named = {teacher: _named(said, records) for teacher, said in teachers.items()}
        for teacher, said in teachers.items():
            seen = candidates(said, records, prompts=(prompts or {}).get(teacher))
            shown = _samples(said, seen, samples, f"{seed}/{teacher}")
            agreement = [_agreement(other, named[teacher], named[other]) for other in teachers if other != teacher]
            report = _report(said, seen, tuple(filters), tuple(shown))
            found.append(report.model_copy(update={"agreement": tuple(a for a in agreement if a.n)}))
    return found


def _report(
    said: Sequence[Annotation], seen: Sequence[Candidate], filters: tuple[str, ...], shown: tuple[Shown, ...]
) -> TeacherReport:
    def share(test: Callable[[Candidate], bool]) -> Share:
        return Share(count=sum(map(test, seen)), of=len(seen))

    records = [_record(candidate) for candidate in seen]
    reasons = Counter(rejected_by(candidate, filters) for candidate in seen)
    return TeacherReport(
        teacher=said[0].teacher,
        task=records[0].task,
        split=", ".join(dict.fromkeys(record.split for record in records)),
        gold_visible=said[0].gold_visible,
        n=len(said),
        words=_lengths([len(a.text.split()) for a in said]),
        under_five_words=share(lambda c: len(body(c.text).split()) < 5),
        empty_or_nan=share(lambda c: rejected_by(c, ("empty", "nan")) is not None),
        ends_on_punctuation=share(lambda c: c.text.rstrip().endswith(_ENDS)),
        invented_question=share(lambda c: _INVENTED.search(c.text) is not None),
        contains_gold=share(_contains_gold),
        gold_only=share(_gold_only),
        filters=filters,
        kept=Share(count=reasons[None], of=len(seen)),
        rejected={name: Share(count=reasons[name], of=len(seen)) for name in filters},
        alone={name: _alone(name, seen) for name in FILTERS},
        own=_own(said, records),
        tokens_in=_sum([a.tokens_in for a in said]),
        tokens_out=_sum([a.tokens_out for a in said]),
        seconds=_seconds(said),
        samples=shown,
    )


def _record(candidate: Candidate) -> TaskRecord:
    assert candidate.record is not None, "teacher_reports looked every record up"
    return candidate.record


def _contains_gold(candidate: Candidate) -> bool:
    record = _record(candidate)
    if not record.choices:
        return record.number in numbers_in(candidate.text)
    return normalised(record.gold_text) in normalised(candidate.text)


def _gold_only(candidate: Candidate) -> bool:
    record, text = _record(candidate), body(candidate.text)
    if not record.choices:
        return record.number in bare_number(text)
    return normalised(record.gold_text) == normalised(text)


def _lengths(words: Sequence[int]) -> Words:
    ranked = sorted(words)
    place = 0.95 * (len(ranked) - 1)
    low = math.floor(place)
    above = ranked[min(low + 1, len(ranked) - 1)]
    p95 = ranked[low] + (place - low) * (above - ranked[low])
    return Words(mean=statistics.fmean(ranked), median=statistics.median(ranked), p95=p95, max=ranked[-1])


def _alone(name: str, seen: Sequence[Candidate]) -> Share:
    judged = [c for c in seen if name not in NEEDS or getattr(c, NEEDS[name]) is not None]
    return Share(count=sum(map(FILTERS[name], judged)), of=len(judged))


def _sum(counts: Sequence[int | None]) -> int | None:
    told = [count for count in counts if count is not None]
    return sum(told) if told else None


def _seconds(said: Sequence[Annotation]) -> float | None:
    told = [a.seconds for a in said if a.seconds is not None]
    return round(math.fsum(told), 2) if told else None


def _position(answer: str, record: TaskRecord) -> int | str | None:
    if not record.choices:
        return read(answer, ()).key
    wanted = normalised(answer)
    return next((i for i, choice in enumerate(record.choices) if normalised(choice) == wanted), None)


def _own(said: Sequence[Annotation], records: Sequence[TaskRecord]) -> Accuracy | None:
    blind = [(a.answer, record) for a, record in zip(said, records, strict=True) if not a.gold_visible]
    if not blind:
        return None
    named = [(answer, record) for answer, record in blind if answer is not None]
    correct = sum(_position(answer, r) == _position(r.gold_text, r) for answer, r in named)
    low, high = _wilson(correct, len(named))
    return Accuracy(asked=len(blind), named=len(named), correct=correct, low=low, high=high)


def _wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval; everything is possible where nothing was named."""
    if n == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    found = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(found.low), float(found.high)


def _named(said: Sequence[Annotation], records: Mapping[str, TaskRecord]) -> dict[str, int | str]:
    """Record id to the position, or the number, of the teacher's own first answer."""
    found: dict[str, int | str] = {}
    for a in said:
        if a.sample == 0 and not a.gold_visible and a.answer is not None:
            position = _position(a.answer, records[a.record_id])
            if position is not None:
                found[a.record_id] = position
    return found


def _agreement(other: str, mine: Mapping[str, int | str], theirs: Mapping[str, int | str]) -> Agreement:
    pairs = [(mine[key], theirs[key]) for key in mine if key in theirs]
    return Agreement(other=other, n=len(pairs), agreed=sum(a == b for a, b in pairs), kappa=cohen_kappa(pairs))


def cohen_kappa(pairs: Sequence[tuple[int | str, int | str]]) -> float | None:
    """(observed - expected agreement) / (1 - expected), expected from both raters' own frequencies.

    J. Cohen, "A coefficient of agreement for nominal scales", 1960. None without pairs, or where both always gave
    the same one answer.
    """
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    by_chance = sum(first[answer] * second[answer] for answer in first)
    if by_chance == n * n:  # n = 0 too
        return None
    observed = sum(a == b for a, b in pairs)
    return (observed * n - by_chance) / (n * n - by_chance)


def _samples(said: Sequence[Annotation], seen: Sequence[Candidate], samples: int, seed: str) -> list[Shown]:
    pairs = list(zip(said, seen, strict=True))
    order = sorted(range(len(pairs)), key=lambda i: (said[i].record_id, said[i].sample))
    drawn = random.Random(seed).sample(order, min(samples, len(order)))
    return [_shown(*pairs[i]) for i in drawn]


def _shown(said: Annotation, candidate: Candidate) -> Shown:
    record = _record(candidate)
    return Shown(
        record_id=said.record_id,
        question=record.question,
        choices=record.choices,
        gold=record.gold_text,
        text=said.text,
        answer=said.answer,
        reasons=tuple(name for name, test in FILTERS.items() if test(candidate)),
    )


def replayed_reports(
    source: Source,
    tasks: Sequence[str],
    keys: Sequence[str] | None,
    filters: Sequence[str],
    *,
    split: Split = "train",
    samples: int = SAMPLES,
) -> list[TeacherReport]:
    """Reports on a source's recorded rationales; `keys` names the teachers, None takes all that a task has.

    Raises:
        UserError: no task has one of the keys, unknown filters or tasks, or files that do not line up.
    """
    held = {task: rationale_keys(source, task) for task in tasks}
    known = list(dict.fromkeys(key for found in held.values() for key in found))
    missing = [key for key in keys or () if key not in known]
    if missing or not known:
        asked = f"recorded teacher {missing[0]!r}" if missing else "recorded teachers"
        there = ", ".join(known) or "none; recorded rationales come with the release folder"
        raise UserError(f"no {asked} for {', '.join(tasks)} in data source {source.kind!r}; it has: {there}")
    reports = []
    for task, found in held.items():
        records = {record.id: record for record in load_split(source, task, split)}
        said = [
            a
            for key in found
            if keys is None or key in keys
            for a in recorded_annotations(source, list(records.values()), key)
        ]
        reports += teacher_reports(said, records, filters, samples=samples)
    return reports
