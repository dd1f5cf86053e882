"""Plugins: found by entry point and by file, checked, named when they are broken, never in anybody's way."""

import json
import os
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.packages import METHOD, REPORTER, TASK, TEACHER, Site, forget, installing
from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.plugins import PluginWarning
from tinyllm_bench.data.records import SPLITS
from tinyllm_bench.data.sources import Source, load_split
from tinyllm_bench.models.specs import parse_spec

BROKEN = {
    "has a strange config": (
        "from tinyllm_bench.training.method import Method\nclass METHOD(Method):\n    paper = 'none'\n"
        "    Config = dict\n"
        "    def examples(self, record, annotations, ask): return []\n"
        "    def loss(self, batch, student, teacher, step): return []",
        "its Config is not a subclass of MethodConfig",
    ),
    "does not import": ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "exits": ("raise SystemExit(7)", "SystemExit"),
    "is no class": ("METHOD = 5", "a method is a subclass of .*Method, not 5"),
    "holds nothing": ("OTHER = 1", "has no attribute 'METHOD'"),
    "lacks a loss": (
        "from tinyllm_bench.training.method import Method\nclass METHOD(Method):\n    paper = 'none'\n"
        "    def examples(self, record, annotations, ask): return []",
        "it is missing loss",
    ),
    "lacks its paper": (
        "from tinyllm_bench.training.method import Method\nclass METHOD(Method):\n"
        "    def examples(self, record, annotations, ask): return []\n"
        "    def loss(self, batch, student, teacher, step): return []",
        "it is missing paper",
    ),
}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    with installing(folder, monkeypatch) as made:
        yield made


def write(file: Path, code: str) -> Path:
    file.write_text(textwrap.dedent(code))
    return file


@pytest.mark.parametrize("point", ["methods", "module"])
def test_a_package_offers_an_object_or_a_module(site: Site, point: str) -> None:
    site.add("theirs", METHOD, methods="theirs = METHOD" if point == "methods" else "theirs")
    assert "theirs" in plugins.names("method") and "theirs" in plugins.loadable_names("method")
    assert plugins.load_method("theirs").paper == "none"
    (result,) = [one for one in plugins.external("method") if one.name == "theirs"]
    assert (result.package, result.version, plugins.status(result)) == ("theirs", "1.0", "ok")


def test_a_file_offers_every_kind_under_its_own_name_or_under_others(site: Site, tmp_path: Path) -> None:
    file = write(tmp_path / "kit.py", METHOD)
    file.write_text(file.read_text() + textwrap.dedent(TASK.format(name="quiz")) + "TASKS = {'quiz': TASK}\ndel TASK\n")
    file.write_text(file.read_text() + textwrap.dedent(TEACHER) + textwrap.dedent(REPORTER))
    plugins.add_file(file)
    assert {kind: [one.name for one in plugins.external(kind)] for kind in plugins.KINDS} == {
        "method": ["kit"],
        "task": ["quiz"],
        "teacher": ["kit"],
        "reporter": ["kit"],
    }
    assert [plugins.status(one) for kind in plugins.KINDS for one in plugins.external(kind)] == ["ok"] * 4
    assert plugins.load_task("quiz").name == "quiz"
    assert os.environ[plugins.VARIABLE] == str(file), "children read it too"
    plugins.add_file(file)
    assert plugins.plugin_files() == [file]


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_package_is_named_once_and_left_out(site: Site, what: str) -> None:
    code, says = BROKEN[what]
    name = what.replace(" ", "_")
    site.add(f"package_{name}", code, methods=name)
    with pytest.warns(PluginWarning, match=f"method '{name}' is left out: .*{says}") as warned:
        assert name not in plugins.loadable_names("method") and "finetune" in plugins.loadable_names("method")
    assert len(warned) == 1
    assert name in plugins.names("method"), "it can be asked for, and then the reason is told"
    with pytest.raises(UserError, match=says):
        plugins.load_method(name)
    assert plugins.load_method("finetune").paper


