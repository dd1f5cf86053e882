"""Every attack ends as a failed path or a harmless plain value, leaves nothing behind, and good programs go on.

Each runs twice: through the sandbox, and below the source check, which is not what contains a program.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.answers.attacks import ALL, CATEGORIES, Attack
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.answers.sandbox.runner import ExecResult, unplain

CPU_S, WALL_S = 0.2, 1.0
GOOD = [f"a = {i}\nb = {i} + 1\nanswer = a * b" for i in range(500)]
GOOD_VALUES = [i * (i + 1) for i in range(500)]
SECRET = "8d1f6c0e-secret-of-the-parent"
PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37
BOOM = "sandbox_was_here"

Run = Callable[[Sequence[str]], list[ExecResult]]


@pytest.fixture(scope="module")
def others() -> set[psutil.Process]:
    """Children of this process that other tests left, such as the resource tracker of multiprocessing."""
    return set(psutil.Process().children(recursive=True))


@pytest.fixture(scope="module")
def box(others: set[psutil.Process]) -> Iterator[Sandbox]:
    """A sandbox whose orphans, if there were any, would become children of this process."""
    before = ctypes.c_int()
    ctypes.CDLL(None).prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    os.environ["SECRET_OF_THE_PARENT"] = SECRET
    with Sandbox(cpu_s=CPU_S, wall_s=WALL_S) as opened:
        yield opened
    del os.environ["SECRET_OF_THE_PARENT"]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


def below_the_check(box: Sandbox) -> Run:
    """Straight into the interpreter, with `math` bound: no user can ask for this."""

    def run(codes: Sequence[str]) -> list[ExecResult]:
        return box._spread(lambda slot, a, b: [slot.runner.run(code, "answer") for code in codes[a:b]], len(codes))

    return run


def runs(box: Sandbox) -> dict[str, Run]:
    return {"checked": box.map, "below the check": below_the_check(box)}


def assert_contained(name: str, attack: Attack, result: ExecResult) -> None:
    if result.ok:
        assert any(result.value == one and type(result.value) is type(one) for one in attack.harmless), (name, result)
    else:
        assert result.value is None and result.error, (name, result)
    assert unplain(result.value) is None
    assert result.ms <= 1000 * WALL_S + 500, (name, result)
    assert SECRET not in f"{result}" and "root:x:" not in f"{result}"


def surroundings() -> tuple[list[str], list[str], int]:
    return sorted(os.listdir("/")), sorted(os.listdir(".")), psutil.Process().num_fds()


def test_the_list_is_long_enough() -> None:
    assert len(ALL) >= 131 and all(len(attacks) >= 10 for attacks in CATEGORIES.values())


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.slow
def test_attacks_are_contained(
    category: str,
    box: Sandbox,
    others: set[psutil.Process],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    attacks = CATEGORIES[category]
    assert box.map(GOOD[:20])[-1].ok
    before = surroundings()
    for label, run in runs(box).items():
        for (name, attack), result in zip(attacks.items(), run([a.code for a in attacks.values()]), strict=True):
            assert_contained(f"{label}: {name}", attack, result)
        assert [r.value for r in run(GOOD)] == GOOD_VALUES
    assert surroundings() == before and not Path("/", BOOM).exists()
    own = set(psutil.Process().children(recursive=True)) - others
    assert len(own) == 4, "two readers and two interpreters, and no orphan"
    assert SECRET not in "".join(capfd.readouterr())


@pytest.mark.parametrize("category", CATEGORIES)
def test_harmless_programs_of_the_same_shape_succeed(category: str, box: Sandbox) -> None:
    attacks = CATEGORIES[category]
    for label, run in runs(box).items():
        for (name, attack), result in zip(attacks.items(), run([a.twin for a in attacks.values()]), strict=True):
            if label == "checked" and not attack.checked:
                assert result.error == "rejected_by_gate"
            else:
                assert result.ok and result.value == attack.value, (label, name, result)
                assert type(result.value) is type(attack.value), (label, name, result)


def test_the_source_check_refuses_most_of_them_by_name(box: Sandbox) -> None:
    for category in ("imports", "os"):
        attacks = CATEGORIES[category]
        result = {name: r.error for name, r in zip(attacks, box.map([a.code for a in attacks.values()]), strict=True)}
        assert set(result.values()) == {"rejected_by_gate"}, result


def test_files_are_forbidden_below_the_check(box: Sandbox) -> None:
    codes = ["answer = open('/etc/passwd').read()", "open('/x', 'w')", "import os\nanswer = os.listdir('/')"]
    assert [r.error for r in below_the_check(box)(codes)] == ["forbidden"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("category", CATEGORIES)
def test_500_good_programs_are_right_after_each_attack(category: str, box: Sandbox) -> None:
    for label, run in runs(box).items():
        for name, attack in CATEGORIES[category].items():
            begin = time.monotonic()
            [result] = run([attack.code])
            assert time.monotonic() - begin < WALL_S + 2
            assert_contained(f"{label}: {name}", attack, result)
            assert [r.value for r in box.map(GOOD)] == GOOD_VALUES, (label, name)


@pytest.mark.slow
def test_the_default_limits_hold() -> None:
    with Sandbox() as box:
        codes = ["while True:\n    pass", "x = 3\nfor i in range(60):\n    x = x * x\nanswer = x % 7"]
        loop, multiplication = box.map(codes)
        assert loop.error == multiplication.error == "timeout"
        assert 900 < loop.ms < 1700 and multiplication.ms < 2500
        assert box.map(GOOD)[-1].value == GOOD_VALUES[-1]


@pytest.mark.slow
def test_the_same_attack_in_two_fresh_workers_gives_the_same(box: Sandbox) -> None:
    codes = [a.code for a in ALL.values()]
    certain = [name not in ("timeout", "memory") for name in (r.error for r in box.map(codes))]
    steady = [code for code, sure in zip(codes, certain, strict=True) if sure]
    with Sandbox(workers=1) as one, Sandbox(workers=1) as other:
        assert one.map(steady) == other.map(steady)
