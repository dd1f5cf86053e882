"""Layers: order, origin, refusals."""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from tinyllm_bench.base.config import (
    Layer,
    as_assignments,
    flatten,
    parse_assignments,
    parse_yaml,
    read_settings,
    read_yaml,
    resolve,
)
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
    result = resolve(Outer, [Layer("one", {"inner": {"rate": 1, "steps": 2}}), Layer("two", {"inner": {"rate": 3}})])
    assert (result.config.inner.rate, result.config.inner.steps) == (3.0, 2)
    assert result.origin == {"inner.rate": "two", "inner.steps": "one"}


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
        ({"inner": {"steps": "many"}}, r"inner.steps='many' \(here\): allowed: whole number$"),
    ],
)
def test_wrong_settings_name_layer_value_and_what_is_allowed(values: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text):
        resolve(Outer, [Layer("here", values)])


class Typed(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str = ""
    maybe_text: str | None = "here"
    whole: int = 0
    maybe_whole: int | None = 1
    number: float = 0.0
    flag: bool = False
    kind: Literal["no", "on", "1"] = "on"
    amount: int | Literal["all"] = 3
    weight: Annotated[float, Field(ge=0)] | dict[str, Annotated[float, Field(ge=0)]] = 1.0
    modules: str | list[str] = "all"
    names: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    texts: dict[str, str] = {}
    prices: dict[str, tuple[float, float]] = {}
    inner: Inner = Inner()
    maybe: Inner | None = None


def typed(*texts: str) -> Any:
    """The values of settings that were typed on the command line."""
    return resolve(Typed, [Layer("command line", parse_assignments(texts))]).config


# Texts that a YAML reader would shorten, change or take for another kind.
CHANGED = [
    *("#2", "a #2", "dir:student #2", "1:30", "010", "0o17", "0x10", "1_000", "1e5", "1.50", ".5", "true", "yes", "no"),
    *(
        "on",
        "off",
        "~",
        "2026-01-02",
        "=",
        "<<",
        "a: b",
        "key: value #x",
        "- a",
        "&a",
        "*a",
        "!!int 3",
        "%x",
        "@x",
        "`x",
    ),
    *(
        " a ",
        "a  b",
        "a, b",
        "'",
        '"',
        "it's",
        '"a" and "b"',
        "C:\\temp\\new",
        "a=b",
        "|",
        ">",
        "? x",
        "...",
        "---",
        "é☃😀",
    ),
]


@pytest.mark.parametrize("text", CHANGED)
def test_a_text_arrives_as_written(text: str) -> None:
    assert typed(f"text={text}").text == text
    assert typed(f"maybe_text={text}").maybe_text == text
    assert typed(f"texts.{'x'}={text}").texts == {"x": text}
    assert typed(*as_assignments({"text": text, "names": [text], "texts": {text.replace(".", ""): text}})) == Typed(
        text=text, names=(text,), texts={text.replace(".", ""): text}
    )


@pytest.mark.parametrize(
    "text", ["null", "[a", "{b}", "[a, b]", "'quoted'", '"quoted"', "two\nlines", "\u2028", "", "'", '"a']
)
def test_a_text_from_python_arrives_as_it_is(text: str) -> None:
    assert typed(*as_assignments({"text": text, "maybe_text": text, "modules": text, "names": [text]})) == Typed(
        text=text, maybe_text=text, modules=text, names=(text,)
    )


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("whole=010", "whole", 10),
        ("whole=1e5", "whole", 100_000),
        ("whole=-3", "whole", -3),
        ("number=1e-4", "number", 1e-4),
        ("number=010", "number", 10.0),
        ("maybe_whole=null", "maybe_whole", None),
        ("maybe_text=null", "maybe_text", None),
        ("text=null", "text", "null"),
        ('maybe_text="null"', "maybe_text", "null"),
        ("flag=true", "flag", True),
        ("flag=no", "flag", False),
        ("kind=no", "kind", "no"),
        ("kind=1", "kind", "1"),
        ("amount=all", "amount", "all"),
        ("amount=5", "amount", 5),
        ("weight=0.5", "weight", 0.5),
        ("weight={t5: 0.5, '010': 1}", "weight", {"t5": 0.5, "010": 1.0}),
        ("weight.t5=0.5", "weight", {"t5": 0.5}),
        ("modules=q_proj", "modules", "q_proj"),
        ("modules=[q_proj, 010]", "modules", ["q_proj", "010"]),
        ("names=[no, 1:30, hf:a#b, 'x #2', 2026-01-02]", "names", ("no", "1:30", "hf:a#b", "x #2", "2026-01-02")),
        ("names=[null, ~]", "names", ("null", "~")),
        ("numbers=[0.5, 1]", "numbers", (0.5, 1.0)),
        ("texts={cot: on, pot: 1_0}", "texts", {"cot": "on", "pot": "1_0"}),
        ("prices={m: [1, 2.5]}", "prices", {"m": (1.0, 2.5)}),
        ("inner={rate: 1e-3}", "inner", Inner(rate=1e-3)),
        ("maybe={steps: 010}", "maybe", Inner(steps=10)),
    ],
)
def test_a_value_is_read_by_the_type_of_its_setting(written: str, key: str, value: Any) -> None:
    assert getattr(typed(written), key) == value


