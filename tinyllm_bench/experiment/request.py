"""From a request to resolved settings: presets, names of methods and tasks, and the layers of settings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel

from tinyllm_bench.base import plugins
from tinyllm_bench.base.config import Layer, Resolved, group_of, parse_assignments, parse_yaml, read_settings, resolve
from tinyllm_bench.base.errors import UserError, unknown_name
from tinyllm_bench.base.plugins import load_method, load_task, method_defaults, names
from tinyllm_bench.experiment.settings import BenchConfig, BudgetConfig, InitConfig
from tinyllm_bench.models.hub import at_commit
from tinyllm_bench.models.specs import Role, parse_spec
from tinyllm_bench.training.method import Method

MAX_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class Request:
    """A user's request.

    Only reproductions set the last two fields: `select_on_test` where the original code selects weights on the test
    split, and `method_settings`, settings of single methods, which the user's override.

    Raises:
        UserError: no seed, or too many.
    """

    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    preset: str | None = None
    config_file: Path | None = None
    assignments: tuple[str, ...] = ()
    seeds: int = 1
    data_dir: str | None = None
    engine: str | None = None
    runs: Path = Path("runs")
    select_on_test: bool = False
    method_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MAX_SEEDS:
            allowed = f"at least 1 is needed and at most {MAX_SEEDS:,}"
            raise UserError(f"--seeds {self.seeds:.6g}: {allowed}; 3 means seeds 0, 1 and 2")

    def recorded(self) -> dict[str, Any]:
        """The request as plain values, for the record; without the data folder, whose digests are in the record."""
        return {
            "methods": list(self.methods),
            "tasks": list(self.tasks),
            "preset": self.preset,
            "settings": [text for text in self.assignments if not text.startswith("data.dir=")],
            "seeds": self.seeds,
            "engine": self.engine,
        }


def split_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names of methods or tasks, from one text with commas or from several."""
    texts = [names] if isinstance(names, str) else names
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of settings: for every cell, per task, per method, and further rows of a method (`variants`).

    Values in `config` override a method's own file; a method whose paper has other values (a learning rate, a batch
    size) gets them back in `methods`.
    """

    name: str
    about: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    variants: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def preset_names() -> list[str]:
    """The presets that ship with the project."""
    entries = (files("tinyllm_bench.experiment") / "presets").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_preset(name: str) -> Preset:
    """A preset by name."""
    if name not in preset_names():
        raise unknown_name("preset", name, preset_names())
    text = (files("tinyllm_bench.experiment") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return Preset(name=name, **parse_yaml(text, f"preset {name}"))


def default_preset() -> str:
    """`modern` on a machine with an accelerator, otherwise `cpu`."""
    import torch

    return "modern" if torch.cuda.is_available() else "cpu"


def expand(kind: str, requested: Sequence[str]) -> tuple[str, ...]:
    """Names of methods or tasks, with `all` replaced by every method that loads, or every such task of the main suite
    (tasks of other suites have to be named).

    Raises:
        UserError: an unknown name.
    """
    plugins.check_names(kind, requested, "all")
    if "all" not in requested:
        return tuple(dict.fromkeys(requested))
    working = [name for name in plugins.loadable_names(kind) if kind != "task" or load_task(name).suite == "main"]
    return tuple(dict.fromkeys([*working, *(name for name in requested if name != "all")]))


def _layers(
    request: Request,
    preset: Preset,
    method: str | None,
    task: str,
    variant: Mapping[str, Any],
    init_settings: Mapping[str, Any],
) -> list[Layer]:
    """Layers above a method's own file, lowest first; those of a prerequisite cell override the user's."""
    options: dict[str, Any] = {}
    if request.data_dir is not None:
        options["data"] = {"dir": request.data_dir, "source": "release"}
    if request.engine is not None:
        options["backend"] = {"engine": request.engine}
    return [
        Layer(f"preset {preset.name}", preset.config),
        Layer(f"preset {preset.name}, task {task}", preset.tasks.get(task, {})),
        *([Layer(f"preset {preset.name}, method {method}", preset.methods.get(method, {}))] if method else []),
        Layer(f"preset {preset.name}, variant", variant),
        *([Layer(f"table, method {method}", request.method_settings.get(method, {}))] if method else []),
        *([Layer("--config", read_settings(request.config_file))] if request.config_file else []),
        Layer("command line", options),
        Layer("command line", parse_assignments(request.assignments)),
        Layer("init", init_settings),
    ]


def _with_one_budget(layer: Layer) -> Layer:
    """The layer with the budget units that it does not set as null, so that it replaces a lower layer's unit."""

    def with_others_null(group: Any, path: str, kind: type[BaseModel]) -> Any:
        group = group_of(group, path)
        if not isinstance(group, Mapping):
            return group
        amounts = {name: None for name in BudgetConfig.model_fields if name in kind.model_fields}
        is_set = any(group.get(name) not in (None, "null") for name in amounts)
        return {**amounts, **group} if is_set else group

    values = dict(layer.values)
    if "budget" in values:
        values["budget"] = with_others_null(values["budget"], "budget", BudgetConfig)
    for role in ("student", "teacher"):
        group = group_of(values.get(role), role)
        if isinstance(group, Mapping) and "init" in group:
            values[role] = {**group, "init": with_others_null(group["init"], f"{role}.init", InitConfig)}
    return Layer(layer.name, values)


