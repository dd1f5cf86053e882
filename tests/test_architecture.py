"""The rules that a program can check: order of imports, names, docstrings, a cold start without torch, version."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tinyllm_bench

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "tinyllm_bench"
PACKAGES = (
    "base",
    "data",
    "answers",
    "models",
    "generation",
    "teachers",
    "training",
    "evaluation",
    "leaderboard",
    "reporters",
    "experiment",
    "preflight",
    "audit",
    "publish",
    "cli",
    "testing",
)  # low to high
HEAVY = {"torch", "transformers", "pandas", "lm_eval", "datasets", "vllm", "accelerate", "scipy"}
AUTHORS_MACHINE = re.compile(r"(?<![\w.<}])/(?:work|workspace|opt|root|home/\w+|Users/\w+)/")


def files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


CORE, BASELINES, TASKS = files(PACKAGE), files("baselines"), files("tasks")


def label(file: Path) -> str:
    return str(file.relative_to(ROOT))


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), filename=str(file))


def imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Dotted names of every import, late ones too; `from a import b` gives `a.b`, relative ones absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = parts[: len(parts) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def for_types(tree: ast.Module, package: str) -> set[str]:
    """Names imported under `if TYPE_CHECKING`: annotations only, never run."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return {name for block in blocks for name in imports(ast.Module(block.body, []), package)}


def ours(file: Path, package: str) -> list[str]:
    return [name for name in imports(tree_of(file), package) if name.split(".")[0] == PACKAGE]


def inside(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


def climbing(file: Path) -> list[str]:
    """Imports of a core file that lead to a higher package, or to none."""
    home = file.relative_to(ROOT).parent.parts
    floor = PACKAGES.index(home[1]) if len(home) > 1 else len(PACKAGES)
    beside = {one.stem for one in (ROOT / PACKAGE).glob("*.py")} if len(home) == 1 else set()
    allowed = {*PACKAGES[: floor + 1], *beside, "__version__"}
    return [name for name in ours(file, ".".join(home)) if (name.split(".") + [""])[1] not in allowed]


def test_imports_see_relative_and_late_ones() -> None:
    tree = ast.parse(
        "def f():\n    from ..leaderboard import board\n    from . import cell\n    import tinyllm_bench.cli.app"
    )
    found = set(imports(tree, "tinyllm_bench.experiment"))
    assert found == {"tinyllm_bench.leaderboard.board", "tinyllm_bench.experiment.cell", "tinyllm_bench.cli.app"}


@pytest.mark.parametrize("file", CORE, ids=label)
def test_core_imports_lead_downwards(file: Path) -> None:
    assert climbing(file) == []


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One way from a name back to it; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_a_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}}) == [] and set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


def test_no_import_circle_at_run_time() -> None:
    """Inside packages too, late imports counted; what only type checkers import is not."""
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in CORE}
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        if module == PACKAGE:
            continue  # the public face reaches everything, when it is asked
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        found = set(imports(tree_of(file), package)) - for_types(tree_of(file), package)
        nearest = {name if name in modules else name.rpartition(".")[0] for name in found if inside(name, (PACKAGE,))}
        graph[module] = (nearest & set(modules)) - {module, PACKAGE}
    assert circle(graph) == []


def test_every_folder_of_the_core_is_a_package() -> None:
    folders = {p.name for p in (ROOT / PACKAGE).iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert folders - {"baselines", "tasks"} == set(PACKAGES)  # a wheel carries those two inside


PLUGINS = [f for f in [*BASELINES, *TASKS, *files("examples")] if not f.name.startswith("_") or "examples" in f.parts]


@pytest.mark.parametrize("file", PLUGINS, ids=label)
def test_methods_and_tasks_import_from_the_public_face_alone(file: Path) -> None:
    public = {f"{PACKAGE}.{name}" for name in tinyllm_bench.__all__}
    assert set(ours(file, f"{PACKAGE}.baselines")) <= public


def test_every_public_name_is_there_and_known_to_type_checkers() -> None:
    shown = for_types(tree_of(ROOT / PACKAGE / "__init__.py"), PACKAGE)
    assert {name.rpartition(".")[2] for name in shown} == set(tinyllm_bench.__all__) - {"__version__"}
    homes = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in shown}
    for name, home in homes.items():
        assert getattr(tinyllm_bench, name) is getattr(importlib.import_module(home), name)


@cache
def built_in_names() -> set[str]:
    return {f.stem for f in [*BASELINES, *TASKS] if f.parent.parent == ROOT and not f.name.startswith("_")}


