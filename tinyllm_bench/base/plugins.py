"""Methods, tasks, teachers and reporters by name: the only place that imports by a computed name.

A built-in method, task or reporter is a file, and the file's name is its name. Third-party ones come in two ways:

- A package with entry points in the groups `tinyllm_bench.methods`, `.tasks`, `.teachers` and `.reporters`. An entry
  point names the object, or a module that has it as METHOD, TASK, TEACHER or REPORTER.
- A file, given with `--plugin FILE` or listed in TINYLLM_BENCH_PLUGINS (separated by the system's path separator). It
  has METHOD, TASK, TEACHER or REPORTER, whose name is the file's, or METHODS, TASKS, TEACHERS or REPORTERS, each a
  mapping of names to objects. The variable also reaches child processes and `accelerate launch`.

The objects:

- method: a subclass of `Method`. `<name>.yaml` beside its module holds its defaults, if it has any.
- task: a `TaskInfo` of that name. `samples/<name>.jsonl` beside its module holds its sample.
- teacher: a function `(rest, settings) -> TextGenerator`; its name is a kind of spec: `teachers=[name:rest]`.
- reporter: a function `(BoardData) -> {file name: text}`, called whenever a board is built.

The modules that define these types register how they are checked (`define`).

A name has one owner: a built-in's is refused, and so is one that two plugins claim. A plugin that does not load, is of
the wrong type or incomplete is left out with one warning; requested by name it is an error with the reason. A package
is imported when its name, or everything of its kind, is requested; a file is imported to learn its names.
"""

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType
from typing import Any

from tinyllm_bench.base.errors import UserError, in_one_line, unknown_name
from tinyllm_bench.base.files import digest, digest_file, read_bytes, read_text

KINDS = ("method", "task", "teacher", "reporter")
VARIABLE = "TINYLLM_BENCH_PLUGINS"
# Folders of the built-in ones: baselines and tasks are beside the package in a checkout, inside it in a wheel.
_FOLDERS = {"method": "baselines", "task": "tasks", "reporter": "reporters"}
_PACKAGE = __name__.partition(".")[0]
_MAX_BYTES = 16 << 20  # of a plugin file
_importing: set[Path] = set()
_checks: dict[str, Callable[[str, Any], str | None]] = {}
_reserved: dict[str, frozenset[str]] = {}


class PluginWarning(UserWarning):
    """A plugin of another package or file was left out."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """One object that a package or a file offers. `package` is its distribution's name, or the file's.

    `place` is its location there; `load` gives the object or raises whatever its import raises; `home` gives the folder
    of its module and `code` the digest of the package's or the file's code, both after it was loaded.
    """

    kind: str
    name: str
    package: str
    version: str
    place: str
    load: Callable[[], Any]
    home: Callable[[], Path]
    code: Callable[[], str]

    @property
    def fingerprint(self) -> dict[str, str]:
        """The identity of its state: package, version, and the digest of the code that this process runs.

        It does not change while a process runs, even if the file is edited meanwhile.
        """
        return {"package": self.package, "version": self.version, "digest": self.code()}


def define(kind: str, *, problem: Callable[[str, Any], str | None] | None = None, reserved: Iterable[str] = ()) -> None:
    """Register how the objects of a kind are checked; the module that defines their type calls this.

    Args:
        kind: One of `KINDS`.
        problem: Returns the problem with an object of a name, in words; None if there is none.
        reserved: Names that no plugin may have.
    """
    if problem is not None:
        _checks[kind] = problem
    _reserved[kind] = frozenset(reserved)


def folder(kind: str) -> Traversable:
    """The folder of the built-in methods, tasks or reporters, in a checkout or in an installed wheel."""
    return files(f"{_PACKAGE}.{_FOLDERS[kind]}")


def names(kind: str) -> list[str]:
    """Every name of a kind, built in or third-party, whether or not it loads."""
    return sorted(_built_in(kind) | {plugin.name for plugin in external(kind)})


def loadable_names(kind: str) -> list[str]:
    """The names that load; there is one warning for each of the others."""
    broken = {plugin.name: reason for plugin in external(kind) if (reason := status(plugin)) != "ok"}
    for name, reason in broken.items():
        warn(f"{kind} {name!r} is left out: {reason}")
    return [name for name in names(kind) if name in _built_in(kind) or name not in broken]


def external(kind: str) -> list[Plugin]:
    """The plugins of a kind in packages and files, sorted by name; a file that does not load causes a warning."""
    for file, reason in broken_files().items():
        warn(f"plugin file {file} is left out: {reason}")
    plugins = [_of_package(kind, point) for point in _entry_points(f"tinyllm_bench.{kind}s", tuple(sys.path))]
    plugins += [plugin for file in plugin_files() for plugin in _of_file(kind, file)]
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.package))


def status(plugin: Plugin) -> str:
    """`ok`, or why it cannot be used."""
    try:
        _checked(plugin)
    except UserError as error:
        return str(error)
    return "ok"


def load(kind: str, name: str) -> Any:
    """The object with a name.

    Raises:
        UserError: unknown name (with the nearest one), or a plugin that cannot be used, with the reason.
    """
    plugins = [plugin for plugin in external(kind) if plugin.name == name]
    if plugins:
        return _checked(plugins[0])
    if name not in _built_in(kind):
        raise unknown(kind, name)
    return getattr(importlib.import_module(f"{_PACKAGE}.{_FOLDERS[kind]}.{name}"), kind.upper())


def load_method(name: str) -> Any:
    """The `Method` class with a name: attribute `METHOD` of `baselines/<name>.py`, or a plugin's."""
    return load("method", name)


