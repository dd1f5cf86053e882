"""The scored items of a run as columns: a board holds millions, and runs of one protocol share their questions."""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, overload

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationInfo
from pydantic import ValidatorFunctionWrapHandler as OneByOne
from pydantic_core import CoreSchema, core_schema

from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import NUMBER_KEY

MOST_OPTIONS = 10_000
_KEY_LENGTH = 40
_Key = Annotated[str, Field(pattern=f"^{NUMBER_KEY}$", max_length=_KEY_LENGTH)]
Answer = int | str | None
Item = tuple[str, Answer, int]
_Id = Annotated[str, Field(min_length=1, max_length=500)]
_Option = Annotated[int, Field(ge=0, lt=MOST_OPTIONS)]
_Rows = tuple[tuple[_Id, _Option | _Key | None, Literal[0, 1]], ...]
_CHECKED: TypeAdapter[_Rows] = TypeAdapter(_Rows)


class Questions:
    """The ids of some questions in one order, with what is the same for all runs that were asked them.

    `digest` is of the ids as a set, `distinct` how many different ones they are.
    """

    __slots__ = ("digest", "distinct", "ids")

    def __init__(self, ids: tuple[str, ...]) -> None:
        self.ids = ids
        self.digest = digest(sorted(ids))
        self.distinct = len(set(ids))


@lru_cache(maxsize=256)
def questions(ids: tuple[str, ...]) -> Questions:
    """The same object for the same ids: thousands of runs of one protocol are asked them in the same order."""
    return Questions(ids)


class Items(Sequence[Item]):
    """A sequence of (question id, answer, 1 if right else 0), of one run.

    `answers` are numbers of options, keys of numbers, or None where none could be read; `marks` is a byte an item.
    """

    __slots__ = ("answers", "asked", "marks")

    def __init__(self, asked: Questions, answers: tuple[Answer, ...], marks: bytes) -> None:
        self.asked, self.answers, self.marks = asked, answers, marks

    @classmethod
    def of(cls, rows: Iterable[Item] = ()) -> Self:
        """The items in rows that are known to be right."""
        ids, answers, marks = tuple(zip(*rows, strict=True)) or ((), (), ())
        return cls(questions(ids), answers, bytes(marks))

    @property
    def ids(self) -> tuple[str, ...]:
        """The questions' ids."""
        return self.asked.ids

    def __len__(self) -> int:
        return len(self.marks)

    def __iter__(self) -> Iterator[Item]:
        return zip(self.ids, self.answers, self.marks, strict=True)

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> "Items": ...
    def __getitem__(self, place: int | slice) -> "Item | Items":
        if isinstance(place, slice):
            return Items.of(list(self)[place])
        return self.ids[place], self.answers[place], self.marks[place]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Items):
            return NotImplemented
        return (self.ids, self.answers, self.marks) == (other.ids, other.answers, other.marks)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Items.of({list(self)})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read from and written as a list of lists."""
        return core_schema.with_info_wrap_validator_function(
            _validated,
            handler.generate_schema(_Rows),
            serialization=core_schema.plain_serializer_function_ser_schema(tuple),
        )


def _validated(found: Any, one_by_one: OneByOne, info: ValidationInfo) -> Items:
    if isinstance(found, Items):
        return found
    if info.mode != "json":
        return Items.of(one_by_one(found))
    # Read strictly, a list that was JSON is no tuple any more; so it becomes JSON again.
    return Items.of(_CHECKED.validate_json(json.dumps(found), strict=True))
