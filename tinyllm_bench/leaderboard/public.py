"""Makes texts fit to publish: without paths of a machine and without keys in an address.

A path is absolute (two parts or more, or one after `dir:` and the like), or begins with `~` or a Windows drive.
Addresses are left alone but for user, password and query.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tinyllm_bench.base.secrets import redacted

_KINDS = "dir|gguf|replay|run|file"
# A path begins a text or follows one of these; elsewhere a slash belongs to a relative path, a name or a fraction.
_BEGIN = r"""(?<![^\s=:"'`,;(\[{@])"""
_PART = r"""[^\s=:"'`,;()\[\]{}<>|#?/\\]"""
_DRIVE = r"[A-Za-z]:[\\/]"
_HOME = r"~(?:[A-Za-z_][\w.-]*)?/"
_PLACE = re.compile(
    "|".join(
        (
            # A whole text that is a model spec with an adapter: everything behind it up to & is the path, spaces too.
            rf"\A(?P<adapted>(?:[\w.-]+=)?(?:bundled|hf|{_KINDS}):[^?\n]*\?(?:[^&\n]*&)?adapter=)"
            rf"(?P<adapter_path>(?:/(?!/)|{_HOME}|{_DRIVE})[^&\n]*)",
            # A whole text that is a model spec: everything up to its ? or # is the path, spaces too.
            rf"\A(?P<spec>(?:[\w.-]+=)?(?:{_KINDS}):)(?P<spec_path>(?:/(?!/)|{_HOME}|{_DRIVE})[^?#\n]*)",
            # Between quotes, as a shell command writes a path that holds spaces.
            rf"""(?<=["'])(?P<quoted>(?:[^"'\s/\\=:]*[=:])*)"""
            rf"""(?P<quoted_path>(?:/[^/"'?#]+/|{_HOME}|{_DRIVE})[^"'?#]*)(?=["'?#])""",
            rf"(?<![A-Za-z0-9])(?!(?:{_KINDS})://)(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+://)"
            r"""(?P<host>[^\s/?#"'<>]*)(?P<rest>[^\s?#"'<>]*)(?:\?[^\s#"'<>]*)?""",
            rf"{_BEGIN}(?P<path>(?:/+{_PART}+){{2,}}/*|{_HOME}(?:{_PART}|/)*|{_DRIVE}(?:{_PART}|[\\/])*)",
        )
    )
)


def public_text(text: str) -> str:
    """A text without machine paths and keys: `dir:/srv/me/x` becomes `dir:x`, `https://me:key@host/v1?key=k` loses
    its user, password and query. A public text is returned unchanged.
    """

    def published(place: re.Match[str]) -> str:
        part = place.groupdict(default="")
        if part["scheme"]:
            return part["scheme"] + part["host"].rpartition("@")[2] + part["rest"]
        names = [name for name in re.split(r"[\\/]+", _path(place)) if name]
        if re.match(rf"{_HOME}|{_DRIVE}", _path(place)):
            del names[0]
        return part["adapted"] + part["spec"] + part["quoted"] + (names[-1] if names else "")

    while (shorter := _PLACE.sub(published, text)) != text:  # the rest of a path may begin another one
        text = shorter
    return redacted(text)


def _path(place: re.Match[str]) -> str:
    return place["adapter_path"] or place["spec_path"] or place["quoted_path"] or place["path"] or ""


def public(value: Any) -> Any:
    """`public_text` of every text in nested dicts (their values), lists and tuples; other values are unchanged."""
    if isinstance(value, str):
        return public_text(value)
    if isinstance(value, Mapping):
        return {key: public(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(public(inner) for inner in value)
    return value


def machine_paths(value: Any) -> Iterator[str]:
    """The texts in a nested value that hold a machine path."""
    text = repr(value)
    # Every path holds one of the two; most records hold neither.
    return _machine_paths(value) if "/" in text or "\\" in text else iter(())


def _machine_paths(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if ("/" in value or "\\" in value) and any(_path(place) for place in _PLACE.finditer(value)):
            yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _machine_paths(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _machine_paths(inner)
