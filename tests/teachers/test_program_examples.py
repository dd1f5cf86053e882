"""Every example program runs, gives its answer, and is more than a label."""

import pytest

from tinyllm_bench.answers.keys import answer_of, inputs_for, question_kind
from tinyllm_bench.answers.sandbox.pool import Sandbox
from tinyllm_bench.teachers.program_examples import EXAMPLES, ProgramExample


@pytest.fixture(scope="module")
def sandbox() -> object:
    with Sandbox() as one:
        yield one


@pytest.mark.parametrize("example", [e for kind in EXAMPLES.values() for e in kind], ids=lambda e: e.question[:30])
def test_an_example_gives_its_answer(example: ProgramExample, sandbox: Sandbox) -> None:
    (prepared,) = sandbox.prepare([example.program])
    assert prepared.code is not None and prepared.line is not None, prepared
    assert not prepared.degenerate or not example.options
    answer = answer_of(sandbox.run(example.program, inputs=inputs_for(example.options)), example.options)
    assert answer.key == example.key, answer


def test_there_are_six_of_each_kind_and_their_answers_are_spread() -> None:
    for kind, examples in EXAMPLES.items():
        assert len(examples) == 6 and {question_kind(example.options) for example in examples} == {kind}
        assert len({example.key for example in examples}) > 1
