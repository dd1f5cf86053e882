"""Which rationales are not worth imitating: small pure tests with a name, counted in the record.

Measured on the release (train splits): empty or "nan" texts in the LLaMA-2 part, texts of fewer than three words, and
texts
that run on into an invented question. The paper and its code train on all of them; `filters: [empty]` is that form.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from tinyllm_bench.base.errors import unknown_name

FILTERS_VERSION = 1  # raise it with every change of what a filter rejects: kept annotations are then made again
_TRIGGER = re.compile(r"^\s*let'?s think step by step[.:]?\s*", re.IGNORECASE)
_JUNK = re.compile(r"\bquestion\s*:|^\s*q:|answer choices|#\s*\d+\.|https?://|www\.", re.IGNORECASE | re.MULTILINE)


def body(text: str) -> str:
    """The rationale without the trigger sentence that the teacher's prompt ended with."""
    return _TRIGGER.sub("", text).strip()


def _empty(text: str) -> bool:
    return not body(text)


def _nan(text: str) -> bool:
    return body(text).lower() == "nan"


def _short(text: str) -> bool:
    return len(body(text).split()) < 3


def _prompt_junk(text: str) -> bool:
    return _JUNK.search(text) is not None


FILTERS: Mapping[str, Callable[[str], bool]] = {
    "empty": _empty,
    "nan": _nan,
    "short": _short,
    "prompt_junk": _prompt_junk,
}


def rejected_by(text: str, filters: Sequence[str]) -> str | None:
    """The first named filter that rejects a text, or None.

    Raises:
        UserError: a filter's name is unknown.
    """
    for name in filters:
        if name not in FILTERS:
            raise unknown_name("annotations.filters entry", name, FILTERS)
        if FILTERS[name](text):
            return name
    return None
