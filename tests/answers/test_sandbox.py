"""The sandbox runs honest programs, says why others failed, and refuses to run them any other way."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import psutil
import pytest

from tinyllm_bench.answers.sandbox import pool as sandbox_module
from tinyllm_bench.answers.sandbox.pool import Sandbox, find_interpreter
from tinyllm_bench.answers.sandbox.runner import ExecResult, read_value, unplain
from tinyllm_bench.base.errors import UserError

GOOD = "x = 6\ny = 7\nanswer = x * y"


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


def workers() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (GOOD, 42),
        ("answer = math.floor(2.5)", 2),
        ("import math\nanswer = math.sqrt(16)", 4.0),
        ("import math as m\nanswer = m.sqrt(16)", 4.0),
        ("import numpy as np\nfrom sympy import Symbol\nanswer = 3", 3),
        ("def solution():\n    import math\n    a = 2\n    return math.ceil(a / 3)", 1),
        ("def solution():\n    if 1 > 2:\n        return 1\n    return 2\nprint(solution())", 2),
        ("```python\nanswer = 5\n```", 5),
        ("total = 0\nfor i in range(4):\n    total += i\nanswer = total", 6),
        ("answer = 'yes' if 2 > 1 else 'no'", "yes"),
        ("answer = True", True),
        ("answer = None", None),
        ("answer = (1, 2.5)", [1, 2.5]),
        ("answer = {'a': [1, 'b']}", {"a": [1, "b"]}),
        ("answer = 0.1 + 0.2", 0.1 + 0.2),
        ("answer = 1e400", float("inf")),
        ("answer = 'é ü 漢'", "é ü 漢"),
    ],
)
def test_values_come_back(box: Sandbox, code: str, value: Any) -> None:
    result = box.run(code)
    assert result == ExecResult(True, value) and type(result.value) is type(value)
    assert 0 < result.ms < 2000


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("answer = 1\n" * 900, "too_long"),
        ("answer = (", "syntax"),
        ("Sure! Here is the program.", "syntax"),
        ("import os\nanswer = os.getcwd()", "rejected_by_gate"),
        ("answer = 1 / 0", "exec_error:ZeroDivisionError"),
        ("answer = Symbol('x')", "exec_error:NameError"),
        ("raise KeyError('x')", "exec_error:KeyError"),
        ("x = 1", "no_answer"),
        ("answer = {1, 2}", "exec_error:TypeError"),
        ("answer = 2 ** 2000", "exec_error:ValueError"),
        ("answer = list(range(65))", "exec_error:ValueError"),
        ("answer = [[[[1]]]]", "exec_error:ValueError"),
        ("answer = 'x' * 5000", "exec_error:ValueError"),
        ("answer = 'a' * 10**12", "memory"),
    ],
)
def test_failures_have_names(box: Sandbox, code: str, error: str) -> None:
    result = box.run(code)
    assert (result.ok, result.value, result.error) == (False, None, error)


FORGED = {
    "MemoryError": ["memory limit exceeded: 67108865 bytes > 67108864 bytes", ""],
    "TimeoutError": ["feed time limit exceeded: 1.000065095s > 1s", "limit exceeded"],
    "PermissionError": ["Permission denied: '/'", ""],
    "NameError": ["name 'answer' is not defined"],
    "SyntaxError": ["invalid syntax"],
    "RecursionError": ["maximum recursion depth exceeded"],
    "KeyboardInterrupt": [""],
}


@pytest.mark.parametrize(
    ("name", "words"), [(name, words) for name, all_words in FORGED.items() for words in all_words]
)
def test_a_program_cannot_choose_the_reason_for_its_failure(box: Sandbox, name: str, words: str) -> None:
    raised = f'{name}("{words}")' if words else name
    programs = [
        f"raise {raised}",
        f"def f(n):\n    raise {raised}\nanswer = f(1)",
        f"try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise {raised} from e",
        f"BaseException = ValueError\nraise {raised}",
        f"def solution():\n    raise {raised}\n    return 3",
    ]
    assert {result.error for result in box.map(programs)} == {f"exec_error:{name}"}


def test_a_limit_is_a_limit_whatever_the_program_raised_or_would_catch(box: Sandbox) -> None:
    large = "answer = 'a' * 10**12"
    programs = [
        f"try:\n    raise ValueError('x')\nexcept ValueError:\n    {large}",
        f"try:\n    {large}\nexcept BaseException:\n    raise ValueError('mine')",
        "raise ValueError('a' * 10**12)",
        f"try:\n    raise TimeoutError('limit exceeded')\nfinally:\n    {large}",
    ]
    assert {result.error for result in box.map(programs)} == {"memory"}


def test_only_a_program_that_came_to_its_end_has_no_answer(box: Sandbox) -> None:
    codes = ["x = 1", "x = answer + 1", "answer = 1\nraise NameError(\"name 'answer' is not defined\")"]
    assert [r.error for r in box.map(codes)] == ["no_answer", "exec_error:NameError", "exec_error:NameError"]


def test_a_program_that_could_raise_and_does_not_is_run_as_written(box: Sandbox) -> None:
    code = "def f(n):\n    if n < 0:\n        raise ValueError\n    return str(n) + '''\n  two'''\nanswer = f(3)"
    assert box.run(code).value == "3\n  two"


def test_inputs_variables_and_print(box: Sandbox) -> None:
    choices = {"a": "ice", "b": "steam"}
    assert box.run("answer = max(choices, key=lambda k: len(choices[k]))", inputs={"choices": choices}).value == "b"
    assert box.run("total = 3", var="total").value == 3
    assert box.run("print('hi')\nanswer = 1").stdout == "hi\n"
    assert box.run("choices['a'] = 1\nanswer = 2", inputs={"choices": choices}).ok and choices["a"] == "ice"
    assert not box.run("answer = total").ok, "nothing is left of the program before"


def test_map_keeps_the_order_and_gives_each_its_inputs(box: Sandbox) -> None:
    codes = ["answer = n * n" if i % 7 else "answer = 1 / 0" for i in range(300)]
    results = box.map(codes, [{"n": i} for i in range(300)])
    assert [r.value for r in results] == [i * i if i % 7 else None for i in range(300)]
    assert box.map([]) == []


def test_two_workers_give_what_one_gives() -> None:
    codes = [f"answer = sum(range({i}))" for i in range(100)] + ["answer = 1 / 0", "x = 1"]
    with Sandbox(workers=1) as one, Sandbox(workers=3) as three:
        assert one.map(codes) == three.map(codes)


def test_wrong_use_is_a_user_error(box: Sandbox) -> None:
    for message, call in {
        r"var='a b': give a Python name": lambda: box.run("a = 1", var="a b"),
        r"var='_x'": lambda: box.run("a = 1", var="_x"),
        r"input '__x': a name must": lambda: box.run("a = 1", inputs={"__x": 1}),
        r"input 'x' is a value of type tuple": lambda: box.run("a = 1", inputs={"x": (1,)}),
        r"2 inputs for 1 programs": lambda: box.map(["a = 1"], [{}, {}]),
        r"cpu_s=3, wall_s=2": lambda: Sandbox(cpu_s=3, wall_s=2),
        r"mem_mb=10: a worker needs at least 192": lambda: Sandbox(mem_mb=10),
        r"workers=0": lambda: Sandbox(workers=0),
    }.items():
        with pytest.raises(UserError, match=message):
            call()


def test_programs_see_no_clock_and_no_chance(box: Sandbox) -> None:
    for code in ("import time\nanswer = time.time()", "import random\nanswer = random.random()"):
        assert box.run(code).error == "rejected_by_gate"
    below = [
        "import random\nanswer = random.random()",
        "import random\nanswer = random.Random().random()",
        "import time\nanswer = time.time()",
        "import time\nanswer = time.process_time()",
        "import datetime\nanswer = str(datetime.datetime.now())",
        "answer = str({'a', 'b', 'c', 'd'})",
        "answer = hash('abc') % 1000003",
        "answer = str([id(x) for x in ('a', 1.5, [])])",
        "answer = str([object(), lambda: 1])",
    ]
    first = run_below_the_check(box, below)
    with Sandbox() as other:
        assert run_below_the_check(other, below) == first
    assert [r.value for r in first][2:4] == [946684800.0, 0.0]


def run_below_the_check(box: Sandbox, codes: list[str]) -> list[ExecResult]:
    """Straight into the interpreter, as if the source check had passed everything."""
    return box._spread(lambda slot, a, b: [slot.runner.run(code, "answer") for code in codes[a:b]], len(codes))


def test_without_the_package_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    with pytest.raises(UserError, match=r'pip install "tinyllm-bench\[programs\]"'), Sandbox():
        pass


def test_without_the_executable_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)
    with pytest.raises(UserError, match="pydantic-monty is not installed"), Sandbox():
        pass
    monkeypatch.setattr(metadata, "files", lambda name: None)
    with pytest.raises(UserError, match="pydantic-monty is not installed"):
        find_interpreter()


def test_on_another_platform_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="cannot be run on 'win32'"), Sandbox():
        pass


@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent"])
def test_a_worker_that_cannot_start_is_an_error(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "find_interpreter", lambda: program)
    before = workers()
    with pytest.raises(UserError, match="a sandbox worker did not start"), Sandbox():
        pass
    assert workers() == before


def test_the_parent_imports_no_interpreter_before_it_is_needed() -> None:
    code = "import sys, tinyllm_bench.answers.sandbox.pool; print('pydantic_monty' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_values_from_a_worker_are_not_trusted() -> None:
    assert read_value('[1, 2.5, null, "a", {"b": true}]') == ([1, 2.5, None, "a", {"b": True}], None)
    for forged in (
        b"1",
        None,
        7,
        "",
        "{",
        "[" * 100_000,
        "9" * 5000,
        '"' + "x" * 200_000 + '"',
        "[[[[1]]]]",
        "__import__",
    ):
        value, why = read_value(forged)
        assert value is None and why
    assert read_value("NaN")[1] is None

    class Int(int):
        pass

    assert unplain(Int(1)) == "a value of type Int" and unplain(1) is None
    assert unplain({1: 2}) == "a key that is not a string"


def test_a_fork_may_not_use_the_sandbox(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(AssertionError, match="a forked process needs a Sandbox of its own"):
        box.run(GOOD)


def test_it_needs_to_be_entered() -> None:
    with pytest.raises(AssertionError, match="use `with Sandbox"):
        Sandbox().run(GOOD)
