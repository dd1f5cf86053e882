"""Models of the Hugging Face hub: the commit that a name means, and its files in the local cache.

A branch or a tag can mean another model tomorrow, so a spec is resolved to a commit before it becomes an identity: by
the hub, or by the local cache if the hub is not available. The files of that commit are then a folder like any other.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinyllm_bench.base.errors import UserError
from tinyllm_bench.models.files import CONFIG, INDEX, WEIGHTS, is_small, read_object, weight_files
from tinyllm_bench.models.specs import ModelSpec, at_revision

_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class _Listing:
    """The commit and the files of a revision on the hub."""

    commit: str
    files: tuple[str, ...]


def at_commit(spec: ModelSpec) -> ModelSpec:
    """A hub spec with its commit as the revision. Other specs, and those that cannot be resolved, are unchanged."""
    if spec.kind != "hf":
        return spec
    commit = _commit(spec)
    return spec if commit is None else at_revision(spec, commit)


def forget_revisions() -> None:
    """Resolve branches and tags again from now on; results are cached in a process until then."""
    _listing.cache_clear()


def _commit(spec: ModelSpec) -> str | None:
    from huggingface_hub import constants

    revision = spec.revision or constants.DEFAULT_REVISION
    if _COMMIT.fullmatch(revision):
        return revision
    if not constants.HF_HUB_OFFLINE:
        with suppress(Exception):  # `check_listed` reports what is wrong
            return _listing(spec.location, revision).commit
    file = _cache_of(spec) / "refs" / revision
    with suppress(OSError, UnicodeDecodeError):
        commit = file.read_text(encoding="utf-8").strip()
        return commit if _COMMIT.fullmatch(commit) else None
    return None


def _cache_of(spec: ModelSpec) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=spec.location, repo_type="model")


@lru_cache(maxsize=64)
def _listing(name: str, revision: str) -> _Listing:
    from huggingface_hub import HfApi

    info = HfApi().model_info(name, revision=revision, timeout=_TIMEOUT_SECONDS)
    assert info.sha is not None
    return _Listing(info.sha, tuple(file.rfilename for file in info.siblings or []))


def cached_folder(spec: ModelSpec) -> Path | None:
    """The folder of the spec's commit in the local cache, complete or not; None if there is none."""
    commit = _commit(spec)
    folder = None if commit is None else _cache_of(spec) / "snapshots" / commit
    return folder if folder is not None and folder.is_dir() else None


def available_folder(spec: ModelSpec) -> Path | None:
    """The folder of the spec's commit in the cache if it is complete, or if the hub is switched off; else None.

    Raises:
        UserError: as `is_whole`.
    """
    from huggingface_hub import constants

    folder = cached_folder(spec)
    return folder if folder is not None and (constants.HF_HUB_OFFLINE or is_whole(spec, folder)) else None


def is_whole(spec: ModelSpec, folder: Path) -> bool:
    """Whether a folder of the cache has a configuration and all weights; a download may have been interrupted.

    Raises:
        UserError: its index names anything but safetensors of the folder.
    """
    if not (folder / CONFIG).is_file() or not ((folder / WEIGHTS).is_file() or (folder / INDEX).is_file()):
        return False
    return all((folder / name).is_file() for name in weight_files(spec.text, folder))


def check_listed(spec: ModelSpec) -> None:
    """Check that the hub has a model, as safetensors; one request.

    Raises:
        UserError: no such model or revision, a gated one, no safetensors, a hub that cannot be reached.
    """
    files = _listed(spec).files
    if WEIGHTS not in files and INDEX not in files:
        raise UserError(
            f"{spec.text}: this repository has no {WEIGHTS} and no {INDEX}; safetensors only: choose another revision"
        )


def _listed(spec: ModelSpec) -> _Listing:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"{spec.text} is not in the local Hugging Face cache and HF_HUB_OFFLINE is set; unset it, or download the "
            "model elsewhere and name it as dir:FOLDER, or use bundled:smollm2-135m"
        )
    try:
        return _listing(spec.location, spec.revision or constants.DEFAULT_REVISION)
    except GatedRepoError:
        raise UserError(f"{spec.text} is gated; accept its terms on the hub and log in with `hf auth login`") from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"{spec.text}: the hub has no such model or revision; check hf:OWNER/NAME@REVISION") from None
    except Exception as error:  # every failure of the connection means the same to the user
        raise UserError(
            f"{spec.text} is not in the local cache and the hub cannot be reached ({type(error).__name__}); "
            "use dir:FOLDER or bundled:smollm2-135m"
        ) from None


def hub_folder(spec: ModelSpec, *, weights: bool) -> Path:
    """The folder of the spec's commit with all files that are read; missing ones are fetched.

    Without `weights`, only the small files. The index is checked before any weights are fetched.

    Raises:
        UserError: as `check_listed`; an index that names anything but safetensors; a download that fails.
    """
    folder = available_folder(spec) if weights else cached_folder(spec)
    if folder is not None and (weights or (folder / CONFIG).is_file()):
        return folder
    listing = _listed(spec)
    small = [name for name in listing.files if is_small(name)]
    folder = _download(spec, listing.commit, small)
    if weights:
        names = [WEIGHTS] if WEIGHTS in listing.files else weight_files(spec.text, folder)
        _download(spec, listing.commit, names)
    return folder


def _download(spec: ModelSpec, commit: str, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(spec.location, revision=commit, allow_patterns=names))
    except Exception as error:  # as above
        line = next(iter(str(error).strip().splitlines()), "")
        raise UserError(f"{spec.text} could not be fetched ({type(error).__name__}: {line}); try again") from None


def hub_config(spec: ModelSpec) -> dict[str, Any] | None:
    """A hub model's configuration, from the cache or the hub; None if neither has it (`check_spec` says why)."""
    folder = cached_folder(spec)
    with suppress(Exception):
        if folder is None or not (folder / CONFIG).is_file():
            folder = _download(spec, _listed(spec).commit, [CONFIG])
        return read_object(spec.text, folder / CONFIG)
    return None
