"""Programs as one line of text, for students whose tokenizer makes one blank of all white space, as T5's does.

Straight-line programs are joined with `; `, which is Python again. The others keep their lines: newline and indent
become tokens that were added to the tokenizer. What a tokenizer still loses (T5 knows no `{`) is found by
`round_trip_failure`: such a target is rejected, or its characters are added.
"""

import ast
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm_bench.answers.program_source import Prepared

_SIMPLE = ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr | ast.Import | ast.ImportFrom | ast.Assert | ast.Pass
_INDENT = "    "  # of `ast.unparse`


@dataclass(frozen=True, slots=True)
class Layout:
    """The tokens added for a newline and for one step of indent; add them to the tokenizer, not as special tokens."""

    newline: str = "<nl>"
    indent: str = "<in>"

    @property
    def tokens(self) -> tuple[str, str]:
        """Both, in the order in which they are added."""
        return self.newline, self.indent


def joined(tree: ast.Module) -> str | None:
    """A straight-line program on one line, or None; parses, so it runs in the sandbox's workers only."""
    if not tree.body or not all(isinstance(statement, _SIMPLE) for statement in tree.body):
        return None
    line = "; ".join(ast.unparse(statement) for statement in tree.body)
    if "\n" in line or ast.dump(ast.parse(line)) != ast.dump(tree):
        return None
    return line


def encode_program(program: "Prepared", layout: Layout | None) -> str:
    """The target text of a prepared program: with real newlines for `layout=None`, else on one line."""
    assert program.code is not None, "a rejected program has no target"
    if layout is None:
        return program.code
    if program.line is not None:
        return program.line
    return layout.newline.join(_indented(line, layout) for line in program.code.split("\n"))


def _indented(line: str, layout: Layout) -> str:
    steps = (len(line) - len(line.lstrip(" "))) // len(_INDENT)
    return layout.indent * steps + line[steps * len(_INDENT) :]


def decode_program(text: str, layout: Layout | None) -> str:
    """The program of a student's text: `encode_program` undone, with or without blanks beside the added tokens."""
    if layout is None or layout.newline not in text:
        return text
    return "\n".join(_outdented(line, layout) for line in text.split(layout.newline))


def _outdented(line: str, layout: Layout) -> str:
    steps, rest = 0, line.strip(" ")
    while rest.startswith(layout.indent):
        steps, rest = steps + 1, rest[len(layout.indent) :].lstrip(" ")
    return _INDENT * steps + rest


def round_trip(tokenizer: Any, target: str) -> str:
    """What a tokenizer makes of a text: encoded, and decoded again."""
    ids = tokenizer.encode(target, add_special_tokens=False)
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def round_trip_failure(tokenizer: Any, target: str, layout: Layout | None = None) -> str | None:
    """Why a tokenizer does not give a target back, or None. Blanks beside a layout token mean nothing."""
    if decode_program(round_trip(tokenizer, target), layout) == decode_program(target, layout):
        return None
    lost = missing_characters(tokenizer, [target])
    return f"the tokenizer loses {' '.join(map(repr, lost)) or 'white space'}"


def round_trip_failures(
    tokenizer: Any,
    programs: Sequence["Prepared"],
    layout: Layout | None,
    prepare: Callable[[Sequence[str]], Sequence["Prepared"]],
) -> list[str | None]:
    """`round_trip_failure` for many prepared programs, where only what the program is counts.

    A tokenizer may set blanks beside a character that was added to it: where the text differs, it passes if its
    canonical form is the same. `prepare` is `Sandbox.prepare`.
    """
    targets = [encode_program(program, layout) for program in programs]
    failures = [round_trip_failure(tokenizer, target, layout) for target in targets]
    doubtful = [i for i, failure in enumerate(failures) if failure is not None]
    again = prepare([decode_program(round_trip(tokenizer, targets[i]), layout) for i in doubtful])
    for i, found in zip(doubtful, again, strict=True):
        if found.code == programs[i].code:
            failures[i] = None
    return failures


def missing_characters(tokenizer: Any, targets: Iterable[str]) -> list[str]:
    """The characters of the targets, blanks apart, that the tokenizer does not give back; sorted."""
    characters = sorted({character for target in targets for character in target} - set(" "))
    return [one for one in characters if round_trip(tokenizer, f"a{one}a").replace(" ", "") != f"a{one}a"]