@pytest.mark.parametrize(
    "written",
    [
        *("whole=true", "whole=1:30", "whole=0x10", "whole=0o17", "whole=1.5", "whole=~", "whole=", "whole=null"),
        *(
            "whole=[1]",
            "number=yes",
            "number=true",
            "number=1:30",
            "number=2026-01-02",
            "number=.inf.",
            "maybe_whole=~",
        ),
        *("flag=maybe", "flag=2", "kind=off", "amount=none", "weight=heavy", "weight={a: true}", "numbers=[true]"),
        *(
            "names=a",
            "names={a: b}",
            "names=[[a]]",
            "names=[a: b]",
            "texts=a",
            "texts={a: [b]}",
            "inner=3",
            "inner=[1]",
        ),
        *(
            "names=[a",
            "names=[a] # rest",
            "names=[a #b]",
            "texts={a: b, a: c}",
            "names=[!!int 3, !x a]",
            "names=[&a b, *a]",
        ),
        *("weight={a: 1", "prices={m: [1]}", "prices={m: [1, 2, 3]}", "names=" + "[" * 3000, "whole=" + "x" * 5000),
    ],
)
def test_a_value_of_another_kind_is_refused_in_one_line(written: str) -> None:
    with pytest.raises(UserError) as caught:
        typed(written)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert written.partition("=")[0] in str(caught.value)


def test_true_is_no_number_in_a_file_either() -> None:
    with pytest.raises(UserError, match=r"inner.rate=true \(--config\): must be a number"):
        resolve(Typed, [Layer("--config", {"inner": {"rate": True}})])
    with pytest.raises(UserError, match=r"numbers.1=true \(--config\)"):
        resolve(Typed, [Layer("--config", {"numbers": [1, True]})])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("amount=[", "amount='[' (command line): allowed: whole number or `all`"),
        ("weight=-1", "weight=-1 (command line): allowed: number at least 0 or mapping from text to number at least 0"),
        ("weight={a: -1}", "allowed: number at least 0 or mapping"),
        ("modules={a: b}", "(command line): allowed: text or list of text"),
        ("names=a", "names='a' (command line): allowed: list of text"),
        ("numbers=[a]", "numbers='a' (command line): allowed: list of number"),
        ("prices={m: [1]}", "allowed: mapping from text to list of 2: number, number"),
        ("inner=3", "inner='3' (command line): allowed: group, as inner.NAME=VALUE"),
        ("maybe=x", "allowed: group or null, as maybe.NAME=VALUE"),
        ("flag=2", "flag='2' (command line): allowed: true or false"),
        ("kind=off", "input should be 'no', 'on' or '1'"),
        ("number=1e-400", "number='1e-400': closer to 0 than a number can be"),
        ("whole=\u0663", "allowed: whole number"),
    ],
)
def test_a_refusal_names_the_setting_its_layer_and_what_is_allowed(written: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        typed(written)
    assert message in str(caught.value) and "instance of" not in str(caught.value)


def test_a_list_nested_too_deep_is_refused_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="not valid YAML"):
        typed("names=" + "[" * 20_000)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("text", [*CHANGED[:15], "1:30:00", "2026-01-02", "+1", "1.", ".inf", "0b11"])
def test_a_file_of_settings_keeps_plain_values_as_they_are_written(tmp_path: Path, text: str) -> None:
    if "#" in text:
        return  # a comment of YAML
    (tmp_path / "c.yaml").write_text(f"text: {text}\nnames: [{text}]\ntexts: {{{text}: {text}}}\n", encoding="utf-8")
    result = resolve(Typed, [Layer("--config", read_settings(tmp_path / "c.yaml"))]).config
    assert (result.text, result.names, result.texts) == (text, (text,), {text: text})


