"""Two programs that teachers could have written, and a sandbox to run them in."""

from collections.abc import Iterator

import pytest

from tinyllm_bench.answers.sandbox.pool import Sandbox

MELTS = """melts_above_c = 0
room_c = 20
support = {"a": room_c > melts_above_c, "b": False}
answer = max(support, key=support.get)"""
TRIAL = """treated_mean = 5.1
control_mean = 7.4
p_value = 0.01
effect = treated_mean < control_mean
answer = "yes" if effect and p_value < 0.05 else "no\""""


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened
