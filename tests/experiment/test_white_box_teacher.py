"""White-box teachers through the whole pipeline: chosen, checked, taught the task first, and paid for."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.events import PrerequisiteStarted
from tinyllm_bench.base.files import read_json
from tinyllm_bench.leaderboard.record import load_record
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

pytestmark = pytest.mark.slow

NO_INIT = "teacher.init=null"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another random model with the student's tokenizer."""
    return saved(tiny_llama(seed=1, hidden_size=96), tmp_path_factory.mktemp("teachers") / "larger")


def test_a_student_learns_from_distributions(tiny_llama_dir: Path, teacher: Path, tmp_path: Path) -> None:
    cell = one_cell(tiny_llama_dir, f"teacher.model=dir:{teacher}", NO_INIT, method="kd")
    assert cell.teachers == () and cell.teacher_from is None
    (outcome,) = run_all([cell], tmp_path)
    record = load_record(outcome.folder)
    assert record.training is not None and record.training.layout == "shared"
    assert [t.note for t in record.teachers] == ["distributions"]


def test_a_teacher_is_trained_on_the_task_first_and_only_once(
    tiny_llama_dir: Path, teacher: Path, tmp_path: Path
) -> None:
    named = (f"teacher.model=dir:{teacher}", "teacher.init={method: finetune, epochs: 1}")
    alphas = ("method.kd.alpha=0.5", "method.kd.alpha=1.0")
    cells = [one_cell(tiny_llama_dir, *named, alpha, method="kd", runs=tmp_path) for alpha in alphas]
    first = cells[0].teacher_from
    assert first is not None and first.run_id == cells[1].teacher_from.run_id  # type: ignore[union-attr]
    assert (first.name, first.student.text) == ("finetune", f"dir:{teacher}")
    events: list[Any] = []
    outcomes = run_all(cells, tmp_path, events=events)
    assert sum(isinstance(event, PrerequisiteStarted) for event in events) == 1
    other_seed = cells_of(quick(tiny_llama_dir, *named, methods=("kd",), seeds=2, runs=tmp_path))[1]
    assert other_seed.seed == 1 and other_seed.teacher_from is not None
    assert other_seed.teacher_from.run_id == first.run_id, "a seed never changes the teacher"
    trained = read_json(tmp_path / first.run_id / "train" / "result.json")
    for outcome in outcomes:
        record = load_record(outcome.folder)
        assert record.budget is not None
        assert record.budget.teacher_init_tokens == trained["student_tokens"] > 0
        assert record.teachers[0].spec == f"run:{first.run_id}"
    shutil.rmtree(tmp_path / first.run_id)
    again = run_all(cells, tmp_path)
    assert not any(outcome.fresh for outcome in again) and not (tmp_path / first.run_id).exists()


def test_a_student_may_be_trained_by_another_method_first(tiny_llama_dir: Path, tmp_path: Path) -> None:
    init = "student.init={method: finetune, student_tokens: 1000}"
    cell = one_cell(tiny_llama_dir, init, runs=tmp_path)
    assert cell.student_from is not None and cell.student.text == f"run:{cell.student_from.run_id}"
    (outcome,) = run_all([cell], tmp_path)
    record = load_record(outcome.folder)
    made = read_json(tmp_path / cell.student_from.run_id / "train" / "result.json")
    assert record.student is not None and record.student.initial_digest == made["student_digest"]
    assert record.budget is not None and record.budget.student_init_tokens == made["student_tokens"]
    assert cell.run_id != one_cell(tiny_llama_dir).run_id


def test_which_teacher_makes_another_cell(tiny_llama_dir: Path, teacher: Path) -> None:
    changes = ((NO_INIT,), ("teacher.init={method: finetune, epochs: 1}",), (NO_INIT, "teacher.dtype=bfloat16"))
    ids = [one_cell(tiny_llama_dir, f"teacher.model=dir:{teacher}", *c, method="kd").run_id for c in changes]
    less = f"teacher.model=dir:{teacher}?layers=0:1:1"
    ids.append(one_cell(tiny_llama_dir, less, NO_INIT, method="kd").run_id)
    assert len(set(ids)) == len(ids)


def test_what_cannot_teach_is_refused_before_anything_is_loaded(
    tiny_llama_dir: Path, tiny_t5_dir: Path, tmp_path: Path
) -> None:
    texts = ("teacher.model=null", "teachers=[replay:sample#terse]")
    with pytest.raises(UserError, match="gives text only"):
        one_cell(tiny_llama_dir, *texts, method="kd")
    with pytest.raises(UserError, match="encoder-decoder"):
        one_cell(tiny_llama_dir, f"teacher.model=dir:{tiny_t5_dir}", NO_INIT, method="kd")
    other = saved(tiny_llama(seed=2), tmp_path / "other")
    from transformers import AutoTokenizer

    changed = AutoTokenizer.from_pretrained(other)
    changed.add_tokens(["<another token>"])
    changed.save_pretrained(other)
    with pytest.raises(UserError, match="different tokenizers"):
        one_cell(tiny_llama_dir, f"teacher.model=dir:{other}", NO_INIT, method="kd")