@pytest.mark.parametrize("text", ["[tinyllm_bench.methods]\nno pair\n", "\0\0", "[tinyllm_bench.methods]\n= =\n"])
def test_a_package_whose_list_of_entry_points_is_damaged_hides_no_other(site: Site, text: str) -> None:
    site.add("sound_package", METHOD, methods="sound = METHOD")
    site.add("damaged_package", METHOD, methods="damaged = METHOD")
    (site.folder / "damaged_package-1.0.dist-info" / "entry_points.txt").write_text(text)
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        assert {"sound", "finetune"} <= set(plugins.loadable_names("method"))


def test_a_broken_file_is_named_and_its_reason_stands_with_what_is_missing(site: Site, tmp_path: Path) -> None:
    plugins.add_file(write(tmp_path / "torn.py", "METHOD = undefined_name"))
    with pytest.warns(PluginWarning, match=r"torn\.py is left out: does not load: NameError"):
        assert "finetune" in plugins.names("method")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        with pytest.raises(UserError, match=r"unknown method 'torn'.*torn\.py is left out: does not load: NameError"):
            plugins.load_method("torn")


@pytest.mark.parametrize(
    ("code", "says"),
    [("X = 1", "defines no METHOD, TASK, TEACHER or REPORTER"), ("METHODS = [1]", "METHODS is not a mapping of names")],
)
def test_a_file_that_offers_nothing_is_broken(site: Site, tmp_path: Path, code: str, says: str) -> None:
    plugins.add_file(write(tmp_path / "empty.py", code))
    assert plugins.broken_files() == {tmp_path / "empty.py": says}


@pytest.mark.parametrize(
    "code",
    [
        "class Odd(Exception):\n    def __repr__(self): raise ValueError('x')\nraise Odd",
        "raise BaseException('x')",
        "raise GeneratorExit",
        "def __getattr__(name): raise RuntimeError(name)",
    ],
)
def test_nothing_that_a_file_raises_gets_further(site: Site, tmp_path: Path, code: str) -> None:
    file = write(tmp_path / "odd.py", code)
    plugins.add_file(file)
    assert list(plugins.broken_files()) == [file]


