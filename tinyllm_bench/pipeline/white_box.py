"""White-box teachers of a request: which one a method uses, whether it fits the student, and opening it."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.learn.method import Method
from tinyllm_bench.models.load import is_encoder_decoder, load_model, spec_folder
from tinyllm_bench.models.specs import ModelSpec, parse_spec
from tinyllm_bench.teach.opening import live_key

if TYPE_CHECKING:
    from tinyllm_bench.learn.signals import InMemoryTeacher
    from tinyllm_bench.pipeline.cells import Cell


def white_box(method: Method, named: str | None, teachers: Sequence[str]) -> ModelSpec:
    """The teacher whose distributions the method learns from: the one that is named, else the one of `teachers`.

    Raises:
        UserError: none is given, or the one that is used has no weights.
    """
    if named is not None:
        spec = parse_spec(named, role="teacher")
    else:
        specs = {_key(spec): spec for spec in (parse_spec(text, role="teacher") for text in teachers)}
        (key, *_) = method.uses(tuple(specs))
        spec = specs[key]
    if spec.kind in ("api", "replay"):
        raise UserError(
            f"teacher {spec.text} gives text only and this method learns from distributions;"
            " name a model with weights: teacher.model=bundled:NAME, hf:, dir: or gguf:"
        )
    return spec


def _key(spec: ModelSpec) -> str:
    return spec.fragment or spec.text if spec.kind == "replay" else live_key(spec)


def check_pair(student: str, teacher: ModelSpec, *, runs: Path) -> None:
    """Refuse a teacher that cannot read what the student reads, before any weights are loaded.

    What lies on this machine is compared; models of the hub are compared when they are loaded.

    Raises:
        UserError: another family, or another tokenizer.
    """
    from tinyllm_bench.models.vocabulary import same_tokenizer

    own = parse_spec(student, role="student")
    folders = [spec_folder(spec, runs=runs) for spec in (own, teacher)]
    if any(folder is None or not (folder / "config.json").is_file() for folder in folders):
        return
    if is_encoder_decoder(own, runs=runs) != is_encoder_decoder(teacher, runs=runs):
        raise UserError(f"teacher {teacher.text} and student {own.text}: one is an encoder-decoder, the other is not")
    if not same_tokenizer(*(_tokenizer(str(folder)) for folder in folders)):
        raise _other_tokenizer(own.text, teacher.text)


@lru_cache(maxsize=16)
def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def _other_tokenizer(student: str, teacher: str) -> UserError:
    return UserError(
        f"teacher {teacher} and student {student} have different tokenizers: a distribution over one vocabulary says"
        " nothing about the other; choose a teacher of the student's family, or a method that learns from texts"
    )


def open_white_box(cell: "Cell", tokenizer: Any, device: str) -> "InMemoryTeacher | None":
    """The cell's white-box teacher in memory; None for methods that need none.

    Raises:
        UserError: its tokenizer is not the student's, or its head is of a kind that is not known.
    """
    from tinyllm_bench.learn.signals import InMemoryTeacher
    from tinyllm_bench.models.lm import LM
    from tinyllm_bench.models.vocabulary import same_tokenizer

    if cell.signal is None:
        return None
    loaded = load_model(cell.signal, dtype=cell.config.teacher.dtype, device=device, runs=cell.runs)
    if not same_tokenizer(loaded.tokenizer, tokenizer):
        raise _other_tokenizer(cell.student.text, cell.signal.text)
    lm = LM(loaded.model)
    lm.check()
    return InMemoryTeacher(lm, vocabulary=len(tokenizer))
