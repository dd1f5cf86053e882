"""Layers: order, origin, refusals."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from tinyllm_bench.base.config import Layer, as_assignments, flatten, parse_assignments, parse_yaml, read_yaml, resolve
from tinyllm_bench.base.errors import UserError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float = 0.1
    steps: int = 5


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    inner: Inner = Inner()
    maybe: Inner | None = None
    names: tuple[str, ...] = ()


def test_later_layers_win_key_by_key() -> None:
    found = resolve(Outer, [Layer("one", {"inner": {"rate": 1, "steps": 2}}), Layer("two", {"inner": {"rate": 3}})])
    assert (found.config.inner.rate, found.config.inner.steps) == (3.0, 2)
    assert found.origin == {"inner.rate": "two", "inner.steps": "one"}


def test_null_takes_back_a_group_and_a_later_layer_fills_it_again() -> None:
    layers = [Layer("one", {"maybe": {"rate": 2}}), Layer("two", {"maybe": None})]
    assert resolve(Outer, layers).config.maybe is None
    assert resolve(Outer, [*layers, Layer("three", {"maybe": {"steps": 9}})]).config.maybe == Inner(steps=9)


def test_a_shared_layer_is_not_changed_by_merging() -> None:
    shared = {"inner": {"rate": 1}}
    resolve(Outer, [Layer("one", shared), Layer("two", {"inner": {"rate": 2}})])
    assert shared == {"inner": {"rate": 1}}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"iner": {}}, r"unknown setting \(here\) 'iner'. Did you mean 'inner'\?"),
        ({"inner": {"rat": 1}}, r"unknown setting \(here\) 'inner.rat'. Did you mean 'inner.rate'\?"),
        ({"inner": {"steps": "many"}}, r"inner.steps='many' \(here\): input should be a valid integer"),
    ],
)
def test_wrong_settings_name_layer_value_and_what_is_allowed(values: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        resolve(Outer, [Layer("here", values)])


def test_assignments_are_yaml_with_scientific_numbers() -> None:
    found = parse_assignments(["a.b=1e-4", "a.c=[x, y]", "d=null", "e=text", "f=a=b"])
    assert found == {"a": {"b": 1e-4, "c": ["x", "y"]}, "d": None, "e": "text", "f": "a=b"}


@pytest.mark.parametrize("text", ["alpha", "=3", ".x=1", "a=[1"])
def test_what_is_not_an_assignment_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_assignments([text])


def test_a_value_cannot_become_a_group() -> None:
    with pytest.raises(UserError, match="already"):
        parse_assignments(["a=1", "a.b=2"])


def test_yaml_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="not valid YAML"):
        parse_yaml("a: [", "here")
    with pytest.raises(UserError, match="must be a mapping"):
        parse_yaml("- a", "here")
    assert parse_yaml("", "here") == {}


def test_flatten_gives_dotted_keys() -> None:
    assert flatten(Outer()) == {"inner.rate": 0.1, "inner.steps": 5, "maybe": None, "names": ()}


# --- settings as Python values ----------------------------------------------------------------------------------------


SAME = [  # nested already
    {"teachers": ["replay:release#a", "hf:me/b"]},
    {"method": {"alpha": {"llama-2.7b": 0.3}}},
    {"data": {"markers": {"cot": "\nThink: a = b\n", "x": ""}}},
    {"a": {"b": True, "c": "no", "d": "1:2:3", "e": {}, "f": None, "g": 1e15}},
]
OTHER = [
    ({"train.learning_rate": 1e-5, "eval": {"limit": 3}}, {"train": {"learning_rate": 1e-5}, "eval": {"limit": 3}}),
    ({"train": {"looks": (0.5, 1.0)}, "data.style": "x"}, {"train": {"looks": [0.5, 1.0]}, "data": {"style": "x"}}),
    ({"data.dir": Path("some/where")}, {"data": {"dir": "some/where"}}),
]


@pytest.mark.parametrize(("settings", "nested"), [*zip(SAME, SAME, strict=True), *OTHER])
def test_python_values_become_the_same_settings(settings: dict[str, Any], nested: dict[str, Any]) -> None:
    assert parse_assignments(as_assignments(settings)) == nested


def test_a_group_does_not_undo_what_lies_in_it() -> None:
    assert parse_assignments(as_assignments({"a.b": 1, "a": {"c": 2}})) == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("settings", [{"": 1}, {"a=b": 1}, {3: 1}, {"a": object()}])
def test_what_is_no_setting_is_refused(settings: Any) -> None:
    with pytest.raises(UserError):
        as_assignments(settings)