def load_task(name: str) -> Any:
    """The `TaskInfo` with a name: attribute `TASK` of `tasks/<name>.py`, or a plugin's."""
    return load("task", name)


def origin(kind: str, name: str) -> Plugin | None:
    """The plugin with a name; None for a built-in or unknown name."""
    if name in _built_in(kind):
        return None
    return next((plugin for plugin in external(kind) if plugin.name == name), None)


def check_names(kind: str, requested: Iterable[str], *others: str) -> None:
    """Refuse names that no built-in and no plugin has; `others` are allowed too.

    Raises:
        UserError: an unknown name; it names the nearest one.
    """
    known = names(kind)
    for name in requested:
        if name not in (*known, *others):
            raise unknown(kind, name, *others)


def unknown(kind: str, name: str, *others: str, what: str = "") -> UserError:
    """The error for an unknown name, which also lists plugin files that were left out.

    `others` are further allowed names; `what` replaces the kind in the message.
    """
    error = unknown_name(what or kind, name, [*names(kind), *others])
    unread = [f" Plugin file {file} is left out: {reason}." for file, reason in broken_files().items()]
    return UserError(str(error) + "".join(unread))


def home(kind: str, name: str) -> Traversable:
    """The folder of the files that belong to a method or a task: its defaults, its sample."""
    plugin = origin(kind, name)
    if plugin is None:
        return folder(kind)
    _checked(plugin)
    return plugin.home()


def method_defaults(name: str) -> str:
    """The text of `<method>.yaml` beside a method; empty if there is none."""
    file = home("method", name) / f"{name}.yaml"
    return read_text(file) if file.is_file() else ""


@functools.cache
def warn(text: str) -> None:
    """Warn once about a plugin that was left out."""
    warnings.warn(text, PluginWarning, stacklevel=3)


# --- files ------------------------------------------------------------------------------------------------------------


def plugin_files() -> list[Path]:
    """The plugin files that are listed in the variable, without duplicates."""
    named = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    return list(dict.fromkeys(Path(os.path.realpath(Path(text).expanduser())) for text in named))


def add_file(file: Path) -> None:
    """Add a plugin file for this process and its children.

    Raises:
        UserError: there is no such file.
    """
    if not file.is_file():
        raise UserError(
            f"--plugin {file}: no such file; name a Python file that holds METHOD, TASK, TEACHER or REPORTER"
        )
    os.environ[VARIABLE] = os.pathsep.join(map(str, dict.fromkeys([*plugin_files(), file.resolve()])))


def broken_files() -> dict[Path, str]:
    """Plugin files that do not load or offer nothing, with the reason."""
    modules = {file: _module(file) for file in plugin_files()}
    return {file: module for file, module in modules.items() if isinstance(module, str)}


def _module(file: Path) -> ModuleType | str:
    if file in _importing:  # it loads another plugin while it is imported: so far it offers nothing
        return ModuleType(file.stem)
    return _imported(file) if file.is_file() else "no such file"


@functools.cache
def _imported(file: Path) -> ModuleType | str:
    try:
        _file_code(file)
    except UserError as error:
        return str(error)
    name = f"tinyllm_bench_plugin_{file.stem}_{digest(str(file))[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        return "not a Python file (.py)"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pydantic and `inspect.getsource` look there
    _importing.add(file)
    execute = spec.loader.exec_module
    try:
        run_plugin_code(lambda: execute(module))
    except PluginCodeError as error:
        del sys.modules[name]
        return f"does not load: {error}"
    finally:
        _importing.discard(file)
    offered = [word for kind in KINDS for word in (kind.upper(), f"{kind.upper()}S") if word in vars(module)]
    wrong = [word for word in offered if word.endswith("S") and not isinstance(vars(module)[word], Mapping)]
    if wrong or not offered:
        return f"{wrong[0]} is not a mapping of names" if wrong else "defines no METHOD, TASK, TEACHER or REPORTER"
    return module


