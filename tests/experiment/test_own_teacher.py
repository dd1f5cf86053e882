"""A teacher that is its own student is refused before anything runs, however the two are spelled."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.experiment.runs import cells_of, one_cell, quick, run_all
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.experiment.plan_cells import check_teacher_differs, plan_cells
from tinyllm_bench.experiment.request import Request
from tinyllm_bench.models.specs import parse_spec
from tinyllm_bench.testing.tiny_models import saved, tiny_llama

METHODS = ("kd", "gkd", "minillm", "seqkd")
SAME = "teacher and student are the same weights"
TAUGHT = "{method: finetune, epochs: 3}"


def refused(student: Path, *settings: str, method: str = "gkd", **changes: Any) -> str:
    with pytest.raises(UserError, match=SAME) as caught:
        cells_of(quick(student, *settings, methods=(method,), **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_model_as_it_is(tiny_llama_dir: Path, method: str) -> None:
    message = refused(
        tiny_llama_dir, f"teacher.model=dir:{tiny_llama_dir}", "teacher.init=null", "student.init=null", method=method
    )
    assert "train the teacher on the task first (teacher.init)" in message


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_same_model_after_the_same_training(tiny_llama_dir: Path, seeds: int) -> None:
    both = (f"teacher.model=dir:{tiny_llama_dir}", f"student.init={TAUGHT}", f"teacher.init={TAUGHT}")
    message = refused(tiny_llama_dir, *both, seeds=seeds)
    assert "after finetune" in message and "teacher.init.train_limit" in message


def test_a_seed_makes_no_other_teacher(tiny_llama_dir: Path) -> None:
    """All seeds share one teacher, and the student of another seed, which saw the same records, is none."""
    named = (f"teacher.model=dir:{tiny_llama_dir}", f"student.init={TAUGHT}", "data.train_limit=8")
    zero, one = cells_of(quick(tiny_llama_dir, *named, methods=("gkd",), seeds=2))
    assert zero.teacher_from is not None and one.teacher_from is not None
    assert zero.teacher_from.run_id == one.teacher_from.run_id
    assert zero.student_from is not None and one.student_from is not None
    assert zero.student_from.run_id != one.student_from.run_id
    other_seed = parse_spec(f"run:{zero.student_from.run_id}", role="teacher")
    with pytest.raises(UserError, match=SAME):
        check_teacher_differs(replace(one, teacher_from=zero.student_from), other_seed)


def test_copies_links_and_layers_that_are_all_layers_are_the_same(tiny_llama_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama_dir, copy)
    (copy / "README.md").write_text("another card")
    (tmp_path / "link").symlink_to(copy)
    bare = ("teacher.init=null", "student.init=null")
    for name in ("copy", "link", "copy?layers=0:4:1"):
        refused(tiny_llama_dir, f"teacher.model=dir:{tmp_path / name}", *bare)
    cell = one_cell(tiny_llama_dir, f"teacher.model=dir:{copy}?layers=0:1:1", *bare, method="gkd")
    assert cell.signal is not None, "fewer layers are another model"


def test_a_finished_run_that_made_the_student_is_no_teacher_of_it(tiny_llama_dir: Path, tmp_path: Path) -> None:
    bare = (f"teacher.model=dir:{tiny_llama_dir}", "teacher.init=null", f"student.init={TAUGHT}")
    first = one_cell(tiny_llama_dir, *bare, method="gkd", runs=tmp_path)
    assert first.student_from is not None
    made = tmp_path / first.student_from.run_id / "student"
    run_all([first.student_from], tmp_path, until="train")
    for spec in (f"run:{first.student_from.run_id}", f"dir:{made}"):
        refused(tiny_llama_dir, f"teacher.model={spec}", "teacher.init=null", f"student.init={TAUGHT}", runs=tmp_path)


def test_one_that_learned_more_teaches(tiny_llama_dir: Path, tmp_path: Path) -> None:
    named = (f"teacher.model=dir:{tiny_llama_dir}", "data.train_limit=8")
    cell = one_cell(tiny_llama_dir, *named, method="gkd", runs=tmp_path)
    assert cell.student_from is not None and cell.teacher_from is not None
    assert (len(cell.student_from.records("train")), len(cell.teacher_from.records("train"))) == (8, 24)
    assert cell.origin["teacher.init.epochs"] == "gkd.yaml"
    fewer = one_cell(tiny_llama_dir, *named, "teacher.init.train_limit=12", method="gkd", runs=tmp_path)
    assert fewer.teacher_from is not None and len(fewer.teacher_from.records("train")) == 12
    refused(tiny_llama_dir, *named, "teacher.init.train_limit=8")
    other = saved(tiny_llama(seed=1), tmp_path / "other")
    assert one_cell(tiny_llama_dir, f"teacher.model=dir:{other}", "teacher.init=null", "student.init=null", method="kd")


@pytest.mark.release
@pytest.mark.parametrize("task", ["obqa", "pubmedqa"])
def test_the_cpu_preset_has_a_teacher_that_has_seen_more(task: str, release: Path, tiny_llama_dir: Path) -> None:
    own = (f"student.model=dir:{tiny_llama_dir}", f"teacher.model=dir:{tiny_llama_dir}")
    request = Request(methods=METHODS, tasks=(task,), preset="cpu", data_dir=str(release), assignments=own)
    for cell in plan_cells(request)[1]:
        assert cell.teacher_from is not None
        seen = [len(one.records("train")) for one in (cell.teacher_from, cell.student_from or cell)]
        assert seen[0] >= 1.8 * seen[1], cell.label