def test_a_file_of_settings_reads_numbers_as_the_command_line_does(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "whole: 010\nnumber: 1e-4\nflag: yes\nmaybe_text: ~\nmaybe:\nbase: &b {rate: 1}\ninner: {<<: *b, steps: 2}\n"
    )
    values = read_settings(file)
    del values["base"]
    result = resolve(Typed, [Layer("--config", values)]).config
    assert (result.whole, result.number, result.flag, result.maybe_text, result.maybe) == (10, 1e-4, True, None, None)
    assert result.inner == Inner(rate=1, steps=2)
    for line in ("whole: 1:30", "whole: 2026-01-02", "number: true", "number: " + "9" * 5000, "text: null"):
        file.write_text(line)
        with pytest.raises(UserError, match=line[:4]):
            resolve(Typed, [Layer("--config", read_settings(file))])


@pytest.mark.parametrize("text", ["[]", "0", "false", "''"])
def test_an_empty_list_is_no_file_of_settings(text: str) -> None:
    with pytest.raises(UserError, match="must be a mapping"):
        parse_yaml(text, "here")


@pytest.mark.parametrize("text", ["alpha", "=3", ".x=1", "a..b=1", "a.=1"])
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
    (
        {"train": {"evaluations": (0.5, 1.0)}, "data.style": "x"},
        {"train": {"evaluations": [0.5, 1.0]}, "data": {"style": "x"}},
    ),
    ({"data.dir": Path("some/where")}, {"data": {"dir": "some/where"}}),
]


class Anything(BaseModel):
    """Settings of every kind, as plugins may have them."""

    teachers: Any = None
    method: Any = None
    data: Any = None
    train: Any = None
    eval: Any = None
    a: Any = None


def read_back(settings: dict[str, Any]) -> dict[str, Any]:
    layer = Layer("python", parse_assignments(as_assignments(settings)))
    return dict(resolve(Anything, [layer]).config.model_dump(exclude_unset=True))


@pytest.mark.parametrize(("settings", "nested"), [*zip(SAME, SAME, strict=True), *OTHER])
def test_python_values_become_the_same_settings(settings: dict[str, Any], nested: dict[str, Any]) -> None:
    assert read_back(settings) == nested


def test_a_group_does_not_undo_what_lies_in_it() -> None:
    assert read_back({"a.b": 1, "a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert read_back({"a.b": 1, "a": {"x.y": 2}}) == {"a": {"x.y": 2, "b": 1}}


@pytest.mark.parametrize("settings", [{"": 1}, {"a=b": 1}, {3: 1}, {"a": object()}])
def test_what_is_no_setting_is_refused(settings: Any) -> None:
    with pytest.raises(UserError):
        as_assignments(settings)


SECRET_ADDRESSES = ("api:HTTPS://me:hidden@host/v1#m", "https://host/v1?api_key=hidden", "api:https://host/v1?hidden#m")


@pytest.mark.parametrize("address", SECRET_ADDRESSES)
@pytest.mark.parametrize(
    "values",
    [{"names": ["fine", "%s"]}, {"inner": {"rate": "%s"}}, {"inner": {"%s": 1}}, {"%s": 1}, {"names": "%s"},
     {"inner": "%s"}, {"unknown": {"deep": [["%s"]]}}],
)  # fmt: skip
def test_a_key_or_password_in_a_setting_is_refused_and_not_shown(values: Any, address: str) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {filled(key): filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else str(value).replace("%s", address)

    with pytest.raises(
        UserError, match=r"\(here\) holds a user, password, key or query.*TINYLLM_BENCH_API_KEY"
    ) as caught:
        resolve(Outer, [Layer("here", filled(values))])
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("address", SECRET_ADDRESSES)
def test_no_error_about_what_was_typed_shows_a_key(address: str, tmp_path: Path) -> None:
    for texts in (["https://me:hidden@host"], [f"a={address}", f"a.b={address}"]):
        with pytest.raises(UserError) as caught:
            parse_assignments(texts)
        assert "hidden" not in str(caught.value), texts
    file = tmp_path / "a.yaml"
    file.write_text(f"teacher:\n  model: {address}\n bad: [\n")
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    assert "hidden" not in str(caught.value)


def test_a_key_that_an_error_cuts_in_two_is_not_shown() -> None:
    """Its end, which tells that it is one, lies behind the cut."""
    with pytest.raises(UserError) as caught:
        parse_assignments([f"{'x' * 60} https://hidden{'y' * 60}@host"])
    assert str(caught.value).startswith(f"'{'x' * 60} https://***") and "hidden" not in str(caught.value)
