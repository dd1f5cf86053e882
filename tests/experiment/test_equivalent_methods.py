"""Methods that are the same method with other words train the same student, to the byte, for the same budget."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.experiment.runs import one_cell, run_all
from tinyllm_bench.base.files import read_json
from tinyllm_bench.leaderboard.record import load_record
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

pytestmark = pytest.mark.slow

SHORT = ("data.train_limit=12", "eval.limit=4", "eval.valid_limit=4", "teacher.init=null", "student.init=null")
FEW = "train.batch_records=2"
TERSE = "teachers=[replay:sample#terse]"
BOTH = "teachers=[replay:sample#terse, replay:sample#stepwise]"
JSD = "method.kd.divergence={kind: jsd}"


class Trained(NamedTuple):
    """What a training came to."""

    student: str
    steps: int
    tokens: int
    flops: float
    by_channel: dict[str, int]


class Side(NamedTuple):
    """A method with settings, and the teachers that are given."""

    method: str
    settings: tuple[str, ...] = ()


IDENTITIES: dict[str, tuple[Side, Side]] = {
    "kd with alpha 0 is finetune": (Side("kd", ("method.kd.alpha=0",)), Side("finetune")),
    "gkd with lambda 0 is kd with jsd, per sequence": (
        Side("gkd", ("method.gkd.lmbda=0",)),
        Side("kd", ("method.kd.alpha=1", JSD, "method.kd.average=sequence")),
    ),
    "gkd with lambda 0 is kd with jsd, per token": (
        Side("gkd", ("method.gkd.lmbda=0", "method.gkd.average=token")),
        Side("kd", ("method.kd.alpha=1", JSD)),
    ),
    "dss is tinyllm with one teacher": (Side("dss", (TERSE,)), Side("tinyllm", (TERSE,))),
    "tinyllm with alpha 0 is finetune": (Side("tinyllm", (BOTH, "method.tinyllm.alpha=0")), Side("finetune")),
    "tinyllm with all teachers at 0 is finetune": (
        Side("tinyllm", (BOTH, "method.tinyllm.alpha={terse: 0, stepwise: 0}")),
        Side("finetune"),
    ),
    "tinyllm with one teacher at 0 is tinyllm with the other": (
        Side("tinyllm", (BOTH, "method.tinyllm.alpha={stepwise: 0}")),
        Side("tinyllm", (TERSE,)),
    ),
    "dss without rationales is finetune": (Side("dss", (TERSE, "method.dss.rationale_weight=0")), Side("finetune")),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"teacher.model=dir:{saved(tiny_llama(seed=1), tmp_path_factory.mktemp('teachers') / 'other')}"


def trained(side: Side, student: Path, runs: Path, *settings: str) -> Trained:
    cell = one_cell(student, *SHORT, FEW, *settings, *side.settings, method=side.method, runs=runs)
    (outcome,) = run_all([cell], runs)
    result: dict[str, Any] = read_json(outcome.folder / "train" / "result.json")
    budget = load_record(outcome.folder).budget
    assert budget is not None and budget.student_tokens == result["student_tokens"]
    stored = (result[key] for key in ("student_digest", "steps", "student_tokens", "flops", "tokens_by_channel"))
    return Trained(*stored)


@pytest.mark.parametrize(
    "budget", [("budget.student_tokens=1500",), ("budget.student_tokens=null", "budget.flops=1e9")]
)
@pytest.mark.parametrize("name", IDENTITIES)
def test_two_names_of_one_method_train_the_same_student(
    name: str, budget: tuple[str, ...], tiny_llama_dir: Path, teacher: str, tmp_path: Path
) -> None:
    first, second = (trained(side, tiny_llama_dir, tmp_path, teacher, *budget) for side in IDENTITIES[name])
    assert first == second and first.steps > 1


def test_teachers_without_a_weight_are_not_used(tiny_llama_dir: Path, teacher: str) -> None:
    """No teacher writes, and none is loaded, for a part of the loss whose weight is 0."""
    for method, settings in (
        ("kd", ("method.kd.alpha=0", "teachers=[]")),
        ("tinyllm", ("method.tinyllm.alpha=0",)),
        ("tinyllm", (BOTH, "method.tinyllm.alpha={terse: 0, stepwise: 0}")),
        ("dss", ("method.dss.rationale_weight=0",)),
        ("minillm", ("method.minillm.response=rationale", "method.minillm.max_new_tokens=8")),
        ("gkd", ("method.gkd.response=rationale", "method.gkd.lmbda=1", "method.gkd.max_new_tokens=8")),
    ):
        cell = one_cell(tiny_llama_dir, teacher, *SHORT, *settings, method=method)
        assert cell.teachers == () and cell.teacher_from is None, method
        assert (cell.signal is None) == (method not in ("gkd", "minillm"))
