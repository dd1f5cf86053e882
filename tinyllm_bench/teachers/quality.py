"""The quality of teachers' texts, per teacher and task: length, flaws, own answers, agreement, cost, and sample texts.

The figures are the same for recorded and live teachers. Shares are counts out of counts, so that a reader sees both.

On the release's train splits the figures lie within one percentage point of those measured before this code was
written (tests/teachers/test_quality.py). Two of the old figures had no recorded patterns: `ends_on_punctuation` and
`invented_question` are plain definitions, chosen because they give the old shares on all five sets with a LLaMA-2 part;
their agreement says that the same thing is counted, not that it was measured twice.

words: white-space words of the text as recorded, the trigger "Let's think step by step." included.
under_five_words: fewer than five words after the trigger; empty texts and "nan" are among them.
ends_on_punctuation: the last character of the text as recorded, trigger included, is one of . ! ? " )
invented_question: the text holds "Question:", a hash before a number ("# 17"), "##" or a web address. The filters
    `prompt_junk` and `follow_up` are not this figure: the first needs "# 17." with its stop, the other also matches
    "Q.", a bare "Question" and lists of options, and no web address.
contains_gold: the gold answer's text occurs, both normalised, as a piece of text: the "no" in "known" counts, which
    makes it a weak figure where the answers are yes and no. A number must stand for itself: no "5" in "51" or "1/5".
Not compared: how often a text names a letter, since `own` counts the teacher's named answers, not a pattern.
"""

import math
import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, computed_field

from tinyllm_bench.answers.keys import normalised
from tinyllm_bench.answers.parser import bare_number, numbers_in, read
from tinyllm_bench.data.records import Annotation, TaskRecord
from tinyllm_bench.teachers.filters import FILTERS, NEEDS, FilterInput, body, check_names, filter_inputs, rejected_by

SAMPLES = 3
_INVENTED = re.compile(r"question:|#\s*\d|##|https?://|www\.", re.IGNORECASE)
_ENDS = (".", "!", "?", '"', ")")
_NOTHING = "-"


# --- the report ------------------------------------------------------------------------------------------------------


class _Figures(BaseModel):
    model_config = ConfigDict(frozen=True)


class Share(_Figures):
    """`count` out of `of`."""

    count: int
    of: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share(self) -> float | None:
        """Between 0 and 1; None where nothing could be judged."""
        return self.count / self.of if self.of else None


class Lengths(_Figures):
    """Lengths in white-space words."""

    mean: float
    median: float
    p95: float
    max: int


class Accuracy(_Figures):
    """Own answers of a teacher that did not see the gold: right ones among the named, with a 95 % Wilson interval.

    `texts` counts all its texts: the rest named no answer that could be read.
    """

    texts: int
    named: int
    correct: int
    low: float
    high: float


class TeacherAgreement(_Figures):
    """Agreement with another teacher where both named an answer of their own, in their first samples.

    `kappa` is Cohen's over the answers' positions among the choices; None where chance alone agrees always.
    """

    other: str
    n: int
    agreed: int
    kappa: float | None


class SampleText(_Figures):
    """One text to read, with every filter that would reject it."""

    record_id: str
    question: str
    choices: tuple[str, ...]
    gold: str
    text: str
    answer: str | None
    reasons: tuple[str, ...]