def _of_file(kind: str, file: Path) -> list[Plugin]:
    module = _module(file)
    if isinstance(module, str):
        return []
    attributes = vars(module)
    single = {file.stem: attributes[kind.upper()]} if kind.upper() in attributes else {}
    offered = {**single, **attributes.get(f"{kind.upper()}S", {})}

    def plugin(name: str, member: Any) -> Plugin:
        return Plugin(
            kind, name, file.name, "", str(file), lambda: member, lambda: file.parent, lambda: _file_code(file)
        )

    return [plugin(str(name), member) for name, member in offered.items()]


@functools.cache
def _file_code(file: Path) -> str:
    """Digest of a file at its first import in this process."""
    return hashlib.sha256(read_bytes(file, max_bytes=_MAX_BYTES)).hexdigest()


# --- packages ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Cached by import path: searching all installed packages takes 20 ms."""
    try:
        return tuple(entry_points(group=group))
    except Exception:  # the file of one package is damaged, whatever it offers: the others are read without it
        points: dict[str, list[EntryPoint]] = {}
        for package in distributions():
            name = str(package.metadata["Name"])
            try:
                points.setdefault(name, list(package.entry_points.select(group=group)))
            except Exception as error:
                points.setdefault(name, [])
                warn(f"package {name!r} is left out: its entry_points.txt is damaged ({in_one_line(error)})")
        return tuple(point for own in points.values() for point in own)


def _of_package(kind: str, point: EntryPoint) -> Plugin:
    def load_object() -> Any:
        loaded = point.load()
        return getattr(loaded, kind.upper()) if isinstance(loaded, ModuleType) else loaded

    return Plugin(
        kind,
        point.name,
        point.dist.name if point.dist else point.module,
        point.dist.version if point.dist else "",
        point.value,
        load_object,
        lambda: Path(str(importlib.import_module(point.module).__file__)).parent,
        lambda: _package_code(point.module.partition(".")[0]),
    )


@functools.cache
def _package_code(name: str) -> str:
    """Digest of all Python files of a package (or of a single module) at the first call in this process."""
    top = importlib.import_module(name)
    if not hasattr(top, "__path__"):
        return digest_file(Path(str(top.__file__)))
    sources = [
        (file.relative_to(root).as_posix(), file) for root in map(Path, top.__path__) for file in root.rglob("*.py")
    ]
    return digest([[name, digest_file(file)] for name, file in sorted(sources)])


# --- running plugin code ----------------------------------------------------------------------------------------------


class PluginCodeError(Exception):
    """An exception that a plugin's code raised, in words."""


def run_plugin_code(function: Callable[[], Any]) -> Any:
    """Call a function of a plugin. What it prints goes to standard error, because standard output may be JSON.

    Raises:
        PluginCodeError: it raised anything but an interruption by the user.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        try:
            message = repr(error)
        except Exception:  # `__repr__` is the plugin's, too
            message = type(error).__name__
        raise PluginCodeError(message) from error


# --- checks -----------------------------------------------------------------------------------------------------------


def _built_in(kind: str) -> set[str]:
    if kind not in _FOLDERS:
        return set(_reserved.get(kind, ()))
    entries = (entry.name for entry in folder(kind).iterdir())
    return {name[:-3] for name in entries if name.endswith(".py") and not name.startswith("_")}


def _checked(plugin: Plugin) -> Any:
    """The object of a plugin, loaded and checked.

    Raises:
        UserError: it does not load, is not of its kind's type, or has a name that is taken.
    """
    kind, name = plugin.kind, plugin.name
    label = f"{kind} {name!r} of package {plugin.place!r}"
    if name in _built_in(kind):
        raise UserError(f"{label} has a built-in's name; rename it, or remove the package")
    others = [other.place for other in external(kind) if other.name == name and other.place != plugin.place]
    if others:
        raise UserError(f"{label} has a name that {others[0]!r} has too; remove or rename one of them")
    try:
        loaded = run_plugin_code(plugin.load)
    except PluginCodeError as error:
        raise UserError(f"{label} does not load: {error}") from error
    if kind in ("teacher", "reporter"):
        problem = None if callable(loaded) else f"a {kind} is a function, not {loaded!r}"
    elif kind not in _checks:  # the module of its type was never imported, so this cannot be one
        problem = f"a {kind} is made of the classes that {_PACKAGE} offers, not {loaded!r}"
    else:
        problem = _checks[kind](name, loaded)
    if problem:
        raise UserError(f"{label} cannot be used: {problem}")
    return loaded
