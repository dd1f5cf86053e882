"""Canonical programs, the source check, degenerate programs."""

import ast

import pytest

from tests.answers.conftest import MELTS, TRIAL
from tinyllm_bench.answers.keys import (
    REASONS,
)
from tinyllm_bench.answers.programs import Prepared
from tinyllm_bench.answers.sandbox.pool import Sandbox


def prepared(box: Sandbox, text: str) -> Prepared:
    return box.prepare([text])[0]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a = 2\nanswer = a*3", "a = 2\nanswer = a * 3"),
        ("a = 2  # two apples\n\n\nanswer = a", "a = 2\nanswer = a"),
        ("def solution():\n    a = 2\n    return a * 3", "a = 2\nanswer = a * 3"),
        ('def solution():\n    """How many?"""\n    answer = 2\n    return answer', "answer = 2"),
        ("def solution():\n    return 2\n\nprint(solution())", "answer = 2"),
        ("def solution():\n    return 2\nresult = solution()\nprint(result)", "answer = 2"),
        ("def solution():\n    return 2\nanswer = solution()", "answer = 2"),
        ("rate = 3\ndef solution():\n    return rate * 2", "rate = 3\nanswer = rate * 2"),
        (
            "def solution():\n    for i in range(3):\n        n = i\n    return n",
            "for i in range(3):\n    n = i\nanswer = n",
        ),
        (
            "def solution():\n    if 1 > 2:\n        return 'a'\n    return 'b'",
            "def solution():\n    if 1 > 2:\n        return 'a'\n    return 'b'\nanswer = solution()",
        ),
        (
            "def solution(n):\n    return n\nanswer = solution(2)",
            "def solution(n):\n    return n\nanswer = solution(2)",
        ),
        (
            "def solution():\n    return 1\nanswer = solution() + 1",
            "def solution():\n    return 1\nanswer = solution() + 1",
        ),
        ("import math\nanswer = math.ceil(2.5)", "answer = math.ceil(2.5)"),
        ("answer = math.ceil(2.5)", "answer = math.ceil(2.5)"),
        ("import math as m\nanswer = m.ceil(2.5)", "import math as m\nanswer = m.ceil(2.5)"),
        ("from math import ceil, floor\nanswer = ceil(2.5)", "from math import ceil\nanswer = ceil(2.5)"),
        ("import numpy as np, sympy\nimport os.path\nanswer = 1", "answer = 1"),
        ("def solution():\n    import numpy\n    return 1", "answer = 1"),
        ("if 1 > 0:\n    import numpy\nanswer = 1", "if 1 > 0:\n    pass\nanswer = 1"),
        ("answer = 1\nprint(answer)\nprint('done')", "answer = 1"),
        ("Here it is:\n```python\nanswer = 1\n```\nDone.", "answer = 1"),
        (
            "if 2 > 1:\n    answer = 'a'\nelse:\n    answer = 'b'",
            "if 2 > 1:\n    answer = 'a'\nelse:\n    answer = 'b'",
        ),
        ("answer = '''two\nlines'''", "answer = 'two\\nlines'"),
    ],
)
def test_canonical_form(box: Sandbox, text: str, code: str) -> None:
    result = prepared(box, text)
    assert (result.code, result.reason) == (code, None)
    assert prepared(box, code).code == code, "canonical already"
    assert box.run(text).ok and box.run(text).value == box.run(code).value, "and it means the same"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ("answer = " + "1" * 9000, "too_long"),
        ("answer = 1\0", "syntax"),
        ("answer = '\ud800'", "syntax"),
        ("There is no program.", "syntax"),
        ("  answer = 1\nb = 2", "syntax"),
        ("x = 1", "no_answer"),
        ("# only a comment", "no_answer"),
        ("def f():\n    answer = 1\nf()", "no_answer"),
        ("import os\nanswer = os.getcwd()", "rejected_by_gate"),
        ("from math import *\nanswer = 1", "rejected_by_gate"),
        ("from . import math\nanswer = math", "rejected_by_gate"),
        ("import random\nanswer = random.random()", "rejected_by_gate"),
        ("import time\nanswer = time.time()", "rejected_by_gate"),
        ("import datetime\nanswer = datetime.date.today()", "rejected_by_gate"),
        ("_x = 1\nanswer = 1", "rejected_by_gate"),
        ("answer = ().__class__", "rejected_by_gate"),
        ("import math as _m\nanswer = _m.pi", "rejected_by_gate"),
        ("try:\n    a = 1\nexcept ValueError as _e:\n    pass\nanswer = 1", "rejected_by_gate"),
        ("answer = dict(_a=1)", "rejected_by_gate"),
        ("def f(_a):\n    return 1\nanswer = 1", "rejected_by_gate"),
        ("def f():\n    global _a\nanswer = 1", "rejected_by_gate"),
        ("match 1:\n    case _x:\n        answer = 1", "rejected_by_gate"),
        ("match {}:\n    case {'a': 1, **_rest}:\n        answer = 1", "rejected_by_gate"),
        ("answer = '{}'.format(1)", "rejected_by_gate"),
        ("answer = open('x')", "rejected_by_gate"),
        (f"answer = {1 << 256}", "rejected_by_gate"),
        ("answer = " + "+".join("1" * 1500), "rejected_by_gate"),
        ("answer = [" + "1," * 2000 + "]", "rejected_by_gate"),
        ("answer = " + "-" * 100 + "1", "rejected_by_gate"),
    ],
)
def test_rejections_have_reasons(box: Sandbox, text: str, reason: str) -> None:
    result = prepared(box, text)
    assert (result.code, result.reason, result.line) == (None, reason, None) and result.detail
    assert reason in REASONS
    if reason != "no_answer":
        assert box.run(text).error == reason


