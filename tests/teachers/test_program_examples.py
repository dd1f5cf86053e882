"""Every program that a live teacher is shown runs, gives its answer, and is more than a label."""

import pytest

from tinyllm_bench.answers.programs import answer_of, inputs_for, kind_of
from tinyllm_bench.answers.sandbox import Sandbox
from tinyllm_bench.teachers.program_examples import SHOWN, Shown


@pytest.fixture(scope="module")
def sandbox() -> object:
    with Sandbox() as one:
        yield one


@pytest.mark.parametrize("shown", [one for kind in SHOWN.values() for one in kind], ids=lambda one: one.question[:30])
def test_a_shown_program_gives_its_answer(shown: Shown, sandbox: Sandbox) -> None:
    (prepared,) = sandbox.prepare([shown.program])
    assert prepared.code is not None and prepared.line is not None, prepared
    assert not prepared.degenerate or not shown.options
    found = answer_of(sandbox.run(shown.program, inputs=inputs_for(shown.options)), shown.options)
    assert found.key == shown.key, found


def test_there_are_six_of_each_kind_and_their_answers_are_spread() -> None:
    for kind, shown in SHOWN.items():
        assert len(shown) == 6 and {kind_of(one.options) for one in shown} == {kind}
        assert len({one.key for one in shown}) > 1
