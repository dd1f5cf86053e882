"""The scored items of a run as columns: a board holds millions, and runs of one protocol share their questions."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Self, overload

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationInfo
from pydantic import ValidatorFunctionWrapHandler as OneByOne
from pydantic_core import CoreSchema, core_schema

from tinyllm_bench.base.files import digest
from tinyllm_bench.data.records import NUMBER_KEY

TAKEN = "items"  # what a validation's context calls items that were checked before
_KEY_LENGTH = 40
_Key = Annotated[str, Field(pattern=f"^{NUMBER_KEY}$", max_length=_KEY_LENGTH)]
Answer = int | str | None
Item = tuple[str, Answer, int]
_CHECKED: TypeAdapter[tuple[Item, ...]] = TypeAdapter(tuple[tuple[str, int | _Key | None, Literal[0, 1]], ...])


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

    def __init__(self, rows: Iterable[Item] = ()) -> None:
        ids, answers, marks = tuple(zip(*rows, strict=True)) or ((), (), ())
        self._set(ids, answers, bytes(marks))

    def _set(self, ids: tuple[str, ...], answers: tuple[Answer, ...], marks: bytes) -> Self:
        self.asked, self.answers, self.marks = questions(ids), answers, marks
        return self

    @classmethod
    def at_once(cls, rows: Any) -> Self | None:
        """The items in rows of exactly the right types, looked at column by column; None where any is not."""
        if (
            not isinstance(rows, list | tuple)
            or not {*map(type, rows)} <= {list, tuple}
            or not {*map(len, rows)} <= {3}
        ):
            return None
        ids, answers, marks = tuple(zip(*rows, strict=True)) or ((), (), ())
        texts = {one for one in answers if isinstance(one, str)} if str in (kinds := {*map(type, answers)}) else ()
        fits = (
            {*map(type, ids)} <= {str}
            and {*map(type, marks)} <= {int}
            and {*marks} <= {0, 1}
            and kinds <= {int, str, type(None)}
            and all(len(text) <= _KEY_LENGTH and re.fullmatch(NUMBER_KEY, text) for text in texts)
        )
        return cls.__new__(cls)._set(ids, answers, bytes(marks)) if fits else None

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
            return Items(list(self)[place])
        return self.ids[place], self.answers[place], self.marks[place]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Items):
            return NotImplemented
        return (self.ids, self.answers, self.marks) == (other.ids, other.answers, other.marks)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Items({list(self)})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Read from and written as a list of lists."""
        return core_schema.with_info_wrap_validator_function(
            _validated,
            handler(tuple[tuple[str, int | _Key | None, Literal[0, 1]], ...]),
            serialization=core_schema.plain_serializer_function_ser_schema(tuple),
        )


def _validated(found: Any, one_by_one: OneByOne, info: ValidationInfo) -> Items:
    """What fails together is looked at one by one, for the place and the reason."""
    if isinstance(found, Items):
        return found
    known = (info.context or {}).get(TAKEN) or Items.at_once(found)
    if known is not None:
        return known
    # Read strictly, a list is a tuple only as long as it is JSON.
    return Items(_CHECKED.validate_json(json.dumps(found), strict=True) if info.mode == "json" else one_by_one(found))