def test_limits_of_the_check_are_where_they_say(box: Sandbox) -> None:
    fits = [f"answer = {(1 << 256) - 1}", "answer = " + "-" * 50 + "1", "answer = [" + "1," * 1900 + "]"]
    assert [result.reason for result in box.prepare(fits)] == [None] * 3
    names = "open = 3\nid = open\nanswer = id + 1"
    assert box.run(names).value == 4, "a name of the program's own is no builtin"


def test_a_hostile_text_costs_nobody_else(box: Sandbox) -> None:
    hostile = ["answer = " + "(" * 3900, "answer = " + "-" * 7900 + "1", "a" + ".b" * 3900, "[" * 7000, "f'" * 4000]
    texts = [text for one in hostile for text in (one, "answer = 1")]
    result = box.prepare(texts)
    assert [one.code for one in result[1::2]] == ["answer = 1"] * len(hostile)
    assert {one.reason for one in result[::2]} <= {"syntax", "rejected_by_gate", "no_answer"}


@pytest.mark.parametrize(
    ("code", "is_degenerate"),
    [
        (MELTS, False),
        (TRIAL, False),
        ("price = 76\noff = 25\nleft = price - off\nanswer = left", False),
        (
            "pears = 0.6\nwater = 1\nfloats = pears < water\nif floats:\n    answer = 'yes'\nelse:\n    answer = 'no'",
            False,
        ),
        (
            "scores = {k: len(choices[k]) * 2 for k in choices}\nbest = max(scores.values())\n"
            "answer = max(scores, key=scores.get)",
            False,
        ),
        ("total = 0\nn = 3\nfor i in range(n):\n    total += i\nanswer = total", False),
        ("answer = 'b'", True),
        ("fact = 'ice melts'\nother = 1\nanswer = 'b'", True),
        ("chosen = 'b'\nanswer = chosen", True),
        ("x = 1 < 2\nanswer = 'a' if x else 'b'", True),  # one fact
        ("x = 1 < 2\ny = 3\nanswer = 'a' if x else 'b'", True),  # computed from no fact
        ("a = 1\nb = 2\nunused = a < b\nanswer = 'a'", True),
        ("options = {'a': 'red', 'b': 'blue'}\nselected = 'a'\nanswer = options[selected]", True),
        ("a = 1\nb = a\nanswer = b", True),
    ],
)
def test_degenerate_programs(box: Sandbox, code: str, is_degenerate: bool) -> None:
    result = prepared(box, code)
    assert (result.reason, result.degenerate) == (None, is_degenerate)


def test_canonical_text_is_the_program_that_was_written(box: Sandbox) -> None:
    codes = [MELTS, TRIAL, "a = -2 ** 2\nb = (1 + 2) * 3 % 4 // 5\nanswer = not (a < b <= 3)"]
    for code, result in zip(codes, box.prepare(codes), strict=True):
        assert result.code is not None and ast.dump(ast.parse(result.code)) == ast.dump(ast.parse(code))
