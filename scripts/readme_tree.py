"""Writes the file tree of README.md: one line per folder and core file, from the first line of its docstring.

`python scripts/readme_tree.py` rewrites the block between the two marks; `tests/test_architecture.py` fails when
the block is not what this would write.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree -->", "<!-- /tree -->"
ROOMS = (
    "base",
    "data",
    "answers",
    "models",
    "learn",
    "teach",
    "evaluate",
    "report",
    "pipeline",
    "cli",
    "testing",
)  # low to high
GENERATED = {"runs", "dist", "build", "site", "__pycache__"}
WIDTH = 34  # where the comments begin
LONGEST = 100  # a comment's length

ABOUT = {  # what carries no docstring of its own
    "pyproject.toml": "packaging, extras, ruff, types, pytest",
    "mkdocs.yml": "the site in docs/",
    "Makefile": "the words: install, quickstart, test, check, bench, board, ...",
    "CONTRIBUTING.md": "house rules, notation, how to add a method or a task",
    "CHANGELOG.md": "one line per outcome a user can see",
    "LICENSE": "Apache-2.0",
    "tinyllm_bench/": "the machine: eleven rooms from low to high; a room imports only rooms below it",
    "baselines/README.md": "the methods: papers, equations, deviations",
    "baselines/<method>.py  .yaml": "one method: paper, examples, loss; its defaults with their source",
    "tasks/README.md": "the tasks: papers, licences, splits, chance levels",
    "tasks/<task>.py": "one task: what it is, a real row's shape, `to_record`",
    "tasks/_hooks.py": "what lm-eval's YAML calls; the prompt comes from `data/prompts.py`",
    "tasks/<task>_<reading>.yaml": "its lm-eval tasks, written by `make tasks`",
    "tasks/_group_<reading>.yaml": "the groups of the six multiple-choice tasks, written by `make tasks`",
    "tasks/_group_<suite>_<reading>.yaml": "the groups of other suites of tasks, the same",
    "tasks/_<kind>_yaml": "fields that the lm-eval tasks share (this ending keeps them out of lm-eval's index)",
    "tasks/digests.json": "how many rows each split has, and the digest of its content",
    "tasks/ids/<set>.json": "the ids of each split, so that the hub's items equal the release's",
    "tasks/samples/<task>.jsonl": "questions and rationales that this project's authors wrote",
    "benchmarks/": "side-by-side speed and memory scripts",
    "docs/": "the guide: what this is, how to run it, a card for each method; built by `make docs`",
    "docs/methods/": "a card for each method: loss, cost, failure modes, differences, ablations",
    "docs/reference/": "commands and settings, written by `scripts/reference_pages.py`",
    "examples/": "files to copy and change",
    "examples/slurm/": "batch files for a cluster",
    "leaderboards/": "what came out: measured records and the tables built from them",
    "scripts/": "upkeep of this repository",
    "tests/": "one folder per room, one file per source file; whole-house tests beside them",
}


def about(file: Path) -> str:
    """The first line of a Python file's docstring, cut after a clause where it is long; empty without one."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    line = text.partition("\n")[0].rstrip(".")
    clauses = [line[: mark.start()] for mark in re.finditer(r"[.;:] | \(", line)]
    return max((clause for clause in [*clauses, line] if len(clause) <= LONGEST), key=len, default=line)


def _folder_note(folder: Path, name: str) -> str:
    init = folder / "__init__.py"
    return ABOUT.get(name) or (about(init) if init.is_file() else "")


def _line(depth: int, name: str, note: str) -> str:
    return f"{'    ' * depth + name:<{WIDTH}} {note}".rstrip()


def _core(package: Path) -> Iterator[str]:
    yield _line(0, f"{package.name}/", _folder_note(package, f"{package.name}/"))
    for room in ROOMS:
        folder = package / room
        yield _line(1, f"{room}/", _folder_note(folder, f"{room}/"))
        for file in sorted(folder.rglob("*.py")):
            if file.name != "__init__.py":
                yield _line(2, str(file.relative_to(folder)), about(file))
        data = (path for path in folder.iterdir() if path.is_dir() and path.name not in GENERATED)
        for inner in sorted(path for path in data if not any(path.glob("*.py"))):
            names = sorted({file.stem.split(".")[0] for file in inner.iterdir() if file.is_file()})
            if names:
                yield _line(2, f"{inner.name}/", ", ".join(names))


def _patterns(folder: Path) -> Iterator[str]:
    yield _line(0, f"{folder.name}/", _folder_note(folder, f"{folder.name}/"))
    for pattern, note in ABOUT.items():
        there = "<" in pattern or "*" in pattern or (folder.parent / pattern).is_file()
        if there and pattern.startswith(f"{folder.name}/") and pattern != f"{folder.name}/":
            yield _line(1, pattern.removeprefix(f"{folder.name}/"), note)


def block(root: Path = ROOT) -> str:
    """The tree of a checkout as the text that stands between the two marks."""
    lines = [_line(0, name, note) for name, note in ABOUT.items() if "/" not in name and (root / name).is_file()]
    folders = (path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    named = {path.name: path for path in folders if path.name not in GENERATED and any(path.iterdir())}
    lines += ["", *_core(named.pop("tinyllm_bench"))]
    for name in ("baselines", "tasks"):
        lines += ["", *_patterns(named.pop(name))]
    lines.append("")
    for name, path in sorted(named.items()):
        lines.append(_line(0, f"{name}/", _folder_note(path, f"{name}/")))
        inner = (one.name for one in sorted(path.iterdir()) if one.is_dir())
        lines += [_line(1, f"{one}/", ABOUT[f"{name}/{one}/"]) for one in inner if f"{name}/{one}/" in ABOUT]
    return "\n".join(["```text", *lines, "```"])


def current(readme: str) -> str:
    """The tree that stands in a README's text now."""
    return readme.partition(BEGIN)[2].partition(END)[0].strip()


def main() -> None:
    """Rewrite README.md's tree in place."""
    file = ROOT / "README.md"
    text = file.read_text()
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    file.write_text(f"{head}{BEGIN}\n{block()}\n{END}{tail}")


if __name__ == "__main__":
    main()
