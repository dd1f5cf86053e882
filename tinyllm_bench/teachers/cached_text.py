"""One kept text of a teacher: what was asked, what was answered, and the key that both are found by."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TypedDict, cast

from tinyllm_bench import __version__
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.files import digest
from tinyllm_bench.generation.requests import Completion, GenerationRequest
from tinyllm_bench.teachers.prompts import PROMPTS_VERSION


class Row(TypedDict):
    """One kept text and exactly what was asked for it.

    `seconds` is its share of the wall time; `joules` what was measured since the answer before it in the same batch,
    None where nothing was; `made` the versions of the prompts' words and of this package, and the date (UTC).
    """

    key: str
    prompt: str
    sampling: Mapping[str, Any]
    seed: int
    text: str
    tokens_in: int
    tokens_out: int
    finish: str
    seconds: float
    joules: float | None
    engine: str
    made: Mapping[str, Any]


_SHAPE: Mapping[str, Any] = {
    "key": str,
    "prompt": str,
    "sampling": dict,
    "seed": int,
    "text": str,
    "tokens_in": int,
    "tokens_out": int,
    "finish": str,
    "seconds": int | float,
    "joules": int | float | None,
    "engine": str,
    "made": dict,
}


def text_key(teacher: Mapping[str, Any], request: GenerationRequest) -> str:
    """The name of a text: SHA-256 (hex) of the teacher's identity, the prompt and how the text is sampled."""
    return _key(teacher, request.prompt, asdict(request.sampling), request.seed)


def _key(teacher: Mapping[str, Any], prompt: str, sampling: Mapping[str, Any], seed: int) -> str:
    return digest({"teacher": teacher, "prompt": prompt, "sampling": sampling, "seed": seed})


def make_row(key: str, request: GenerationRequest, answer: Completion, *, joules: float | None, engine: str) -> Row:
    """The row of an answer that has just come."""
    return Row(
        key=key,
        prompt=request.prompt,
        sampling={**asdict(request.sampling), "stop": list(request.sampling.stop)},
        seed=request.seed,
        text=_sound(answer.text),
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
        finish=answer.finish,
        seconds=answer.seconds,
        joules=joules,
        engine=engine,
        made={"date": today(), "prompts": PROMPTS_VERSION, "tinyllm_bench": __version__},
    )


def check_row(row: Any, teacher: Mapping[str, Any], where: str, *, fix: str) -> Row:
    """A row as it was read, once it is known to be whole and to belong under its key. `fix` is what the error advises.

    Raises:
        UserError: it is of another form, or its prompt, sampling or teacher are not those of its key.
    """
    if not isinstance(row, dict) or row.keys() != _SHAPE.keys():
        raise UserError(f"{where}: a row has not the fields of this version; {fix}")
    wrong = [n for n, kind in _SHAPE.items() if not isinstance(row[n], kind) or isinstance(row[n], bool)]
    if wrong or _key(teacher, row["prompt"], row["sampling"], row["seed"]) != row["key"]:
        why = f"its {wrong[0]} is of the wrong type" if wrong else "its key is not that of its teacher and prompt"
        raise UserError(f"{where}: row {str(row['key'])[:12]} was edited: {why}; {fix}")
    return cast(Row, row)


def differ(one: Row, other: Row) -> bool:
    """Whether two rows hold different texts; when and where they were written does not matter."""
    return (one["text"], one["finish"]) != (other["text"], other["finish"])


def today() -> str:
    """The date (UTC)."""
    return datetime.now(UTC).date().isoformat()


def _sound(text: str) -> str:
    """The text with half surrogate pairs replaced: a server's JSON may hold them, UTF-8 may not."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
