"""What a reasoning model thinks before it answers: which part of a text is no answer, in the usual forms of markup."""

import re
from typing import NamedTuple

_NAMES = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|reason|reflection|analysis|scratchpad|inner_monologue)"
_OPENS = (
    rf"<\s*{_NAMES}(?:\s[^<>]*)?>|\[\s*{_NAMES}\s*\]|<\|\s*(?:begin_of_thought|begin_of_thinking|{_NAMES})\s*\|>"
    r"|<\|channel\|>\s*(?:analysis|commentary)\b[^<]*(?:<\|message\|>)?"
    r"|\A\s*analysis(?=[A-Z])"  # Harmony's channels, once a server has left the special tokens out
)
_CLOSES = (
    rf"<\s*/\s*{_NAMES}\s*>|\[\s*/\s*{_NAMES}\s*\]|<\|\s*(?:end_of_thought|end_of_thinking|/{_NAMES})\s*\|>"
    r"|<\|channel\|>\s*final\b[^<]*(?:<\|message\|>)?|(?<=\S)assistantfinal(?=\S)"
)
_MARK = re.compile(rf"(?P<opens>{_OPENS})|(?P<closes>{_CLOSES})", re.IGNORECASE)
_HARMONY = re.compile(r"<\|(?:start|end|return|message)\|>(?:assistant)?", re.IGNORECASE)
_OPENED = re.compile(rf"({_OPENS})\s*\Z", re.IGNORECASE)


class Thought(NamedTuple):
    """A text without what was only thought. `unclosed`: a thought has no end, and what follows it is no answer."""

    text: str
    unclosed: bool


def without_thoughts(text: str) -> Thought:
    """The text outside of thoughts, in the order in which it stands.

    A closing mark that no other opened ends a thought that began with the text: chat templates write the opening mark
    into the prompt. A text without a mark is returned as it is.
    """
    kept: list[str] = []
    at, inside, marked = 0, False, False
    for mark in _MARK.finditer(text):
        marked = True
        if mark["opens"] is not None:
            if not inside:
                kept.append(text[at : mark.start()])
            inside = True
        else:
            if not inside:
                kept.clear()
            inside, at = False, mark.end()
    if not marked:
        return Thought(text, unclosed=False)
    rest = [] if inside else [text[at:]]
    parts = [part for piece in (*kept, *rest) if (part := _HARMONY.sub("", piece).strip())]
    return Thought("\n".join(parts), unclosed=inside)


def opened_thought(prompt: str) -> str:
    """The mark that a prompt ends with, so that the reply begins inside a thought; empty if there is none."""
    found = _OPENED.search(prompt)
    return found[1] if found else ""


def marks_thought(text: str) -> bool:
    """Whether a mark of a thought stands in a text."""
    return _MARK.search(text) is not None
