"""Demonstrations: which solved questions of the training split are shown in front of a question.

The paper picks two at random from the same data set; whether they carry a rationale it does not say. Here that is a
setting. The choice depends on the settings, the pool and the record's id alone, never on the order of work.
"""

import difflib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tinyllm_bench.answers.keys import normalised
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.teachers.filters import body

Select = Literal["random", "fixed", "nearest", "stratified"]
SHOTS_VERSION = 1  # raise it with every change of which demonstrations are chosen

_IsNew = Callable[[TaskRecord], bool]


class Demonstration(NamedTuple):
    """A question that is shown with its answer, and with a rationale where there is one."""

    record: TaskRecord
    rationale: str | None


class ShotConfig(BaseModel):
    """Which examples are shown.

    select: `random` (the paper), `fixed` (the same for every question), `nearest` (BM25 over question and options, the
    nearest one last), `stratified` (random, with the answers spread evenly). rationales: recorded texts that they
    carry, such as replay:sample#stepwise; null for answers alone. ids: for `fixed`, in this order; more than `shots`
    are spare ones for the questions that are themselves among them, then the pool's first; empty for the pool's first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    select: Select = "random"
    shots: int = Field(2, ge=0, le=1000)
    rationales: str | None = None
    seed: int = Field(0, ge=0, lt=2**32)
    ids: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_ids(self) -> Self:
        if self.ids and self.select != "fixed":
            raise ValueError(f"ids are for select=fixed, not for select={self.select}; drop one of them")
        if self.ids and len(set(self.ids)) < max(self.shots, len(self.ids)):
            raise ValueError(f"ids must name different records, at least {self.shots} of them (shots), or none")
        return self


class ShotSelector:
    """Chooses the demonstrations for a record: never the record itself, nor one with the same question.

    `texts` are rationales by record id; with them, only records that have one are shown.

    Raises:
        UserError: too few different questions to choose from, or an id that is not among them.
    """

    def __init__(self, config: ShotConfig, pool: Sequence[TaskRecord], texts: Mapping[str, str] | None) -> None:
        self.config = config
        self._texts = texts
        if texts is None:
            self._pool = tuple(pool)
        else:
            self._pool = tuple(record for record in pool if body(texts.get(record.id, "")).lower() not in ("", "nan"))
        if config.shots:
            self._check_size(len(pool))
            known = {record.id: None for record in self._pool}  # in the pool's order
            for name in config.ids:
                if name not in known:
                    raise _unknown_id(name, list(known))

    def _check_size(self, given: int) -> None:
        different: set[str] = set()
        for record in self._pool:
            different.add(normalised(record.question))
            if len(different) > self.config.shots:
                return
        of = f" with a usable rationale, of {given} records" if self._texts is not None else ""
        raise UserError(
            f"annotations.demonstrations.shots={self.config.shots}: the training data hold {len(different)} different"
            f" questions{of}, and one more than the shots is needed; use at most {max(len(different) - 1, 0)} shots"
        )

    def select(self, record: TaskRecord) -> tuple[Demonstration, ...]:
        """The demonstrations for a record, in order.

        Raises:
            UserError: not enough of the pool is left for this record.
        """
        if not self.config.shots:
            return ()
        rng = random.Random(f"{self.config.seed}/{record.id}")
        chosen = list(islice(self._candidates(record, rng), self.config.shots))
        if len(chosen) < self.config.shots:
            raise UserError(f"{record.id}: only {len(chosen)} other questions are left to show; lower the shots")
        if self.config.select == "stratified":
            rng.shuffle(chosen)  # else the order of answers would repeat itself
        elif self.config.select == "nearest":
            chosen.reverse()
        return tuple(Demonstration(r, None if self._texts is None else body(self._texts[r.id])) for r in chosen)

    def _candidates(self, record: TaskRecord, rng: random.Random) -> Iterator[TaskRecord]:
        """The records that may be shown with this one, the preferred ones first."""
        is_new = _new_questions(record)
        match self.config.select:
            case "stratified":
                return _round_robin(self._strata, is_new, rng)
            case "random":
                return filter(is_new, _shuffled(self._pool, rng))
            case "fixed":
                by_id = self._pool_by_id
                return filter(is_new, chain((by_id[name] for name in self.config.ids), self._pool))
            case "nearest":
                return filter(is_new, (self._pool[i] for i in self._index.nearest(_indexed_text(record))))

    @cached_property
    def _pool_by_id(self) -> Mapping[str, TaskRecord]:
        return {record.id: record for record in self._pool}

    @cached_property
    def _index(self) -> "_Index":
        return _Index([_indexed_text(record) for record in self._pool])

    @cached_property
    def _strata(self) -> tuple[tuple[TaskRecord, ...], ...]:
        """The pool by answer: its text where all records have the same choices (or none), else its position."""
        closed = len({tuple(sorted(map(normalised, record.choices))) for record in self._pool}) == 1
        groups: dict[Any, list[TaskRecord]] = {}
        for record in self._pool:
            groups.setdefault(normalised(record.gold_text) if closed else record.answer, []).append(record)
        return tuple(tuple(groups[key]) for key in sorted(groups))

    @cached_property
    def digest(self) -> str:
        """Digest of all that the chosen demonstrations depend on."""
        if not self.config.shots:
            return digest([SHOTS_VERSION, 0])
        pool = [[r.id, r.question, r.choices, r.gold_key, r.context] for r in self._pool]
        texts = None if self._texts is None else [self._texts[record.id] for record in self._pool]
        return digest([SHOTS_VERSION, self.config.model_dump(mode="json", exclude={"rationales"}), pool, texts])


def _unknown_id(name: str, known: Sequence[str]) -> UserError:
    """Names the nearest of the known ids, not all: a pool has thousands."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"unknown annotations.demonstrations.ids entry {name!r}.{hint}"
        f" There are {len(known)} training records to choose from, such as {known[0]!r}."
    )


