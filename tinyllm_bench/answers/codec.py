"""Programs as one line of text, for students whose tokenizer turns all white space into one space, as T5's does.

Straight-line programs are joined with `; `, which is Python again. In the others newline and indent become tokens that
were added to the tokenizer. What a tokenizer still loses (T5 has no `{`) is found by `round_trip_failure`: such a
target is rejected, or its characters are added.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm_bench.answers.programs import Prepared

_INDENT = "    "  # of `ast.unparse`


@dataclass(frozen=True, slots=True)
class LayoutTokens:
    """The tokens added for a newline and for one step of indent; add them to the tokenizer, not as special tokens."""

    newline: str = "<nl>"
    indent: str = "<in>"

    @property
    def tokens(self) -> tuple[str, str]:
        """Both, in the order in which they are added."""
        return self.newline, self.indent


def encode_program(program: Prepared, layout: LayoutTokens | None) -> str:
    """The target text of a prepared program: with real newlines for `layout=None`, else on one line."""
    assert program.code is not None, "a rejected program has no target"
    if layout is None:
        return program.code
    if program.line is not None:
        return program.line
    lines = []
    for line in program.code.split("\n"):
        steps = (len(line) - len(line.lstrip(" "))) // len(_INDENT)
        lines.append(layout.indent * steps + line[steps * len(_INDENT) :])
    return layout.newline.join(lines)


def decode_program(text: str, layout: LayoutTokens | None) -> str:
    """The program in a student's text: `encode_program` undone, with or without spaces beside the added tokens."""
    if layout is None or layout.newline not in text:
        return text
    lines = []
    for line in text.split(layout.newline):
        steps, rest = 0, line.strip(" ")
        while rest.startswith(layout.indent):
            steps, rest = steps + 1, rest[len(layout.indent) :].lstrip(" ")
        lines.append(_INDENT * steps + rest)
    return "\n".join(lines)


def round_trip(tokenizer: Any, target: str) -> str:
    """A text encoded and decoded again."""
    ids = tokenizer.encode(target, add_special_tokens=False)
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def round_trip_failure(tokenizer: Any, target: str, layout: LayoutTokens | None = None) -> str | None:
    """Why a target does not survive encoding and decoding, or None. Spaces beside a layout token mean nothing."""
    if decode_program(round_trip(tokenizer, target), layout) == decode_program(target, layout):
        return None
    lost = missing_characters(tokenizer, [target])
    return f"the tokenizer loses {' '.join(map(repr, lost)) or 'white space'}"


def round_trip_failures(
    tokenizer: Any,
    programs: Sequence[Prepared],
    layout: LayoutTokens | None,
    prepare: Callable[[Sequence[str]], Sequence[Prepared]],
) -> list[str | None]:
    """`round_trip_failure` for many prepared programs; only the program counts, not its spelling.

    A tokenizer may put spaces beside a character that was added to it: a text that differs passes if its canonical
    form is the same. `prepare` is `Sandbox.prepare`.
    """
    targets = [encode_program(program, layout) for program in programs]
    failures = [round_trip_failure(tokenizer, target, layout) for target in targets]
    doubtful = [i for i, failure in enumerate(failures) if failure is not None]
    again = prepare([decode_program(round_trip(tokenizer, targets[i]), layout) for i in doubtful])
    for i, reread in zip(doubtful, again, strict=True):
        if reread.code == programs[i].code:
            failures[i] = None
    return failures


def missing_characters(tokenizer: Any, targets: Iterable[str]) -> list[str]:
    """The characters of the targets, except spaces, that the tokenizer loses; sorted."""
    characters = sorted({character for target in targets for character in target} - set(" "))
    return [c for c in characters if round_trip(tokenizer, f"a{c}a").replace(" ", "") != f"a{c}a"]
