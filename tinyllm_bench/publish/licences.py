"""The terms of models as far as this project knows them: what stands in `licences.yaml`, and unknown for the rest."""

from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Terms(BaseModel):
    """One entry of `licences.yaml`, whose head says what the fields mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...]
    licence: str
    hub: str | None
    url: str | None
    outputs: str | None


@cache
def _known() -> tuple[Terms, ...]:
    import yaml

    return tuple(Terms.model_validate(entry) for entry in yaml.safe_load(_file().read_text()))


def _file() -> Path:
    return Path(__file__).with_name("licences.yaml")


def terms_of(spec: str) -> Terms | None:
    """The terms of the model that a spec names, None where they are not known: a folder says nothing of its licence."""
    name = spec.partition("?")[0].partition("@")[0].lower()
    return next((terms for terms in _known() if any(fnmatchcase(name, one) for one in terms.models)), None)
