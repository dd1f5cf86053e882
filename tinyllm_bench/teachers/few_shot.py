"""In-context examples: which solved questions of the training split stand in front of the one that is asked.

The paper picks two at random from the same data set; whether they carry a rationale it does not say. Here that is a
setting. What is chosen depends on the settings, the pool and the record's id alone, never on the order of work.
"""

import difflib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tinyllm_bench.answers.parser import normalised
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import TaskRecord
from tinyllm_bench.teachers.filters import body
from tinyllm_bench.teachers.prompts import Demonstration

Select = Literal["random", "fixed", "nearest", "stratified"]
Fresh = Callable[[TaskRecord], bool]
SHOTS_VERSION = 1  # raise it with every change of which examples are chosen


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
    def _ids_fit(self) -> Self:
        if self.ids and self.select != "fixed":
            raise ValueError(f"ids are for select=fixed, not for select={self.select}; drop one of them")
        if self.ids and len(set(self.ids)) < max(self.shots, len(self.ids)):
            raise ValueError(f"ids must name different records, at least {self.shots} of them (shots), or none")
        return self


class Shots:
    """Chooses the examples for a record: never the record itself, nor one that asks the same.

    `texts` are rationales by record id; with them, only records that have one are shown.

    Raises:
        UserError: too few different questions to choose from, or an id that is not among them.
    """

    def __init__(self, config: ShotConfig, pool: Sequence[TaskRecord], texts: Mapping[str, str] | None) -> None:
        self.config = config
        self._texts = texts
        self._pool = tuple(pool) if texts is None else tuple(r for r in pool if _usable(texts.get(r.id, "")))
        if config.shots:
            self._check_size(len(pool))
            self._check_ids()

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

    def _check_ids(self) -> None:
        known = {record.id: None for record in self._pool}  # in the pool's order
        for name in self.config.ids:
            if name not in known:
                raise _unknown_id(name, list(known))

    def of(self, record: TaskRecord) -> tuple[Demonstration, ...]:
        """The examples to show in front of a record, in order.

        Raises:
            UserError: not enough of the pool is left for this record.
        """
        if not self.config.shots:
            return ()
        rng = random.Random(f"{self.config.seed}/{record.id}")
        chosen = list(islice(self._order(record, _fresh_for(record), rng), self.config.shots))
        if len(chosen) < self.config.shots:
            raise UserError(f"{record.id}: only {len(chosen)} other questions are left to show; lower the shots")
        if self.config.select == "stratified":
            rng.shuffle(chosen)  # else the order of answers would repeat itself
        elif self.config.select == "nearest":
            chosen.reverse()
        return tuple(Demonstration(one, None if self._texts is None else body(self._texts[one.id])) for one in chosen)

    def _order(self, record: TaskRecord, fresh: Fresh, rng: random.Random) -> Iterator[TaskRecord]:
        if self.config.select == "stratified":
            return _in_turn(self._strata, fresh, rng)
        orders: dict[Select, Callable[[], Iterable[TaskRecord]]] = {
            "random": lambda: _shuffled(self._pool, rng),
            "fixed": lambda: chain(self._named, self._pool),
            "nearest": lambda: (self._pool[i] for i in self._index.nearest(_words(record))),
        }
        return filter(fresh, orders[self.config.select]())

    @cached_property
    def _named(self) -> tuple[TaskRecord, ...]:
        by_id = {record.id: record for record in self._pool}
        return tuple(by_id[name] for name in self.config.ids)

    @cached_property
    def _index(self) -> "_Index":
        return _Index([_words(record) for record in self._pool])

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
        """What the chosen examples and their words depend on."""
        if not self.config.shots:
            return digest([SHOTS_VERSION, 0])
        pool = [[r.id, r.question, r.choices, r.gold_key, r.context] for r in self._pool]
        texts = None if self._texts is None else [self._texts[record.id] for record in self._pool]
        return digest([SHOTS_VERSION, self.config.model_dump(mode="json", exclude={"rationales"}), pool, texts])


class _Index:
    """BM25 over the pool, made when it is first asked."""

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

    found: list[list[str]] = bm25s.tokenize(
        list(texts), token_pattern=r"\w+", stopwords=None, allow_empty=False, return_ids=False, show_progress=False
    )
    return found


def _words(record: TaskRecord) -> str:
    """What likeness is measured on: a passage would drown the question."""
    return "\n".join([record.question, *record.choices])


def _usable(text: str) -> bool:
    return body(text).lower() not in ("", "nan")


def _shuffled(records: Sequence[TaskRecord], rng: random.Random) -> Iterator[TaskRecord]:
    """The records in random order, each picked when it is asked for: a pool is large and few are wanted."""
    moved: dict[int, int] = {}
    for i in range(len(records)):
        j = rng.randrange(i, len(records))
        yield records[moved.get(j, j)]
        moved[j] = moved.get(i, i)


def _fresh_for(record: TaskRecord) -> Fresh:
    """Whether a record may be shown in front of this one; true once for each question."""
    seen = {normalised(record.question)}

    def fresh(one: TaskRecord) -> bool:
        question = normalised(one.question)
        new = one.id != record.id and question not in seen
        seen.add(question)
        return new

    return fresh


def _in_turn(groups: Sequence[Sequence[TaskRecord]], fresh: Fresh, rng: random.Random) -> Iterator[TaskRecord]:
    """One fresh record of each group in turn, until all are empty; the order of the groups is random."""
    waiting = [filter(fresh, _shuffled(group, rng)) for group in groups]
    rng.shuffle(waiting)
    while waiting:
        left = []
        for group in waiting:
            one = next(group, None)
            if one is not None:
                left.append(group)
                yield one
        waiting = left


def _unknown_id(name: str, known: Sequence[str]) -> UserError:
    """Names the nearest of the known ids, not all: a pool has thousands."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"unknown annotations.demonstrations.ids entry {name!r}.{hint}"
        f" There are {len(known)} training records to choose from, such as {known[0]!r}."
    )
