"""`export --push`: an exported folder becomes a model repository on the Hugging Face hub, private unless told not to.

The token comes from HF_TOKEN and goes to huggingface_hub alone: it stands in no message and no file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinyllm_bench.base.errors import UserError

TOKEN = "HF_TOKEN"


def check_repo(repo: str) -> None:
    """Refuse what is no repository's name, before anything is done.

    Raises:
        UserError: not OWNER/NAME in the hub's letters.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        owner_and_name = repo.count("/") == 1
    except HFValidationError:
        owner_and_name = False
    if not owner_and_name:
        raise UserError(f"--push {repo}: not a repository; write OWNER/NAME in letters, digits, '-', '_' and '.'")


def check_token() -> None:
    """Refuse to go on without a token, or where the hub may not be called.

    Raises:
        UserError: no token in the environment, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import is_offline_mode

    if not os.environ.get(TOKEN):
        raise UserError(
            f"--push needs a token that may write, in the environment variable {TOKEN}; --dry-run needs none"
        )
    if is_offline_mode():
        raise UserError("--push: HF_HUB_OFFLINE is set; unset it, or see what would be sent with --dry-run")


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Create the repository if it is not there, and upload the folder; returns its address. What else is there stays.

    Raises:
        UserError: no token, no connection, the hub refuses, or the repository is public where a private one was asked
            for.
    """
    from huggingface_hub import HfApi

    check_repo(repo)
    check_token()
    token = os.environ[TOKEN]
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="tinyllm-bench")
    with _readable(repo, token):
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        if private and not api.repo_info(repo, repo_type="model").private:
            raise UserError(f"--push {repo}: the repository is there and public; add --public, or name another one")
        api.upload_folder(repo_id=repo, folder_path=folder, repo_type="model", commit_message=message)
    return f"{api.endpoint}/{repo}"


@contextmanager
def _readable(repo: str, token: str) -> Iterator[None]:
    """Turn what the hub or the connection says into one line without the token."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except UserError:
        raise
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = " ".join(str(error).split()).replace(token, "***")[:300]
        fix = f"is the token in {TOKEN} valid, and may it write there?" if status in (401, 403) else "try again"
        # `from None`: what stands behind the error may hold the request's headers.
        raise UserError(f"--push {repo}: {type(error).__name__}: {said}; {fix}") from None
