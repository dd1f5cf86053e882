"""Every number of every setting is finite and bounded, and refused before anything is trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from tests.experiment.runs import cells_of, quick
from tinyllm_bench.base import plugins
from tinyllm_bench.base.config import Layer, parse_assignments, resolve
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.experiment.settings import BenchConfig


def numbers(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of all settings that hold a number, with their annotation; groups behind `| None` too."""
    for name, field in model.model_fields.items():
        members = [field.annotation, *get_args(field.annotation)]
        inner = next((one for one in members if isinstance(one, type) and issubclass(one, BaseModel)), None)
        if inner is not None:
            yield from numbers(inner, f"{prefix}{name}.")
        elif "int" in str(field.annotation) or "float" in str(field.annotation):
            yield f"{prefix}{name}", field.annotation


GROUPS = {"": BenchConfig, **{name: plugins.load_method(name).Config for name in plugins.names("method")}}
NUMBERS = [(owner, key, kind) for owner, model in GROUPS.items() for key, kind in numbers(model)]
WRONG = ("nan", "inf", "-inf", ".nan", ".inf", "1e400", "-1", "-1e9", "99999999999999999999999999999999", "true")


def test_there_are_many_numbers() -> None:
    assert len(NUMBERS) > 60


@pytest.mark.parametrize(("owner", "key", "kind"), NUMBERS, ids=[f"{owner}:{key}" for owner, key, _ in NUMBERS])
@pytest.mark.parametrize("wrong", WRONG)
def test_no_number_is_endless_or_negative(owner: str, key: str, kind: Any, wrong: str) -> None:
    text = str(kind)
    written = f"[{wrong}]" if "tuple[" in text and "dict" not in text else wrong
    if text.startswith("dict"):
        written = f"{{m: [{wrong}, 1]}}"
    with pytest.raises(UserError) as caught:
        resolve(GROUPS[owner], [Layer("command line", parse_assignments([f"{key}={written}"]))])
    assert "\n" not in str(caught.value) and key.partition(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    "assignment",
    [
        *(
            f"train.evaluations={looks}"
            for looks in ("[-1]", "[0]", "[2.0]", "[.nan]", "[nan]", "[]", "[0.5, 1.1]", "0.5")
        ),
        *("train.learning_rate=0", "train.warmup=1", "train.max_grad_norm=0"),
        *("student.lora={r: 99999999}", "student.lora={r: 0}", "student.lora={dropout: 1}"),
        *("student.lora={target_modules: [q_proj, nothing]}", "student.lora={target_modules: []}"),
        *("student.lora={target_modules: [norm]}", "student.lora={target_modules: '.*nothing'}"),
        *("student.lora={target_modules: '('}", "teacher.cache={k: 0}", "teacher.cache={k: some}"),
        *("data.markers={lable: x}", "data.markers.rationale:nobody=x", "data.markers={'': x}", "data.dir="),
        *("annotations.sampling.seed=-1", "annotations.prices={m: [nan, 1]}", "budget.epochs=0", "eval.shots=0"),
        *("student.init={method: finetune}", "student.init={method: finetune, epochs: 1, student_tokens: 3}"),
    ],
)
def test_what_would_crash_later_or_do_nothing_is_refused(tiny_llama_dir: Path, assignment: str) -> None:
    with pytest.raises(UserError) as caught:
        cells_of(quick(tiny_llama_dir, assignment, methods=("finetune", "tinyllm")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "assignment",
    [
        *("train.evaluations=[1]", "train.evaluations=[1e-3, 1.0]", "student.lora={target_modules: [q_proj, v_proj]}"),
        *("student.lora={target_modules: '.*_proj'}", "teacher.cache={k: all}"),
        *('data.markers={label: "\\nA:", rationale:terse: x}', "data.markers.rationale:stepwise=y"),
    ],
)
def test_what_exists_is_taken(tiny_llama_dir: Path, assignment: str) -> None:
    assert len(cells_of(quick(tiny_llama_dir, assignment, methods=("finetune", "tinyllm")))) == 2


@pytest.mark.parametrize("model", ["nonsense", "nosuch:x", "api:ftp://host#m", "replay:", "dir:a?layers=3:1"])
@pytest.mark.parametrize("key", ["teacher.model", "teachers"])
def test_a_spec_is_read_whether_a_method_uses_it_or_not(tiny_llama_dir: Path, key: str, model: str) -> None:
    with pytest.raises(UserError, match="model spec") as caught:
        cells_of(quick(tiny_llama_dir, f"{key}={model}" if key == "teacher.model" else f"{key}=['{model}']"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["hf:a/b", "dir:/nowhere", "bundled:smollm2-135m", "replay:nobody#key"])
def test_a_model_that_no_cell_uses_need_not_exist(tiny_llama_dir: Path, model: str) -> None:
    assert len(cells_of(quick(tiny_llama_dir, f"teacher.model={model}", f"teachers=['{model}']"))) == 1
