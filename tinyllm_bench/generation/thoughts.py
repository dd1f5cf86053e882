"""The reasoning of a model before its answer: which part of a text is not the answer, in the usual forms of markup."""

import re
from typing import NamedTuple

_NAMES = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|reason|reflection|analysis|scratchpad|inner_monologue)"
_OPENS = (
    rf"<\s*{_NAMES}(?:\s[^<>]*)?>|\[\s*{_NAMES}\s*\]|<\|\s*(?:begin_of_thought|begin_of_thinking|{_NAMES})\s*\|>"
    r"|<\|channel\|>\s*(?:analysis|commentary)\b[^<]*(?:<\|message\|>)?"
    r"|\A\s*analysis(?=[A-Z])"  # Harmony's channels where a server has left the special tokens out
)
_CLOSES = (
    rf"<\s*/\s*{_NAMES}\s*>|\[\s*/\s*{_NAMES}\s*\]|<\|\s*(?:end_of_thought|end_of_thinking|/{_NAMES})\s*\|>"
    r"|<\|channel\|>\s*final\b[^<]*(?:<\|message\|>)?|(?<=\S)assistantfinal(?=\S)"
)
_MARK = re.compile(rf"(?P<opens>{_OPENS})|(?P<closes>{_CLOSES})", re.IGNORECASE)
_HARMONY = re.compile(r"<\|(?:start|end|return|message)\|>(?:assistant)?", re.IGNORECASE)
_OPENED = re.compile(rf"({_OPENS})\s*\Z", re.IGNORECASE)


class Thought(NamedTuple):
    """A text without its reasoning. `unclosed`: reasoning that has no end, so that no answer follows it."""

    text: str
    unclosed: bool


def without_thoughts(text: str) -> Thought:
    """The text outside of reasoning tags, in its order.

    A closing tag without an opening one ends reasoning that began with the text: chat templates put the opening tag
    into the prompt. A text without a tag is returned as it is.
    """
    outside: list[str] = []
    start, inside, marked = 0, False, False
    for mark in _MARK.finditer(text):
        marked = True
        if mark["opens"] is not None:
            if not inside:
                outside.append(text[start : mark.start()])
            inside = True
        else:
            if not inside:
                outside.clear()
            inside, start = False, mark.end()
    if not marked:
        return Thought(text, unclosed=False)
    rest = [] if inside else [text[start:]]
    parts = [part for piece in (*outside, *rest) if (part := _HARMONY.sub("", piece).strip())]
    return Thought("\n".join(parts), unclosed=inside)


def opened_thought(prompt: str) -> str:
    """The opening tag that a prompt ends with, so that the reply begins inside the reasoning; empty without one."""
    match = _OPENED.search(prompt)
    return match[1] if match else ""


def marks_thought(text: str) -> bool:
    """Whether a text holds a reasoning tag."""
    return _MARK.search(text) is not None
