"""Model specs: the one line of text that names a student or a teacher.

hf:NAME[@REVISION]  dir:FOLDER  gguf:FILE  bundled:NAME  run:CELL_ID    any role, may end in options
api:URL#MODEL  replay:SOURCE[#KEY]  PLUGIN:REST                         teachers only

Options follow `?`, joined by `&`, in any order: `layers=START:STOP:STEP` keeps some layers of the model,
`adapter=FOLDER` then merges a LoRA adapter. `bundled:smollm2-135m?layers=0:30:3&adapter=adapters/a` has
both. The folder's name must not contain `?` or `&`. A teacher plugin's name is a kind as well; the plugin parses
what follows it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from tinyllm_bench.base import plugins
from tinyllm_bench.base.errors import UserError
from tinyllm_bench.base.secrets import SECRET_REFUSED, holds_secret

Kind = Literal["hf", "dir", "gguf", "bundled", "api", "replay", "run"]
Role = Literal["student", "teacher"]
Layers = tuple[int, int, int]

KINDS: tuple[Kind, ...] = get_args(Kind)
plugins.define("teacher", reserved=KINDS)
TEACHER_ONLY: tuple[Kind, ...] = ("api", "replay")
ALLOWED = (
    "hf:NAME@REVISION, dir:FOLDER, gguf:FILE, bundled:NAME, run:CELL_ID "
    "(each may end in ?layers=START:STOP:STEP, ?adapter=FOLDER or both with & between); "
    "for a teacher also api:URL#MODEL and replay:SOURCE#KEY"
)

OPTIONS = ("layers", "adapter")

_KIND = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):(.*)", re.DOTALL)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
_LAYERS = re.compile(r"(\d+):(\d+)(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A parsed spec. `layers` is a Python slice over the layers; `fragment` is the text after `#` of api and replay.

    `text` is the canonical spelling: parsing it again gives an equal object. `adapter` is the folder of a LoRA adapter,
    as written; it is applied after `layers`.
    """

    kind: str
    location: str
    revision: str | None
    layers: Layers | None
    fragment: str | None
    text: str
    adapter: str | None = None

    @property
    def has_weights(self) -> bool:
        """Whether it names a model to load, rather than recorded texts, an API or a teacher plugin."""
        return self.kind in KINDS and self.kind not in TEACHER_ONLY


def parse_spec(text: str, *, role: Role) -> ModelSpec:
    """Read a model spec.

    Raises:
        UserError: no or an unknown kind, an empty or malformed part, a kind that the role cannot have. Whether the
            model exists is checked by `models.load.check_spec`.
    """
    if holds_secret(text):
        raise UserError(f"a model spec {SECRET_REFUSED}")
    match = _KIND.fullmatch(text.strip())
    if match is None:
        raise _without_kind(text.strip())
    kind, rest = match.groups()
    if kind not in KINDS and kind not in plugins.names("teacher"):
        error = plugins.unknown("teacher", kind, what="model kind")
        raise UserError(f"model spec {text.strip()!r}: {error} Allowed: {ALLOWED}.")
    if role == "student" and (kind in TEACHER_ONLY or kind not in KINDS):
        raise UserError(
            f"model spec {text!r}: {kind}: can only be a teacher; a student needs weights: "
            "hf:NAME, dir:FOLDER, gguf:FILE, bundled:NAME or run:CELL_ID"
        )
    if kind not in KINDS:
        _check_location(text, kind, rest, None)
        return _with_text(ModelSpec(kind, rest, None, None, None, ""))
    fragment: str | None = None
    options: Mapping[str, str] = {}
    revision: str | None = None
    if kind in TEACHER_ONLY:
        rest, mark, fragment = rest.partition("#")
        if mark and not fragment:
            raise UserError(f"model spec {text!r}: nothing after '#'; write the model or channel name there")
    else:
        rest, options = _split_options(text, rest)
    if kind == "hf":
        rest, mark, revision = rest.partition("@")
        if mark and not revision:
            raise UserError(f"model spec {text!r}: nothing after '@'; write a commit, tag or branch, or drop the '@'")
    fragment, revision = fragment or None, revision or None
    _check_location(text, kind, rest, fragment)
    layers = _parse_layers(text, options["layers"]) if "layers" in options else None
    return _with_text(ModelSpec(kind, rest, revision, layers, fragment, "", options.get("adapter")))


def without_adapter(spec: ModelSpec) -> ModelSpec:
    """The spec of the model that an adapter is merged into."""
    return _with_text(replace(spec, adapter=None))