def settings_of(
    request: Request,
    preset: Preset,
    *,
    method: str | None,
    task: str,
    variant: Mapping[str, Any],
    init_settings: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Resolved, Method | None]:
    """All settings of one cell, and its method ready to use (None for a reference baseline).

    Args:
        request: The user's request.
        preset: The preset, which the request overrides.
        method: The method's name.
        task: The task, for the preset's settings of it.
        variant: The preset's settings of one further row of the method.
        init_settings: Settings of a cell that only trains a model for another one; they override the user's.

    Raises:
        UserError: an unknown key or a wrong value, with the layer that set it.
    """
    layers = [_with_one_budget(layer) for layer in _layers(request, preset, method, task, variant, init_settings)]
    common = [Layer(name, {k: v for k, v in values.items() if k != "method"}) for name, values in layers]
    if method is None:
        return _at_commits(resolve(BenchConfig, common)), None
    defaults = parse_yaml(method_defaults(method), f"{method}.yaml")
    kind: type[Method] = load_method(method)
    if not isinstance(given := defaults.get("method") or {}, Mapping):
        raise UserError(f"{method}.yaml: method={given!r} is not a group of settings; write method: {{NAME: VALUE}}")
    own: list[Layer] = [Layer(f"{method}.yaml", given)]
    own += [Layer(name, method_keys(method, kind, values["method"])) for name, values in layers if "method" in values]
    settings = resolve(kind.Config, own)
    rest = Layer(f"{method}.yaml", {k: v for k, v in defaults.items() if k != "method"})
    layer = Layer("method", {"method": settings.config.model_dump(mode="json")})
    resolved = resolve(BenchConfig, [rest, *common, layer])
    origin = {k: v for k, v in resolved.origin.items() if k != "method"}
    origin |= {f"method.{key}": layer for key, layer in settings.origin.items()}
    return _at_commits(Resolved(resolved.config, origin)), kind(settings.config)


def _at_commits(resolved: Resolved) -> Resolved:
    """The settings with every model of the hub at its current commit.

    A branch can be another model tomorrow; a cell must load and record the model that its run id is made of.

    Raises:
        UserError: text that is no model spec, whether the cell uses the model or not.
    """
    config: BenchConfig = resolved.config
    student = config.student.model_copy(update={"model": _at_commit(config.student.model, "student")})
    model = config.teacher.model
    teacher = config.teacher.model_copy(update={"model": None if model is None else _at_commit(model, "teacher")})
    teachers = type(config.teachers)(_at_commit(text, "teacher") for text in config.teachers)
    update = {"student": student, "teacher": teacher, "teachers": teachers}
    return Resolved(config.model_copy(update=update), resolved.origin)


def _at_commit(text: str, role: Role) -> str:
    spec = parse_spec(text, role=role)
    return at_commit(spec).text if spec.kind == "hf" else text


def method_keys(method: str, kind: type[Method], values: Any) -> dict[str, Any]:
    """The part of `method.*` that is meant for one method: `alpha` for all that have it, `<name>.alpha` for one."""
    values = _group("method", values)
    common = {k: v for k, v in values.items() if k in kind.Config.model_fields and k not in names("method")}
    return {**common, **_group(f"method.{method}", values.get(method))}


def _group(key: str, value: Any) -> Mapping[str, Any]:
    """The settings under a key that holds several; an empty group where it is not set."""
    value = group_of(value, key)
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{key}={value!r} is not a group of settings; set {key}.NAME=VALUE (--method chooses methods)")
    return value or {}


def check_method_keys(request: Request, methods: Iterable[str]) -> None:
    """Refuse `method.*` keys that apply to no selected method."""
    selected = list(methods)
    fields = {name: set(load_method(name).Config.model_fields) for name in selected}
    sources = [parse_assignments(request.assignments)]
    sources += [read_settings(request.config_file)] if request.config_file else []
    for source in sources:
        for key in _group("method", source.get("method")):
            if key in names("method"):
                if key not in selected:
                    raise UserError(f"method.{key} is set, but {key} is not among --method {','.join(selected)}")
            elif not any(key in own for own in fields.values()):
                raise unknown_name("method setting", key, set().union(*fields.values()))


def check_trackers(names: Iterable[str]) -> None:
    """Refuse a tracker that is not installed, before anything starts.

    Raises:
        UserError: with the line that installs it.
    """
    trackers = list(names)
    if not trackers:
        return
    from accelerate.tracking import get_available_trackers

    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in trackers:
        if name not in installed:
            raise UserError(f"report_to={name}: {name} is not installed; pip install {name}, or leave it out")