class TeacherReport(_Figures):
    """One teacher on one task. `alone`: each filter on its own; `rejected`: by the first of `filters` that acts.

    Tokens and `seconds` are sums, None where they were not measured. `own` is None for a teacher that saw the gold
    answer.
    """

    teacher: str
    task: str
    split: str
    gold_visible: bool
    n: int
    words: Lengths
    under_five_words: Share
    empty_or_nan: Share
    ends_on_punctuation: Share
    invented_question: Share
    contains_gold: Share
    gold_only: Share
    filters: tuple[str, ...]
    kept: Share
    rejected: dict[str, Share]
    alone: dict[str, Share]
    own: Accuracy | None
    agreement: tuple[TeacherAgreement, ...] = ()
    tokens_in: int | None
    tokens_out: int | None
    seconds: float | None
    samples: tuple[SampleText, ...]


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
        annotations: The teachers' texts.
        records: By id; all records of the annotations.
        filters: Those whose joint verdict is `kept` and `rejected`; `alone` uses all filters.
        prompts: By teacher and record id, where they are known.
        samples: How many texts of each to show.
        seed: Of the choice of samples.

    Raises:
        UserError: a filter's name is unknown.
    """
    check_names(filters)
    groups: dict[str, dict[str, list[Annotation]]] = {}
    for annotation in annotations:
        by_teacher = groups.setdefault(records[annotation.record_id].task, {})
        by_teacher.setdefault(annotation.teacher, []).append(annotation)
    reports = []
    for by_teacher in groups.values():
        answers = {teacher: _own_answers(texts, records) for teacher, texts in by_teacher.items()}
        for teacher, texts in by_teacher.items():
            judged = filter_inputs(texts, records, prompts=(prompts or {}).get(teacher))
            agreements = []
            for other in by_teacher:
                mine, theirs = answers[teacher], answers[other]
                pairs = [(mine[record_id], theirs[record_id]) for record_id in mine if record_id in theirs]
                if other != teacher and pairs:
                    agreed, kappa = sum(a == b for a, b in pairs), cohen_kappa(pairs)
                    agreements.append(TeacherAgreement(other=other, n=len(pairs), agreed=agreed, kappa=kappa))
            shown = _sample_texts(texts, judged, samples, f"{seed}/{teacher}")
            reports.append(_report(texts, judged, tuple(filters), tuple(agreements), tuple(shown)))
    return reports


def _report(
    annotations: Sequence[Annotation],
    judged: Sequence[FilterInput],
    filters: tuple[str, ...],
    agreement: tuple[TeacherAgreement, ...],
    samples: tuple[SampleText, ...],
) -> TeacherReport:
    def share(test: Callable[[FilterInput], bool], among: Sequence[FilterInput] = judged) -> Share:
        return Share(count=sum(map(test, among)), of=len(among))

    records = [_record(candidate) for candidate in judged]
    reasons = Counter(rejected_by(candidate, filters) for candidate in judged)
    alone = {}
    for name, test in FILTERS.items():
        able = [c for c in judged if name not in NEEDS or getattr(c, NEEDS[name]) is not None]
        alone[name] = share(test, able)
    tokens_in = [a.tokens_in for a in annotations if a.tokens_in is not None]
    tokens_out = [a.tokens_out for a in annotations if a.tokens_out is not None]
    seconds = [a.seconds for a in annotations if a.seconds is not None]
    return TeacherReport(
        teacher=annotations[0].teacher,
        task=records[0].task,
        split=", ".join(dict.fromkeys(record.split for record in records)),
        gold_visible=annotations[0].gold_visible,
        n=len(annotations),
        words=_lengths([len(a.text.split()) for a in annotations]),
        under_five_words=share(lambda c: len(body(c.text).split()) < 5),
        empty_or_nan=share(lambda c: rejected_by(c, ("empty", "nan")) is not None),
        ends_on_punctuation=share(lambda c: c.text.rstrip().endswith(_ENDS)),
        invented_question=share(lambda c: _INVENTED.search(c.text) is not None),
        contains_gold=share(_contains_gold),
        gold_only=share(_is_only_gold),
        filters=filters,
        kept=Share(count=reasons[None], of=len(judged)),
        rejected={name: Share(count=reasons[name], of=len(judged)) for name in filters},
        alone=alone,
        own=_own_accuracy(annotations, records),
        agreement=agreement,
        tokens_in=sum(tokens_in) if tokens_in else None,
        tokens_out=sum(tokens_out) if tokens_out else None,
        seconds=round(math.fsum(seconds), 2) if seconds else None,
        samples=samples,
    )


def _record(candidate: FilterInput) -> TaskRecord:
    assert candidate.record is not None, "teacher_reports looked every record up"
    return candidate.record


def _contains_gold(candidate: FilterInput) -> bool:
    record = _record(candidate)
    if not record.choices:
        return record.number in numbers_in(candidate.text)
    return normalised(record.gold_text) in normalised(candidate.text)


def _is_only_gold(candidate: FilterInput) -> bool:
    record, text = _record(candidate), body(candidate.text)
    if not record.choices:
        return record.number in bare_number(text)
    return normalised(record.gold_text) == normalised(text)


def _lengths(words: Sequence[int]) -> Lengths:
    ranked = sorted(words)
    place = 0.95 * (len(ranked) - 1)
    low = math.floor(place)
    above = ranked[min(low + 1, len(ranked) - 1)]
    p95 = ranked[low] + (place - low) * (above - ranked[low])
    return Lengths(mean=statistics.fmean(ranked), median=statistics.median(ranked), p95=p95, max=ranked[-1])


def _answer_key(answer: str, record: TaskRecord) -> int | str | None:
    """The position of an answer among the choices, or the number; None where it is neither."""
    if not record.choices:
        return read(answer, ()).key
    text = normalised(answer)
    return next((i for i, choice in enumerate(record.choices) if normalised(choice) == text), None)


def _own_accuracy(annotations: Sequence[Annotation], records: Sequence[TaskRecord]) -> Accuracy | None:
    """None for a teacher that saw the gold answer."""
    blind = [(a.answer, record) for a, record in zip(annotations, records, strict=True) if not a.gold_visible]
    if not blind:
        return None
    named = [(answer, record) for answer, record in blind if answer is not None]
    correct = sum(_answer_key(answer, r) == _answer_key(r.gold_text, r) for answer, r in named)
    low, high = 0.0, 1.0  # any accuracy is possible where nothing was named
    if named:
        from scipy.stats import binomtest

        interval = binomtest(correct, len(named)).proportion_ci(confidence_level=0.95, method="wilson")
        low, high = float(interval.low), float(interval.high)
    return Accuracy(texts=len(blind), named=len(named), correct=correct, low=low, high=high)


def _own_answers(annotations: Sequence[Annotation], records: Mapping[str, TaskRecord]) -> dict[str, int | str]:
    """Record id to the key of the teacher's own answer, in its first sample."""
    keys: dict[str, int | str] = {}
    for a in annotations:
        if a.sample == 0 and not a.gold_visible and a.answer is not None:
            key = _answer_key(a.answer, records[a.record_id])
            if key is not None:
                keys[a.record_id] = key
    return keys


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


