"""Reads the blocks of README and docs, and makes of a page a script that runs them.

Blocks of `bash`, `sh` and `python` are run. Comments directly above a block, which a page does not show, say otherwise:

    <!-- not run: REASON -->        it is not run
    <!-- dry run: REASON -->        its runs are called with --dry-run
    <!-- smaller: REASON -->        its runs are called with SMALL settings
    <!-- status: N -->              it ends with this status, N above 0
    <!-- needs the release: ... --> it is run only where the release folder is at hand
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PYTHON, SHELL = "python", ("bash", "sh")
RUN = (PYTHON, *SHELL)
SHOWN = ("text", "yaml", "toml", "json", "html", "makefile", "markdown", "latex")
MARKS = ("not run", "dry run", "smaller", "status", "needs the release", "output of")
SMALL = (
    "student.model=bundled:smollm2-135m?layers=0:30:10",
    "budget.student_tokens=800",
    "train.evaluations=[1.0]",
    "eval.limit=8",
    "eval.valid_limit=4",
)
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<info>[^`\n]*)$")
COMMENT = re.compile(rf"^\s*<!--\s*({'|'.join(MARKS)})\b:?\s*(.*?)\s*-->\s*$")
BEGINS = "@@@ block"  # in a script's output: what follows is of this block


class Block(NamedTuple):
    """A fenced block: where it begins, its language, its text, and what the comments above it say of it."""

    page: Path
    line: int
    language: str
    text: str
    marks: Mapping[str, str]

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def left_out(self, *, release: bool) -> str | None:
        """Why it is not run, if it is not."""
        if "needs the release" in self.marks and not release:
            return "needs the release folder (TINYLLM_BENCH_DATA)"
        return self.marks.get("not run")


def pages() -> list[Path]:
    """What people read: the README first, then the site in its own order, then what lies beside the code."""
    site = sorted((ROOT / "docs").rglob("*.md"), key=_order)
    return [ROOT / "README.md", *site, *(ROOT / name for name in ("CONTRIBUTING.md", "baselines/README.md"))]


def _order(page: Path) -> tuple[int, str]:
    name = page.relative_to(ROOT / "docs").as_posix()
    return (ROOT / "mkdocs.yml").read_text().find(f" {name}\n"), name


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page.

    Raises:
        AssertionError: one is not closed.
    """
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if not opening:
            continue
        first, indent = number, len(opening["indent"])
        while number < len(lines) and lines[number].strip() != opening["fence"]:
            number += 1
        assert number < len(lines), f"{page}:{first}: this block is never closed"
        text = "".join(f"{line[indent:]}\n" for line in lines[first:number])
        yield Block(page, first, opening["info"].split(" ")[0], text, dict(_marks(lines, first - 2)))
        number += 1


def _marks(lines: Sequence[str], above: int) -> Iterator[tuple[str, str]]:
    while above >= 0 and (comment := COMMENT.match(lines[above])):
        yield comment[1], comment[2]
        above -= 1


# --- scripts ----------------------------------------------------------------------------------------------------------


def script(found: Sequence[Block], *, release: bool) -> str:
    """A bash script that runs the blocks of a page, one after another, in one shell; output of each behind `BEGINS`.

    Neighbours in Python share a process and their names.
    """
    run = [(i, one) for i, one in enumerate(found) if one.language in RUN and not one.left_out(release=release)]
    parts = ["set -euo pipefail"]
    for is_python, group in groupby(run, key=lambda numbered: numbered[1].language == PYTHON):
        neighbours = list(group)
        parts += [_python(neighbours)] if is_python else [_shell(*one) for one in neighbours]
    return "\n".join([*parts, f'echo "{BEGINS} -1 $EPOCHREALTIME"', ""])


def _shell(number: int, block: Block) -> str:
    text = block.text
    more = ["--dry-run"] * ("dry run" in block.marks) + list(SMALL) * ("smaller" in block.marks)
    if more:
        words = " ".join(f"'{one}'" for one in more)
        stages = "run|annotate|train|predict|reference-baselines"
        call = f'case "$1" in {stages}) command tinyllm-bench "$@" {words};; *) command tinyllm-bench "$@";; esac'
        text = f"tinyllm-bench() {{ {call}; }}\n{text}unset -f tinyllm-bench\n"
    if "status" in block.marks:
        text = f"set +e; (set -e\n{text}); status=$?; set -e; [ $status -eq {block.marks['status']} ]\n"
    return f'echo "{BEGINS} {number} $EPOCHREALTIME"\necho "{BEGINS} {number}" >&2\n{text}'


def _python(group: Sequence[tuple[int, Block]]) -> str:
    lines = ["warm-python - <<'END_OF_BLOCKS'", "import sys, time"]
    for number, block in group:
        lines += [
            f'print("{BEGINS} {number}", time.time(), flush=True)',
            f'print("{BEGINS} {number}", file=sys.stderr)',
            block.text.rstrip(),
        ]
    return "\n".join([*lines, "END_OF_BLOCKS"])


def outputs(result: str) -> dict[int, str]:
    """What each block wrote to one stream, by its number."""
    pieces = re.split(rf"^{BEGINS} (-?\d+).*\n", result, flags=re.MULTILINE)
    return {int(number): text for number, text in zip(pieces[1::2], pieces[2::2], strict=True)}


def seconds(result: str) -> dict[int, float]:
    """What each block took, by its number."""
    stamps = re.findall(rf"^{BEGINS} (-?\d+) (\S+)$", result, flags=re.MULTILINE)
    ends = stamps[1:]
    return {int(number): float(end) - float(start) for (number, start), (_, end) in zip(stamps, ends, strict=False)}
