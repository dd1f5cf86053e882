"""The command line called in this process: its status and what it printed."""

import importlib.metadata
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class CommandResult(NamedTuple):
    """Exit status, standard output and standard error of one command."""

    status: int
    out: str
    err: str


Call = Callable[..., CommandResult]


@pytest.fixture(autouse=True)
def _alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No data folder of the user's, a cache of one's own, one thread, signals as they were."""
    monkeypatch.delenv("TINYLLM_BENCH_DATA", raising=False)
    if "bundled_smollm" not in request.fixturenames:
        monkeypatch.setenv("TINYLLM_BENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    before = signal.getsignal(signal.SIGTERM)
    threads = None
    if "torch" in sys.modules:
        threads = sys.modules["torch"].get_num_threads()
        sys.modules["torch"].set_num_threads(1)
    yield
    signal.signal(signal.SIGTERM, before)
    if threads is not None:
        sys.modules["torch"].set_num_threads(threads)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call the command line as the script does."""
    from tinyllm_bench.cli.app import run_app

    def run(*arguments: Any) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["tinyllm-bench", *map(str, arguments)])
        capsys.readouterr()
        status = run_app()
        return CommandResult(status, *capsys.readouterr())

    return run


@pytest.fixture
def small(tiny_llama_dir: Path, tmp_path: Path) -> list[Any]:
    """What makes a run end within a second or two, and its folder."""
    return [
        *("--preset", "quickstart", "--runs-dir", tmp_path / "runs"),
        *(f"student.model=dir:{tiny_llama_dir}", "budget.student_tokens=3000", "eval.valid_limit=4"),
    ]


@pytest.fixture
def install(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Install a method of another package, the way a wheel does: a module and its metadata on the import path."""
    made: list[str] = []

    def add(name: str, code: str) -> Any:
        site = tmp_path_factory.mktemp("site")
        module = f"{name}_package"
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        info = site / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tinyllm_bench.methods]\n{name} = {module}:METHOD\n")
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()
        made.append(module)
        return importlib.import_module(module)

    yield add
    for module in made:
        sys.modules.pop(module, None)
