"""Packages of other people for tests: a module and its entry points on the import path, the way a wheel leaves them."""

import importlib
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tinyllm_bench.base import plugins


@contextmanager
def installing(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Site"]:
    """A folder on the import path that packages are installed into; nothing of them stays."""
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.syspath_prepend(str(site))
    made = Site(site)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)
    forget()


def forget() -> None:
    """What the next process would not know: plugins as they were read and digested."""
    for kept in (plugins._entry_points, plugins._imported, plugins._file_code, plugins._package_code):
        kept.cache_clear()


class Site:
    """Where packages are installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def add(self, module: str, code: str, *, version: str = "1.0", **points: str) -> Path:
        """Install a module with entry points, `methods="name = attribute"` or `"name"`; returns its file."""
        file = self.folder / f"{module}.py"
        file.write_text(textwrap.dedent(code))
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
        groups = []
        for group, point in points.items():
            name, _, attribute = point.partition(" = ")
            groups.append(f"[tinyllm_bench.{group}]\n{name} = {module}{':' if attribute else ''}{attribute}\n")
        (info / "entry_points.txt").write_text("\n".join(groups))
        self.modules.append(module)
        importlib.invalidate_caches()
        forget()
        return file


METHOD = """
    from tinyllm_bench.base.plugins import load_method

    class METHOD(load_method("finetune")):
        \"\"\"Label-only training of somebody else's.\"\"\"

        paper = "none"
"""

TASK = """
    from tinyllm_bench.data.records import TaskInfo
    from tinyllm_bench.data.rows import multiple_choice

    def to_record(row, split):
        return multiple_choice(row, task="{name}", split=split)

    TASK = TaskInfo(
        name="{name}", title="Somebody's", version=1, sizes={{"train": 2, "valid": 1, "test": 1}},
        to_record=to_record, source="written for a test", licence="none", suite="native",
    )
"""

TEACHER = """
    from tinyllm_bench import Completion

    class Parrot:
        engine, batch = "parrot", 8

        def __init__(self, words):
            self.words = words

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def generate(self, requests):
            for number, request in enumerate(requests):
                yield number, Completion(f"{self.words} is what I say to every question here.", 7, 9, "stop", 0.01)

    def TEACHER(rest, settings):
        return Parrot(rest)
"""

REPORTER = """
    def REPORTER(board):
        return {"rows.txt": "\\n".join(row.label for section in board.sections for row in section.rows) + "\\n"}
"""