def texts(tree: ast.Module) -> Iterator[str]:
    """Every identifier and every string of a module, docstrings apart."""
    documents = {
        id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)
    }  # a string on its own says, and does nothing
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(value := getattr(node, field, None), str):
                yield value


def names_in(text: str) -> set[str]:
    """Built-in methods and tasks that a text names, beyond the package's own name and the lm-eval prefix."""
    text = re.sub(r"tinyllm[_-]bench|(?<![a-z])tinyllm_", " ", text.lower())
    return built_in_names() & set(re.findall(r"[a-z0-9]+", text)) | {
        n for n in built_in_names() if "_" in n and n in text
    }


def test_names_are_found_where_they_stand() -> None:
    assert names_in("tinyllm_bench.base") == names_in("tinyllm-bench run") == names_in("tinyllm_{task}_gen") == set()
    assert names_in("tinyllm_obqa_generate") == {"obqa"} and names_in("is_tinyllm") == {"tinyllm"}


@pytest.mark.parametrize("file", CORE, ids=label)
def test_core_names_no_method_and_no_task(file: Path) -> None:
    assert {text: found for text in texts(tree_of(file)) if (found := names_in(text))} == {}


def undocumented(body: list[ast.stmt], prefix: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, f"{node.name}.")


@pytest.mark.parametrize("file", [*CORE, *BASELINES, *TASKS], ids=label)
def test_everything_public_has_a_docstring(file: Path) -> None:
    tree = tree_of(file)
    assert ast.get_docstring(tree), "the module has none"
    assert list(undocumented(tree.body)) == []


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## \[?v?([0-9][^\s\]]*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest and tinyllm_bench.__version__ == project["version"] == newest[1]


RUN_MODULE = "runpy.run_module('tinyllm_bench', run_name='__main__')"


@pytest.mark.parametrize(
    "start",
    [
        "import tinyllm_bench.cli",
        f"sys.argv = ['tinyllm-bench', '--help']; {RUN_MODULE}",
        f"sys.argv = ['tinyllm-bench', 'run', '--help']; {RUN_MODULE}",
        f"sys.argv = ['tinyllm-bench', 'run', '--method', 'tinylm', '--task', 'obqa']; {RUN_MODULE}",
    ],
)
def test_the_command_line_starts_without_heavy_imports(start: str) -> None:
    """A typo in a name is refused within a second, too."""
    code = f"import runpy, sys\ntry:\n    {start}\nfinally:\n    print('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == (2 if "tinylm'" in start else 0), done.stderr
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "tinyllm_bench.cli" in loaded
    assert loaded & HEAVY == set()


def test_no_path_of_an_authors_machine() -> None:
    folders = [
        PACKAGE,
        "baselines",
        "tasks",
        "tests",
        "scripts",
        "docs",
        "benchmarks",
        "examples",
        "leaderboards",
        ".ci",
    ]
    places = [
        *(path for path in ROOT.glob("*") if path.name != ".git"),
        *(path for folder in folders for path in (ROOT / folder).rglob("*")),
    ]
    kinds = {".py", ".md", ".yaml", ".toml", ".json", ".sh", ""}
    texts_of = {p: p.read_text(errors="replace") for p in places if p.is_file() and p.suffix in kinds}
    found = {label(path): hit[0] for path, text in texts_of.items() if (hit := AUTHORS_MACHINE.search(text))}
    assert found == {}


def test_every_text_names_its_encoding() -> None:
    """Without one it is the machine's, which may be another one than UTF-8."""
    found = []
    for file in (*CORE, *(ROOT / "scripts").glob("*.py")):
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                named = len(node.args) or any(one.arg == "encoding" for one in node.keywords)
                wants = {"read_text": not named, "write_text": not any(one.arg == "encoding" for one in node.keywords)}
                if wants.get(node.func.attr):
                    found.append(f"{label(file)}:{node.lineno}")
    assert found == []


def test_texts_are_generated_in_one_place() -> None:
    """One call site makes vLLM's sampling parameters, one its engine, one calls transformers' `generate`."""
    sites: dict[str, list[str]] = {"SamplingParams": [], "LLM": [], "model.generate": []}
    for file in CORE:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in sites:
                sites[node.func.id].append(file.name)
            if isinstance(node, ast.Attribute) and ast.unparse(node).endswith("model.generate"):
                sites["model.generate"].append(file.name)
    assert sites == {"SamplingParams": ["vllm_worker.py"], "LLM": ["vllm_worker.py"], "model.generate": ["hf.py"]}