def at_revision(spec: ModelSpec, revision: str) -> ModelSpec:
    """The spec of a hub model under another of its revisions."""
    return _with_text(replace(spec, revision=revision))


def _with_text(spec: ModelSpec) -> ModelSpec:
    """The spec with its canonical spelling: layers before the adapter."""
    text = f"{spec.kind}:{spec.location}"
    if spec.revision is not None:
        text += f"@{spec.revision}"
    options = []
    if spec.layers is not None:
        options.append("layers=" + ":".join(str(part) for part in spec.layers))
    if spec.adapter is not None:
        options.append(f"adapter={spec.adapter}")
    if options:
        text += "?" + "&".join(options)
    return replace(spec, text=text if spec.fragment is None else f"{text}#{spec.fragment}")


def _without_kind(text: str) -> UserError:
    """The error for a spec that has no `kind:` in front, with the spelling that was probably meant."""
    if text and Path(text.split("?")[0]).expanduser().is_dir():
        fix = f"for this folder write dir:{text}"
    elif text.endswith(".gguf"):
        fix = f"for this file write gguf:{text}"
    elif text.count("/") == 1 and _HUB_NAME.fullmatch(text.split("@")[0].split("?")[0]):
        fix = f"for a model of the Hugging Face hub write hf:{text}, for a folder dir:{text}"
    else:
        fix = "start it with one of these, for instance bundled:smollm2-135m"
    return UserError(f"model spec {text!r} has no kind; {fix}. Allowed: {ALLOWED}.")


def _split_options(text: str, rest: str) -> tuple[str, dict[str, str]]:
    location, mark, options_text = rest.rpartition("?")
    if not mark:
        return rest, {}
    options: dict[str, str] = {}
    for option in options_text.split("&"):
        name, _, value = option.partition("=")
        if name not in OPTIONS:
            raise UserError(
                f"model spec {text!r}: unknown option {name!r}; allowed: ?layers=START:STOP:STEP and ?adapter=FOLDER, "
                "both joined by &; a folder's name must not contain '?' or '&' here"
            )
        if name in options:
            raise UserError(f"model spec {text!r}: option {name!r} is given twice; give it once")
        options[name] = value
    if options.get("adapter") == "":
        raise UserError(f"model spec {text!r}: nothing after 'adapter='; write the folder of a LoRA adapter there")
    return location, options


def _parse_layers(text: str, value: str) -> Layers:
    match = _LAYERS.fullmatch(value)
    if match is None:
        raise UserError(
            f"model spec {text!r}: layers {value!r} is not START:STOP:STEP in whole numbers; "
            "?layers=0:30:3 keeps layers 0, 3, ..., 27"
        )
    start, stop, step = int(match[1]), int(match[2]), int(match[3] or 1)
    if step < 1:
        raise UserError(f"model spec {text!r}: the step of layers {value!r} must be at least 1")
    if start >= stop:
        raise UserError(f"model spec {text!r}: layers {value!r} keeps no layer; START must be below STOP")
    return start, stop, step


def _check_location(text: str, kind: str, location: str, fragment: str | None) -> None:
    if not location:
        raise UserError(f"model spec {text!r}: nothing after '{kind}:'. Allowed: {ALLOWED}.")
    if kind == "hf" and not _HUB_NAME.fullmatch(location):
        raise UserError(
            f"model spec {text!r}: {location!r} is not a hub name; write hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
        )
    if kind in ("bundled", "run") and not _PLAIN_NAME.fullmatch(location):
        raise UserError(
            f"model spec {text!r}: {location!r} is not a name; allowed are letters, digits, '.', '_' and '-'"
        )
    if kind == "api":
        _check_api(text, location, fragment)


def _check_api(text: str, location: str, fragment: str | None) -> None:
    if not location.lower().startswith(("http://", "https://")):
        raise UserError(f"model spec {text!r}: {location!r} is not an http:// or https:// address; write api:URL#MODEL")
    try:
        parts = urlsplit(location)
        whole = bool(parts.hostname) and parts.port != 0 and location.isprintable() and " " not in location
    except ValueError:  # not a port, half of an IPv6 address
        whole = False
    if not whole:
        raise UserError(
            f"model spec {text!r}: {location!r} is not a complete address; write it like http://localhost:8000/v1, with"
            " a port of 1 to 65535"
        )
    if fragment is None:
        raise UserError(f"model spec {text!r}: no model named; write api:{location}#MODEL")