def _new_questions(record: TaskRecord) -> _IsNew:
    """A test whether a candidate may be shown with this record; true once for each question."""
    seen = {normalised(record.question)}

    def is_new(candidate: TaskRecord) -> bool:
        question = normalised(candidate.question)
        new = candidate.id != record.id and question not in seen
        seen.add(question)
        return new

    return is_new


def _shuffled(records: Sequence[TaskRecord], rng: random.Random) -> Iterator[TaskRecord]:
    """The records in random order, shuffled as far as they are read: a pool is large and few are used."""
    moved: dict[int, int] = {}
    for i in range(len(records)):
        j = rng.randrange(i, len(records))
        yield records[moved.get(j, j)]
        moved[j] = moved.get(i, i)


def _round_robin(groups: Sequence[Sequence[TaskRecord]], is_new: _IsNew, rng: random.Random) -> Iterator[TaskRecord]:
    """One new record of each group in turn, until all are empty; the order of the groups is random."""
    waiting = [filter(is_new, _shuffled(group, rng)) for group in groups]
    rng.shuffle(waiting)
    while waiting:
        left = []
        for group in waiting:
            record = next(group, None)
            if record is not None:
                left.append(group)
                yield record
        waiting = left


def _indexed_text(record: TaskRecord) -> str:
    """The text whose similarity counts: a passage would drown the question."""
    return "\n".join([record.question, *record.choices])


class _Index:
    """A BM25 index over the pool."""

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self._bm25 = bm25s.BM25(backend="numpy")
        self._bm25.index(_tokens(texts), show_progress=False)
        self._size = len(texts)

    def nearest(self, text: str) -> list[int]:
        """Positions by falling score; equal scores in the pool's order."""
        import numpy as np

        known = self._bm25.get_tokens_ids([token for token in _tokens([text])[0] if token])
        if not known:
            return list(range(self._size))
        scores = self._bm25.get_scores_from_ids(known)
        return [int(i) for i in np.argsort(-scores, kind="stable")]


def _tokens(texts: Sequence[str]) -> list[list[str]]:
    """Words, numbers and single letters too; a text without any is one empty token, which the index needs."""
    import bm25s

    tokens: list[list[str]] = bm25s.tokenize(
        list(texts), token_pattern=r"\w+", stopwords=None, allow_empty=False, return_ids=False, show_progress=False
    )
    return tokens
