"""Escaping of untrusted text (from records, models, teachers), one function for each output format.

Text on a page, in a table or on a terminal may come from anyone. Every renderer calls the function of its format; that
of LaTeX is `leaderboard.latex.latex`.
"""

import json
import re
from typing import Any

# Controls (C0, DEL, C1), zero-width and direction characters, line and paragraph separators, tags, surrogates.
_UNSEEN = (
    "\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U000e0000-\U000e0fff\ud800-\udfff"
)
_HIDDEN = re.compile(f"[{_UNSEEN}]")
_HIDDEN_BUT_NEWLINES = re.compile(f"(?!\n)[{_UNSEEN}]")


def _code(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]  # \n, \t, \u001b: also the escape of JSON itself


def visible(text: str) -> str:
    """One line in which characters that are invisible or control a terminal are escaped as in JSON."""
    return _HIDDEN.sub(_code, text)


def terminal(text: str) -> str:
    """Lines for a terminal or a text file: `visible` except for newlines. A JSON text remains the same JSON."""
    return _HIDDEN_BUT_NEWLINES.sub(_code, text)


def all_visible(value: Any) -> Any:
    """`visible` of every text, keys too, in nested dicts, lists and tuples; other values are unchanged."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {all_visible(key): all_visible(inner) for key, inner in value.items()}
    return [all_visible(inner) for inner in value] if isinstance(value, list | tuple) else value


class Markdown(str):
    """A text that is Markdown already; templates insert it unescaped."""

    __slots__ = ()


_MARKS = re.compile(r"[\\`*_\[\]<>|~$]|&(?=#?\w+;)")
# What would be a heading, a list or a rule at the start of a line.
_BEGINS_BLOCK = re.compile(r"^(?:#{1,6}(?=\s|$)|[-+](?=\s)|[-=+#]{2,})")
_BEGINS_LIST = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")
# What GitHub links automatically.
_LINKS = re.compile(r"(?i)(?<![a-z])(?:(?:https?|ftp):(?=//)|(?:mailto|xmpp):|www\.)")


def markdown(text: str) -> Markdown:
    """One line of plain text in Markdown: no part of it is a link, HTML, a heading, mathematics or a column."""
    if isinstance(text, Markdown):
        return text
    line = visible(" ".join(text.split(" ")).strip())
    line = _MARKS.sub(lambda match: f"\\{match[0]}", line)
    line = _LINKS.sub(lambda match: f"{match[0][:-1]}\\{match[0][-1]}", line)
    line = _BEGINS_LIST.sub(r"\1\\\2", line)
    return Markdown(_BEGINS_BLOCK.sub(lambda match: f"\\{match[0]}", line))


def markdown_code(text: str) -> Markdown:
    """A text as inline code of Markdown, also in a table's cell."""
    line = visible(text).replace("|", "\\|")
    ticks = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    pad = " " if len(ticks) > 1 or line != line.strip() or not line else ""
    return Markdown(f"{ticks}{pad}{line}{pad}{ticks}")


def markdown_block(text: str, language: str = "") -> Markdown:
    """Lines of code as a fenced block that they cannot close."""
    lines = terminal(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return Markdown(f"{fence}{language}\n{lines}\n{fence}")


_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
# First characters of a formula in a spreadsheet, wide forms included.
_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20\u2212\u207a\u207b\ufe63\ufe62\ufe66\ufe6b"


def csv_cell(value: Any) -> Any:
    """A cell that no spreadsheet computes: numbers are unchanged, a text that would start a formula is quoted by `'`.

    A lone `-`, which means nothing in tables, becomes an empty cell.
    """
    if not isinstance(value, str):
        return value
    if value == "-":
        return ""
    text = visible(value)
    if _NUMBER.fullmatch(text):
        return text
    acts = value[:1] in ("\t", "\r", "\n") or text.lstrip()[:1] in tuple(_FORMULA)
    return f"'{text}" if acts else text