def test_what_a_file_prints_is_no_part_of_our_output(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins.add_file(write(tmp_path / "loud.py", "print('hello')\nTEACHER = print"))
    assert plugins.names("teacher")
    assert capsys.readouterr() == ("", "hello\n")


@pytest.mark.parametrize("kind", ["loop", "huge", "pipe"])
def test_a_file_that_is_no_program_is_refused_at_once(
    site: Site, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "odd.py"
    if kind == "loop":
        file.symlink_to(file)
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        with file.open("wb") as opened:
            opened.truncate(1 << 40)
    monkeypatch.setenv("TINYLLM_BENCH_PLUGINS", str(file))
    assert list(plugins.broken_files()) == [file]


def test_a_file_that_is_not_there_is_the_users_mistake(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--plugin .*nowhere\.py: no such file; name a Python file that holds METHOD"):
        plugins.add_file(tmp_path / "nowhere.py")


def test_a_task_is_called_what_its_entry_point_says(site: Site) -> None:
    site.add("quizzes", TASK.format(name="quiz"), tasks="other = TASK")
    with pytest.raises(UserError, match="its TaskInfo is called 'quiz', not 'other'"):
        plugins.load_task("other")
    site.add("halves", TASK.format(name="half").replace('"valid": 1, ', ""), tasks="half = TASK")
    with pytest.raises(UserError, match="its sizes are .*, not rows of train, valid, test"):
        plugins.load_task("half")


def test_a_built_ins_name_is_refused(site: Site) -> None:
    site.add("thief", METHOD, methods="finetune = METHOD", teachers="hf = METHOD")
    states = {one.kind: plugins.status(one) for kind in plugins.KINDS for one in plugins.external(kind)}
    assert all("has a built-in's name" in states[kind] for kind in ("method", "teacher"))
    with pytest.raises(UserError, match="method 'finetune' of package 'thief:METHOD' has a built-in's name"):
        plugins.load_method("finetune")
    assert plugins.origin("method", "finetune") is None and plugins.load_method("kd").paper
    assert parse_spec("hf:some/model", role="student").has_weights


def test_a_name_has_one_owner(site: Site, tmp_path: Path) -> None:
    site.add("first_owner", METHOD, methods="shared = METHOD")
    plugins.add_file(write(tmp_path / "shared.py", METHOD))
    with pytest.raises(UserError, match="has a name that .* has too; remove or rename one of them"):
        plugins.load_method("shared")


def test_an_edited_file_is_another_one(site: Site, tmp_path: Path) -> None:
    file = write(tmp_path / "moving.py", METHOD)
    plugins.add_file(file)
    before, first = plugins.origin("method", "moving"), plugins.load_method("moving")
    assert before is not None
    mark = before.fingerprint
    assert mark["package"] == "moving.py" and plugins.load_method("moving") is first
    file.write_text(file.read_text() + "# edited\n")
    assert before.fingerprint == mark and plugins.load_method("moving") is first, "a run that continues is left alone"
    forget()
    after = plugins.origin("method", "moving")
    assert after is not None and after.fingerprint["digest"] != mark["digest"]
    assert plugins.load_method("moving") is not first


def test_a_packages_digest_is_that_of_all_its_code(site: Site) -> None:
    (site.folder / "grown").mkdir()
    helper = site.folder / "grown" / "helper.py"
    helper.write_text("ONE = 1\n")
    (site.folder / "grown" / "__init__.py").write_text(textwrap.dedent(METHOD))
    site.add("grown", "", methods="grown = METHOD")
    (site.folder / "grown.py").unlink()
    result = plugins.origin("method", "grown")
    assert result is not None and plugins.load_method("grown")
    mark = result.fingerprint
    helper.write_text("ONE = 2\n")
    assert result.fingerprint == mark
    forget()
    assert result.fingerprint["digest"] != mark["digest"] and result.fingerprint["version"] == "1.0"


def test_defaults_lie_beside_the_module(site: Site, tmp_path: Path) -> None:
    site.add("defaulted", METHOD, methods="defaulted = METHOD")
    assert plugins.method_defaults("defaulted") == ""
    (site.folder / "defaulted.yaml").write_text("train: {learning_rate: 0.5}\n")
    assert "0.5" in plugins.method_defaults("defaulted")
    plugins.add_file(write(tmp_path / "own.py", METHOD))
    (tmp_path / "own.yaml").write_text("train: {learning_rate: 0.25}\n")
    assert "0.25" in plugins.method_defaults("own")
    assert "alpha" in plugins.method_defaults("kd")


def sample_rows() -> list[dict[str, Any]]:
    def row(number: int, split: str) -> dict[str, Any]:
        right = str(number + 1)
        question = f"What is {number} plus 1?"
        return {"id": str(number), "split": split, "question": question, "choices": [right, "x"], "answer": right}

    return [row(number, split) for number, split in enumerate(("train", "train", "valid", "test"))]


def test_a_tasks_sample_lies_beside_its_module_and_has_its_own_sizes(site: Site) -> None:
    site.add("quiz_package", TASK.format(name="quiz"), tasks="quiz = TASK")
    (site.folder / "samples").mkdir()
    file = site.folder / "samples" / "quiz.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in sample_rows()))
    load_split.cache_clear()
    assert [len(load_split(Source("sample"), "quiz", split)) for split in SPLITS] == [2, 1, 1]
    file.write_text("".join(json.dumps(row) + "\n" for row in sample_rows()[:3]))
    load_split.cache_clear()
    with pytest.raises(UserError, match="every split needs a row"):
        load_split(Source("sample"), "quiz", "test")


def test_a_teachers_name_is_a_kind_of_spec_for_teachers_alone(site: Site, tmp_path: Path) -> None:
    plugins.add_file(write(tmp_path / "parrot.py", TEACHER))
    spec = parse_spec("parrot:polly/grey?x=1#2", role="teacher")
    assert (spec.kind, spec.location, spec.text, spec.has_weights) == (
        "parrot",
        "polly/grey?x=1#2",
        "parrot:polly/grey?x=1#2",
        False,
    )
    with pytest.raises(UserError, match="parrot: can only be a teacher"):
        parse_spec("parrot:polly", role="student")
    with pytest.raises(UserError, match="nothing after 'parrot:'"):
        parse_spec("parrot:", role="teacher")
    with pytest.raises(UserError, match="unknown model kind 'parot'. Did you mean 'parrot'"):
        parse_spec("parot:polly", role="teacher")