def _sample_texts(
    annotations: Sequence[Annotation], judged: Sequence[FilterInput], samples: int, seed: str
) -> list[SampleText]:
    pairs = list(zip(annotations, judged, strict=True))
    order = sorted(range(len(pairs)), key=lambda i: (annotations[i].record_id, annotations[i].sample))
    chosen = []
    for i in random.Random(seed).sample(order, min(samples, len(order))):
        annotation, candidate = pairs[i]
        record = _record(candidate)
        chosen.append(
            SampleText(
                record_id=annotation.record_id,
                question=record.question,
                choices=record.choices,
                gold=record.gold_text,
                text=annotation.text,
                answer=annotation.answer,
                reasons=tuple(name for name, test in FILTERS.items() if test(candidate)),
            )
        )
    return chosen


# --- its tables ------------------------------------------------------------------------------------------------------


def by_task(reports: Sequence[TeacherReport]) -> dict[str, list[TeacherReport]]:
    """The reports of each task, in the order given."""
    tasks: dict[str, list[TeacherReport]] = {}
    for report in reports:
        tasks.setdefault(report.task, []).append(report)
    return tasks


def figure_rows(reports: Sequence[TeacherReport]) -> list[list[str]]:
    """Lengths, flaws, own accuracy and cost of one task's teachers: rows of a label and a cell for each teacher."""

    def row(label: str, cell: Callable[[TeacherReport], str]) -> list[str]:
        return [label, *map(cell, reports)]

    def count(value: float | None) -> str:
        return _NOTHING if value is None else f"{value:,.0f}"

    rows = [
        row("texts", lambda r: f"{r.n:,}"),
        row("words: mean", lambda r: f"{r.words.mean:.1f}"),
        row("words: median", lambda r: f"{r.words.median:g}"),
        row("words: 95th percentile", lambda r: f"{r.words.p95:.0f}"),
        row("words: most", lambda r: f"{r.words.max:,}"),
        row("kept by the filters in use", lambda r: _share_text(r.kept)),
        row("under five words", lambda r: _share_text(r.under_five_words)),
        row("empty or nan", lambda r: _share_text(r.empty_or_nan)),
        row("ends on punctuation", lambda r: _share_text(r.ends_on_punctuation)),
        row("invented question", lambda r: _share_text(r.invented_question)),
        row("contains the gold text", lambda r: _share_text(r.contains_gold)),
        row("is only the gold text", lambda r: _share_text(r.gold_only)),
        row("own accuracy", _own_text),
    ]
    costs = [
        row("tokens in", lambda r: count(r.tokens_in)),
        row("tokens out", lambda r: count(r.tokens_out)),
        row("seconds", lambda r: count(r.seconds)),
    ]
    return rows + [cost for cost in costs if any(cell != _NOTHING for cell in cost[1:])]


def filter_rows(reports: Sequence[TeacherReport]) -> list[list[str]]:
    """The share that each filter would reject on its own, in such rows."""
    return [[name, *(_share_text(r.alone[name]) for r in reports)] for name in reports[0].alone]


def _share_text(share: Share) -> str:
    """A share in per cent with its count."""
    return _NOTHING if share.share is None else f"{100 * share.share:.1f} % ({share.count:,})"


def _own_text(report: TeacherReport) -> str:
    """Own accuracy with its interval, and how many texts named no answer."""
    if report.own is None:
        return "saw the gold"
    own = report.own
    unread = f", {own.texts - own.named:,} unread" if own.texts > own.named else ""
    if not own.named:
        return f"{_NOTHING}{unread}"
    interval = f"{100 * own.low:.1f} to {100 * own.high:.1f}"
    return f"{100 * own.correct / own.named:.1f} % of {own.named:,} ({interval}){unread}"


def agreement_lines(reports: Sequence[TeacherReport]) -> list[str]:
    """Each pair of teachers once, in words."""
    lines, done = [], set()
    for report in reports:
        for pair in report.agreement:
            if (pair.other, report.teacher) in done:
                continue
            done.add((report.teacher, pair.other))
            kappa = "not defined" if pair.kappa is None else f"{pair.kappa:.2f}"
            lines.append(f"{report.teacher} and {pair.other}: {pair.agreed:,} of {pair.n:,} alike, kappa {kappa}")
    return lines
