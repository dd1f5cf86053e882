"""Finds a message in the source: which f-string or text could have made it."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tinyllm_bench", "baselines", "tasks")
LITERAL_AT_LEAST = 12  # characters that a pattern must say itself, so that none is made of gaps alone


def _text_of(node: ast.expr) -> str | None:
    """The pattern of a string, an f-string, or a sum of such; None for other expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(part) or ".*" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = (_text_of(node.left), _text_of(node.right))
        return "".join(side or ".*" for side in sides) if any(sides) else None
    return None


def _patterns(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        pattern = _text_of(node) if isinstance(node, ast.expr) else None
        if pattern and len(pattern.replace(".*", "").replace("\\", "")) >= LITERAL_AT_LEAST:
            yield pattern


@lru_cache(maxsize=1)
def patterns() -> tuple[re.Pattern[str], ...]:
    """Every message that the code can say."""
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    return tuple(re.compile(one, re.DOTALL) for file in files for one in _patterns(file))


def is_said(message: str) -> bool:
    """Whether some text of the source, its gaps filled, is this message."""
    return any(one.fullmatch(message) for one in patterns())
