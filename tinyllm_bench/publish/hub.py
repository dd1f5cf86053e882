"""`export --push`: upload an exported folder to a model repository on the Hugging Face hub, private by default.

The token comes from HF_TOKEN and goes to huggingface_hub alone: no message and no file contains it.
"""

import os
from pathlib import Path

from tinyllm_bench.base.errors import UserError

TOKEN = "HF_TOKEN"


def check_repo(repo: str) -> None:
    """Refuse an invalid repository name before anything is done.

    Raises:
        UserError: not OWNER/NAME in the characters that the hub allows.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(f"--push {repo}: not a repository; write OWNER/NAME in letters, digits, '-', '_' and '.'")


def check_token() -> None:
    """Refuse to continue without a token, or offline.

    Raises:
        UserError: no token in the environment, or HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import is_offline_mode

    if not os.environ.get(TOKEN):
        raise UserError(
            f"--push needs a token with write access in the environment variable {TOKEN}; --dry-run needs none"
        )
    if is_offline_mode():
        raise UserError("--push: HF_HUB_OFFLINE is set; unset it, or see what would be uploaded with --dry-run")


def push(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Create the repository if it does not exist, and upload the folder. Other files in the repository stay.

    Returns:
        The repository's address.

    Raises:
        UserError: no token, no connection, the hub refuses, or the repository is public where a private one was
            requested.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_repo(repo)
    check_token()
    token = os.environ[TOKEN]
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="tinyllm-bench")
    try:
        api.create_repo(repo, private=private, exist_ok=True, repo_type="model")
        if private and not api.repo_info(repo, repo_type="model").private:
            raise UserError(f"--push {repo}: the repository exists and is public; add --public, or name another one")
        api.upload_folder(repo_id=repo, folder_path=folder, repo_type="model", commit_message=message)
    except UserError:
        raise
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = " ".join(str(error).split()).replace(token, "***")[:300]
        fix = (
            f"is the token in {TOKEN} valid, and does it have write access there?"
            if status in (401, 403)
            else "try again"
        )
        # `from None`: the chained exception may hold the request's headers, and the token with them
        raise UserError(f"--push {repo}: {type(error).__name__}: {reason}; {fix}") from None
    return f"{api.endpoint}/{repo}"
